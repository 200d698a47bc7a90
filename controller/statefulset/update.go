package statefulset

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxUnavailable is how many Pods an update may have away at once, at least one.
func (r *round) maxUnavailable() int {
	ru := r.Set.Spec.UpdateStrategy.RollingUpdate
	if ru == nil || ru.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(ru.MaxUnavailable, len(r.replicas), false)
	if err != nil {
		return 1
	}
	return max(n, 1)
}

func (r *round) isOld(p *corev1.Pod) bool { return revisionOf(p) != r.Update.Name }

// update removes Pods of old revisions down to the partition, the highest first,
// as many as may be away.
func (r *round) update() {
	away := 0
	for _, p := range r.replicas {
		if r.unavailable(p) {
			away++
		}
	}
	budget := r.maxUnavailable() - away
	candidates := slices.Clone(r.replicas[min(r.partition(), len(r.replicas)):])
	slices.Reverse(candidates)
	if !r.inOrder() {
		// Those that nobody misses first, and at no cost.
		for _, p := range candidates {
			if r.isOld(p) && p.DeletionTimestamp == nil && !r.available(p) {
				r.plan.Delete = append(r.plan.Delete, p)
			}
		}
	}
	for _, p := range candidates {
		if budget <= 0 {
			return
		}
		if !r.isOld(p) || p.DeletionTimestamp != nil || !r.inOrder() && !r.available(p) {
			continue
		}
		r.plan.Delete = append(r.plan.Delete, p)
		budget--
	}
}
