package replicaset

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

// Shape is how a kind looks as a ReplicaSet.
type Shape[T podset.Object] struct {
	GVK       schema.GroupVersionKind
	Component string // of Events
	// View is the object as a ReplicaSet; it may share memory with it.
	View func(T) *appsv1.ReplicaSet
	// SetStatus writes a status back.
	SetStatus func(T, appsv1.ReplicaSetStatus)
}

// Run is the ReplicaSet controller.
func Run(ctx context.Context, env loop.Env) error {
	return Serve(ctx, env, Shape[*appsv1.ReplicaSet]{
		GVK:       appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		Component: "replicaset-controller",
		View:      func(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet { return rs },
		SetStatus: func(rs *appsv1.ReplicaSet, s appsv1.ReplicaSetStatus) { rs.Status = s },
	})
}

// Serve runs the controller for a kind of the given shape until ctx ends.
func Serve[T podset.Object](ctx context.Context, env loop.Env, shape Shape[T]) error {
	c := &server[T]{
		shape: shape, env: env,
		owners:  registry.For[T](env.Registry),
		control: podset.Control{Pods: registry.For[*corev1.Pod](env.Registry), Events: env.Events.Component(shape.Component)},
	}
	q := loop.NewQueue(loop.Config{Name: shape.Component, Reconcile: c.sync, Logger: env.Logger})
	defer c.owners.Subscribe(func(e registry.Event[T]) { q.Add(loop.KeyOf(e.Object)) })()
	selecting := podset.Selecting(c.owners, func(o T) labels.Selector { return podset.Selector(shape.View(o).Spec.Selector) })
	defer c.control.Pods.Subscribe(func(e registry.Event[*corev1.Pod]) {
		podset.Keys(e, shape.GVK.Kind, selecting, q.Add)
	})()
	return q.Run(ctx)
}

type server[T podset.Object] struct {
	shape   Shape[T]
	env     loop.Env
	owners  registry.Client[T]
	control podset.Control
}

func (c *server[T]) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	owner, ok := c.owners.Get(ns, name)
	if !ok {
		return 0, nil
	}
	rs := c.shape.View(owner)
	claim := podset.Match(owner, podset.Selector(rs.Spec.Selector), c.control.Pods.List(ns))
	pods, err := claim.Apply(ctx, c.control.Pods, owner, *metav1.NewControllerRef(owner, c.shape.GVK))
	if err != nil {
		return 0, err
	}
	plan := Reconcile(rs, pods, c.related(rs), c.env.Now())
	failure := c.perform(ctx, owner, rs, plan)
	again, err := c.writeStatus(ctx, ns, name, failure)
	if failure != nil {
		return again, failure
	}
	return again, err
}

// related are the Pods of all ReplicaSets with the same controller.
func (c *server[T]) related(rs *appsv1.ReplicaSet) []*corev1.Pod {
	uids := []string{string(rs.UID)}
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil {
		uids = uids[:0]
		for _, sibling := range c.owners.ByIndex(registry.IndexOwner, string(ref.UID)) {
			uids = append(uids, string(sibling.GetUID()))
		}
	}
	var pods []*corev1.Pod
	for _, uid := range uids {
		pods = append(pods, c.control.Pods.ByIndex(registry.IndexOwner, uid)...)
	}
	return pods
}

// perform makes and deletes Pods. A namespace that is being deleted is no
// failure.
func (c *server[T]) perform(ctx context.Context, owner T, rs *appsv1.ReplicaSet, plan Plan) error {
	about := recorder.Reference(c.shape.GVK.GroupVersion().String(), c.shape.GVK.Kind, owner, "")
	if plan.Create > 0 {
		pod := podset.FromTemplate(&rs.Spec.Template, owner, *metav1.NewControllerRef(owner, c.shape.GVK))
		_, err := podset.SlowStart(plan.Create, func() error {
			_, err := c.control.Create(ctx, pod, about)
			if err != nil && podset.IsNamespaceEnding(err) {
				return nil
			}
			return err
		})
		return err
	}
	if len(plan.Delete) == 0 {
		return nil
	}
	_, err := podset.Each(len(plan.Delete), func(i int) error { return c.control.Delete(ctx, plan.Delete[i], about) })
	return err
}

// writeStatus writes the status of the Pods that are there now.
func (c *server[T]) writeStatus(ctx context.Context, ns, name string, failure error) (again time.Duration, err error) {
	_, err = c.owners.UpdateStatus(ctx, ns, name, func(owner T) error {
		rs := c.shape.View(owner)
		selector := podset.Selector(rs.Spec.Selector)
		mine := podset.Match(owner, selector, c.control.Pods.ByIndex(registry.IndexOwner, string(owner.GetUID()))).Mine
		var status appsv1.ReplicaSetStatus
		status, again = Status(rs, mine, failure, c.env.Now())
		if !equality.Semantic.DeepEqual(status, rs.Status) {
			c.shape.SetStatus(owner, status)
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return again, err
}
