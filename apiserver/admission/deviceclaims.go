package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

// deviceClaims holds what upstream's strategies of claims for devices check: a
// namespace's label for administrative access, and the right to allocate and to
// report apart from the right to write a status (KEP-5018, KEP-4817).
type deviceClaims struct {
	validateOnly
	namespaces registry.Client[*corev1.Namespace]
	authz      authorizer.UnconditionalAuthorizer
}

func newDeviceClaims(r *registry.Registry, authz authorizer.UnconditionalAuthorizer) *deviceClaims {
	return &deviceClaims{namespaces: registry.For[*corev1.Namespace](r), authz: authz}
}

func (p *deviceClaims) Validate(ctx context.Context, a *registry.Attributes) error {
	switch obj := a.Object.(type) {
	case *resourcev1.ResourceClaimTemplate:
		if a.Operation == create {
			return p.validateAdmin(a, asksForAdmin(&obj.Spec.Spec))
		}
	case *resourcev1.ResourceClaim:
		was, isUpdate := a.OldObject.(*resourcev1.ResourceClaim)
		switch {
		case a.Operation == create && a.Subresource == "":
			return p.validateAdmin(a, asksForAdmin(&obj.Spec))
		case isUpdate && a.Subresource == "status":
			if err := p.validateAdmin(a, hasAdmin(&obj.Status) && !hasAdmin(&was.Status)); err != nil {
				return err
			}
			return p.validateStatus(ctx, a, &obj.Status, &was.Status)
		}
	}
	return nil
}

func asksForAdmin(spec *resourcev1.ResourceClaimSpec) bool {
	return slices.ContainsFunc(spec.Devices.Requests, func(r resourcev1.DeviceRequest) bool {
		return r.Exactly != nil && ptr.Deref(r.Exactly.AdminAccess, false)
	})
}

func hasAdmin(s *resourcev1.ResourceClaimStatus) bool {
	return s.Allocation != nil && slices.ContainsFunc(s.Allocation.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool {
		return ptr.Deref(r.AdminAccess, false)
	})
}

func (p *deviceClaims) validateAdmin(a *registry.Attributes, wanted bool) error {
	if !wanted {
		return nil
	}
	if ns, ok := p.namespaces.Get("", a.Namespace); ok && ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] == "true" {
		return nil
	}
	return forbidden(a, fmt.Errorf("admin access to devices requires the `%s: true` label on the containing namespace", resourcev1.DRAAdminNamespaceLabelKey))
}

func (p *deviceClaims) validateStatus(ctx context.Context, a *registry.Attributes, now, was *resourcev1.ResourceClaimStatus) error {
	if p.authz == nil || a.User == nil {
		return nil
	}
	base := authorizer.AttributesRecord{
		User: a.User, Verb: "update", APIGroup: a.Resource.Group, APIVersion: a.Resource.Version, Resource: a.Resource.Resource, ResourceRequest: true,
	}
	may := func(verb, sub, ns, name string) bool {
		attrs := base
		attrs.Verb, attrs.Subresource, attrs.Namespace, attrs.Name = verb, sub, ns, name
		decision, _, _ := p.authz.Authorize(ctx, attrs) // an error with a decision to allow allows
		return decision == authorizer.DecisionAllow
	}
	if !equality.Semantic.DeepEqual(now.Allocation, was.Allocation) || !equality.Semantic.DeepEqual(now.ReservedFor, was.ReservedFor) {
		if !may("update", resourcev1.SubresourceBinding, "", "") {
			return forbidden(a, fmt.Errorf(`changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="update" permission`))
		}
	}
	for _, driver := range changedDrivers(now, was) {
		near := onAllocatedNode(a, now) && may(resourcev1.VerbPrefixAssociatedNode+"update", resourcev1.SubresourceDriver, a.Namespace, driver)
		if !near && !may(resourcev1.VerbPrefixArbitraryNode+"update", resourcev1.SubresourceDriver, a.Namespace, driver) {
			return forbidden(a, fmt.Errorf(`changing status.devices requires resource="resourceclaims/driver" permission for driver %q`, driver))
		}
	}
	return nil
}

// changedDrivers are the drivers of which a device's status was added, changed
// or removed, unless the claim has no devices any more: then all go with it.
func changedDrivers(now, was *resourcev1.ResourceClaimStatus) []string {
	if now.Allocation == nil {
		return nil
	}
	type key struct{ driver, pool, device, share string }
	index := func(s *resourcev1.ResourceClaimStatus) map[key]resourcev1.AllocatedDeviceStatus {
		out := map[key]resourcev1.AllocatedDeviceStatus{}
		for _, d := range s.Devices {
			out[key{d.Driver, d.Pool, d.Device, ptr.Deref(d.ShareID, "")}] = d
		}
		return out
	}
	before, after := index(was), index(now)
	drivers := map[string]bool{}
	for k, d := range after {
		if old, ok := before[k]; !ok || !equality.Semantic.DeepEqual(old, d) {
			drivers[k.driver] = true
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			drivers[k.driver] = true
		}
	}
	return slices.Sorted(maps.Keys(drivers))
}

// onAllocatedNode: the user is a ServiceAccount whose token is bound to the
// node that the claim's devices are on.
func onAllocatedNode(a *registry.Attributes, s *resourcev1.ResourceClaimStatus) bool {
	if _, _, err := serviceaccount.SplitUsername(a.User.GetName()); err != nil || s.Allocation == nil || s.Allocation.NodeSelector == nil {
		return false
	}
	terms := s.Allocation.NodeSelector.NodeSelectorTerms
	if len(terms) != 1 || len(terms[0].MatchExpressions) != 0 || len(terms[0].MatchFields) != 1 {
		return false
	}
	f := terms[0].MatchFields[0]
	node := a.User.GetExtra()[serviceaccount.NodeNameKey]
	return f.Key == "metadata.name" && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 && len(node) == 1 && f.Values[0] == node[0]
}
