package evict

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"
)

const (
	// HighUsed and LowUsed are shares of the disk: above the first images go until
	// the second is reached.
	HighUsed, LowUsed = 0.85, 0.80
	// LeastFree and LeastInodes are shares below which Pods go.
	LeastFree, LeastInodes = 0.10, 0.05
	// MinAge is how long an image must have been out of use.
	MinAge = 2 * time.Minute
)

// Resources of the device. Below MemoryThreshold it is under memory pressure.
type Resources struct {
	Disk, DiskFree                   int64 // bytes
	Inodes, InodesFree               uint64
	MemoryAvailable, MemoryThreshold int64 // bytes
}

// toFree is how many bytes images should give back.
func (r Resources) toFree() int64 {
	if r.Disk <= 0 {
		return 0
	}
	used := r.Disk - r.DiskFree
	if float64(used) < HighUsed*float64(r.Disk) && !r.lowInodes() {
		return 0
	}
	return max(used-int64(LowUsed*float64(r.Disk)), 1)
}

func (r Resources) lowInodes() bool {
	return r.Inodes > 0 && float64(r.InodesFree) < LeastInodes*float64(r.Inodes)
}

// shortage is what is so short that a Pod has to go, "" for nothing.
func (r Resources) shortage() (name corev1.ResourceName, threshold, available string) {
	bytes := func(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
	switch {
	case r.MemoryThreshold > 0 && r.MemoryAvailable < r.MemoryThreshold:
		return corev1.ResourceMemory, bytes(r.MemoryThreshold), bytes(r.MemoryAvailable)
	case r.Disk > 0 && float64(r.DiskFree) < LeastFree*float64(r.Disk):
		return corev1.ResourceEphemeralStorage, bytes(int64(LeastFree * float64(r.Disk))), bytes(r.DiskFree)
	case r.lowInodes():
		return "inodes", fmt.Sprint(uint64(LeastInodes * float64(r.Inodes))), fmt.Sprint(r.InodesFree)
	}
	return "", "", ""
}

// image is what is known of an image.
type image struct {
	id    string
	bytes int64
	// precious says that one copy in the cluster has to stay: no registry gave it,
	// or a workload names it.
	precious bool
	lastUsed time.Time
}

// unused chooses the images to remove, the longest unused first, until want
// bytes are free. They have been out of use for age. elsewhere says whether a
// precious one is kept by another device.
func unused(images []image, inUse map[string]bool, want int64, age time.Duration, now time.Time, elsewhere func(id string) bool) []string {
	if want <= 0 {
		return nil
	}
	var ids []string
	slices.SortFunc(images, func(a, b image) int { return cmp.Or(a.lastUsed.Compare(b.lastUsed), cmp.Compare(a.id, b.id)) })
	for _, im := range images {
		if want <= 0 {
			break
		}
		if inUse[im.id] || now.Sub(im.lastUsed) < age || im.precious && !elsewhere(im.id) {
			continue
		}
		ids = append(ids, im.id)
		want -= im.bytes
	}
	return ids
}

// Usage is what a Pod uses of what is short.
type Usage struct {
	Pod   *corev1.Pod
	Bytes int64
}

// victim is the Pod to end: kubelet's order, which is whether it uses more than
// it asked for, its priority, and by how much. Critical Pods never go, and
// one that uses nothing frees nothing.
func victim(pods []Usage, of corev1.ResourceName) (Usage, bool) {
	over := func(u Usage) int64 {
		requests := helper.PodRequests(u.Pod, helper.PodResourcesOptions{})
		q := requests[of]
		return u.Bytes - q.Value()
	}
	priority := func(u Usage) int32 {
		if u.Pod.Spec.Priority == nil {
			return 0
		}
		return *u.Pod.Spec.Priority
	}
	pods = slices.DeleteFunc(slices.Clone(pods), func(u Usage) bool { return u.Bytes <= 0 || critical(u.Pod) })
	if len(pods) == 0 {
		return Usage{}, false
	}
	return slices.MinFunc(pods, func(a, b Usage) int {
		exceedsA, exceedsB := 1, 1
		if over(a) > 0 {
			exceedsA = 0
		}
		if over(b) > 0 {
			exceedsB = 0
		}
		return cmp.Or(cmp.Compare(exceedsA, exceedsB), cmp.Compare(priority(a), priority(b)), cmp.Compare(over(b), over(a)), cmp.Compare(a.Pod.UID, b.Pod.UID))
	}), true
}

// critical Pods are those of system priority; see scheduling.SystemCriticalPriority.
func critical(p *corev1.Pod) bool {
	return p.Spec.Priority != nil && *p.Spec.Priority >= 2_000_000_000
}

// message is the kubelet's.
func message(of corev1.ResourceName, threshold, available string, u Usage) string {
	requests := helper.PodRequests(u.Pod, helper.PodResourcesOptions{})
	asked := requests[of]
	text := fmt.Sprintf("The node was low on resource: %s. Threshold quantity: %s, available: %s. ", of, threshold, available)
	if u.Bytes > asked.Value() {
		text += fmt.Sprintf("Pod was using %s, request is %s, has larger consumption of %s. ", resource.NewQuantity(u.Bytes, resource.BinarySI), asked.String(), of)
	}
	return text
}
