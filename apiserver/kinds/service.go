package kinds

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	serviceapi "k8s.io/kubernetes/pkg/api/service"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

func services(cfg Config) *registry.Kind {
	s := serviceStrategy{newBase(true).resets("v1", "status")}
	k := inAll(returnsDeleted(row[corev1.Service, corev1.ServiceList](corev1.SchemeGroupVersion, "services", s, "svc")))
	k.Prefix = "services/specs"
	k.Fields = func(obj runtime.Object) fields.Set {
		svc := obj.(*corev1.Service)
		return fields.Set{"spec.clusterIP": svc.Spec.ClusterIP, "spec.type": string(svc.Spec.Type)}
	}
	k.SelectableFields = []string{"spec.clusterIP", "spec.type"}
	k.Transact = newAllocator(cfg).transact
	return withStatus(k, serviceStatusStrategy{serviceStrategy{newBase(true).resets("v1", "spec")}})
}

// serviceStrategy follows pkg/registry/core/service.
type serviceStrategy struct{ base }

func (serviceStrategy) AllowCreateOnUpdate(context.Context) bool { return true }

func (serviceStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	obj.(*api.Service).Status = api.ServiceStatus{}
	dropInternalPolicy(obj.(*api.Service))
}

func (serviceStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	svc, was := obj.(*api.Service), old.(*api.Service)
	svc.Status = was.Status
	dropTypeDependentFields(svc, was)
	dropInternalPolicy(svc)
}

// dropInternalPolicy: a name somewhere else has none. Upstream stores it and leaves it
// out whenever a Service is read.
func dropInternalPolicy(svc *api.Service) {
	if svc.Spec.Type == api.ServiceTypeExternalName {
		svc.Spec.InternalTrafficPolicy = nil
	}
}

func (serviceStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateServiceCreate(obj.(*api.Service))
}

func (serviceStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateServiceUpdate(obj.(*api.Service), old.(*api.Service))
}

func (serviceStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return serviceapi.GetWarningsForService(obj.(*api.Service), nil)
}

func (serviceStrategy) WarningsOnUpdate(_ context.Context, obj, old runtime.Object) []string {
	return serviceapi.GetWarningsForService(obj.(*api.Service), old.(*api.Service))
}

type serviceStatusStrategy struct{ serviceStrategy }

func (serviceStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.Service).Spec = old.(*api.Service).Spec
}

func (serviceStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateServiceStatusUpdate(obj.(*api.Service), old.(*api.Service))
}

func (serviceStatusStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	var warnings []string
	for i, ingress := range obj.(*api.Service).Status.LoadBalancer.Ingress {
		if ingress.IP != "" {
			warnings = append(warnings, utilvalidation.GetWarningsForIP(field.NewPath("status", "loadBalancer", "ingress").Index(i), ingress.IP)...)
		}
	}
	return warnings
}

// dropTypeDependentFields clears what the new type has no use for, was filled
// in for the old type, and was not touched by the user: what he did touch is
// for validation to refuse.
func dropTypeDependentFields(svc, was *api.Service) {
	now, old := &svc.Spec, &was.Spec
	if needsClusterIP(was) && !needsClusterIP(svc) {
		if old.ClusterIP == now.ClusterIP && slices.Equal(old.ClusterIPs, now.ClusterIPs) {
			now.ClusterIP, now.ClusterIPs = "", nil
		}
		if slices.Equal(old.IPFamilies, now.IPFamilies) {
			now.IPFamilies = nil
		}
		if familyPolicy(was) == familyPolicy(svc) {
			now.IPFamilyPolicy = nil
		}
	}
	if hasNodePorts(was) && !hasNodePorts(svc) && noNewNodePorts(was, svc) {
		for i := range now.Ports {
			now.Ports[i].NodePort = 0
		}
	}
	if serviceapi.NeedsHealthCheck(was) && !serviceapi.NeedsHealthCheck(svc) && old.HealthCheckNodePort == now.HealthCheckNodePort {
		now.HealthCheckNodePort = 0
	}
	if old.Type == api.ServiceTypeLoadBalancer && now.Type != api.ServiceTypeLoadBalancer {
		if a, b := now.AllocateLoadBalancerNodePorts, old.AllocateLoadBalancerNodePorts; a != nil && b != nil && *a == *b {
			now.AllocateLoadBalancerNodePorts = nil
		}
		if ptr.Equal(old.LoadBalancerClass, now.LoadBalancerClass) {
			now.LoadBalancerClass = nil
		}
	}
	if serviceapi.ExternallyAccessible(was) && !serviceapi.ExternallyAccessible(svc) && old.ExternalTrafficPolicy == now.ExternalTrafficPolicy {
		now.ExternalTrafficPolicy = ""
	}
	if now.Type != api.ServiceTypeLoadBalancer {
		svc.Status.LoadBalancer = api.LoadBalancerStatus{}
	}
}

func needsClusterIP(svc *api.Service) bool { return svc.Spec.Type != api.ServiceTypeExternalName }

func hasNodePorts(svc *api.Service) bool {
	return svc.Spec.Type == api.ServiceTypeNodePort || svc.Spec.Type == api.ServiceTypeLoadBalancer
}

func noNewNodePorts(was, svc *api.Service) bool {
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 && !slices.ContainsFunc(was.Spec.Ports, func(o api.ServicePort) bool { return o.NodePort == p.NodePort }) {
			return false
		}
	}
	return true
}

func familyPolicy(svc *api.Service) api.IPFamilyPolicy { return ptr.Deref(svc.Spec.IPFamilyPolicy, "") }
