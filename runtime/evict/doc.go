// Package evict keeps the device usable when its disk or memory runs short: it
// removes images that nothing uses, and if that is not enough ends Pods, one at a
// time, those first that use more than they asked for.
//
// It is not what says that the device is under pressure (runtime/nodestatus), nor
// the kernel's OOM killer, which is faster and which Pods' oom_score_adj guides.
//
// decide.go is pure: what was seen to what to remove. [Manager] looks every ten
// seconds and acts. The last copy in the cluster of an image stays if it was
// imported by hand, or if a workload names it: no registry would give it back to
// devices without an uplink. Other devices are asked at that moment. An image goes
// when it has been out of use for two minutes since the disk ran short, or at
// once before a Pod would.
//
// Thresholds are the kubelet's defaults: images go at 85 % of the disk until 80 %
// are used; Pods go below 10 % of the bytes or 5 % of the inodes of the disk, and
// below 100 MiB (on small devices a twentieth) of memory. Critical Pods are never ended.
//
// limits.go ends Pods that use more of the disk than their limits of
// ephemeral-storage or an emptyDir's sizeLimit allow, whether the device is short or
// not. Only Pods with such limits are measured.
//
// Goroutines: one, ended by [Manager.Run]'s context. Nothing is written while all
// is well. May be imported by cmd/edged. Source of the semantics:
// k8s.io/kubernetes/pkg/kubelet/{images,eviction}.
package evict
