package podautoscaler

import (
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
)

// figuresEvery is how often figures are written at most when nothing else changes.
const figuresEvery = time.Minute

// changesMore reports whether what was measured is to be written: with a change of
// something else, or if it moved by more than a tenth of its target and was not written a
// moment ago. Else every round would write, for as long as there is an autoscaler.
func (w *World) changesMore(was []autoscalingv2.MetricStatus, o *Outcome) bool {
	if o.Status.CurrentMetrics == nil && was == nil {
		return false
	}
	rest := o.Status
	rest.CurrentMetrics = w.HPA.Status.CurrentMetrics
	if !equality.Semantic.DeepEqual(rest, w.HPA.Status) {
		w.History.metricsWritten = w.Now
		return true
	}
	if w.Now.Sub(w.History.metricsWritten) < figuresEvery || !moved(was, o.Status.CurrentMetrics, w.HPA.Spec.Metrics) {
		return false
	}
	w.History.metricsWritten = w.Now
	return true
}

// moved reports whether a figure differs from what it was by more than a tenth of its
// target.
func moved(was, is []autoscalingv2.MetricStatus, specs []autoscalingv2.MetricSpec) bool {
	if len(was) != len(is) || len(is) != len(specs) {
		return true
	}
	for i := range specs {
		old, cur, target := current(&was[i]), current(&is[i]), targetOf(&specs[i])
		if (old == nil) != (cur == nil) || was[i].Type != is[i].Type {
			return true
		}
		if cur == nil || target == nil {
			continue
		}
		before, now, goal := figure(old.AverageUtilization, old.AverageValue, old.Value), figure(cur.AverageUtilization, cur.AverageValue, cur.Value),
			figure(target.AverageUtilization, target.AverageValue, target.Value)
		if 10*max(now-before, before-now) > goal {
			return true
		}
	}
	return false
}

// figure is the one that counts: what is told beside a utilization is not what is aimed
// at.
func figure(utilization *int32, average, value *resource.Quantity) int64 {
	switch {
	case utilization != nil:
		return int64(*utilization)
	case average != nil:
		return average.MilliValue()
	case value != nil:
		return value.MilliValue()
	}
	return 0
}

func current(s *autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
	switch {
	case s.Resource != nil:
		return &s.Resource.Current
	case s.ContainerResource != nil:
		return &s.ContainerResource.Current
	case s.Pods != nil:
		return &s.Pods.Current
	case s.Object != nil:
		return &s.Object.Current
	case s.External != nil:
		return &s.External.Current
	}
	return nil
}

func targetOf(s *autoscalingv2.MetricSpec) *autoscalingv2.MetricTarget {
	switch {
	case s.Resource != nil:
		return &s.Resource.Target
	case s.ContainerResource != nil:
		return &s.ContainerResource.Target
	case s.Pods != nil:
		return &s.Pods.Target
	case s.Object != nil:
		return &s.Object.Target
	case s.External != nil:
		return &s.External.Target
	}
	return nil
}
