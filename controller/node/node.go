package node

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

// Liveness tells when a device was last heard of, by the monotonic clock. ok is false for a name that is
// no device's; such a Node is left as whoever made it says it is. A nil Liveness
// is of a lone device.
type Liveness func(node string) (heard time.Time, ok bool)

// AnnotationBackBy is of a Node whose device restarts because it was told to, and
// says by when it is back (RFC 3339). Until then the Pods that nobody would make
// anew elsewhere, those without a controller, wait for it.
const AnnotationBackBy = "edged.dev/back-by"

const (
	// listenAtMost is how often Liveness is asked of a silent device.
	listenAtMost = 100 * time.Millisecond
	// stoodStill is how late listen may wake before it takes this device itself
	// for the one that stood still: what the others sent meanwhile is yet to be
	// read.
	stoodStill = time.Second
	// atOnce is how many Pods of a Node are written at a time.
	atOnce = 8
)

// Witnesses are the names of members that run no Pods and have no Node. They are
// devices all the same when it is counted how many are silent: of two devices and a
// witness, the one that is lost is not half.
type Witnesses func() []string

type controller struct {
	env      loop.Env
	liveness Liveness
	others   Witnesses
	grace    func() time.Duration
	nodes    registry.Client[*corev1.Node]
	pods     registry.Client[*corev1.Pod]
	events   *recorder.Recorder
	eviction *recorder.Recorder
	queue    *loop.Queue
	more     chan struct{}             // holds one: Nodes came or went
	awake    atomic.Pointer[time.Time] // since when this device itself is, nil for ever
}

// Run makes the controller.
// grace tells how long a device may be silent now; nil is Grace. others may be nil.
func Run(liveness Liveness, grace func() time.Duration, others Witnesses) loop.Run {
	if grace == nil {
		grace = func() time.Duration { return Grace }
	}
	return func(ctx context.Context, env loop.Env) error {
		c := &controller{
			env: env, liveness: liveness, grace: grace, others: others, nodes: registry.For[*corev1.Node](env.Registry), pods: registry.For[*corev1.Pod](env.Registry),
			more:   make(chan struct{}, 1),
			events: env.Events.Component("node-controller"), eviction: env.Events.Component("taint-eviction-controller"),
		}
		c.queue = loop.NewQueue(loop.Config{Name: "node", Reconcile: c.sync, Logger: env.Logger})
		defer c.nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
			c.queue.Add(e.Object.Name)
			if e.Type != watch.Modified {
				select {
				case c.more <- struct{}{}:
				default:
				}
			}
		})()
		defer c.pods.Subscribe(func(e registry.Event[*corev1.Pod]) {
			// Only a Pod that comes to a Node can have to leave it.
			if e.Type != watch.Deleted && e.Object.Spec.NodeName != "" && (e.Old == nil || e.Old.Spec.NodeName == "") {
				c.queue.Add(e.Object.Spec.NodeName)
			}
		})()
		if liveness != nil {
			stop := make(chan struct{})
			go c.listen(ctx, stop)
			defer func() { <-stop }()
		}
		return c.queue.Run(ctx)
	}
}

// listen adds the Nodes whose devices fell silent, until ctx ends. It sleeps while
// there is one only.
func (c *controller) listen(ctx context.Context, stopped chan<- struct{}) {
	defer close(stopped)
	for ctx.Err() == nil {
		nodes := c.nodes.List("")
		if len(nodes) < 2 {
			select {
			case <-ctx.Done():
			case <-c.more:
			}
			continue
		}
		// By the monotonic clock, which nobody sets.
		now := time.Now()
		grace := c.grace()
		next := now.Add(grace)
		for _, n := range nodes {
			heard, ok := c.liveness(n.Name)
			switch {
			case !ok || !isKnown(n):
			case c.silent(n.Name):
				c.queue.Add(n.Name)
				next = now
			case heard.Add(grace).Before(next):
				next = heard.Add(grace)
			}
		}
		wait := max(next.Sub(now), listenAtMost)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			if woke := time.Now(); woke.Sub(now) > wait+stoodStill {
				c.awake.Store(&woke)
			}
		}
	}
}

// silent says whether a device is to be taken for gone.
func (c *controller) silent(node string) bool {
	_, is := c.lost(node)
	return is
}

// heard says whether a device is known to be there.
func (c *controller) heard(node string) bool {
	if c.liveness == nil {
		return false
	}
	_, ok := c.liveness(node)
	return ok && !c.silent(node)
}

// lost tells since when a device is to be taken for gone, if it is, by the
// monotonic clock.
func (c *controller) lost(node string) (since time.Time, is bool) {
	if c.liveness == nil {
		return time.Time{}, false
	}
	since, ok := c.liveness(node)
	if awake := c.awake.Load(); awake != nil && awake.After(since) {
		since = *awake
	}
	since = since.Add(c.grace())
	return since, ok && !time.Now().Before(since)
}

// isKnown says whether the Node's Ready is anything but Unknown.
func isKnown(n *corev1.Node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status != corev1.ConditionUnknown
		}
	}
	return true
}

// majoritySilent says whether half of the devices or more are silent.
func (c *controller) majoritySilent() bool {
	if c.liveness == nil {
		return false
	}
	names := map[string]bool{} // a device that became a witness keeps its Node
	for _, n := range c.nodes.List("") {
		names[n.Name] = true
	}
	if c.others != nil {
		for _, name := range c.others() {
			names[name] = true
		}
	}
	devices, silent := 0, 0
	for name := range names {
		if _, ok := c.liveness(name); !ok {
			continue
		}
		devices++
		if c.silent(name) {
			silent++
		}
	}
	return devices > 1 && 2*silent >= devices
}

