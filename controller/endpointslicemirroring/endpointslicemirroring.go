package endpointslicemirroring

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/endpointslice"
	"edged/controller/loop"
	"edged/controller/podset"
)

// leaderAnnotation is on Endpoints that somebody uses as a lock (client-go's
// resourcelock.LeaderElectionRecordAnnotationKey).
const leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"

type controller struct {
	services  registry.Client[*corev1.Service]
	endpoints registry.Client[*corev1.Endpoints]
	slices    registry.Client[*discoveryv1.EndpointSlice]
	events    *recorder.Recorder
}

// Run is the controller. Its keys are the Service's, which are the Endpoints'.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		services:  registry.For[*corev1.Service](env.Registry),
		endpoints: registry.For[*corev1.Endpoints](env.Registry),
		slices:    registry.For[*discoveryv1.EndpointSlice](env.Registry),
		events:    env.Events.Component("endpoint-slice-mirroring-controller"),
	}
	q := loop.NewQueue(loop.Config{Name: "endpointslicemirroring", Reconcile: c.sync, Logger: env.Logger})
	defer c.services.Subscribe(func(e registry.Event[*corev1.Service]) {
		if !selects(e.Object) || e.Type == watch.Modified && !selects(e.Old) {
			q.Add(loop.KeyOf(e.Object))
		}
	})()
	defer c.endpoints.Subscribe(func(e registry.Event[*corev1.Endpoints]) {
		if svc, ok := c.services.Get(e.Object.Namespace, e.Object.Name); !ok || !selects(svc) {
			q.Add(loop.KeyOf(e.Object))
		}
	})()
	defer c.slices.Subscribe(func(e registry.Event[*discoveryv1.EndpointSlice]) {
		for _, s := range []*discoveryv1.EndpointSlice{e.Old, e.Object} {
			if s != nil && s.Labels[discoveryv1.LabelManagedBy] == Manager {
				q.Add(loop.Key(s.Namespace, s.Labels[discoveryv1.LabelServiceName]))
			}
		}
	})()
	return q.Run(ctx)
}

func selects(svc *corev1.Service) bool { return len(svc.Spec.Selector) > 0 }

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	var have []*discoveryv1.EndpointSlice
	for _, s := range c.slices.List(ns) {
		if s.Labels[discoveryv1.LabelManagedBy] == Manager && s.Labels[discoveryv1.LabelServiceName] == name {
			have = append(have, s)
		}
	}
	change := endpointslice.Change{Delete: have}
	svc, exists := c.services.Get(ns, name)
	if e, ok := c.endpoints.Get(ns, name); ok && exists && !selects(svc) && mirrored(e) {
		var skipped int
		if change, skipped = Reconcile(e.DeepCopy(), have); skipped > 0 && len(change.Create)+len(change.Update) > 0 {
			c.events.Eventf(recorder.Reference("v1", "Endpoints", e, ""), corev1.EventTypeWarning, "TooManyAddressesToMirror",
				"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", MaxPerSubset, skipped)
		}
	}
	err := change.Apply(ctx, c.slices)
	if podset.IsNamespaceEnding(err) {
		return 0, nil
	}
	return 0, err
}

// mirrored reports whether slices are wanted for e: somebody may say that they
// are not, and a lock has no use for them.
func mirrored(e *corev1.Endpoints) bool {
	return e.DeletionTimestamp == nil && e.Labels[discoveryv1.LabelSkipMirror] != "true" && e.Annotations[leaderAnnotation] == ""
}
