package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// ServeHTTP is the way of every request; see the package comment.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	defer s.recoverPanic(w, req)
	w.Header().Set("Cache-Control", "no-cache, private")
	info, err := s.infos.NewRequestInfo(req)
	if err != nil {
		s.respondError(w, req, apierrors.NewBadRequest(err.Error()))
		return
	}
	if s.cfg.Observe != nil {
		seen := &observed{ResponseWriter: w, code: http.StatusOK}
		w = seen
		defer func() { s.cfg.Observe(info, s.known(info), seen.code) }()
	}
	ctx := request.WithRequestInfo(req.Context(), info)
	req = req.WithContext(withWarnings(ctx, w))

	release, err := s.admitInFlight(req, info)
	if err != nil {
		w.Header().Set("Retry-After", "1")
		s.respondError(w, req, err)
		return
	}
	defer release()

	if !longRunning(req, info) {
		ctx, cancel, err := s.withDeadline(req)
		if err != nil {
			s.respondError(w, req, err)
			return
		}
		defer cancel()
		req = req.WithContext(ctx)
	}
	req, err = s.identify(req, info)
	if err != nil {
		s.respondError(w, req, err)
		return
	}
	if u, ok := registry.UserFrom(req.Context()); ok {
		s.flows.classify(w, info, u)
	}
	if err := s.authorize(req, info); err != nil {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		s.respondError(w, req, err)
		return
	}
	s.route(w, req, info)
}

// recoverPanic turns a panic of a handler into a 500 of that request alone.
func (s *Server) recoverPanic(w http.ResponseWriter, req *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.logger.Error("request panicked", "method", req.Method, "path", req.URL.Path, "panic", v, "stack", string(debug.Stack()))
	// If the answer has begun this does nothing but end it.
	http.Error(w, "This request caused apiserver to panic. Look in the logs for details.", http.StatusInternalServerError)
}

// longRunning requests have no deadline and a limit of their own.
func longRunning(req *http.Request, info *request.RequestInfo) bool {
	if !info.IsResourceRequest {
		return strings.HasPrefix(req.URL.Path, "/debug/pprof/")
	}
	switch info.Verb {
	case "watch", "proxy":
		return true
	}
	switch info.Subresource {
	case "attach", "exec", "proxy", "log", "portforward":
		return true
	}
	return false
}

// admitInFlight takes a place among the running requests, waiting for one if
// need be. Health checks always run.
func (s *Server) admitInFlight(req *http.Request, info *request.RequestInfo) (release func(), err error) {
	if !info.IsResourceRequest && isHealthPath(info.Path) {
		return func() {}, nil
	}
	places := s.writes
	switch {
	case longRunning(req, info):
		places = s.long
	case info.Verb == "get" || info.Verb == "list":
		places = s.reads
	}
	release = func() { <-places }
	select {
	case places <- struct{}{}:
		return release, nil
	default:
	}
	timeout := time.NewTimer(s.limits.QueueTimeout)
	defer timeout.Stop()
	select {
	case places <- struct{}{}:
		return release, nil
	case <-req.Context().Done():
	case <-timeout.C:
	}
	return nil, apierrors.NewTooManyRequests("Too many requests, please try again later.", 1)
}

// withDeadline bounds a request by ?timeout= or the server's limit, whichever
// is less; 0 means the limit.
func (s *Server) withDeadline(req *http.Request) (context.Context, context.CancelFunc, error) {
	limit := s.limits.RequestTimeout
	if v := req.URL.Query().Get("timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err))
		}
		if d > 0 && d < limit {
			limit = d
		}
	}
	ctx, cancel := context.WithTimeout(req.Context(), limit)
	return ctx, cancel, nil
}
