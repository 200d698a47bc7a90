package podautoscaler

import (
	"context"
	"errors"
	"fmt"
	"math"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	custommetricsv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetricsv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/controller/podset"
)

// Metrics is where figures come from. Errors are told to users as they are.
type Metrics interface {
	// Pods is what the Pods that a selector chooses use.
	Pods(ctx context.Context, ns string, selector labels.Selector) ([]metricsv1beta1.PodMetrics, error)
	// Custom is a metric of an object, or of all Pods that a selector chooses.
	Custom(ctx context.Context, ns string, of Object, metric autoscalingv2.MetricIdentifier) ([]custommetricsv1beta2.MetricValue, error)
	// External is a metric that belongs to no object.
	External(ctx context.Context, ns string, metric autoscalingv2.MetricIdentifier) ([]externalmetricsv1beta1.ExternalMetricValue, error)
}

// Object is what a custom metric is of: one by name, or the Pods that Pods chooses.
type Object struct {
	autoscalingv2.CrossVersionObjectReference
	Pods labels.Selector
}

// failure is why a metric asks for nothing: a condition's reason and message, and what
// the whole is told of it.
type failure struct {
	reason     string
	err, whole error
}

// ask is how many replicas a metric asks for, and its name in messages.
func (r *round) ask(ctx context.Context, m *autoscalingv2.MetricSpec, status *autoscalingv2.MetricStatus) (int32, string, *failure) {
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		n, name, current, err := r.askResource(ctx, m.Resource.Name, "", m.Resource.Target)
		if err != nil {
			return 0, "", fail("FailedGetResourceMetric", fmt.Sprintf("failed to get %s resource metric value", m.Resource.Name), err)
		}
		status.Resource = &autoscalingv2.ResourceMetricStatus{Name: m.Resource.Name, Current: current}
		return n, name, nil
	case autoscalingv2.ContainerResourceMetricSourceType:
		c := m.ContainerResource
		n, name, current, err := r.askResource(ctx, c.Name, c.Container, c.Target)
		if err != nil {
			return 0, "", fail("FailedGetContainerResourceMetric", fmt.Sprintf("failed to get %s container metric value", c.Container), err)
		}
		status.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container, Current: current}
		return n, name, nil
	case autoscalingv2.PodsMetricSourceType:
		n, current, err := r.askPods(ctx, m.Pods)
		if err != nil {
			return 0, "", fail("FailedGetPodsMetric", "failed to get pods metric value", err)
		}
		status.Pods = &autoscalingv2.PodsMetricStatus{Metric: m.Pods.Metric, Current: current}
		return n, "pods metric " + m.Pods.Metric.Name, nil
	case autoscalingv2.ObjectMetricSourceType:
		n, name, current, err := r.askObject(ctx, m.Object)
		if err != nil {
			return 0, "", fail("FailedGetObjectMetric", "failed to get object metric value", err)
		}
		status.Object = &autoscalingv2.ObjectMetricStatus{DescribedObject: m.Object.DescribedObject, Metric: m.Object.Metric, Current: current}
		return n, name, nil
	case autoscalingv2.ExternalMetricSourceType:
		n, current, err := r.askExternal(ctx, m.External)
		if err != nil {
			return 0, "", fail("FailedGetExternalMetric", fmt.Sprintf("failed to get %s external metric value", m.External.Metric.Name), err)
		}
		status.External = &autoscalingv2.ExternalMetricStatus{Metric: m.External.Metric, Current: current}
		return n, fmt.Sprintf("external metric %s(%+v)", m.External.Metric.Name, m.External.Metric.Selector), nil
	}
	err := fmt.Errorf("unknown metric source type %q", m.Type)
	return 0, "", &failure{"InvalidMetricSourceType", err, err}
}

func fail(reason, whole string, err error) *failure {
	return &failure{reason, err, fmt.Errorf("%s: %w", whole, err)}
}

// askResource is of processor or memory, of whole Pods unless a container is named.
func (r *round) askResource(ctx context.Context, name corev1.ResourceName, container string, t autoscalingv2.MetricTarget) (int32, string, autoscalingv2.MetricValueStatus, error) {
	what := "usage"
	if t.AverageValue == nil {
		what = "utilization"
		if t.AverageUtilization == nil {
			return 0, "", autoscalingv2.MetricValueStatus{}, errors.New("invalid resource metric source: neither an average utilization target nor an average value target was set")
		}
	}
	n, told, err := r.replicasByResource(ctx, name, container, t)
	if err != nil {
		return 0, "", autoscalingv2.MetricValueStatus{}, fmt.Errorf("failed to get %s %s: %w", name, what, err)
	}
	format := resource.DecimalSI
	if name == corev1.ResourceMemory {
		format = resource.BinarySI
	}
	current := autoscalingv2.MetricValueStatus{AverageValue: resource.NewMilliQuantity(told.average, format)}
	if t.AverageValue != nil {
		return n, fmt.Sprintf("%s resource", name), current, nil
	}
	current.AverageUtilization = &told.utilization
	of := "resource"
	if container != "" {
		of = "container resource"
	}
	return n, fmt.Sprintf("%s %s utilization (percentage of request)", name, of), current, nil
}

