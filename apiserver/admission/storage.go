package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
)

// storage gives claims the default class (DefaultStorageClass), claims and volumes
// the finalizers that protect them while they are used (StorageObjectInUseProtection),
// and lets claims grow only where their class can do it (PersistentVolumeClaimResize).
type storage struct {
	classes registry.Client[*storagev1.StorageClass]
}

func newStorage(r *registry.Registry) *storage {
	return &storage{registry.For[*storagev1.StorageClass](r)}
}

func (s *storage) Admit(_ context.Context, a *registry.Attributes) error {
	if a.Operation != create || a.Subresource != "" {
		return nil
	}
	switch o := a.Object.(type) {
	case *corev1.PersistentVolume:
		protect(o, claims.VolumeProtectionFinalizer)
	case *corev1.PersistentVolumeClaim:
		protect(o, claims.ProtectionFinalizer)
		if storagehelpers.PersistentVolumeClaimHasClass(o) {
			return nil
		}
		if class := claims.Default(s.classes.List("")); class != nil {
			o.Spec.StorageClassName = &class.Name
		}
	}
	return nil
}

func protect(o metav1.Object, finalizer string) {
	if !slices.Contains(o.GetFinalizers(), finalizer) {
		o.SetFinalizers(append(slices.Clone(o.GetFinalizers()), finalizer))
	}
}

func (s *storage) Validate(_ context.Context, a *registry.Attributes) error {
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok || a.Operation != update || a.Subresource != "" {
		return nil
	}
	old, ok := a.OldObject.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Spec.Resources.Requests.Storage().Cmp(*old.Spec.Resources.Requests.Storage()) <= 0 {
		return nil
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	class, ok := s.classes.Get("", name)
	if !ok || name != storagehelpers.GetPersistentVolumeClaimClass(old) || class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion {
		return forbidden(a, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
	}
	return nil
}
