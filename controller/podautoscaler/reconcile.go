package podautoscaler

import (
	"context"
	"errors"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
)

// World is what is known of one autoscaler.
type World struct {
	HPA *autoscalingv2.HorizontalPodAutoscaler
	// Scale is the target's; ScaleErr why there is none.
	Scale    *autoscalingv1.Scale
	ScaleErr error
	// Pods are all of the namespace.
	Pods []*corev1.Pod
	// Others are the selectors of the namespace's other autoscalers, by name.
	Others  map[string]labels.Selector
	Metrics Metrics
	History *History
	Now     time.Time
}

// Outcome is what is to be done.
type Outcome struct {
	// Status is the autoscaler's, if the scale needs no change or is changed.
	Status autoscalingv2.HorizontalPodAutoscalerStatus
	// Replicas is what the target is to be scaled to, nil if it is to be left, and Reason
	// why.
	Replicas *int32
	Reason   string
	// Warnings tell of what failed.
	Warnings []Warning
}

// Warning is an Event's reason and message.
type Warning struct{ Reason, Message string }

// round is one look at an autoscaler.
type round struct {
	World
	out      *Outcome
	selector labels.Selector
	pods     []*corev1.Pod // those of the target
}

// Reconcile decides. It changes History.
func Reconcile(ctx context.Context, w World) Outcome {
	o := Outcome{Status: *w.HPA.Status.DeepCopy()}
	r := &round{World: w, out: &o}
	w.History.forget(w.Now)
	if w.ScaleErr != nil {
		r.warn("FailedGetScale", w.ScaleErr)
		r.condition(autoscalingv2.AbleToScale, false, "FailedGetScale", "the HPA controller was unable to get the target's current scale: "+w.ScaleErr.Error())
		return o
	}
	r.condition(autoscalingv2.AbleToScale, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	current, least, most := w.Scale.Spec.Replicas, ptr.Deref(w.HPA.Spec.MinReplicas, 1), w.HPA.Spec.MaxReplicas
	if len(w.History.recommendations) == 0 {
		w.History.recommendations = []point{{current, w.Now}}
	}
	o.Status.CurrentReplicas, o.Status.ObservedGeneration = current, ptr.To(w.HPA.Generation)
	was := o.Status.CurrentMetrics
	o.Status.CurrentMetrics = nil
	toZero := r.has(autoscalingv2.ScaledToZero)
	switch {
	case current == 0 && !(toZero && (least != 0 || r.scalesToZero())):
		r.condition(autoscalingv2.ScalingActive, false, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		o.Status.DesiredReplicas = 0
	case current > most:
		r.scale(most, "Current number of replicas above Spec.MaxReplicas")
	case current != 0 && current < least:
		r.scale(least, "Current number of replicas below Spec.MinReplicas")
	default:
		r.measure(ctx, bounds{current, least, most, w.HPA.Spec.Behavior})
	}
	if !w.changesMore(was, &o) {
		o.Status.CurrentMetrics = was
	}
	return o
}

// measure scales to what the metrics ask for.
func (r *round) measure(ctx context.Context, b bounds) {
	desired, metric, err := r.desired(ctx)
	if err != nil {
		r.warn("FailedComputeMetricsReplicas", err)
	}
	if desired < 0 {
		return
	}
	reason := ""
	switch {
	case desired > b.current:
		reason = metric + " above target"
	case desired < b.current:
		reason = "All metrics below target"
	}
	v := r.History.settle(desired, b, r.Now)
	r.condition(autoscalingv2.AbleToScale, true, v.able[0], v.able[1])
	r.condition(autoscalingv2.ScalingLimited, v.limited, v.limit[0], v.limit[1])
	if b.current == 0 && v.replicas < b.least {
		v.replicas = b.least
		if reason == "" {
			reason = "Current number of replicas below Spec.MinReplicas"
		}
	}
	r.out.Status.DesiredReplicas = b.current
	if v.replicas != b.current {
		r.scale(v.replicas, reason)
	}
}

// scale asks for replicas. The status tells of it as done: Failed takes that back.
func (r *round) scale(to int32, reason string) {
	r.out.Replicas, r.out.Reason = &to, reason
	s := &r.out.Status
	s.DesiredReplicas, s.LastScaleTime = to, ptr.To(metav1.NewTime(r.Now))
	r.condition(autoscalingv2.AbleToScale, true, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", to))
	if to == 0 && s.CurrentReplicas > 0 && ptr.Deref(r.HPA.Spec.MinReplicas, 1) == 0 && r.scalesToZero() {
		r.condition(autoscalingv2.ScaledToZero, true, "ScaledToZero", "the HPA controller scaled the workload to zero")
	} else {
		r.condition(autoscalingv2.ScaledToZero, false, "NotScaledToZero", "the HPA controller did not scale the workload to zero")
	}
}

// Failed is the status if the target could not be scaled.
func (o *Outcome) Failed(hpa *autoscalingv2.HorizontalPodAutoscaler, err error, now time.Time) autoscalingv2.HorizontalPodAutoscalerStatus {
	s := *o.Status.DeepCopy()
	s.DesiredReplicas, s.LastScaleTime = hpa.Status.DesiredReplicas, hpa.Status.LastScaleTime
	setCondition(&s, autoscalingv2.AbleToScale, false, "FailedUpdateScale", "the HPA controller was unable to update the target scale: "+err.Error(), now)
	return s
}

// desired is the most replicas that a metric asks for, and which one does; -1 if nothing
// is to be done.
func (r *round) desired(ctx context.Context) (replicas int32, metric string, err error) {
	if err := r.choosePods(); err != nil {
		return -1, "", err
	}
	var first failure
	failed := 0
	specs := r.HPA.Spec.Metrics
	statuses := make([]autoscalingv2.MetricStatus, len(specs))
	for i := range specs {
		n, name, err := r.ask(ctx, &specs[i], &statuses[i])
		if err != nil {
			if failed++; failed == 1 {
				first = *err
			}
			r.warn(err.reason, err.err)
			continue
		}
		statuses[i].Type = specs[i].Type
		if replicas == 0 || n > replicas {
			replicas, metric = n, name
		}
	}
	r.out.Status.CurrentMetrics = statuses
	if failed > 0 {
		err = fmt.Errorf("invalid metrics (%d invalid out of %d), first error is: %w", failed, len(specs), first.whole)
	}
	// With a metric missing nothing is taken away.
	if failed == len(specs) || failed > 0 && replicas < r.Scale.Spec.Replicas {
		r.condition(autoscalingv2.ScalingActive, false, first.reason, "the HPA was unable to compute the replica count: "+first.err.Error())
		return -1, "", err
	}
	r.condition(autoscalingv2.ScalingActive, true, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from "+metric)
	return replicas, metric, err
}

// choosePods finds those of the target.
func (r *round) choosePods() error {
	written := r.Scale.Status.Selector
	if written == "" {
		err := errors.New("selector is required")
		r.warn("SelectorRequired", err)
		r.condition(autoscalingv2.ScalingActive, false, "InvalidSelector", "the HPA target's scale is missing a selector")
		return err
	}
	selector, err := labels.Parse(written)
	if err != nil {
		err = fmt.Errorf("couldn't convert selector into a corresponding internal selector object: %w", err)
		r.warn("InvalidSelector", err)
		r.condition(autoscalingv2.ScalingActive, false, "InvalidSelector", err.Error())
		return err
	}
	r.selector = selector
	for _, p := range r.Pods {
		if !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		r.pods = append(r.pods, p)
		for name, other := range r.Others {
			if other.Matches(labels.Set(p.Labels)) {
				err := fmt.Errorf("pods by selector %v are controlled by more than one HPA (e.g. %s)", written, name)
				r.warn("AmbiguousSelector", err)
				r.condition(autoscalingv2.ScalingActive, false, "AmbiguousSelector", err.Error())
				return err
			}
		}
	}
	return nil
}

// scalesToZero reports whether a metric is of more than the Pods, which would be unknown
// without any.
func (r *round) scalesToZero() bool {
	for _, m := range r.HPA.Spec.Metrics {
		if m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType {
			return true
		}
	}
	return false
}

func (r *round) warn(reason string, err error) {
	r.out.Warnings = append(r.out.Warnings, Warning{reason, err.Error()})
}

func (r *round) has(t autoscalingv2.HorizontalPodAutoscalerConditionType) bool {
	for _, c := range r.out.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (r *round) condition(t autoscalingv2.HorizontalPodAutoscalerConditionType, yes bool, reason, message string) {
	setCondition(&r.out.Status, t, yes, reason, message, r.Now)
}

func setCondition(s *autoscalingv2.HorizontalPodAutoscalerStatus, t autoscalingv2.HorizontalPodAutoscalerConditionType, yes bool, reason, message string, now time.Time) {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	at := -1
	for i, c := range s.Conditions {
		if c.Type == t {
			at = i
		}
	}
	if at < 0 {
		at = len(s.Conditions)
		s.Conditions = append(s.Conditions, autoscalingv2.HorizontalPodAutoscalerCondition{Type: t})
	}
	c := &s.Conditions[at]
	if c.Status != status {
		c.LastTransitionTime = metav1.NewTime(now)
	}
	c.Status, c.Reason, c.Message = status, reason, message
}
