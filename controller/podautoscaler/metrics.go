package podautoscaler

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	custommetricsv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetricsv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/apiserver/registry"
	"edged/controller/foreign"
)

// client asks the servers of the metrics APIs; for one round.
type client struct {
	*foreign.Client
	reg *registry.Registry
	// pods is what was told in this round, by namespace.
	pods map[string]told
}

type told struct {
	metrics []metricsv1beta1.PodMetrics
	err     error
}

// Pods implements Metrics. A namespace is asked for once, whatever the number of its
// autoscalers.
func (c *client) Pods(ctx context.Context, ns string, selector labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
	t, ok := c.pods[ns]
	if !ok {
		var list metricsv1beta1.PodMetricsList
		t.err = c.Read(ctx, fmt.Sprintf("/apis/%s/namespaces/%s/pods", metricsv1beta1.SchemeGroupVersion, ns), nil, &list)
		t.metrics = list.Items
		c.pods[ns] = t
	}
	if t.err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", t.err)
	}
	var out []metricsv1beta1.PodMetrics
	for _, m := range t.metrics {
		if selector.Matches(labels.Set(m.Labels)) {
			out = append(out, m)
		}
	}
	return out, nil
}

// Custom implements Metrics.
func (c *client) Custom(ctx context.Context, ns string, of Object, metric autoscalingv2.MetricIdentifier) ([]custommetricsv1beta2.MetricValue, error) {
	by, err := metav1.LabelSelectorAsSelector(metric.Selector)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if metric.Selector != nil {
		query.Set("metricLabelSelector", by.String())
	}
	gvk := schema.FromAPIVersionAndKind(of.APIVersion, of.Kind)
	resource, namespaced, ok := c.resourceOf(gvk.GroupKind())
	var path string
	switch {
	case !ok:
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: no matches for kind %q in group %q", gvk.Kind, gvk.Group)
	case of.Pods != nil:
		query.Set("labelSelector", of.Pods.String())
		path = fmt.Sprintf("namespaces/%s/pods/*/%s", ns, metric.Name)
	case gvk.GroupKind() == schema.GroupKind{Kind: "Namespace"}:
		path = fmt.Sprintf("namespaces/%s/metrics/%s", ns, metric.Name) // no other namespace's, whatever name is given
	case namespaced:
		path = fmt.Sprintf("namespaces/%s/%s/%s/%s", ns, resource, of.Name, metric.Name)
	default:
		path = fmt.Sprintf("%s/%s/%s", resource, of.Name, metric.Name)
	}
	var list custommetricsv1beta2.MetricValueList
	if err := c.Read(ctx, "/apis/"+custommetricsv1beta2.SchemeGroupVersion.String()+"/"+path, query, &list); err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	return list.Items, nil
}

// resourceOf is a kind's resource with its group, as custom metrics name it.
func (c *client) resourceOf(gk schema.GroupKind) (name string, namespaced, ok bool) {
	for _, k := range c.reg.Kinds() {
		for _, gv := range k.ServedVersions() {
			if k.GVK.Kind == gk.Kind && gv.Group == gk.Group {
				return strings.TrimSuffix(k.Resource+"."+gk.Group, "."), k.Namespaced, true
			}
		}
	}
	return "", false, false
}

// External implements Metrics.
func (c *client) External(ctx context.Context, ns string, metric autoscalingv2.MetricIdentifier) ([]externalmetricsv1beta1.ExternalMetricValue, error) {
	by, err := metav1.LabelSelectorAsSelector(metric.Selector)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if metric.Selector != nil {
		query.Set("labelSelector", by.String())
	}
	var list externalmetricsv1beta1.ExternalMetricValueList
	path := fmt.Sprintf("/apis/%s/namespaces/%s/%s", externalmetricsv1beta1.SchemeGroupVersion, ns, metric.Name)
	if err := c.Read(ctx, path, query, &list); err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)
	}
	return list.Items, nil
}
