package kinds

import (
	"context"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/helper"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"edged/apiserver/registry"
)

func replicationControllers() *registry.Kind {
	s := replicationControllerStrategy{newBase(true).resets("v1", "status")}
	k := inAll(row[corev1.ReplicationController, corev1.ReplicationControllerList](corev1.SchemeGroupVersion, "replicationcontrollers", s, "rc"))
	k.Prefix = "controllers"
	k.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"status.replicas": strconv.Itoa(int(obj.(*corev1.ReplicationController).Status.Replicas))}
	}
	k.SelectableFields = []string{"status.replicas"}
	withScale(k)
	return withStatus(k, replicationControllerStatusStrategy{replicationControllerStrategy{newBase(true).resets("v1", "spec")}})
}

// replicationControllerStrategy follows pkg/registry/core/replicationcontroller.
type replicationControllerStrategy struct{ base }

// DefaultGarbageCollectionPolicy is what it was when v1 was made.
func (replicationControllerStrategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.OrphanDependents
}

func (replicationControllerStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	rc := obj.(*api.ReplicationController)
	rc.Status = api.ReplicationControllerStatus{}
	rc.Generation = 1
	pod.DropDisabledTemplateFields(rc.Spec.Template, nil)
}

func (replicationControllerStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	rc, was := obj.(*api.ReplicationController), old.(*api.ReplicationController)
	rc.Status = was.Status
	pod.DropDisabledTemplateFields(rc.Spec.Template, was.Spec.Template)
	if !equality.Semantic.DeepEqual(was.Spec, rc.Spec) {
		rc.Generation = was.Generation + 1
	}
}

func (replicationControllerStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	rc := obj.(*api.ReplicationController)
	return validation.ValidateReplicationController(rc, pod.GetValidationOptionsFromPodTemplate(rc.Spec.Template, nil))
}

// ValidateUpdate keeps selectors that an older version could not express.
func (replicationControllerStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	rc, was := obj.(*api.ReplicationController), old.(*api.ReplicationController)
	errs := validation.ValidateReplicationControllerUpdate(rc, was, pod.GetValidationOptionsFromPodTemplate(rc.Spec.Template, was.Spec.Template))
	for key, value := range helper.NonConvertibleFields(was.Annotations) {
		_, broken, ok := strings.Cut(key, "/")
		switch {
		case !ok || strings.Contains(broken, "/"):
		case !strings.Contains(broken, "selector"):
			errs = append(errs, &field.Error{Type: field.ErrorTypeNotFound, BadValue: value, Field: broken, Detail: "unknown non-convertible field"})
		case !equality.Semantic.DeepEqual(was.Spec.Selector, rc.Spec.Selector):
			errs = append(errs, field.Invalid(field.NewPath("spec", "selector"), rc.Spec.Selector, "cannot update non-convertible selector"))
		}
	}
	return errs
}

func (replicationControllerStrategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	rc := obj.(*api.ReplicationController)
	return append(podNameWarnings(rc.Name), pod.GetWarningsForPodTemplate(ctx, field.NewPath("spec", "template"), rc.Spec.Template, nil)...)
}

func (replicationControllerStrategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	rc, was := obj.(*api.ReplicationController), old.(*api.ReplicationController)
	if rc.Generation == was.Generation {
		return nil
	}
	return pod.GetWarningsForPodTemplate(ctx, field.NewPath("spec", "template"), was.Spec.Template, rc.Spec.Template)
}

type replicationControllerStatusStrategy struct{ replicationControllerStrategy }

func (replicationControllerStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.ReplicationController).Spec = old.(*api.ReplicationController).Spec
}

func (replicationControllerStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateReplicationControllerStatusUpdate(obj.(*api.ReplicationController), old.(*api.ReplicationController))
}

func (replicationControllerStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
