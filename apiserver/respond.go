package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// respondError answers with the Status that err is, in the client's format.
func (s *Server) respondError(w http.ResponseWriter, req *http.Request, err error) {
	status := s.statusOf(req, err)
	code := int(status.Code)
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	if code == http.StatusNoContent {
		w.WriteHeader(code)
		return
	}
	out, negotiateErr := negotiate(req, plainEndpoint)
	if negotiateErr != nil {
		out = output{mediaType: "application/json"}
	}
	body, encodeErr := encodeObject(out, status)
	if encodeErr != nil {
		http.Error(w, status.Message, code)
		return
	}
	w.Header().Set("Content-Type", out.mediaType)
	s.write(w, req, code, body)
}

// statusOf finds the Status in err. What has none is a fault of ours or of the
// device, and is logged.
func (s *Server) statusOf(req *http.Request, err error) *metav1.Status {
	var known apierrors.APIStatus
	switch {
	case errors.As(err, &known):
	case errors.Is(err, context.DeadlineExceeded):
		known = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0)
	case errors.Is(err, context.Canceled):
		known = apierrors.NewTimeoutError("the client went away", 0)
	default:
		s.logger.Error("request failed", "method", req.Method, "path", req.URL.Path, "err", err)
		return typedStatus(metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
			Reason: metav1.StatusReasonUnknown, Message: err.Error(),
		})
	}
	status := known.Status()
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
		if status.Status == metav1.StatusSuccess {
			status.Code = http.StatusOK
		}
	}
	return typedStatus(status)
}

func typedStatus(status metav1.Status) *metav1.Status {
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return &status
}

// notFoundPath is what upstream says about a path that leads nowhere.
func notFoundPath(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintln(w, "404 page not found")
}
