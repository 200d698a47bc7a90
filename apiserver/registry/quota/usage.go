package quota

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	resourcehelper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/utils/ptr"
)

// aliases are the names under which some kinds were counted before all were.
var aliases = map[schema.GroupResource]corev1.ResourceName{
	{Resource: "pods"}:                   corev1.ResourcePods,
	{Resource: "services"}:               corev1.ResourceServices,
	{Resource: "persistentvolumeclaims"}: corev1.ResourcePersistentVolumeClaims,
	{Resource: "configmaps"}:             corev1.ResourceConfigMaps,
	{Resource: "secrets"}:                corev1.ResourceSecrets,
	{Resource: "replicationcontrollers"}: corev1.ResourceReplicationControllers,
	{Resource: "resourcequotas"}:         corev1.ResourceQuotas,
}

const (
	requestsPrefix = corev1.DefaultResourceRequestsPrefix
	classSuffix    = ".storageclass.storage.k8s.io/"
)

// countName is "count/<resource>[.<group>]".
func countName(gr schema.GroupResource) corev1.ResourceName {
	return corev1.ResourceName("count/" + gr.String())
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }

// Usage is what an object uses of every resource that a quota may name.
func Usage(gr schema.GroupResource, obj runtime.Object, now time.Time) corev1.ResourceList {
	use := corev1.ResourceList{countName(gr): one()}
	switch o := obj.(type) {
	case *corev1.Pod:
		if counts(o, now) {
			podUsage(use, o)
		}
	case *corev1.Service:
		serviceUsage(use, o)
	case *corev1.PersistentVolumeClaim:
		claimUsage(use, o)
	default:
		if alias, ok := aliases[gr]; ok {
			use[alias] = one()
		}
	}
	return use
}

// counts reports whether a Pod still takes what it asks for: not when it has
// ended, nor when it should have been gone for as long again as it had to go.
func counts(p *corev1.Pod, now time.Time) bool {
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false
	}
	end, ok := Release(p)
	return !ok || !now.After(end)
}

// Release is when a Pod that is being deleted ceases to count though it is still
// there, because its device is lost.
func Release(p *corev1.Pod) (at time.Time, ok bool) {
	if p.DeletionTimestamp == nil || p.DeletionGracePeriodSeconds == nil {
		return time.Time{}, false
	}
	return p.DeletionTimestamp.Add(time.Duration(*p.DeletionGracePeriodSeconds) * time.Second), true
}

func podUsage(use corev1.ResourceList, p *corev1.Pod) {
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	use[corev1.ResourcePods] = one()
	computeUsage(use, resourcehelper.PodRequests(p, opts), resourcehelper.PodLimits(p, opts))
}

// computeUsage names requests and limits as quotas do.
func computeUsage(use, requests, limits corev1.ResourceList) {
	for name, q := range requests {
		switch {
		case name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage,
			strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			use[name] = q
			use[requestsPrefix+name] = q
		case v1helper.IsExtendedResourceName(name):
			use[requestsPrefix+name] = q
		}
	}
	for name, q := range limits {
		if name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
			use["limits."+name] = q
		}
	}
}

func serviceUsage(use corev1.ResourceList, s *corev1.Service) {
	ports := int64(0)
	use[corev1.ResourceServices] = one()
	use[corev1.ResourceServicesLoadBalancers] = resource.Quantity{Format: resource.DecimalSI}
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		ports = int64(len(s.Spec.Ports))
	case corev1.ServiceTypeLoadBalancer:
		use[corev1.ResourceServicesLoadBalancers] = one()
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 || ptr.Deref(s.Spec.AllocateLoadBalancerNodePorts, true) {
				ports++
			}
		}
	}
	use[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(ports, resource.DecimalSI)
}

func claimUsage(use corev1.ResourceList, c *corev1.PersistentVolumeClaim) {
	class := ptr.Deref(c.Spec.StorageClassName, "")
	if old, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		class = old
	}
	add := func(name corev1.ResourceName, q resource.Quantity) {
		use[name] = q
		if class != "" {
			use[corev1.ResourceName(class+classSuffix)+name] = q
		}
	}
	add(corev1.ResourcePersistentVolumeClaims, one())
	if storage, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
		storage = storage.DeepCopy()
		if granted, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && granted.Cmp(storage) > 0 {
			storage = granted.DeepCopy() // a shrink that is not done yet
		}
		storage.RoundUp(0)
		add(corev1.ResourceRequestsStorage, storage)
	}
}

// matching are the resources of the list that objects of the kind may use.
func matching(gr schema.GroupResource, hard corev1.ResourceList) []corev1.ResourceName {
	var out []corev1.ResourceName
	for name := range hard {
		if name == countName(gr) || uses(gr, name) {
			out = append(out, name)
		}
	}
	return out
}

func uses(gr schema.GroupResource, name corev1.ResourceName) bool {
	if alias, ok := aliases[gr]; ok && name == alias {
		return true
	}
	switch gr {
	case schema.GroupResource{Resource: "pods"}:
		switch name {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
			corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
			corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
			return true
		}
		s := string(name)
		return strings.HasPrefix(s, corev1.ResourceHugePagesPrefix) || strings.HasPrefix(s, corev1.ResourceRequestsHugePagesPrefix) ||
			strings.HasPrefix(s, requestsPrefix) && !v1helper.IsNativeResource(name)
	case schema.GroupResource{Resource: "services"}:
		return name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case schema.GroupResource{Resource: "persistentvolumeclaims"}:
		return name == corev1.ResourceRequestsStorage ||
			strings.HasSuffix(string(name), classSuffix+string(corev1.ResourceRequestsStorage)) ||
			strings.HasSuffix(string(name), classSuffix+string(corev1.ResourcePersistentVolumeClaims))
	}
	return false
}
