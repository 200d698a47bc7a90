package admission

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/registry"
	"edged/apiserver/registry/quota"
)

// resourceQuota refuses what a namespace's quotas have no room for, and charges
// them for the rest. It is the last plugin: what it charged for is written next.
// A charge for a write that then failed is taken back by the controller.
type resourceQuota struct {
	validateOnly
	quotas registry.Client[*corev1.ResourceQuota]
	now    func() time.Time
}

func newResourceQuota(r *registry.Registry) *resourceQuota {
	return &resourceQuota{quotas: registry.For[*corev1.ResourceQuota](r), now: r.Now}
}

func (p *resourceQuota) Validate(ctx context.Context, a *registry.Attributes) error {
	if a.Namespace == "" || a.Kind == nil || !isCharged(a) {
		return nil
	}
	quotas := p.quotas.List(a.Namespace)
	if len(quotas) == 0 {
		return nil
	}
	o := quota.Object{Resource: a.Kind.GroupResource(), Object: a.Object}
	var old runtime.Object
	if a.Operation == update {
		old = a.OldObject
	}
	now := p.now()
	var charged []string
	for _, q := range quotas {
		used, err := quota.Check(q, o, old, now)
		if err != nil {
			return forbidden(a, err)
		}
		if used != nil {
			charged = append(charged, q.Name)
		}
	}
	if a.DryRun {
		return nil
	}
	for _, name := range charged {
		_, err := p.quotas.UpdateStatus(ctx, a.Namespace, name, func(q *corev1.ResourceQuota) error {
			used, err := quota.Check(q, o, old, now) // of the newest: others write, too
			if err != nil {
				return forbidden(a, err)
			}
			if used != nil {
				q.Status.Used = used
			}
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// isCharged reports whether the write may use more of a quota.
func isCharged(a *registry.Attributes) bool {
	switch a.Operation {
	case create:
		return a.Subresource == "" && a.Object != nil && a.Kind.Resource != "events"
	case update:
	default:
		return false
	}
	switch now := a.Object.(type) {
	case *corev1.Pod:
		old, ok := a.OldObject.(*corev1.Pod)
		return ok && (a.Subresource == "resize" || a.Subresource == "" && (now.Spec.ActiveDeadlineSeconds == nil) != (old.Spec.ActiveDeadlineSeconds == nil))
	case *corev1.Service, *corev1.PersistentVolumeClaim:
		return a.Subresource == ""
	}
	return false
}
