package kinds

import (
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"
)

// normalizeClusterIPs brings clusterIP and clusterIPs together for clients
// that know only the first. It must not look at anything else.
func normalizeClusterIPs(svc, was *api.Service) {
	now := &svc.Spec
	if was == nil {
		if now.ClusterIP != "" && len(now.ClusterIPs) == 0 {
			now.ClusterIPs = []string{now.ClusterIP}
		}
		return
	}
	old := &was.Spec
	if len(old.ClusterIPs) > 0 && len(now.ClusterIPs) == 0 && old.ClusterIP == now.ClusterIP {
		now.ClusterIPs = slices.Clone(old.ClusterIPs)
	}
	if old.ClusterIP == now.ClusterIP || !slices.Equal(old.ClusterIPs, now.ClusterIPs) {
		return
	}
	if old.ClusterIP != "" && now.ClusterIP == "" {
		now.ClusterIPs = nil
	} else {
		now.ClusterIPs = []string{now.ClusterIP}
	}
}

// keepAllocated fills in what was allocated before and an update leaves out,
// so that the manifest a Service was created from can be sent again.
func keepAllocated(svc, was *api.Service) {
	now, old := &svc.Spec, &was.Spec
	if needsClusterIP(was) && needsClusterIP(svc) {
		if now.ClusterIP == "" {
			now.ClusterIP = old.ClusterIP
		}
		if len(now.ClusterIPs) == 0 && len(old.ClusterIPs) > 0 {
			now.ClusterIPs = slices.Clone(old.ClusterIPs)
		}
	}
	if wantsNodePorts(was) && wantsNodePorts(svc) {
		keepNodePorts(now.Ports, old.Ports)
	}
	if localLoadBalancer(was) && localLoadBalancer(svc) && now.HealthCheckNodePort == 0 {
		now.HealthCheckNodePort = old.HealthCheckNodePort
	}
}

func wantsNodePorts(svc *api.Service) bool {
	return svc.Spec.Type == api.ServiceTypeNodePort ||
		svc.Spec.Type == api.ServiceTypeLoadBalancer && ptr.Deref(svc.Spec.AllocateLoadBalancerNodePorts, true)
}

func localLoadBalancer(svc *api.Service) bool {
	return svc.Spec.Type == api.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == api.ServiceExternalTrafficPolicyLocal
}

// keepNodePorts gives ports of the same name their old node port, unless the
// update uses it for another one.
func keepNodePorts(now, old []api.ServicePort) {
	used := map[int32]bool{}
	for _, p := range now {
		used[p.NodePort] = true
	}
	byName := map[string]int32{}
	for _, p := range old {
		byName[p.Name] = p.NodePort
	}
	for i := range now {
		if p := &now[i]; p.NodePort == 0 && !used[byName[p.Name]] {
			p.NodePort = byName[p.Name]
		}
	}
}