func (c *controller) sync(ctx context.Context, name string) (time.Duration, error) {
	n, ok := c.nodes.Get("", name)
	if !ok {
		return 0, nil
	}
	now := c.env.Now()
	since, lost := c.lost(name)
	if lost {
		told, err := c.mark(ctx, n)
		if err != nil {
			return 0, err
		}
		if told {
			// What its Pods tolerate begins when it was lost, not when that was
			// written down.
			now = now.Add(-time.Since(since))
		}
	}
	if err := c.taint(ctx, name, now); err != nil {
		return 0, err
	}
	if lost {
		if err := c.unready(ctx, name); err != nil {
			return 0, err
		}
	}
	return c.evict(ctx, name, since, lost)
}

// mark says of a Node that nothing is heard of it. told is whether that is news.
func (c *controller) mark(ctx context.Context, n *corev1.Node) (told bool, err error) {
	if !isKnown(n) {
		return false, nil
	}
	_, err = c.nodes.UpdateStatus(ctx, "", n.Name, func(n *corev1.Node) error {
		told = false
		heard, ok := c.liveness(n.Name)
		if !ok {
			return nil
		}
		now := c.env.Now()
		n.Status.Conditions, told, _ = Health(n.Status.Conditions, now.Add(-time.Since(heard)), now, c.grace())
		return nil
	})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("mark node %s: %w", n.Name, err)
	}
	if told {
		c.env.Logger.Warn("a device is not heard of any more", "node", n.Name)
		c.events.Eventf(recorder.Reference("v1", "Node", n, ""), corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name)
	}
	return told, nil
}

// unready says of the Pods of a Node that they are not ready.
func (c *controller) unready(ctx context.Context, name string) error {
	return c.each(ctx, c.pods.ByIndex(registry.IndexNode, name), func(ctx context.Context, p *corev1.Pod) error {
		if !podset.IsReady(p) {
			return nil
		}
		if _, err := c.pods.UpdateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
			for i := range p.Status.Conditions {
				if cond := &p.Status.Conditions[i]; cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
					cond.Status, cond.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(c.env.Now()).Rfc3339Copy()
				}
			}
			return nil
		}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("mark pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		c.events.Event(recorder.Reference("v1", "Pod", p, ""), corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
		return nil
	})
}

// each calls f for Pods, several at a time: their writes share syncs. It returns the
// first error, and starts no more after one.
func (c *controller) each(ctx context.Context, pods []*corev1.Pod, f func(context.Context, *corev1.Pod) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, p := range pods {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return f(ctx, p) })
	}
	return g.Wait()
}

// taint gives a Node the taints that it should have, new ones as of now.
func (c *controller) taint(ctx context.Context, name string, now time.Time) error {
	n, ok := c.nodes.Get("", name)
	if !ok {
		return nil
	}
	if _, changed := Taints(n, now); !changed {
		return nil
	}
	_, err := c.nodes.Update(ctx, "", name, func(n *corev1.Node) error {
		n.Spec.Taints, _ = Taints(n, now)
		return nil
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("taint node %s: %w", name, err)
	}
	return nil
}

// evict deletes the Pods that may not stay, and returns when the next may not. since
// is when the device was lost, if it is.
func (c *controller) evict(ctx context.Context, name string, since time.Time, lost bool) (again time.Duration, err error) {
	n, ok := c.nodes.Get("", name)
	if !ok {
		return 0, nil
	}
	// A device that is heard again is about to say how it is.
	held := !isKnown(n) && (c.majoritySilent() || c.heard(name))
	now := c.env.Now()
	taints := n.Spec.Taints
	if lost {
		taints = Exact(taints, now.Add(-time.Since(since)))
	}
	restarts := backBy(n).Sub(now)
	var gone []*corev1.Pod
	for _, p := range c.pods.ByIndex(registry.IndexNode, name) {
		evict, after := Eviction(p, taints, now)
		if evict && held {
			evict, after = false, Grace // looked at again when the others are back
		}
		if evict && restarts > 0 && metav1.GetControllerOf(p) == nil {
			evict, after = false, restarts
		}
		if after > 0 && (again == 0 || after < again) {
			again = after
		}
		if evict {
			gone = append(gone, p)
		}
	}
	return again, c.each(ctx, gone, c.delete)
}

// backBy is the time by which a Node's device said to be back, zero if it restarts
// on nobody's order.
func backBy(n *corev1.Node) time.Time {
	t, err := time.Parse(time.RFC3339, n.Annotations[AnnotationBackBy])
	if err != nil {
		return time.Time{}
	}
	return t
}

func (c *controller) delete(ctx context.Context, p *corev1.Pod) error {
	c.eviction.Eventf(recorder.Reference("v1", "Pod", p, ""), corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", p.Namespace, p.Name)
	_, err := c.pods.UpdateStatus(ctx, p.Namespace, p.Name, func(cur *corev1.Pod) error {
		if cur.UID != p.UID {
			return nil
		}
		podset.SetCondition(cur, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
			Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(c.env.Now()).Rfc3339Copy(),
		})
		return nil
	})
	if err == nil {
		err = c.pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take pod %s/%s off node %s: %w", p.Namespace, p.Name, p.Spec.NodeName, err)
	}
	return nil
}
