package namespace

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/foreign"
	"edged/controller/loop"
	"edged/controller/podset"
)

const (
	firstLook = 200 * time.Millisecond
	lastLook  = 30 * time.Second
)

type controller struct {
	env        loop.Env
	namespaces registry.Client[*corev1.Namespace]
	foreign    *foreign.Client

	mu    sync.Mutex
	waits map[string]time.Duration // of namespaces that are being emptied
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, namespaces: registry.For[*corev1.Namespace](env.Registry), foreign: foreign.New(env.Foreign, "namespace-controller"), waits: map[string]time.Duration{}}
	q := loop.NewQueue(loop.Config{Name: "namespace", Reconcile: c.sync, Logger: env.Logger})
	defer c.namespaces.Subscribe(func(e registry.Event[*corev1.Namespace]) {
		if e.Object.DeletionTimestamp != nil && e.Type != watch.Deleted {
			q.Add(e.Object.Name)
		}
	})()
	defer registry.For[*corev1.Pod](env.Registry).Subscribe(func(e registry.Event[*corev1.Pod]) {
		if e.Type != watch.Deleted {
			return
		}
		if ns, ok := c.namespaces.Get("", e.Object.Namespace); ok && ns.DeletionTimestamp != nil {
			q.Add(ns.Name)
		}
	})()
	return q.Run(ctx)
}

func (c *controller) sync(ctx context.Context, name string) (time.Duration, error) {
	ns, ok := c.namespaces.Get("", name)
	if !ok || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		c.forget(name)
		return 0, nil
	}
	r := c.empty(ctx, name)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if r.Empty() {
		c.forget(name)
		return 0, c.finalize(ctx, ns)
	}
	_, err := c.namespaces.UpdateStatus(ctx, "", name, func(ns *corev1.Namespace) error {
		Conditions(&ns.Status, r, c.env.Now())
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return c.wait(name), err
}

// empty deletes what may be deleted now and counts what remains.
func (c *controller) empty(ctx context.Context, ns string) Remains {
	kinds := c.env.Registry.Kinds()
	pods := len(registry.For[*corev1.Pod](c.env.Registry).List(ns))
	var failure error
	for {
		for _, k := range Order(kinds, pods) {
			for _, obj := range c.env.Registry.CachedIn(k, ns) {
				if err := c.delete(ctx, k, obj); err != nil && failure == nil {
					failure = err
				}
			}
		}
		was := pods
		if pods = len(registry.For[*corev1.Pod](c.env.Registry).List(ns)); was == 0 || pods > 0 {
			break // others had their turn, or have to wait for Pods
		}
	}
	r := c.remains(ns, kinds, failure)
	if pods == 0 {
		c.emptyForeign(ctx, ns, &r)
	}
	return r
}

// emptyForeign deletes what other servers hold in the namespace, and counts what
// remains there. What cannot be asked keeps the namespace, as in upstream.
func (c *controller) emptyForeign(ctx context.Context, ns string, r *Remains) {
	resources, err := c.foreign.Resources(ctx)
	r.Discovery = err
	for _, res := range resources {
		if !res.Namespaced || !res.Can("delete") {
			continue
		}
		left, err := c.deleteForeign(ctx, res, ns)
		if err != nil && r.Failure == nil {
			r.Failure = err
		}
		if len(left) > 0 {
			r.Resources[res.Resource+"."+res.Group] = len(left)
		}
		for i := range left {
			for _, f := range left[i].Finalizers {
				r.Finalizers[f]++
			}
		}
	}
}

// deleteForeign deletes all objects of a resource in the namespace and returns what
// is there then.
func (c *controller) deleteForeign(ctx context.Context, res foreign.Resource, ns string) ([]metav1.PartialObjectMetadata, error) {
	if !res.Can("list") {
		return nil, nil // upstream neither deletes nor waits for what it cannot see
	}
	left, _, err := c.foreign.List(ctx, res, ns)
	if err != nil || len(left) == 0 {
		return nil, err
	}
	background := metav1.DeletePropagationBackground
	if res.Can("deletecollection") {
		err = c.foreign.DeleteAll(ctx, res, ns, metav1.DeleteOptions{PropagationPolicy: &background})
	} else {
		for i := range left {
			one := c.foreign.Delete(ctx, res, ns, left[i].Name, metav1.DeleteOptions{PropagationPolicy: &background})
			if one != nil && !apierrors.IsNotFound(one) && err == nil {
				err = one
			}
		}
	}
	if err != nil {
		return left, err
	}
	left, _, err = c.foreign.List(ctx, res, ns)
	return left, err
}

func (c *controller) delete(ctx context.Context, k *registry.Kind, obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil || m.GetDeletionTimestamp() != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	_, _, err = c.env.Registry.Delete(ctx, k.GroupResource(), m.GetNamespace(), m.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *controller) remains(ns string, kinds []*registry.Kind, failure error) Remains {
	r := Remains{Resources: map[string]int{}, Finalizers: map[string]int{}, Failure: failure}
	for _, k := range Order(kinds, 0) {
		for _, obj := range c.env.Registry.CachedIn(k, ns) {
			r.Resources[k.Resource+"."+k.GVK.Group]++
			if m, err := meta.Accessor(obj); err == nil {
				for _, f := range m.GetFinalizers() {
					r.Finalizers[f]++
				}
			}
		}
	}
	return r
}

// finalize takes our finalizer off, with which the namespace goes if it was
// the last.
func (c *controller) finalize(ctx context.Context, ns *corev1.Namespace) error {
	gr := c.namespaces.Kind().GroupResource()
	_, _, err := c.env.Registry.Update(ctx, gr, "", ns.Name, "finalize", func(cur runtime.Object) (runtime.Object, error) {
		n := cur.(*corev1.Namespace)
		if n.UID == ns.UID {
			n.Spec.Finalizers = slices.DeleteFunc(n.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
		}
		return n, nil
	}, registry.UpdateOptions{})
	if err == nil {
		if left, ok := c.namespaces.Get("", ns.Name); ok && left.UID == ns.UID && len(left.Spec.Finalizers) == 0 {
			err = c.namespaces.Delete(ctx, "", ns.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(ns.UID))})
		}
	}
	if apierrors.IsNotFound(err) || podset.IsNamespaceEnding(err) {
		return nil
	}
	return err
}

// wait is how long to wait for what remains: longer each time.
func (c *controller) wait(name string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := min(max(2*c.waits[name], firstLook), lastLook)
	c.waits[name] = d
	return d
}

func (c *controller) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waits, name)
}