// initFamilies sets ipFamilyPolicy and ipFamilies from what is given and what
// the cluster has. It follows upstream's initIPFamilyFields, messages included.
func (a *allocator) initFamilies(svc, was *api.Service) error {
	spec := &svc.Spec
	if spec.Type == api.ServiceTypeExternalName || unchangedPreferDual(svc, was) {
		return nil
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = defaultFamilyPolicy(svc, was)
	}
	if errs := validation.ValidateServiceClusterIPsRelatedFields(svc, was); len(errs) != 0 {
		return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
	}
	errs := reduceFamilies(svc, was)
	errs = append(errs, a.inferFamilies(svc)...)
	if len(errs) > 0 {
		return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
	}
	dual := *spec.IPFamilyPolicy != api.IPFamilyPolicySingleStack
	headless := spec.ClusterIP == api.ClusterIPNone && len(spec.Selector) == 0
	if !headless {
		if errs := a.checkFamilies(svc); len(errs) > 0 {
			return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []api.IPFamily{a.ranges[0].family}
	}
	// Without selector the endpoints may be of any family, whatever the
	// cluster has.
	if dual && len(spec.IPFamilies) == 1 && (headless || len(a.ranges) == 2) {
		spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
	}
	return nil
}

func defaultFamilyPolicy(svc, was *api.Service) *api.IPFamilyPolicy {
	switch {
	case was != nil && was.Spec.IPFamilyPolicy != nil:
		return ptr.To(*was.Spec.IPFamilyPolicy)
	case svc.Spec.ClusterIP == api.ClusterIPNone && len(svc.Spec.Selector) == 0:
		return ptr.To(api.IPFamilyPolicyRequireDualStack)
	}
	return ptr.To(api.IPFamilyPolicySingleStack)
}

// unchangedPreferDual reports an update that must not add or remove an address
// only because the cluster's families changed meanwhile.
func unchangedPreferDual(svc, was *api.Service) bool {
	return was != nil && svc.Spec.Type == was.Spec.Type &&
		familyPolicy(svc) == api.IPFamilyPolicyPreferDualStack &&
		(was.Spec.IPFamilyPolicy == nil || familyPolicy(was) == api.IPFamilyPolicyPreferDualStack) &&
		slices.Equal(svc.Spec.ClusterIPs, was.Spec.ClusterIPs) && slices.Equal(svc.Spec.IPFamilies, was.Spec.IPFamilies)
}

// reduceFamilies drops the second address and family when the policy says
// single stack and they were not touched, and refuses it otherwise.
func reduceFamilies(svc, was *api.Service) field.ErrorList {
	spec, path := &svc.Spec, field.NewPath("spec", "ipFamilyPolicy")
	var errs field.ErrorList
	single := *spec.IPFamilyPolicy == api.IPFamilyPolicySingleStack
	if was != nil && single {
		if slices.Equal(was.Spec.ClusterIPs, spec.ClusterIPs) && len(spec.ClusterIPs) > 1 {
			spec.ClusterIPs = spec.ClusterIPs[:1]
		}
		if slices.Equal(was.Spec.IPFamilies, spec.IPFamilies) && len(spec.IPFamilies) > 1 {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
	}
	if was != nil && !single {
		if n := len(spec.ClusterIPs); n > 0 && n < len(was.Spec.ClusterIPs) {
			errs = append(errs, field.Invalid(path, spec.IPFamilyPolicy, "must be 'SingleStack' to release the secondary cluster IP"))
		}
		if n := len(spec.IPFamilies); n > 0 && n < len(was.Spec.IPFamilies) {
			errs = append(errs, field.Invalid(path, spec.IPFamilyPolicy, "must be 'SingleStack' to release the secondary IP family"))
		}
	}
	if single && len(spec.ClusterIPs) == 2 {
		errs = append(errs, field.Invalid(path, spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"))
	}
	if single && len(spec.IPFamilies) == 2 {
		errs = append(errs, field.Invalid(path, spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"))
	}
	return errs
}

// inferFamilies takes families from the addresses given.
func (a *allocator) inferFamilies(svc *api.Service) field.ErrorList {
	spec := &svc.Spec
	var errs field.ErrorList
	for i, ip := range spec.ClusterIPs {
		if ip == api.ClusterIPNone {
			break
		}
		if i < len(spec.IPFamilies) {
			continue
		}
		family := api.IPv4Protocol
		if netutils.IsIPv6String(ip) {
			family = api.IPv6Protocol
		}
		if a.rangeOf(family) == nil {
			errs = append(errs, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", family)))
		} else {
			spec.IPFamilies = append(spec.IPFamilies, family)
		}
	}
	return errs
}

// checkFamilies refuses families that the cluster does not have.
func (a *allocator) checkFamilies(svc *api.Service) field.ErrorList {
	var errs field.ErrorList
	if *svc.Spec.IPFamilyPolicy == api.IPFamilyPolicyRequireDualStack && len(a.ranges) < 2 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), svc.Spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, family := range svc.Spec.IPFamilies {
		if a.rangeOf(family) == nil {
			errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilies").Index(i), family, "not configured on this cluster"))
		}
	}
	return errs
}

func otherFamily(f api.IPFamily) api.IPFamily {
	if f == api.IPv4Protocol {
		return api.IPv6Protocol
	}
	return api.IPv4Protocol
}
