package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"edged/controller/podset"
)

// World is what a decision is made from.
type World struct {
	Set   *appsv1.DaemonSet
	Nodes []*corev1.Node
	Pods  []*corev1.Pod
	// Hash is that of the template as it is now.
	Hash string
	// Held says for how long a Pod that failed on a Node is not replaced yet.
	Held func(node string) time.Duration
	Now  time.Time
}

// Plan is one step.
type Plan struct {
	Create []string // on these Nodes
	Delete []*corev1.Pod
	// Failed are the Nodes of those Pods in Delete that had failed.
	Failed []string
	Events []Event
	// Again is when to look again though nothing changed; zero for never.
	Again time.Duration
}

// Event is to be told with the plan.
type Event struct{ Type, Reason, Message string }

// round is the working state of one Reconcile.
type round struct {
	World
	eligibility
	byNode map[string][]*corev1.Pod // what counts, oldest first
	plan   Plan
}

func newRound(w World) *round {
	r := &round{World: w, eligibility: newEligibility(w.Set), byNode: map[string][]*corev1.Pod{}}
	for _, p := range w.Pods {
		if podset.IsFinished(p) && p.DeletionTimestamp != nil {
			continue // somebody's finalizer; nothing is left to do here
		}
		if node := target(p); node != "" {
			r.byNode[node] = append(r.byNode[node], p)
		}
	}
	for _, pods := range r.byNode {
		slices.SortFunc(pods, olderPod)
	}
	return r
}

// olderPod puts Pods that have a Node first, then the older ones.
func olderPod(a, b *corev1.Pod) int {
	if d := cmp.Compare(len(b.Spec.NodeName), len(a.Spec.NodeName)); d != 0 && (a.Spec.NodeName == "" || b.Spec.NodeName == "") {
		return d
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// Reconcile takes the next step: first each Node gets what it should have, and
// when that is so the update goes on.
func Reconcile(w World) Plan {
	r := newRound(w)
	for _, n := range w.Nodes {
		r.node(n)
	}
	r.strays()
	if len(r.plan.Create)+len(r.plan.Delete) == 0 && w.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		r.roll()
	}
	r.plan.Create = r.plan.Create[:min(len(r.plan.Create), podset.Burst)]
	r.plan.Delete = r.plan.Delete[:min(len(r.plan.Delete), podset.Burst)]
	return r.plan
}

func (r *round) again(d time.Duration) {
	if d > 0 && (r.plan.Again == 0 || d < r.plan.Again) {
		r.plan.Again = d
	}
}

func (r *round) remove(pods ...*corev1.Pod) { r.plan.Delete = append(r.plan.Delete, pods...) }

// node decides about one Node.
func (r *round) node(n *corev1.Node) {
	run, stay := r.on(n)
	pods := r.byNode[n.Name]
	switch {
	case run && len(pods) == 0:
		r.plan.Create = append(r.plan.Create, n.Name)
	case stay:
		running := r.tidy(n.Name, pods)
		if r.surges() {
			r.surgeNode(n.Name, running, run)
		} else if len(running) > 1 {
			r.remove(running[1:]...)
		}
	default:
		for _, p := range pods {
			if p.DeletionTimestamp == nil {
				r.remove(p)
			}
		}
	}
}

// tidy removes Pods that have ended, failed ones no faster than the back-off
// allows, and returns those that run.
func (r *round) tidy(node string, pods []*corev1.Pod) (running []*corev1.Pod) {
	for _, p := range pods {
		switch {
		case p.DeletionTimestamp != nil:
		case p.Status.Phase == corev1.PodFailed:
			if wait := r.Held(node); wait > 0 {
				r.again(wait)
				continue
			}
			r.plan.Failed = append(r.plan.Failed, node)
			r.remove(p)
			r.event(corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", p.Namespace, p.Name, node)
		case p.Status.Phase == corev1.PodSucceeded:
			r.remove(p)
			r.event(corev1.EventTypeNormal, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", p.Namespace, p.Name, node)
		default:
			running = append(running, p)
		}
	}
	return running
}

func (r *round) event(eventType, reason, format string, args ...any) {
	r.plan.Events = append(r.plan.Events, Event{eventType, reason, fmt.Sprintf(format, args...)})
}

// surgeNode lets an old Pod and a new one be on a Node until the new one is
// available or the old one is no use.
func (r *round) surgeNode(node string, running []*corev1.Pod, run bool) {
	if len(running) <= 1 {
		if len(running) == 0 && run {
			r.plan.Create = append(r.plan.Create, node)
		}
		return
	}
	var fresh, old *corev1.Pod
	for _, p := range running {
		switch {
		case p.Labels[appsv1.ControllerRevisionHashLabelKey] == r.Hash && fresh == nil:
			fresh = p
		case p.Labels[appsv1.ControllerRevisionHashLabelKey] != r.Hash && old == nil:
			old = p
		default:
			r.remove(p)
		}
	}
	if fresh != nil && old != nil && (!podset.IsReady(old) || r.available(fresh)) {
		r.remove(old)
	}
}

// strays removes Pods that wait for a Node that is gone: nobody else will.
func (r *round) strays() {
	known := make(map[string]bool, len(r.Nodes))
	for _, n := range r.Nodes {
		known[n.Name] = true
	}
	for node, pods := range r.byNode {
		for _, p := range pods {
			if !known[node] && p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
				r.remove(p)
			}
		}
	}
}

func (r *round) available(p *corev1.Pod) bool {
	return podset.IsAvailable(p, r.Set.Spec.MinReadySeconds, r.Now)
}
