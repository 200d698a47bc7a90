package kinds

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"edged/apiserver/registry"
)

func namespaces() *registry.Kind {
	s := namespaceStrategy{newBase(false)}
	k := row[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", s, "ns")
	k.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"status.phase": string(obj.(*corev1.Namespace).Status.Phase)}
	}
	k.SelectableFields = []string{"status.phase"}
	k.Verbs = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
	k.ReturnDeleted = true
	k.BeforeDelete = terminateNamespace
	k.ShouldDelete = func(obj runtime.Object) bool { return len(obj.(*corev1.Namespace).Spec.Finalizers) == 0 }
	withStatus(k, namespaceStatusStrategy{s})
	return withSubresource(k, "finalize", &registry.Subresource{
		Strategy: namespaceFinalizeStrategy{s}, Verbs: []string{"update"},
	})
}

// namespaceStrategy follows pkg/registry/core/namespace.
type namespaceStrategy struct{ base }

// PrepareForCreate makes the namespace active and gives it the finalizer that
// keeps it until its content is gone.
func (namespaceStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	ns := obj.(*api.Namespace)
	ns.Status = api.NamespaceStatus{Phase: api.NamespaceActive}
	if !slices.Contains(ns.Spec.Finalizers, api.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, api.FinalizerKubernetes)
	}
}

func (namespaceStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	ns, was := obj.(*api.Namespace), old.(*api.Namespace)
	ns.Spec.Finalizers = was.Spec.Finalizers
	ns.Status = was.Status
}

func (namespaceStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateNamespace(obj.(*api.Namespace))
}

func (namespaceStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	errs := validation.ValidateNamespace(obj.(*api.Namespace))
	return append(errs, validation.ValidateNamespaceUpdate(obj.(*api.Namespace), old.(*api.Namespace))...)
}

// Canonicalize sets the label that names the namespace, which selectors of
// other kinds rely on.
func (namespaceStrategy) Canonicalize(obj runtime.Object) {
	ns := obj.(*api.Namespace)
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

type namespaceStatusStrategy struct{ namespaceStrategy }

func (namespaceStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.Namespace).Spec = old.(*api.Namespace).Spec
}

func (namespaceStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateNamespaceStatusUpdate(obj.(*api.Namespace), old.(*api.Namespace))
}

type namespaceFinalizeStrategy struct{ namespaceStrategy }

func (namespaceFinalizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.Namespace).Status = old.(*api.Namespace).Status
}

func (namespaceFinalizeStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateNamespaceFinalizeUpdate(obj.(*api.Namespace), old.(*api.Namespace))
}

// terminateNamespace marks a namespace as terminating for the namespace
// controller, instead of deleting it while it may have content.
func terminateNamespace(obj runtime.Object, now metav1.Time) registry.DeleteStep {
	ns := obj.(*corev1.Namespace)
	if ns.DeletionTimestamp.IsZero() {
		ns.DeletionTimestamp = &now
		ns.Status.Phase = corev1.NamespaceTerminating
		return registry.DeleteMark
	}
	if len(ns.Spec.Finalizers) != 0 {
		return registry.DeleteWait
	}
	return registry.DeleteGo
}
