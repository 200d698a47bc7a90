package registrytest_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

func TestPodLife(t *testing.T) {
	r := registrytest.New(t)
	ctx := t.Context()
	pods := registry.For[*corev1.Pod](r)
	cancel := pods.Subscribe(func(e registry.Event[*corev1.Pod]) { t.Log(e.Type, e.Object.Name, e.Object.ResourceVersion) })
	defer cancel()
	p, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "a-", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", p)
	p, err = pods.UpdateStatus(ctx, "default", p.Name, func(p *corev1.Pod) error { p.Status.Phase = corev1.PodRunning; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(ctx, "default", p.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := pods.Get("default", p.Name); ok {
		t.Error("still there")
	}
	_, err = pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "a-", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "i"}}}})
	t.Log(err)
}
