package podautoscaler

import (
	"context"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/foreign"
	"edged/controller/loop"
)

const (
	// period is how often autoscalers are looked at, upstream's.
	period = 15 * time.Second
	// everything is the only key: one round is for all.
	everything = "all"
	// account asks the servers of metrics, with the rights of upstream's bootstrap roles.
	account = "horizontal-pod-autoscaler"
)

type controller struct {
	env     loop.Env
	hpas    registry.Client[*autoscalingv2.HorizontalPodAutoscaler]
	pods    registry.Client[*corev1.Pod]
	events  *recorder.Recorder
	history map[string]*History // by UID; owned by sync, which runs for one key
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env: env, hpas: registry.For[*autoscalingv2.HorizontalPodAutoscaler](env.Registry), pods: registry.For[*corev1.Pod](env.Registry),
		events: env.Events.Component("horizontal-pod-autoscaler"), history: map[string]*History{},
	}
	q := loop.NewQueue(loop.Config{Name: "podautoscaler", Reconcile: c.sync, Logger: env.Logger})
	defer c.hpas.Subscribe(func(e registry.Event[*autoscalingv2.HorizontalPodAutoscaler]) {
		if e.Type != watch.Modified || !equality.Semantic.DeepEqual(e.Old.Spec, e.Object.Spec) {
			q.Add(everything)
		}
	})()
	return q.Run(ctx)
}

// scaled is what an autoscaler scales.
type scaled struct {
	gr       schema.GroupResource
	scale    *autoscalingv1.Scale
	err      error
	selector labels.Selector // nothing, if it has none
}

func (c *controller) sync(ctx context.Context, _ string) (time.Duration, error) {
	all := c.hpas.List("")
	if len(all) == 0 {
		clear(c.history)
		return 0, nil
	}
	asked := &client{Client: foreign.New(c.env.Foreign, account), reg: c.env.Registry, pods: map[string]told{}}
	targets := map[string]scaled{}
	known := map[string]*History{}
	for _, h := range all {
		targets[loop.KeyOf(h)] = c.target(ctx, h)
		uid := string(h.UID)
		if known[uid] = c.history[uid]; known[uid] == nil {
			known[uid] = &History{}
		}
	}
	c.history = known
	for _, h := range all {
		if err := c.look(ctx, h, targets, asked); err != nil && ctx.Err() == nil {
			c.env.Logger.Debug("a HorizontalPodAutoscaler was not acted on", "hpa", loop.KeyOf(h), "err", err)
		}
	}
	return period, nil
}

func (c *controller) look(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler, targets map[string]scaled, metrics Metrics) error {
	t := targets[loop.KeyOf(h)]
	w := World{
		HPA: h, Scale: t.scale, ScaleErr: t.err, Pods: c.pods.List(h.Namespace), Others: map[string]labels.Selector{},
		Metrics: metrics, History: c.history[string(h.UID)], Now: c.env.Now(),
	}
	for _, other := range c.hpas.List(h.Namespace) {
		if o, ok := targets[loop.KeyOf(other)]; ok && other.Name != h.Name && o.selector != nil {
			w.Others[loop.KeyOf(other)] = o.selector
		}
	}
	o := Reconcile(ctx, w)
	about := recorder.Reference(autoscalingv2.SchemeGroupVersion.String(), "HorizontalPodAutoscaler", h, "")
	status := o.Status
	if o.Replicas != nil {
		if err := c.scale(ctx, h, t.gr, *o.Replicas); err != nil {
			c.events.Eventf(about, corev1.EventTypeWarning, "FailedRescale", "New size: %d; reason: %s; error: %v", *o.Replicas, o.Reason, err)
			status = o.Failed(h, err, w.Now)
		} else {
			c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulRescale", "New size: %d; reason: %s", *o.Replicas, o.Reason)
			w.History.Scaled(t.scale.Spec.Replicas, *o.Replicas, w.Now)
		}
	}
	if !equality.Semantic.DeepEqual(h.Status.Conditions, status.Conditions) {
		for _, e := range o.Warnings {
			c.events.Event(about, corev1.EventTypeWarning, e.Reason, e.Message)
		}
	}
	if equality.Semantic.DeepEqual(h.Status, status) {
		return nil
	}
	_, err := c.hpas.UpdateStatus(ctx, h.Namespace, h.Name, func(cur *autoscalingv2.HorizontalPodAutoscaler) error {
		if cur.UID == h.UID {
			cur.Status = status
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// target reads the scale of what an autoscaler names.
func (c *controller) target(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler) (t scaled) {
	ref := h.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return scaled{err: err}
	}
	k := c.kindOf(gv.Group, ref.Kind)
	if k == nil {
		return scaled{err: fmt.Errorf("no matches for kind %q in group %q", ref.Kind, gv.Group)}
	}
	t.gr = schema.GroupResource{Group: gv.Group, Resource: k.Resource}
	if k.Subresources["scale"] == nil {
		t.err = apierrors.NewGenericServerResponse(404, "get", t.gr, ref.Name, "", 0, true)
		return t
	}
	obj, err := c.env.Registry.GetSubresource(ctx, t.gr, h.Namespace, ref.Name, "scale", metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		t.err = err
		return t
	}
	scale, ok := obj.(*autoscalingv1.Scale)
	if !ok {
		t.err = fmt.Errorf("the scale of %s %s is a %T", ref.Kind, ref.Name, obj)
		return t
	}
	t.scale = scale
	if s := scale.Status.Selector; s != "" {
		if parsed, err := labels.Parse(s); err == nil {
			t.selector = parsed
		}
	}
	return t
}

func (c *controller) kindOf(group, kind string) *registry.Kind {
	for _, k := range c.env.Registry.Kinds() {
		if k.GVK.Kind != kind {
			continue
		}
		for _, gv := range k.ServedVersions() {
			if gv.Group == group {
				return k
			}
		}
	}
	return nil
}

func (c *controller) scale(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler, gr schema.GroupResource, replicas int32) error {
	_, _, err := c.env.Registry.Update(ctx, gr, h.Namespace, h.Spec.ScaleTargetRef.Name, "scale", func(cur runtime.Object) (runtime.Object, error) {
		scale, ok := cur.(*autoscalingv1.Scale)
		if !ok {
			return nil, fmt.Errorf("the scale is a %T", cur)
		}
		scale.Spec.Replicas = replicas
		return scale, nil
	}, registry.UpdateOptions{})
	return err
}
