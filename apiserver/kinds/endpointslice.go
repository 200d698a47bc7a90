package kinds

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	discoveryapi "k8s.io/kubernetes/pkg/apis/discovery"
	"k8s.io/kubernetes/pkg/apis/discovery/validation"
	"k8s.io/kubernetes/pkg/features"

	"edged/apiserver/registry"
)

func discovery() []*registry.Kind {
	return []*registry.Kind{
		row[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](
			discoveryv1.SchemeGroupVersion, "endpointslices", endpointSliceStrategy{newBase(true)}),
	}
}

// endpointSliceStrategy follows pkg/registry/discovery/endpointslice.
type endpointSliceStrategy struct{ base }

func (endpointSliceStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	slice := obj.(*discoveryapi.EndpointSlice)
	slice.Generation = 1
	dropNodeHints(slice, nil)
	dropTopology(slice, nil)
}

func (endpointSliceStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	slice, was := obj.(*discoveryapi.EndpointSlice), old.(*discoveryapi.EndpointSlice)
	a, b := *slice, *was
	a.ObjectMeta, b.ObjectMeta = metav1.ObjectMeta{}, metav1.ObjectMeta{}
	if !equality.Semantic.DeepEqual(a, b) || !equality.Semantic.DeepEqual(slice.Labels, was.Labels) {
		slice.Generation = was.Generation + 1
	}
	dropNodeHints(slice, was)
	dropTopology(slice, was)
}

// dropNodeHints removes the hints of a feature that is off, unless the slice
// has them already.
func dropNodeHints(slice, was *discoveryapi.EndpointSlice) {
	if utilfeature.DefaultFeatureGate.Enabled(features.PreferSameTrafficDistribution) {
		return
	}
	if was != nil {
		for _, ep := range was.Endpoints {
			if ep.Hints != nil && ep.Hints.ForNodes != nil {
				return
			}
		}
	}
	for i := range slice.Endpoints {
		if h := slice.Endpoints[i].Hints; h != nil {
			h.ForNodes = nil
		}
	}
}

// dropTopology removes the topology map, which v1 does not have, and keeps the
// node's name that an older version of the slice held in it.
func dropTopology(slice, was *discoveryapi.EndpointSlice) {
	if was != nil && equality.Semantic.DeepEqual(was.Endpoints, slice.Endpoints) {
		return
	}
	known := map[string]bool{}
	if was != nil {
		for _, ep := range was.Endpoints {
			known[ep.DeprecatedTopology[corev1.LabelHostname]] = true
		}
	}
	for i := range slice.Endpoints {
		ep := &slice.Endpoints[i]
		name := ep.DeprecatedTopology[corev1.LabelHostname]
		if ep.NodeName == nil && name != "" && known[name] && len(corevalidation.ValidateNodeName(name, false)) == 0 {
			ep.NodeName = &name
		}
		ep.DeprecatedTopology = nil
	}
}

func (endpointSliceStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateEndpointSliceCreate(obj.(*discoveryapi.EndpointSlice))
}

func (endpointSliceStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateEndpointSliceUpdate(obj.(*discoveryapi.EndpointSlice), old.(*discoveryapi.EndpointSlice))
}

func (s endpointSliceStrategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	var warnings []string
	if obj.(*discoveryapi.EndpointSlice).AddressType == discoveryapi.AddressTypeFQDN {
		warnings = append(warnings, fmt.Sprintf("%s: FQDN endpoints are deprecated", field.NewPath("spec").Child("addressType")))
	}
	return append(warnings, s.WarningsOnUpdate(ctx, obj, nil)...)
}

func (endpointSliceStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	slice := obj.(*discoveryapi.EndpointSlice)
	switch slice.Labels[discoveryv1.LabelManagedBy] {
	case "endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io":
		return nil // controllers write addresses in their canonical form
	}
	var warnings []string
	for i, ep := range slice.Endpoints {
		for j, addr := range ep.Addresses {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(field.NewPath("endpoints").Index(i).Child("addresses").Index(j), addr)...)
		}
	}
	return warnings
}
