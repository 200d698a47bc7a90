package disruption

import (
	"context"
	"errors"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

// podPrefix begins the key of a Pod whose mark may be stale.
const podPrefix = "pod|"

type controller struct {
	env     loop.Env
	budgets registry.Client[*policyv1.PodDisruptionBudget]
	pods    registry.Client[*corev1.Pod]
	events  *recorder.Recorder
	queue   *loop.Queue
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:     env,
		budgets: registry.For[*policyv1.PodDisruptionBudget](env.Registry),
		pods:    registry.For[*corev1.Pod](env.Registry),
		events:  env.Events.Component("controllermanager"), // upstream's name for it
	}
	c.queue = loop.NewQueue(loop.Config{Name: "disruption", Reconcile: c.sync, Logger: env.Logger})
	defer c.budgets.Subscribe(func(e registry.Event[*policyv1.PodDisruptionBudget]) { c.queue.Add(loop.KeyOf(e.Object)) })()
	defer c.pods.Subscribe(c.onPod)()
	return c.queue.Run(ctx)
}

func (c *controller) onPod(e registry.Event[*corev1.Pod]) {
	p := e.Object
	if e.Type != watch.Deleted {
		if marked, after := Stale(p, c.env.Now()); marked {
			c.queue.AddAfter(podPrefix+loop.KeyOf(p), after+time.Second)
		}
	}
	if e.Type == watch.Modified && podset.IsReady(e.Old) == podset.IsReady(p) && (e.Old.DeletionTimestamp == nil) == (p.DeletionTimestamp == nil) &&
		equality.Semantic.DeepEqual(e.Old.Labels, p.Labels) && equality.Semantic.DeepEqual(e.Old.OwnerReferences, p.OwnerReferences) {
		return
	}
	for _, b := range c.budgets.List(p.Namespace) {
		s := selector(b)
		if s.Matches(labels.Set(p.Labels)) || e.Type == watch.Modified && s.Matches(labels.Set(e.Old.Labels)) {
			c.queue.Add(loop.KeyOf(b))
		}
	}
}

func selector(b *policyv1.PodDisruptionBudget) labels.Selector {
	return podset.Selector(b.Spec.Selector)
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if pod, ok := strings.CutPrefix(key, podPrefix); ok {
		return c.unmark(ctx, pod)
	}
	ns, name := loop.SplitKey(key)
	b, ok := c.budgets.Get(ns, name)
	if !ok {
		return 0, nil
	}
	s := selector(b)
	w := World{Budget: b, Now: c.env.Now(), Scale: c.scale}
	w.Pods = podset.Filter(c.pods.List(ns), func(p *corev1.Pod) bool { return s.Matches(labels.Set(p.Labels)) })
	o := Reconcile(w)
	if equality.Semantic.DeepEqual(o.Status, b.Status) {
		return o.Again, nil // nothing to say either
	}
	about := recorder.Reference(policyv1.SchemeGroupVersion.String(), "PodDisruptionBudget", b, "")
	for _, e := range o.Events {
		c.events.Event(about, e.Type, e.Reason, e.Message)
	}
	for _, p := range o.Undeleted {
		c.events.Eventf(recorder.Reference("v1", "Pod", p, ""), corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", ns, name)
	}
	_, err := c.budgets.UpdateStatus(ctx, ns, name, func(cur *policyv1.PodDisruptionBudget) error {
		if cur.ResourceVersion != b.ResourceVersion { // an eviction may have been noted
			return apierrors.NewConflict(policyv1.Resource("poddisruptionbudgets"), name, errors.New("it was changed after it was read"))
		}
		cur.Status = o.Status
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return o.Again, err
}

// scale finds how many Pods a controller asks for. A ReplicaSet's Deployment
// decides for it.
func (c *controller) scale(ref *metav1.OwnerReference, ns string) (uid types.UID, replicas int32, ok bool) {
	switch group, _, _ := strings.Cut(ref.APIVersion, "/"); {
	case ref.Kind == "ReplicaSet" && group == appsv1.GroupName:
		rs, ok := registry.For[*appsv1.ReplicaSet](c.env.Registry).Get(ns, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, false
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
			if d, ok := registry.For[*appsv1.Deployment](c.env.Registry).Get(ns, up.Name); ok && d.UID == up.UID {
				return d.UID, ptr.Deref(d.Spec.Replicas, 1), true
			}
		}
		return rs.UID, ptr.Deref(rs.Spec.Replicas, 1), true
	case ref.Kind == "StatefulSet" && group == appsv1.GroupName:
		s, ok := registry.For[*appsv1.StatefulSet](c.env.Registry).Get(ns, ref.Name)
		if !ok || s.UID != ref.UID {
			return "", 0, false
		}
		return s.UID, ptr.Deref(s.Spec.Replicas, 1), true
	case ref.Kind == "ReplicationController" && group == "v1":
		rc, ok := registry.For[*corev1.ReplicationController](c.env.Registry).Get(ns, ref.Name)
		if !ok || rc.UID != ref.UID {
			return "", 0, false
		}
		return rc.UID, ptr.Deref(rc.Spec.Replicas, 1), true
	}
	return "", 0, false // no scale: a Job's, a DaemonSet's
}

// unmark takes back a mark of disruption that nothing came of.
func (c *controller) unmark(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	p, ok := c.pods.Get(ns, name)
	if !ok {
		return 0, nil
	}
	if marked, after := Stale(p, c.env.Now()); !marked || after > 0 {
		return after, nil
	}
	_, err := c.pods.UpdateStatus(ctx, ns, name, func(cur *corev1.Pod) error {
		if marked, after := Stale(cur, c.env.Now()); cur.UID == p.UID && marked && after == 0 {
			podset.SetCondition(cur, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(c.env.Now()).Rfc3339Copy(),
			})
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return 0, err
}
