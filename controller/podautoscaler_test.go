package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

// meters serve metrics: every Pod uses as much memory as is said.
type meters struct {
	reg *registry.Registry

	mu       sync.Mutex
	each     string
	external int64
	asked    []string
}

func (m *meters) Foreign(context.Context) ([]*metav1.APIResourceList, []schema.GroupVersion) {
	return nil, nil
}

func (m *meters) Forward(req *http.Request, as user.Info) (*http.Response, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, as.GetName()+" "+req.URL.RequestURI())
	var answer any
	switch req.URL.Path {
	case "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods":
		list := metricsv1beta1.PodMetricsList{}
		for _, p := range registry.For[*corev1.Pod](m.reg).List("default") {
			list.Items = append(list.Items, metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels},
				Containers: []metricsv1beta1.ContainerMetrics{{Name: "c", Usage: corev1.ResourceList{"memory": resource.MustParse(m.each)}}}})
		}
		answer = list
	case "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue":
		answer = map[string]any{"items": []any{map[string]any{"metricName": "queue", "value": fmt.Sprint(m.external)}}}
	case "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/web/requests":
		answer = map[string]any{"items": []any{map[string]any{"describedObject": map[string]any{"name": "web"}, "value": fmt.Sprint(m.external)}}}
	default:
		return nil, errors.New("nobody serves " + req.URL.Path)
	}
	body, err := json.Marshal(answer)
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(string(body)))}, err
}

func (m *meters) wasAsked() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, m.asked = m.asked, nil
	return out
}

// TestPodAutoscaler: a Deployment is scaled to what its Pods use, or what others tell; in
// a round a namespace is asked for once.
func TestPodAutoscaler(t *testing.T) {
	m := &meters{each: "25Mi"}
	reg := startWith(t, m)
	m.reg = reg
	kubelet(t, reg)
	ctx := t.Context()
	hpas, deployments := registry.For[*autoscalingv2.HorizontalPodAutoscaler](reg), registry.For[*appsv1.Deployment](reg)
	autoscaler := func(name, target string, metric autoscalingv2.MetricSpec) {
		t.Helper()
		if _, err := hpas.Create(ctx, &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: target},
			MinReplicas:    ptr.To[int32](1), MaxReplicas: 9, Metrics: []autoscalingv2.MetricSpec{metric},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	value := func(s string) *resource.Quantity { return ptr.To(resource.MustParse(s)) }
	memory := func(each string) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: "memory", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: value(each)}}}
	}
	queue := autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"q": "1"}}},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: value("10")}}}
	object := autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "requests"}, DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "Service", Name: "web"},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: value("10")}}}
	has := func(name string, want int32) {
		t.Helper()
		await(t, fmt.Sprint(name, " to have ", want), func() string {
			if d, _ := deployments.Get("default", name); *d.Spec.Replicas != want || d.Status.ReadyReplicas != want {
				h, _ := hpas.Get("default", name)
				return fmt.Sprint(d.Status, h)
			}
			return ""
		})
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if _, err := deployments.Create(ctx, newDeployment(name, 1)); err != nil {
			t.Fatal(err)
		}
		has(name, 1)
	}
	m.external = 30
	autoscaler("a", "a", memory("10Mi"))
	has("a", 3)
	await(t, "its status", func() string {
		h, _ := hpas.Get("default", "a")
		if s := h.Status; s.DesiredReplicas != 3 || s.CurrentReplicas != 1 || s.LastScaleTime == nil || len(s.CurrentMetrics) != 1 || s.CurrentMetrics[0].Resource.Current.AverageValue.String() != "25Mi" {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	await(t, "the Event", func() string {
		for _, e := range registry.For[*corev1.Event](reg).List("default") {
			if e.Reason == "SuccessfulRescale" && e.InvolvedObject.Name == "a" && e.Message == "New size: 3; reason: memory resource above target" && e.Source.Component == "horizontal-pod-autoscaler" {
				return ""
			}
		}
		return "none"
	})
	autoscaler("b", "b", queue)
	has("b", 3)
	autoscaler("c", "c", object)
	has("c", 3)
	autoscaler("d", "d", memory("30Mi"))
	quiet(t, reg)
	m.wasAsked()
	autoscaler("none", "nothing", memory("10Mi"))
	await(t, "a target that is not there to be told", func() string {
		h, _ := hpas.Get("default", "none")
		for _, c := range h.Status.Conditions {
			if c.Reason == "FailedGetScale" && strings.Contains(c.Message, `deployments.apps "nothing" not found`) {
				return ""
			}
		}
		return fmt.Sprint(h.Status)
	})
	quiet(t, reg)
	asked := strings.Join(m.wasAsked(), "\n")
	rounds := strings.Count(asked, "queue?labelSelector=q%3D1")
	for _, want := range []string{"/apis/metrics.k8s.io/v1beta1/namespaces/default/pods", "/services/web/requests"} {
		if !strings.Contains(asked, "system:serviceaccount:kube-system:horizontal-pod-autoscaler /apis/") || rounds == 0 || strings.Count(asked, want) != rounds {
			t.Errorf("%s: not %d times in\n%s", want, rounds, asked)
		}
	}
}
