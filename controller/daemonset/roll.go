package daemonset

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// templateGeneration labels Pods of a DaemonSet that was made by the extensions
// API.
const templateGeneration = "pod-template-generation"

// isUpdated reports whether the Pod is of the current template.
func (r *round) isUpdated(p *corev1.Pod) bool { return isUpdated(r.Set, r.Hash, p) }

func isUpdated(ds *appsv1.DaemonSet, hash string, p *corev1.Pod) bool {
	if hash != "" && p.Labels[appsv1.ControllerRevisionHashLabelKey] == hash {
		return true
	}
	generation, ok := ds.Annotations[appsv1.DeprecatedTemplateGeneration]
	return ok && generation != "" && p.Labels[templateGeneration] == generation
}

// surges reports whether a Node may have two Pods for a while.
func (r *round) surges() bool { return r.surge(1) > 0 }

func (r *round) surge(nodes int) int {
	if ru := r.Set.Spec.UpdateStrategy.RollingUpdate; ru != nil && r.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		return scaled(ru.MaxSurge, nodes)
	}
	return 0
}

func (r *round) maxUnavailable(nodes int) int {
	if ru := r.Set.Spec.UpdateStrategy.RollingUpdate; ru != nil {
		return scaled(ru.MaxUnavailable, nodes)
	}
	return 0
}

func scaled(v *intstr.IntOrString, total int) int {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, total, true)
	if err != nil {
		return 0
	}
	return n
}

// roll takes a step of a rolling update.
func (r *round) roll() {
	wanted := map[string]bool{}
	for _, n := range r.Nodes {
		if run, _ := r.on(n); run {
			wanted[n.Name] = true
		}
	}
	names := slices.Sorted(maps.Keys(r.byNode))
	for name := range wanted {
		if _, ok := r.byNode[name]; !ok {
			names = append(names, name)
		}
	}
	surge, unavailable := r.surge(len(wanted)), r.maxUnavailable(len(wanted))
	if surge == 0 {
		if unavailable == 0 {
			unavailable = 1 // nothing would ever move
		}
		r.replace(names, unavailable)
		return
	}
	r.surgeOver(names, wanted, surge)
}

// pair are the new and the old Pod of a Node; ok is false if there are several
// of one sort, which node removes first.
func (r *round) pair(node string) (fresh, old *corev1.Pod, ok bool) {
	for _, p := range r.byNode[node] {
		switch {
		case p.DeletionTimestamp != nil:
		case r.isUpdated(p):
			if fresh != nil {
				return nil, nil, false
			}
			fresh = p
		default:
			if old != nil {
				return nil, nil, false
			}
			old = p
		}
	}
	return fresh, old, true
}

// replace removes old Pods, those that are no use at once and others while no
// more than the given number of Nodes are without.
func (r *round) replace(nodes []string, unavailable int) {
	var useless, candidates []*corev1.Pod
	without := 0
	for _, node := range nodes {
		fresh, old, ok := r.pair(node)
		switch {
		case !ok, (fresh == nil) == (old == nil):
			without++
		case fresh != nil:
			if !r.available(fresh) {
				without++
			}
		case !r.available(old):
			useless = append(useless, old)
			without++
		default:
			candidates = append(candidates, old)
		}
	}
	r.remove(useless...)
	r.remove(candidates[:min(max(unavailable-without, 0), len(candidates))]...)
}

// surgeOver makes new Pods beside old ones, at most surge at a time, and lets
// old ones go when the new ones are available.
func (r *round) surgeOver(nodes []string, wanted map[string]bool, surge int) {
	var candidates []string
	var unwanted []*corev1.Pod
	surging, available := 0, 0
	for _, node := range nodes {
		fresh, old, ok := r.pair(node)
		if !ok {
			surging++
			continue
		}
		if counts := firstOf(old, fresh); counts != nil && r.available(counts) {
			available++
		}
		switch {
		case old == nil:
		case fresh != nil && !r.available(fresh):
			surging++
		case fresh != nil:
			r.remove(old)
		case !wanted[node] && !r.available(old):
			r.remove(old)
		case !wanted[node]:
			unwanted = append(unwanted, old)
		case !r.available(old):
			r.plan.Create = append(r.plan.Create, node)
		default:
			candidates = append(candidates, node)
		}
	}
	// Where the DaemonSet moved to other Nodes, the old ones serve until enough
	// of the new ones do.
	r.remove(unwanted[:min(max(available-len(wanted), 0), len(unwanted))]...)
	r.plan.Create = append(r.plan.Create, candidates[:min(max(surge-surging, 0), len(candidates))]...)
}

// firstOf is the first of the two that is there.
func firstOf(a, b *corev1.Pod) *corev1.Pod {
	if a != nil {
		return a
	}
	return b
}
