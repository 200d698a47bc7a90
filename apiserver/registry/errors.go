package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edged/raftstore"
)

// optimisticLock is upstream's OptimisticLockErrorMsg.
var errOptimisticLock = errors.New("the object has been modified; please apply your changes to the latest version and try again")

// Upstream's texts of pkg/storage/etcd3/errors.go, which clients match.
const (
	expiredList          = "The resourceVersion for the provided list is too old."
	expiredWatch         = "The resourceVersion for the provided watch is too old."
	inconsistentContinue = "The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list."
)

// storeError turns what the store said into what the API says: without a
// quorum, or while the device starts, clients are told to come back.
func storeError(err error) error {
	if status := apierrors.APIStatus(nil); err == nil || errors.As(err, &status) {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, raftstore.ErrRequestTooLarge), errors.Is(err, raftstore.ErrTooManyOps):
		return apierrors.NewRequestEntityTooLargeError(err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("the request did not complete in time", 0)
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("the cluster's store cannot serve the request: %v", err))
}

// parseVersion reads a resourceVersion parameter; "" and "0" are 0.
func parseVersion(rv string) (int64, error) {
	if rv == "" || rv == "0" {
		return 0, nil
	}
	v, err := strconv.ParseUint(rv, 10, 63)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", field.Invalid(field.NewPath("resourceVersion"), rv, err.Error())))
	}
	return int64(v), nil
}

func methodNotAllowed(gr schema.GroupResource, verb string) error {
	return apierrors.NewMethodNotSupported(gr, verb)
}

func subresourceNotFound(gr schema.GroupResource, name string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource",
		Details: &metav1.StatusDetails{Group: gr.Group, Kind: gr.Resource, Name: name},
	}}
}
