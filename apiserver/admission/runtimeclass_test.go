package admission_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

func TestRuntimeClass(t *testing.T) {
	c := newCluster(t, nil)
	overhead := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
	_, err := registry.For[*nodev1.RuntimeClass](c.reg).Create(context.Background(), &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: "heavy"}, Handler: "runc", Overhead: &nodev1.Overhead{PodFixed: overhead},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"a": "b"}, Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}},
	})
	must(t, err)
	heavy, none := "heavy", "none"
	for name, tt := range map[string]struct {
		change func(*corev1.Pod)
		want   string
	}{
		"no such class":  {func(p *corev1.Pod) { p.Spec.RuntimeClassName = &none }, `pods "p" is forbidden: pod rejected: RuntimeClass "none" not found`},
		"overhead alone": {func(p *corev1.Pod) { p.Spec.Overhead = overhead }, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"},
		"another overhead": {func(p *corev1.Pod) {
			p.Spec.RuntimeClassName, p.Spec.Overhead = &heavy, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		}, "pod rejected: Pod's Overhead doesn't match"},
		"selectors disagree": {func(p *corev1.Pod) {
			p.Spec.RuntimeClassName, p.Spec.NodeSelector = &heavy, map[string]string{"a": "c"}
		}, "conflict: runtimeClass.scheduling.nodeSelector[a] = b; pod.spec.nodeSelector[a] = c"},
	} {
		if _, err := c.pod(tt.change); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	pod, err := c.pod(func(p *corev1.Pod) {
		p.Spec.RuntimeClassName, p.Spec.NodeSelector = &heavy, map[string]string{"x": "y"}
	})
	must(t, err)
	if pod.Spec.Overhead.Cpu().MilliValue() != 10 || pod.Spec.NodeSelector["a"] != "b" || pod.Spec.NodeSelector["x"] != "y" || pod.Spec.Tolerations[len(pod.Spec.Tolerations)-1].Key != "k" {
		t.Errorf("%+v", pod.Spec)
	}
}
