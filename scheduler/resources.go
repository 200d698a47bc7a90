package scheduler

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// What a container counts for in scores if it requests nothing, as upstream.
const (
	defaultMilliCPU    = 100
	defaultMemoryBytes = 200 << 20
)

// resources are amounts of what Pods request.
type resources struct {
	milliCPU, memoryBytes, ephemeralBytes int64
	pods                                  int64
	scalar                                map[corev1.ResourceName]int64
}

func toResources(list corev1.ResourceList) resources {
	var r resources
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.milliCPU = q.MilliValue()
		case corev1.ResourceMemory:
			r.memoryBytes = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.ephemeralBytes = q.Value()
		case corev1.ResourcePods:
			r.pods = q.Value()
		default:
			if r.scalar == nil {
				r.scalar = map[corev1.ResourceName]int64{}
			}
			r.scalar[name] = q.Value()
		}
	}
	return r
}

// add returns r plus sign times o. r's map is not shared with the result.
func (r resources) add(o resources, sign int64) resources {
	r.milliCPU += sign * o.milliCPU
	r.memoryBytes += sign * o.memoryBytes
	r.ephemeralBytes += sign * o.ephemeralBytes
	r.pods += sign * o.pods
	if len(o.scalar) > 0 {
		r.scalar = maps.Clone(r.scalar)
		if r.scalar == nil {
			r.scalar = map[corev1.ResourceName]int64{}
		}
		for name, n := range o.scalar {
			r.scalar[name] += sign * n
		}
	}
	return r
}

// podRequests are what a Pod takes from a node, overhead included.
func podRequests(pod *corev1.Pod) resources {
	r := toResources(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true}))
	r.pods = 1
	return r
}

// podWeight is podRequests with something for containers that request nothing,
// so that they, too, are spread.
func podWeight(pod *corev1.Pod) (milliCPU, memoryBytes int64) {
	list := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{
		UseStatusResources: true,
		NonMissingContainerRequests: corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewMilliQuantity(defaultMilliCPU, resource.DecimalSI),
			corev1.ResourceMemory: *resource.NewQuantity(defaultMemoryBytes, resource.DecimalSI),
		},
	})
	return list.Cpu().MilliValue(), list.Memory().Value()
}