func (r *round) replicasByResource(ctx context.Context, name corev1.ResourceName, container string, t autoscalingv2.MetricTarget) (int32, figures, error) {
	told, err := r.Metrics.Pods(ctx, r.HPA.Namespace, r.selector)
	if err == nil && len(told) == 0 {
		err = errors.New("no metrics returned from resource metrics API")
	}
	if err != nil {
		return 0, figures{}, fmt.Errorf("unable to get metrics for resource %s: %w", name, err)
	}
	var want target
	if t.AverageValue != nil {
		want = averageTarget(t.AverageValue.MilliValue())
	} else {
		asked, err := requests(r.pods, container, name)
		if err != nil {
			return 0, figures{}, err
		}
		want = utilizationTarget(*t.AverageUtilization, asked)
	}
	return replicasFor(r.Scale.Spec.Replicas, r.pods, usageOf(told, name, container), name, toleranceOf(r.HPA.Spec.Behavior), want, r.Now)
}

func (r *round) askPods(ctx context.Context, m *autoscalingv2.PodsMetricSource) (int32, autoscalingv2.MetricValueStatus, error) {
	of := Object{Pods: r.selector}
	of.Kind, of.APIVersion = "Pod", "v1"
	values, err := r.Metrics.Custom(ctx, r.HPA.Namespace, of, m.Metric)
	if err == nil && len(values) == 0 {
		err = errors.New("no metrics returned from custom metrics API")
	}
	if err != nil {
		return 0, autoscalingv2.MetricValueStatus{}, fmt.Errorf("unable to get metric %s: %w", m.Metric.Name, err)
	}
	found := samples{}
	for _, v := range values {
		found[v.DescribedObject.Name] = sample{value: v.Value.MilliValue(), at: v.Timestamp.Time}
	}
	n, told, err := replicasFor(r.Scale.Spec.Replicas, r.pods, found, "", toleranceOf(r.HPA.Spec.Behavior), averageTarget(m.Target.AverageValue.MilliValue()), r.Now)
	return n, autoscalingv2.MetricValueStatus{AverageValue: milli(told.average)}, err
}

func milli(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }

func (r *round) askObject(ctx context.Context, m *autoscalingv2.ObjectMetricSource) (int32, string, autoscalingv2.MetricValueStatus, error) {
	var none autoscalingv2.MetricValueStatus
	values, err := r.Metrics.Custom(ctx, r.HPA.Namespace, Object{CrossVersionObjectReference: m.DescribedObject}, m.Metric)
	if err == nil && len(values) != 1 {
		err = fmt.Errorf("the custom metrics API server returned %d results when we asked for exactly one", len(values))
	}
	if err != nil {
		return 0, "", none, fmt.Errorf("unable to get metric %s on %s %s/%s: %w", m.Metric.Name, m.DescribedObject.Kind, r.HPA.Namespace, m.DescribedObject.Name, err)
	}
	n, current, err := r.byValue(values[0].Value.MilliValue(), m.Target)
	name := fmt.Sprintf("%s metric %s", m.DescribedObject.Kind, m.Metric.Name)
	if m.Target.Type == autoscalingv2.AverageValueMetricType {
		name = fmt.Sprintf("external metric %s(%+v)", m.Metric.Name, m.Metric.Selector) // upstream's words
	}
	return n, name, current, err
}

func (r *round) askExternal(ctx context.Context, m *autoscalingv2.ExternalMetricSource) (int32, autoscalingv2.MetricValueStatus, error) {
	values, err := r.Metrics.External(ctx, r.HPA.Namespace, m.Metric)
	if err == nil && len(values) == 0 {
		err = errors.New("no metrics returned from external metrics API")
	}
	if err != nil {
		return 0, autoscalingv2.MetricValueStatus{}, fmt.Errorf("unable to get external metric %s/%s/%+v: %w", r.HPA.Namespace, m.Metric.Name, m.Metric.Selector, err)
	}
	var sum int64
	for _, v := range values {
		n := v.Value.MilliValue()
		if n > 0 && sum > math.MaxInt64-n {
			sum = math.MaxInt64
			break
		}
		sum += n
	}
	return r.byValue(sum, m.Target)
}

// byValue is how many replicas one figure asks for: as a whole, or divided among them.
func (r *round) byValue(used int64, t autoscalingv2.MetricTarget) (int32, autoscalingv2.MetricValueStatus, error) {
	tolerated := toleranceOf(r.HPA.Spec.Behavior)
	current := r.Scale.Spec.Replicas
	switch {
	case t.AverageValue != nil:
		each := t.AverageValue.MilliValue()
		n := r.Scale.Status.Replicas
		if !tolerated.holds(float64(used) / (float64(each) * float64(n))) {
			n = ceil(float64(used) / float64(each))
		}
		average := used
		if r.Scale.Status.Replicas > 0 {
			average = int64(math.Ceil(float64(used) / float64(r.Scale.Status.Replicas)))
		}
		return n, autoscalingv2.MetricValueStatus{AverageValue: milli(average)}, nil
	case t.Value != nil:
		told := autoscalingv2.MetricValueStatus{Value: milli(used)}
		ratio := float64(used) / float64(t.Value.MilliValue())
		if current == 0 {
			return ceil(ratio), told, nil
		}
		if tolerated.holds(ratio) {
			return current, told, nil
		}
		if len(r.pods) == 0 {
			return 0, told, fmt.Errorf("unable to calculate ready pods: %w", errNoPods)
		}
		n := podset.Count(r.pods, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && podset.IsReady(p) })
		return ceil(ratio * float64(n)), told, nil
	}
	return 0, autoscalingv2.MetricValueStatus{}, errors.New("invalid metric source: neither a value target nor an average value target was set")
}
