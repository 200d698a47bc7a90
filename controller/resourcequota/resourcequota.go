// Package resourcequota counts what namespaces use of their ResourceQuotas.
//
// It refuses nothing: admission does (apiserver/admission), and charges a quota
// for each write. This controller counts what is there: at first, when something
// goes, and a while after every charge, so that a charge for a write that failed
// does not stay.
//
// What the servers of aggregated APIs hold is counted by asking them, while a quota
// names it.
//
// Promises: it owns a quota's status, together with admission; each writes only
// over what it has seen. At rest nothing runs and nothing is written.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/resourcequota, which counts anew
// every five minutes instead.
package resourcequota

import (
	"context"
	"errors"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/quota"
	"edged/controller/foreign"
	"edged/controller/loop"
)

// settle is how long after a charge it is counted whether what it was for is
// there; longer than a write takes.
const settle = 5 * time.Second

// recountForeign is how often that is counted which the servers of aggregated APIs
// hold: their changes are not seen here.
const recountForeign = 30 * time.Second

// Status is a quota's status when these are the namespace's objects.
func Status(q *corev1.ResourceQuota, objects []quota.Object, now time.Time) corev1.ResourceQuotaStatus {
	return corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: quota.Total(q, objects, now)}
}

type controller struct {
	env    loop.Env
	quotas registry.Client[*corev1.ResourceQuota]
	queue  *loop.Queue
	others *foreign.Client
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, quotas: registry.For[*corev1.ResourceQuota](env.Registry), others: foreign.New(env.Foreign, "resourcequota-controller")}
	c.queue = loop.NewQueue(loop.Config{Name: "resourcequota", Reconcile: c.sync, Logger: env.Logger})
	defer c.quotas.Subscribe(c.onQuota)()
	defer env.Registry.SubscribeAll(c.on)()
	return c.queue.Run(ctx)
}

func (c *controller) onQuota(e registry.Event[*corev1.ResourceQuota]) {
	switch q := e.Object; {
	case e.Type == watch.Deleted:
	case !equality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard), q.Status.Used == nil:
		c.queue.Add(loop.KeyOf(q))
	default:
		c.queue.AddAfter(loop.KeyOf(q), settle)
	}
}

// on looks at changes of what quotas may limit.
func (c *controller) on(e registry.AnyEvent) {
	if !e.Kind.Namespaced || e.Kind.Resource == "events" {
		return
	}
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return
	}
	for _, q := range c.quotas.List(m.GetNamespace()) {
		if !quota.Limits(q, e.Kind.GroupResource()) {
			continue
		}
		switch {
		case e.Type == watch.Added:
			c.queue.AddAfter(loop.KeyOf(q), settle)
		case e.Type == watch.Deleted || c.recount(q, e):
			c.queue.Add(loop.KeyOf(q))
		}
		if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted {
			if at, ok := quota.Release(p); ok {
				c.queue.AddAfter(loop.KeyOf(q), at.Sub(c.env.Now())+time.Second)
			}
		}
	}
}

// recount reports whether a change of an object changes what the quota counts of it:
// how much it uses, or whether it is within the quota's scopes at all.
func (c *controller) recount(q *corev1.ResourceQuota, e registry.AnyEvent) bool {
	if e.Old == nil {
		return false
	}
	now, gr := c.env.Now(), e.Kind.GroupResource()
	count := func(o runtime.Object) corev1.ResourceList {
		return quota.Total(q, []quota.Object{{Resource: gr, Object: o}}, now)
	}
	return !quota.Equal(count(e.Old), count(e.Object))
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	q, ok := c.quotas.Get(ns, name)
	if !ok || q.DeletionTimestamp != nil {
		return 0, nil
	}
	var objects []quota.Object
	for _, k := range c.env.Registry.Kinds() {
		if gr := k.GroupResource(); k.Namespaced && quota.Limits(q, gr) {
			for _, o := range c.env.Registry.CachedIn(k, ns) {
				objects = append(objects, quota.Object{Resource: gr, Object: o})
			}
		}
	}
	more, again, err := c.foreign(ctx, q)
	if err != nil {
		return 0, err
	}
	objects = append(objects, more...)
	status := Status(q, objects, c.env.Now())
	if quota.Equal(status.Used, q.Status.Used) && equality.Semantic.DeepEqual(status.Hard, q.Status.Hard) {
		return again, nil
	}
	_, err = c.quotas.UpdateStatus(ctx, ns, name, func(cur *corev1.ResourceQuota) error {
		if cur.ResourceVersion != q.ResourceVersion { // charged meanwhile
			return apierrors.NewConflict(corev1.Resource("resourcequotas"), name, errors.New("it was changed after it was read"))
		}
		cur.Status = status
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return again, err
}

// foreign is what the quota counts of what other servers hold, and when to count
// that again.
func (c *controller) foreign(ctx context.Context, q *corev1.ResourceQuota) (objects []quota.Object, again time.Duration, err error) {
	if !c.countsForeign(q) {
		return nil, 0, nil
	}
	resources, err := c.others.Resources(ctx)
	for _, r := range resources {
		if !r.Namespaced || !r.Can("list") || !quota.Limits(q, r.GroupResource()) {
			continue
		}
		again = recountForeign
		found, _, err := c.others.List(ctx, r, q.Namespace)
		if err != nil {
			return nil, 0, err
		}
		for i := range found {
			objects = append(objects, quota.Object{Resource: r.GroupResource(), Object: &found[i]})
		}
	}
	return objects, again, err // with one the old count stays
}

// countsForeign reports whether the quota counts objects that are not ours.
func (c *controller) countsForeign(q *corev1.ResourceQuota) bool {
	for name := range q.Spec.Hard {
		counted, ok := strings.CutPrefix(string(name), "count/")
		if !ok {
			continue
		}
		if _, ours := c.env.Registry.Kind(schema.ParseGroupResource(counted)); !ours {
			return true
		}
	}
	return false
}
