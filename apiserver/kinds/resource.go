package kinds

import (
	"context"
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/api/resourceclaimspec"
	api "k8s.io/kubernetes/pkg/apis/resource"
	"k8s.io/kubernetes/pkg/apis/resource/validation"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/registry/resource/deviceclass"
	"k8s.io/kubernetes/pkg/registry/resource/devicetaintrule"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

// resources are the kinds of the group resource.k8s.io. edged allocates no
// devices: claims are stored for drivers and schedulers that a user brings.
func resources() []*registry.Kind {
	const apiVersion = "resource.k8s.io/v1"
	v1 := resourcev1.SchemeGroupVersion
	slices := returnsDeleted(row[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](v1, "resourceslices", resourceSliceStrategy{newBase(false)}))
	slices.Fields = func(obj runtime.Object) fields.Set {
		spec := &obj.(*resourcev1.ResourceSlice).Spec
		return fields.Set{
			resourcev1.ResourceSliceSelectorNodeName: ptr.Deref(spec.NodeName, ""),
			resourcev1.ResourceSliceSelectorDriver:   spec.Driver,
			api.ResourceSliceSelectorPoolName:        spec.Pool.Name,
		}
	}
	slices.SelectableFields = []string{resourcev1.ResourceSliceSelectorNodeName, resourcev1.ResourceSliceSelectorDriver, api.ResourceSliceSelectorPoolName}
	return []*registry.Kind{
		returnsDeleted(row[resourcev1.DeviceClass, resourcev1.DeviceClassList](v1, "deviceclasses", deviceclass.Strategy)),
		withStatus(row[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](v1, "devicetaintrules", devicetaintrule.Strategy), devicetaintrule.StatusStrategy),
		returnsDeleted(withStatus(
			row[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](v1, "resourceclaims", resourceClaimStrategy{newBase(true).resets(apiVersion, "status")}),
			resourceClaimStatusStrategy{resourceClaimStrategy{newBase(true).resets(apiVersion, "metadata", "spec")}})),
		returnsDeleted(row[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](v1, "resourceclaimtemplates", claimTemplateStrategy{newBase(true)})),
		slices,
	}
}

// resourceClaimStrategy follows pkg/registry/resource/resourceclaim. What needs
// a Namespace's label (admin access) is checked by admission.
type resourceClaimStrategy struct{ base }

func (resourceClaimStrategy) DeclarativeValidationConfig(context.Context, runtime.Object, runtime.Object) rest.DeclarativeValidationConfig {
	return rest.DeclarativeValidationConfig{NormalizationRules: validation.ResourceNormalizationRules}
}

func (resourceClaimStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	claim := obj.(*api.ResourceClaim)
	claim.Status = api.ResourceClaimStatus{}
	resourceclaimspec.DropDisabledFields(&claim.Spec, nil)
}

func (resourceClaimStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	claim, was := obj.(*api.ResourceClaim), old.(*api.ResourceClaim)
	claim.Status = was.Status
	resourceclaimspec.DropDisabledFields(&claim.Spec, &was.Spec)
}

func (resourceClaimStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateResourceClaim(obj.(*api.ResourceClaim))
}

func (resourceClaimStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateResourceClaimUpdate(obj.(*api.ResourceClaim), old.(*api.ResourceClaim))
}

type resourceClaimStatusStrategy struct{ resourceClaimStrategy }

func (resourceClaimStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	claim, was := obj.(*api.ResourceClaim), old.(*api.ResourceClaim)
	claim.Spec = was.Spec
	metav1.ResetObjectMetaForStatus(&claim.ObjectMeta, &was.ObjectMeta)
	dropDeallocated(claim, was)
}

func (resourceClaimStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateResourceClaimStatusUpdate(obj.(*api.ResourceClaim), old.(*api.ResourceClaim))
}

// allocated names a device, or a share of one, in a claim's status.
type allocated struct{ driver, pool, device, share string }

func allocations(s *api.ResourceClaimStatus) map[allocated]bool {
	out := map[allocated]bool{}
	if s.Allocation == nil {
		return out
	}
	for _, r := range s.Allocation.Devices.Results {
		out[allocated{r.Driver, r.Pool, r.Device, string(ptr.Deref(r.ShareID, ""))}] = true
	}
	return out
}

// dropDeallocated removes what drivers said about devices that the claim had
// and has no more, so that a writer that knows nothing of it leaves nothing
// stale behind.
func dropDeallocated(claim, was *api.ResourceClaim) {
	before, now := allocations(&was.Status), allocations(&claim.Status)
	var kept []api.AllocatedDeviceStatus
	for _, d := range claim.Status.Devices {
		id := allocated{d.Driver, d.Pool, d.Device, string(ptr.Deref(d.ShareID, ""))}
		if now[id] || !before[id] {
			kept = append(kept, d)
		}
	}
	claim.Status.Devices = kept
}

// claimTemplateStrategy follows pkg/registry/resource/resourceclaimtemplate.
type claimTemplateStrategy struct{ base }

func (claimTemplateStrategy) DeclarativeValidationConfig(context.Context, runtime.Object, runtime.Object) rest.DeclarativeValidationConfig {
	return rest.DeclarativeValidationConfig{NormalizationRules: validation.ResourceNormalizationRules}
}

func (claimTemplateStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	resourceclaimspec.DropDisabledFields(&obj.(*api.ResourceClaimTemplate).Spec.Spec, nil)
}

func (claimTemplateStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	resourceclaimspec.DropDisabledFields(&obj.(*api.ResourceClaimTemplate).Spec.Spec, &old.(*api.ResourceClaimTemplate).Spec.Spec)
}

func (claimTemplateStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateResourceClaimTemplate(obj.(*api.ResourceClaimTemplate))
}

func (claimTemplateStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	template, was := obj.(*api.ResourceClaimTemplate), old.(*api.ResourceClaimTemplate)
	return append(validation.ValidateResourceClaimTemplate(template), validation.ValidateResourceClaimTemplateUpdate(template, was)...)
}

// resourceSliceStrategy follows pkg/registry/resource/resourceslice. Fields of
// upstream's alpha features are kept rather than dropped: validation refuses
// what it does not know.
type resourceSliceStrategy struct{ base }

func (resourceSliceStrategy) DeclarativeValidationConfig(context.Context, runtime.Object, runtime.Object) rest.DeclarativeValidationConfig {
	return rest.DeclarativeValidationConfig{
		NormalizationRules: validation.ResourceNormalizationRules,
		Options: map[string]bool{
			string(features.DRAPartitionableDevicesType): feature.DefaultFeatureGate.Enabled(features.DRAPartitionableDevicesType),
		},
	}
}

func (resourceSliceStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	obj.(*api.ResourceSlice).Generation = 1
}

func (resourceSliceStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	slice, was := obj.(*api.ResourceSlice), old.(*api.ResourceSlice)
	if !equality.Semantic.DeepEqual(was.Spec, slice.Spec) {
		slice.Generation = was.Generation + 1
	}
}

func (resourceSliceStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateResourceSlice(obj.(*api.ResourceSlice))
}

func (resourceSliceStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateResourceSliceUpdate(obj.(*api.ResourceSlice), old.(*api.ResourceSlice))
}

func (resourceSliceStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	driver := obj.(*api.ResourceSlice).Spec.Driver
	if driver == strings.ToLower(driver) {
		return nil
	}
	return []string{fmt.Sprintf("spec.driver: driver names should be lowercase; %q contains uppercase characters", driver)}
}

func (s resourceSliceStrategy) WarningsOnUpdate(ctx context.Context, obj, _ runtime.Object) []string {
	return s.WarningsOnCreate(ctx, obj)
}
