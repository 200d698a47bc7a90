package scheduler

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
)

// name is who the scheduler is in Pods and Events.
const name = "default-scheduler"

// maxBinding bounds the writes that are under way. The store commits what
// arrives together with one sync, so that a hundred Pods cost a few.
const maxBinding = 32

// Config is what Run needs.
type Config struct {
	Registry *registry.Registry
	Logger   *slog.Logger
	Now      func() time.Time // nil: time.Now
}

type scheduler struct {
	cfg    Config
	pods   registry.Client[*corev1.Pod]
	events *recorder.Recorder
	state  *state
	queue  *queue
	slots  chan struct{} // maxBinding
	writes sync.WaitGroup
}

// Run schedules Pods until ctx ends, and returns nil then.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &scheduler{
		cfg:    cfg,
		pods:   registry.For[*corev1.Pod](cfg.Registry),
		events: recorder.New(cfg.Registry, name, "", cfg.Logger),
		state:  newState(newCached(cfg.Registry)),
		queue:  newQueue(),
		slots:  make(chan struct{}, maxBinding),
	}
	defer s.writes.Wait()
	s.writes.Go(func() { _ = s.events.Run(ctx) })
	defer s.subscribe()()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for ctx.Err() == nil {
		w, info, wait := s.queue.pop(s.cfg.Now())
		if w != nil {
			s.one(ctx, w, info)
			continue
		}
		if timer.Stop(); wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
		case <-s.queue.wake:
		case <-timer.C:
		}
	}
	return nil
}

// one decides on one Pod and starts the writes that follow.
func (s *scheduler) one(ctx context.Context, w *waiting, info *podInfo) {
	s.state.forget(info) // it may have kept its room until its claims were bound
	snap := s.state.snapshot()
	node, fail := schedule(snap, info)
	if fail == nil {
		s.state.assume(info, node)
		if c, ok := volumesOn(snap, info, node); ok {
			s.start(ctx, func() { s.bindVolumes(ctx, w, info, node, c) })
			return
		}
		s.start(ctx, func() { s.bind(ctx, w, info, node) })
		return
	}
	var chosen *candidate
	if len(fail.verdicts) > 0 {
		chosen, fail.post = preempt(snap, info, fail)
	}
	nominate := info.pod.Status.NominatedNodeName
	var pushedOut []*podInfo
	if chosen != nil {
		nominate = chosen.node.node.Name
		s.state.nominate(info, nominate)
		pushedOut = lowerNominated(chosen.node, info)
	}
	s.queue.park(w, fail.helps, s.cfg.Now())
	s.start(ctx, func() {
		if chosen != nil {
			if !s.evict(ctx, info, chosen) {
				// Nothing else may happen that brings it back.
				s.queue.happened(fail.helps, s.cfg.Now())
			}
			s.clearNominations(ctx, pushedOut)
		}
		if !fail.quiet {
			s.report(ctx, info, fail.Error(), nominate)
		}
	})
}

// lowerNominated are the Pods of lower priority that waited for the node.
func lowerNominated(n *nodeInfo, p *podInfo) []*podInfo {
	var out []*podInfo
	for _, o := range n.nominated {
		if o.priority < p.priority {
			out = append(out, o)
		}
	}
	return out
}

// start runs a write beside the scheduler, waiting for a slot.
func (s *scheduler) start(ctx context.Context, fn func()) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	s.writes.Go(func() {
		defer func() { <-s.slots }()
		fn()
	})
}

// subscribe follows what decisions depend on.
func (s *scheduler) subscribe() (cancel func()) {
	r := s.cfg.Registry
	cancels := []func(){
		registry.For[*corev1.Node](r).Subscribe(s.onNode),
		s.pods.Subscribe(s.onPod),
		registry.For[*corev1.PersistentVolumeClaim](r).Subscribe(s.onClaim),
		onAny[*corev1.PersistentVolume](s, volumesChanged),
		onAny[*storagev1.StorageClass](s, volumesChanged),
		registry.For[*corev1.Namespace](r).Subscribe(func(e registry.Event[*corev1.Namespace]) {
			if e.Old == nil || !labels.Equals(e.Old.Labels, e.Object.Labels) {
				s.queue.happened(namespacesChanged, s.cfg.Now())
			}
		}),
	}
	return func() {
		for _, c := range cancels {
			c()
		}
	}
}

