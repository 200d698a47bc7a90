package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"edged/controller/podset"
)

// Revision is a template and the name of the revision that keeps it.
type Revision struct {
	Name     string
	Template *corev1.PodTemplateSpec
}

// World is what a decision is made from.
type World struct {
	Set  *appsv1.StatefulSet
	Pods []*corev1.Pod
	// Current is the revision that the set is at, Update the one that it goes to.
	Current, Update Revision
	// Claim returns a claim of the namespace, nil if it is not there.
	Claim func(name string) *corev1.PersistentVolumeClaim
	Now   time.Time
}

// Plan is one step, to be taken in this order.
type Plan struct {
	Claims []*corev1.PersistentVolumeClaim // to be made
	Own    []Owners                        // claims to be given other owners
	Create []*corev1.Pod
	Label  []*corev1.Pod // to be given the label with their name
	Delete []*corev1.Pod
	// Conflicts are claims that the retention policy does not hold for.
	Conflicts []string
}

// round is the working state of one Reconcile.
type round struct {
	World
	// replicas are the Pods that should be, by number; those that are not there
	// are as they would be made. Of a set that is far from its size they are the
	// first ones, with at least podset.Burst to be made among them.
	replicas  []*corev1.Pod
	exists    []bool
	condemned []*corev1.Pod // the others, highest number first
	plan      Plan
}

func newRound(w World) *round {
	size := min(int(*w.Set.Spec.Replicas), len(w.Pods)+podset.Burst)
	r := &round{World: w, replicas: make([]*corev1.Pod, size), exists: make([]bool, size)}
	first := start(w.Set)
	for _, p := range w.Pods {
		n, ok := ordinal(w.Set, p)
		switch {
		case !ok:
		case inRange(w.Set, n):
			if i := n - first; i < size {
				r.replicas[i], r.exists[i] = p, true
			}
		default:
			r.condemned = append(r.condemned, p)
		}
	}
	for i := range r.replicas {
		if !r.exists[i] {
			r.replicas[i] = newPod(w.Set, r.revision(i), first+i)
		}
	}
	slices.SortFunc(r.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(r.ordinal(b), r.ordinal(a)) })
	return r
}

func (r *round) ordinal(p *corev1.Pod) int {
	n, _ := ordinal(r.Set, p)
	return n
}

// revision is the one that the i-th Pod is made from: below the partition the
// current one; with no partition, as many as are of it.
func (r *round) revision(i int) Revision {
	below := r.partition()
	if r.Set.Spec.UpdateStrategy.RollingUpdate == nil {
		below = int(r.Set.Status.CurrentReplicas)
	}
	if r.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && i < below {
		return r.Current
	}
	return r.Update
}

// partition is the number below which no Pod is updated.
func (r *round) partition() int {
	if ru := r.Set.Spec.UpdateStrategy.RollingUpdate; ru != nil && ru.Partition != nil {
		return int(*ru.Partition)
	}
	return 0
}

// inOrder says that one Pod has to be available before the next is touched.
func (r *round) inOrder() bool { return r.Set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement }

func (r *round) available(p *corev1.Pod) bool {
	return podset.IsAvailable(p, r.Set.Spec.MinReadySeconds, r.Now)
}

func (r *round) unavailable(p *corev1.Pod) bool { return p.DeletionTimestamp != nil || !r.available(p) }

// Reconcile takes the next step: make what is missing, then scale down, then
// update. In order, each waits for the one before.
func Reconcile(w World) Plan {
	r := newRound(w)
	if w.Set.DeletionTimestamp != nil {
		return r.plan
	}
	if r.keep() || r.scaleDown() {
		return r.plan
	}
	if w.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		r.update()
	}
	return r.plan
}

// keep sees to the Pods that should be there. It reports whether the rest has to
// wait.
func (r *round) keep() bool {
	for i := range r.replicas {
		if r.keepOne(i) && r.inOrder() {
			return true
		}
	}
	return false
}

func (r *round) keepOne(i int) (wait bool) {
	pod, n := r.replicas[i], start(r.Set)+i
	switch {
	case !r.exists[i]:
		if r.claimsAreStale(pod, n) || len(r.plan.Create) == podset.Burst {
			return true
		}
		for _, claim := range newClaims(r.Set, n) {
			if r.Claim(claim.Name) == nil {
				r.plan.Claims = append(r.plan.Claims, claim)
			}
		}
		r.plan.Create = append(r.plan.Create, pod)
		return true
	case podset.IsFinished(pod):
		if pod.DeletionTimestamp == nil {
			r.plan.Delete = append(r.plan.Delete, pod)
		}
		return true // made again when it is gone
	}
	r.claims(pod, n)
	if pod.DeletionTimestamp != nil || !r.runs(pod) {
		return true
	}
	if pod.Labels[appsv1.StatefulSetPodNameLabel] != pod.Name {
		r.plan.Label = append(r.plan.Label, pod)
	}
	return false
}

// runs reports whether the Pod runs and is available.
func (r *round) runs(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && r.available(p)
}

// scaleDown removes Pods that are too many, the highest first. It reports
// whether the rest has to wait.
func (r *round) scaleDown() bool {
	for _, p := range r.condemned {
		r.claims(p, r.ordinal(p))
	}
	ailing := r.firstUnavailable()
	for _, p := range r.condemned {
		switch {
		case p.DeletionTimestamp != nil && r.inOrder():
			return true
		case p.DeletionTimestamp != nil:
			continue
		case r.inOrder() && !r.runs(p) && p != ailing:
			return true
		}
		r.plan.Delete = append(r.plan.Delete, p)
		if r.inOrder() {
			return true
		}
	}
	return false
}

// firstUnavailable is the Pod with the lowest number that is not available.
func (r *round) firstUnavailable() *corev1.Pod {
	for _, p := range r.replicas {
		if r.unavailable(p) {
			return p
		}
	}
	for _, p := range slices.Backward(r.condemned) {
		if r.unavailable(p) {
			return p
		}
	}
	return nil
}
