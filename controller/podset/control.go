package podset

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
)

// Control makes and deletes Pods and tells it in Events about their owner.
type Control struct {
	Pods   registry.Client[*corev1.Pod]
	Events *recorder.Recorder
}

// Create makes a Pod.
func (c Control) Create(ctx context.Context, pod *corev1.Pod, owner corev1.ObjectReference) (*corev1.Pod, error) {
	made, err := c.Pods.Create(ctx, pod)
	switch {
	case err == nil:
		c.Events.Event(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: "+made.Name)
	case !IsNamespaceEnding(err):
		c.Events.Event(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: "+err.Error())
	}
	return made, err
}

// Delete deletes a Pod. That it is gone already is fine.
func (c Control) Delete(ctx context.Context, pod *corev1.Pod, owner corev1.ObjectReference) error {
	err := c.Pods.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	switch {
	case err == nil:
		c.Events.Event(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: "+pod.Name)
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err): // another Pod has the name
		return nil
	default:
		c.Events.Event(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: "+err.Error())
	}
	return err
}

// IsNamespaceEnding reports that a write was refused because its namespace is
// being deleted: nothing to report, nothing to try again.
func IsNamespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
