// Package podgc removes Pods that nobody will: those of Nodes that are gone,
// those that were deleted before they had a Node, those on a Node that is marked
// out of service, and the oldest that have ended when there are too many.
//
// It stops nothing: what it removes runs nowhere, or is declared not to.
//
// Types: Doomed is the decision, a function of what there is.
//
// Promises: a Pod of a Node that is gone is kept for Quarantine, since the Node
// may come back (a device that was deleted while it runs does). At rest nothing
// is written.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/podgc; KEP-2268 for out-of-service.
package podgc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/controller/loop"
	"edged/controller/podset"
)

const (
	// MaxEnded is how many Pods that have ended are kept. Upstream keeps 12500;
	// at 10 KB each a small device has no room for that.
	MaxEnded = 500
	// Quarantine is how long a Node must be gone, upstream's.
	Quarantine = 40 * time.Second
)

// Victim is a Pod to be removed, and the condition that tells why; an empty
// Message is for none.
type Victim struct {
	Pod     *corev1.Pod
	Message string
}

// Doomed chooses the Pods to remove. gone says since when a Node is not there,
// zero if it is; the second result is when the next one may be due.
func Doomed(pods []*corev1.Pod, node func(string) *corev1.Node, gone func(string) time.Time, now time.Time) (out []Victim, again time.Duration) {
	var ended []*corev1.Pod
	for _, p := range pods {
		switch name := p.Spec.NodeName; {
		case name == "" && p.DeletionTimestamp != nil:
			out = append(out, Victim{p, ""})
		case name == "":
		case node(name) == nil:
			left := Quarantine - now.Sub(gone(name))
			if left <= 0 {
				out = append(out, Victim{p, "PodGC: node no longer exists"})
			} else if again == 0 || left < again {
				again = left
			}
		case p.DeletionTimestamp != nil && outOfService(node(name)):
			out = append(out, Victim{p, "PodGC: node is out of service"})
		case podset.IsFinished(p) && p.DeletionTimestamp == nil:
			ended = append(ended, p)
		}
	}
	if n := len(ended) - MaxEnded; n > 0 {
		slices.SortFunc(ended, func(a, b *corev1.Pod) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		for _, p := range ended[:n] {
			out = append(out, Victim{p, ""})
		}
	}
	return out, again
}

// outOfService says that an administrator has declared a Node dead, and that the
// control plane does not see it alive.
func outOfService(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

type controller struct {
	env   loop.Env
	pods  registry.Client[*corev1.Pod]
	nodes registry.Client[*corev1.Node]
	gone  map[string]time.Time // owned by sync, which runs for one key
}

// everything is the only key: what is due is found by looking at all Pods.
const everything = "all"

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, pods: registry.For[*corev1.Pod](env.Registry), nodes: registry.For[*corev1.Node](env.Registry), gone: map[string]time.Time{}}
	q := loop.NewQueue(loop.Config{Name: "podgc", Reconcile: c.sync, Logger: env.Logger})
	defer c.nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Type == watch.Deleted || outOfService(e.Object) {
			q.Add(everything)
		}
	})()
	defer c.pods.Subscribe(func(e registry.Event[*corev1.Pod]) {
		if e.Type == watch.Deleted {
			return
		}
		p := e.Object
		n, there := c.nodes.Get("", p.Spec.NodeName)
		switch {
		case p.Spec.NodeName == "":
			if p.DeletionTimestamp != nil {
				q.Add(everything)
			}
		case !there, p.DeletionTimestamp != nil && outOfService(n):
			q.Add(everything)
		case podset.IsFinished(p) && (e.Old == nil || !podset.IsFinished(e.Old)):
			q.AddAfter(everything, 20*time.Second) // upstream's period; many end together
		}
	})()
	return q.Run(ctx)
}

func (c *controller) sync(ctx context.Context, _ string) (time.Duration, error) {
	now := time.Now()
	find := func(name string) *corev1.Node {
		n, ok := c.nodes.Get("", name)
		if !ok {
			return nil
		}
		delete(c.gone, name)
		return n
	}
	victims, again := Doomed(c.pods.List(""), find, func(name string) time.Time {
		if _, ok := c.gone[name]; !ok {
			c.gone[name] = now
		}
		return c.gone[name]
	}, now)
	var errs []error
	for _, v := range victims {
		errs = append(errs, c.remove(ctx, v))
	}
	if again == 0 {
		clear(c.gone) // no Pod is left of any
	}
	return again, errors.Join(errs...)
}

func (c *controller) remove(ctx context.Context, v Victim) error {
	p := v.Pod
	var err error
	if v.Message != "" && !podset.IsFinished(p) {
		_, err = c.pods.UpdateStatus(ctx, p.Namespace, p.Name, func(cur *corev1.Pod) error {
			if cur.UID != p.UID {
				return nil
			}
			cur.Status.Phase = corev1.PodFailed
			podset.SetCondition(cur, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: v.Message,
				LastTransitionTime: metav1.NewTime(c.env.Now()).Rfc3339Copy(),
			})
			return nil
		})
	}
	if err == nil {
		opts := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: metav1.NewUIDPreconditions(string(p.UID))}
		err = c.pods.Delete(ctx, p.Namespace, p.Name, opts)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}
