package endpointslice

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
	"edged/controller/podset"
)

type controller struct {
	env      loop.Env
	services registry.Client[*corev1.Service]
	pods     registry.Client[*corev1.Pod]
	nodes    registry.Client[*corev1.Node]
	slices   registry.Client[*discoveryv1.EndpointSlice]
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:      env,
		services: registry.For[*corev1.Service](env.Registry),
		pods:     registry.For[*corev1.Pod](env.Registry),
		nodes:    registry.For[*corev1.Node](env.Registry),
		slices:   registry.For[*discoveryv1.EndpointSlice](env.Registry),
	}
	q := loop.NewQueue(loop.Config{Name: "endpointslice", Reconcile: c.sync, Logger: env.Logger})
	defer c.services.Subscribe(func(e registry.Event[*corev1.Service]) { q.Add(loop.KeyOf(e.Object)) })()
	defer c.pods.Subscribe(ServiceOfPods(c.services, q))()
	defer c.slices.Subscribe(func(e registry.Event[*discoveryv1.EndpointSlice]) {
		if e.Type != watch.Added && e.Object.Labels[discoveryv1.LabelManagedBy] == Manager || e.Old != nil && e.Old.Labels[discoveryv1.LabelManagedBy] == Manager {
			q.Add(loop.Key(e.Object.Namespace, serviceOf(e)))
		}
	})()
	defer c.nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Type == watch.Modified && e.Old.Labels[corev1.LabelTopologyZone] != e.Object.Labels[corev1.LabelTopologyZone] {
			for _, svc := range c.services.List("") {
				q.Add(loop.KeyOf(svc))
			}
		}
	})()
	return q.Run(ctx)
}

func serviceOf(e registry.Event[*discoveryv1.EndpointSlice]) string {
	if e.Old != nil && e.Old.Labels[discoveryv1.LabelServiceName] != "" {
		return e.Old.Labels[discoveryv1.LabelServiceName]
	}
	return e.Object.Labels[discoveryv1.LabelServiceName]
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	svc, ok := c.services.Get(ns, name)
	if !ok || !Managed(svc) {
		return 0, nil // slices of a deleted Service are the garbage collector's
	}
	var have []*discoveryv1.EndpointSlice
	for _, s := range c.slices.ByIndex(registry.IndexOwner, string(svc.UID)) {
		if s.Labels[discoveryv1.LabelManagedBy] == Manager || metav1.IsControlledBy(s, svc) {
			have = append(have, s)
		}
	}
	change := Reconcile(svc, Selected(c.pods, svc), c.node, have)
	err := change.Apply(ctx, c.slices)
	if podset.IsNamespaceEnding(err) {
		return 0, nil
	}
	return 0, err
}

func (c *controller) node(name string) *corev1.Node {
	node, _ := c.nodes.Get("", name)
	return node
}
