package deployment

import (
	"cmp"
	"math"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/controller/podset"
)

// roll takes one step of a rolling update: up, else down, else tidy.
func (r *round) roll() {
	r.ensureNew()
	if r.plan.Create == nil && !r.growNew() && !r.shrinkOld() && complete(r.d, &r.d.Status) {
		r.cleanup()
	}
	r.syncRollout()
}

// growNew scales the new ReplicaSet up as far as the surge allows, or down to
// what is wanted.
func (r *round) growNew() bool {
	want, have := *r.d.Spec.Replicas, *r.new.Spec.Replicas
	switch {
	case have == want:
		return false
	case have > want:
		return r.setSize(r.new, want)
	}
	return r.setSize(r.new, r.newSize(r.new))
}

// shrinkOld scales old ReplicaSets down: first Pods that are not available,
// which nobody misses, then as many as the new ReplicaSet made up for.
func (r *round) shrinkOld() bool {
	active := activeSets(r.old)
	if sum(active, specReplicas) == 0 {
		return false
	}
	minAvailable := *r.d.Spec.Replicas - maxUnavailable(r.d)
	newUnavailable := *r.new.Spec.Replicas - r.new.Status.AvailableReplicas
	budget := sum(r.all(), specReplicas) - minAvailable - newUnavailable
	if budget <= 0 {
		return false
	}
	shrunk := false
	for i, rs := range active {
		if budget <= 0 {
			break
		}
		if n := min(budget, *rs.Spec.Replicas-rs.Status.AvailableReplicas); n > 0 {
			shrunk = r.setSize(rs, *rs.Spec.Replicas-n) || shrunk
			budget -= n
			active[i] = r.current(rs)
		}
	}
	spare := sum(active, availableReplicas) + r.new.Status.AvailableReplicas - minAvailable
	for _, rs := range active {
		if spare <= 0 {
			break
		}
		if n := min(spare, *rs.Spec.Replicas); n > 0 {
			shrunk = r.setSize(rs, *rs.Spec.Replicas-n) || shrunk
			spare -= n
		}
	}
	return shrunk
}

// current is the newest copy of rs in this round.
func (r *round) current(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	for _, o := range r.all() {
		if o.UID == rs.UID && o.Name == rs.Name {
			return o
		}
	}
	return rs
}

// recreate waits until all old Pods are gone before it makes new ones.
func (r *round) recreate() {
	r.revise()
	shrunk := false
	for _, rs := range activeSets(r.old) {
		shrunk = r.setSize(rs, 0) || shrunk
	}
	if !shrunk && !r.oldPodsRun() {
		r.ensureNew()
		r.setSize(r.new, *r.d.Spec.Replicas)
		if complete(r.d, &r.d.Status) {
			r.cleanup()
		}
	}
	r.syncRollout()
}

func (r *round) oldPodsRun() bool {
	if sum(r.old, actualReplicas) > 0 {
		return true
	}
	return slices.ContainsFunc(r.pods, func(pod *corev1.Pod) bool {
		ref := metav1.GetControllerOfNoCopy(pod)
		return ref != nil && !podset.IsFinished(pod) && (r.new == nil || ref.UID != r.new.UID)
	})
}

// scaling reports whether the Deployment's size has changed since its
// ReplicaSets were last scaled.
func (r *round) scaling() bool {
	for _, rs := range activeSets(r.all()) {
		if desired, ok := sizeAnnotation(rs, desiredAnnotation); ok && desired != *r.d.Spec.Replicas {
			return true
		}
	}
	return false
}

// scale follows a change of the Deployment's size, in the middle of a rollout
// in proportion to the sizes of the ReplicaSets.
func (r *round) scale() {
	if rs := r.activeOrLatest(); rs != nil {
		if *rs.Spec.Replicas != *r.d.Spec.Replicas || sizesOutdated(r.d, rs) {
			r.setSize(rs, *r.d.Spec.Replicas)
		}
		return
	}
	if r.saturated() {
		for _, rs := range activeSets(r.old) {
			r.setSize(rs, 0)
		}
		return
	}
	if isRolling(r.d) {
		r.scaleProportionally()
	}
}

// activeOrLatest is the only active ReplicaSet; if none is active the new one,
// else the youngest. nil if several are.
func (r *round) activeOrLatest() *appsv1.ReplicaSet {
	active := activeSets(r.all())
	switch {
	case len(active) == 1:
		return active[0]
	case len(active) > 1:
		return nil
	case r.new != nil:
		return r.new
	case len(r.old) > 0:
		return r.old[len(r.old)-1]
	}
	return nil
}

// saturated reports whether the new ReplicaSet has all that is wanted.
func (r *round) saturated() bool {
	if r.new == nil {
		return false
	}
	desired, ok := sizeAnnotation(r.new, desiredAnnotation)
	want := *r.d.Spec.Replicas
	return ok && *r.new.Spec.Replicas == want && desired == want && r.new.Status.AvailableReplicas == want
}

func (r *round) scaleProportionally() {
	active := activeSets(r.all())
	allowed := int32(0)
	if *r.d.Spec.Replicas > 0 {
		allowed = *r.d.Spec.Replicas + maxSurge(r.d)
	}
	toAdd := allowed - sum(active, specReplicas)
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		if d := cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas); d != 0 {
			return d
		}
		if toAdd > 0 {
			return byAge(b, a)
		}
		return byAge(a, b)
	})
	sizes := make([]int32, len(active))
	added := int32(0)
	for i, rs := range active {
		sizes[i] = *rs.Spec.Replicas
		if toAdd != 0 {
			n := r.share(rs, toAdd, added)
			sizes[i] += n
			added += n
		}
	}
	for i, rs := range active {
		if i == 0 && toAdd != 0 {
			sizes[0] = max(0, sizes[0]+toAdd-added)
		}
		r.setSize(rs, sizes[i])
	}
}

// share is what of toAdd goes to rs, after added went to others.
func (r *round) share(rs *appsv1.ReplicaSet, toAdd, added int32) int32 {
	if *rs.Spec.Replicas == 0 || toAdd == added {
		return 0
	}
	fraction := r.fraction(rs)
	if toAdd > 0 {
		return min(fraction, toAdd-added)
	}
	return max(fraction, toAdd-added)
}

// fraction is how much rs grows to keep its part of the whole.
func (r *round) fraction(rs *appsv1.ReplicaSet) int32 {
	have := *rs.Spec.Replicas
	if *r.d.Spec.Replicas == 0 {
		return -have
	}
	before, ok := sizeAnnotation(rs, maxAnnotation)
	if !ok || before == 0 {
		if before = r.d.Status.Replicas; before == 0 {
			return 0
		}
	}
	size := float64(have*(*r.d.Spec.Replicas+maxSurge(r.d))) / float64(before)
	return int32(math.Round(size)) - have
}
