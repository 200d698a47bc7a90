package kinds

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	pvutil "k8s.io/kubernetes/pkg/api/persistentvolume"
	pvcutil "k8s.io/kubernetes/pkg/api/persistentvolumeclaim"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	volumevalidation "k8s.io/kubernetes/pkg/volume/validation"

	"edged/apiserver/registry"
)

func persistentVolumes() *registry.Kind {
	s := volumeStrategy{newBase(false).resets("v1", "status")}
	k := returnsDeleted(row[corev1.PersistentVolume, corev1.PersistentVolumeList](corev1.SchemeGroupVersion, "persistentvolumes", s, "pv"))
	return withStatus(k, volumeStatusStrategy{volumeStrategy{newBase(false).resets("v1", "spec")}})
}

func persistentVolumeClaims() *registry.Kind {
	s := claimStrategy{newBase(true).resets("v1", "status")}
	k := returnsDeleted(row[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](corev1.SchemeGroupVersion, "persistentvolumeclaims", s, "pvc"))
	return withStatus(k, claimStatusStrategy{claimStrategy{newBase(true).resets("v1", "spec")}})
}

// volumeStrategy follows pkg/registry/core/persistentvolume.
type volumeStrategy struct{ base }

func (volumeStrategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	pv := obj.(*api.PersistentVolume)
	now := metav1.NewTime(registry.NowOf(ctx)).Rfc3339Copy()
	pv.Status = api.PersistentVolumeStatus{Phase: api.VolumePending, LastPhaseTransitionTime: &now}
	pvutil.DropDisabledSpecFields(&pv.Spec, nil)
}

func (volumeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pv, was := obj.(*api.PersistentVolume), old.(*api.PersistentVolume)
	pv.Status = was.Status
	pvutil.DropDisabledSpecFields(&pv.Spec, &was.Spec)
}

func (volumeStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	pv := obj.(*api.PersistentVolume)
	return append(validation.ValidatePersistentVolume(pv, validation.ValidationOptionsForPersistentVolume(pv, nil)), volumevalidation.ValidatePersistentVolume(pv)...)
}

func (volumeStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pv, was := obj.(*api.PersistentVolume), old.(*api.PersistentVolume)
	opts := validation.ValidationOptionsForPersistentVolume(pv, was)
	errs := append(validation.ValidatePersistentVolume(pv, opts), volumevalidation.ValidatePersistentVolume(pv)...)
	return append(errs, validation.ValidatePersistentVolumeUpdate(pv, was, opts)...)
}

func (volumeStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return pvutil.GetWarningsForPersistentVolume(obj.(*api.PersistentVolume))
}

func (volumeStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return pvutil.GetWarningsForPersistentVolume(obj.(*api.PersistentVolume))
}

type volumeStatusStrategy struct{ volumeStrategy }

// PrepareForUpdate notes when the phase changed if the writer did not.
func (volumeStatusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	pv, was := obj.(*api.PersistentVolume), old.(*api.PersistentVolume)
	pv.Spec = was.Spec
	at, before := pv.Status.LastPhaseTransitionTime, was.Status.LastPhaseTransitionTime
	switch {
	case pv.Status.Phase == was.Status.Phase && at == nil:
		pv.Status.LastPhaseTransitionTime = before
	case pv.Status.Phase != was.Status.Phase && (at == nil || at.Equal(before)):
		now := metav1.NewTime(registry.NowOf(ctx)).Rfc3339Copy()
		pv.Status.LastPhaseTransitionTime = &now
	}
}

func (volumeStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidatePersistentVolumeStatusUpdate(obj.(*api.PersistentVolume), old.(*api.PersistentVolume))
}

func (volumeStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// claimStrategy follows pkg/registry/core/persistentvolumeclaim.
type claimStrategy struct{ base }

func (claimStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	pvc := obj.(*api.PersistentVolumeClaim)
	pvc.Status = api.PersistentVolumeClaimStatus{Phase: api.ClaimPending}
	pvcutil.DropDisabledFields(&pvc.Spec, nil)
	pvcutil.EnforceDataSourceBackwardsCompatibility(&pvc.Spec, nil)
	pvcutil.NormalizeDataSources(&pvc.Spec)
}

// PrepareForUpdate fills in what older clients leave out of the data source,
// in the old object too.
func (claimStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pvc, was := obj.(*api.PersistentVolumeClaim), old.(*api.PersistentVolumeClaim)
	pvc.Status = was.Status
	pvcutil.DropDisabledFields(&pvc.Spec, &was.Spec)
	pvcutil.EnforceDataSourceBackwardsCompatibility(&pvc.Spec, &was.Spec)
	pvcutil.NormalizeDataSources(&pvc.Spec)
	pvcutil.NormalizeDataSources(&was.Spec)
}

func (claimStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	pvc := obj.(*api.PersistentVolumeClaim)
	return validation.ValidatePersistentVolumeClaim(pvc, validation.ValidationOptionsForPersistentVolumeClaim(pvc, nil))
}

func (claimStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pvc, was := obj.(*api.PersistentVolumeClaim), old.(*api.PersistentVolumeClaim)
	return validation.ValidatePersistentVolumeClaimUpdate(pvc, was, validation.ValidationOptionsForPersistentVolumeClaim(pvc, was))
}

func (claimStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return pvcutil.GetWarningsForPersistentVolumeClaim(obj.(*api.PersistentVolumeClaim))
}

func (claimStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return pvcutil.GetWarningsForPersistentVolumeClaim(obj.(*api.PersistentVolumeClaim))
}

type claimStatusStrategy struct{ claimStrategy }

func (claimStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pvc, was := obj.(*api.PersistentVolumeClaim), old.(*api.PersistentVolumeClaim)
	pvc.Spec = was.Spec
	pvcutil.DropDisabledFieldsFromStatus(pvc, was)
}

func (claimStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pvc, was := obj.(*api.PersistentVolumeClaim), old.(*api.PersistentVolumeClaim)
	return validation.ValidatePersistentVolumeClaimStatusUpdate(pvc, was, validation.ValidationOptionsForPersistentVolumeClaim(pvc, was))
}

func (claimStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
