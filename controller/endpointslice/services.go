package endpointslice

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// gather is how long changes of Pods are gathered before a Service is looked
// at: ten Pods that start together become ready within it, and the figure for
// an endpoint that is gone is 5 s.
const gather = 50 * time.Millisecond

// ServiceOfPods calls add for the Services that select a Pod now or did so
// before the change.
func ServiceOfPods(services registry.Client[*corev1.Service], q *loop.Queue) func(registry.Event[*corev1.Pod]) {
	return func(e registry.Event[*corev1.Pod]) {
		if e.Type == watch.Modified && !podMatters(e.Old, e.Object) {
			return
		}
		for _, svc := range services.List(e.Object.Namespace) {
			if len(svc.Spec.Selector) == 0 {
				continue
			}
			s := labels.SelectorFromSet(svc.Spec.Selector)
			if s.Matches(labels.Set(e.Object.Labels)) || e.Old != nil && s.Matches(labels.Set(e.Old.Labels)) {
				q.AddAfter(loop.KeyOf(svc), gather)
			}
		}
	}
}

// podMatters reports whether a change of a Pod can change endpoints.
func podMatters(was, now *corev1.Pod) bool {
	if (was.DeletionTimestamp == nil) != (now.DeletionTimestamp == nil) || !labels.Equals(was.Labels, now.Labels) {
		return true
	}
	a, b := &was.Status, &now.Status
	if a.Phase != b.Phase || a.PodIP != b.PodIP || len(a.PodIPs) != len(b.PodIPs) || was.Spec.NodeName != now.Spec.NodeName {
		return true
	}
	for i := range a.PodIPs {
		if a.PodIPs[i] != b.PodIPs[i] {
			return true
		}
	}
	return readiness(was) != readiness(now)
}

func readiness(pod *corev1.Pod) corev1.ConditionStatus {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status
		}
	}
	return ""
}

// Selected are the Pods that a Service selects.
func Selected(pods registry.Client[*corev1.Pod], svc *corev1.Service) []*corev1.Pod {
	s := labels.SelectorFromSet(svc.Spec.Selector)
	var out []*corev1.Pod
	for _, pod := range pods.List(svc.Namespace) {
		if s.Matches(labels.Set(pod.Labels)) {
			out = append(out, pod)
		}
	}
	return out
}

// Managed reports whether a Service's endpoints are ours to keep.
func Managed(svc *corev1.Service) bool {
	return len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName && svc.DeletionTimestamp == nil
}