func onAny[T runtime.Object](s *scheduler, c cause) (cancel func()) {
	return registry.For[T](s.cfg.Registry).Subscribe(func(registry.Event[T]) { s.queue.happened(c, s.cfg.Now()) })
}

func (s *scheduler) onNode(e registry.Event[*corev1.Node]) {
	if e.Type == watch.Deleted {
		s.state.removeNode(e.Object.Name)
		return
	}
	s.state.setNode(e.Object)
	if c := nodeCause(e); c != 0 {
		s.queue.happened(c, s.cfg.Now())
	}
}

// nodeCause is how a node changed in ways that may help.
func nodeCause(e registry.Event[*corev1.Node]) cause {
	if e.Old == nil {
		return nodeAdded
	}
	var c cause
	if !equality.Semantic.DeepEqual(e.Old.Status.Allocatable, e.Object.Status.Allocatable) {
		c |= nodeResources
	}
	if !labels.Equals(e.Old.Labels, e.Object.Labels) {
		c |= nodeLabels
	}
	if e.Old.Spec.Unschedulable != e.Object.Spec.Unschedulable || !equality.Semantic.DeepEqual(e.Old.Spec.Taints, e.Object.Spec.Taints) {
		c |= nodeTaints
	}
	return c
}

func (s *scheduler) onPod(e registry.Event[*corev1.Pod]) {
	pod := e.Object
	key := pod.Namespace + "/" + pod.Name
	now := s.cfg.Now()
	ended := e.Type == watch.Deleted || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case ended:
		s.queue.remove(key)
		s.state.nominate(&podInfo{key: key}, "")
		if s.state.removePod(key) {
			s.queue.happened(podGone, now)
		}
	case pod.Spec.NodeName != "":
		s.queue.remove(key)
		s.state.nominate(&podInfo{key: key}, "")
		if e.Old != nil && e.Old.Spec.NodeName == pod.Spec.NodeName && !occupancyChanged(e.Old, pod) {
			s.state.refresh(key, pod)
			return
		}
		s.state.setPod(newPodInfo(pod))
		c := podAdded
		if e.Old != nil && e.Old.Spec.NodeName != "" {
			c |= podGone // it may ask for less now, or have other labels
		}
		s.queue.happened(c, now)
	case pod.Spec.SchedulerName != name || len(pod.Spec.SchedulingGates) > 0 || pod.DeletionTimestamp != nil:
		s.queue.remove(key)
	case s.state.isAssumed(key) && e.Old != nil && e.Old.UID == pod.UID: // its binding will tell
	default:
		p := newPodInfo(pod)
		s.state.nominate(p, pod.Status.NominatedNodeName)
		changed := e.Old == nil || !equality.Semantic.DeepEqual(e.Old.Spec, pod.Spec) || !labels.Equals(e.Old.Labels, pod.Labels)
		s.queue.add(p, now, changed)
	}
}

// occupancyChanged reports whether a Pod on a node takes other room than
// before, or may be matched by other selectors.
func occupancyChanged(was, now *corev1.Pod) bool {
	return !labels.Equals(was.Labels, now.Labels) || was.Generation != now.Generation ||
		(was.DeletionTimestamp == nil) != (now.DeletionTimestamp == nil) ||
		!equality.Semantic.DeepEqual(resizes(was), resizes(now))
}

// resizes is what of a Pod's status counts for its requests.
func resizes(pod *corev1.Pod) []corev1.ResourceList {
	var out []corev1.ResourceList
	for i := range pod.Status.ContainerStatuses {
		out = append(out, pod.Status.ContainerStatuses[i].AllocatedResources)
	}
	return out
}
