package registry_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// TestVirtualObjects: they are read among the stored ones, selected as those are,
// and a stored one is shown in the place of a virtual one.
func TestVirtualObjects(t *testing.T) {
	r := registrytest.NewWith(t, registry.Config{Store: registrytest.NewMemStore()})
	r.SetVirtual(configMaps, func() []runtime.Object {
		a, c := configMap("a"), configMap("c")
		a.Data["n"], c.Data["n"] = "virtual", "virtual"
		return []runtime.Object{c, a}
	})
	cm := registry.For[*corev1.ConfigMap](r)
	must(cm.Create(t.Context(), configMap("b")))(t)
	list := func(opts registry.ListOptions) string {
		return names(must(r.List(t.Context(), configMaps, "ns", opts))(t).Items)
	}
	if got := list(registry.ListOptions{}); got != "a b c" {
		t.Errorf("listed %s", got)
	}
	if got := list(registry.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "c")}); got != "c" {
		t.Errorf("by name: %s", got)
	}
	if got := must(r.List(t.Context(), configMaps, "other", registry.ListOptions{}))(t); len(got.Items) != 0 {
		t.Errorf("in another namespace: %s", names(got.Items))
	}
	read := func() string {
		return must(r.Get(t.Context(), configMaps, "ns", "a", metav1.GetOptions{}))(t).(*corev1.ConfigMap).Data["n"]
	}
	if got := read(); got != "virtual" {
		t.Errorf("read %s", got)
	}
	if _, err := r.Get(t.Context(), configMaps, "ns", "d", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	w := must(r.Watch(t.Context(), configMaps, "ns", registry.ListOptions{}))(t)
	var seen string
	for range 3 {
		seen += (<-w.C()).Object.(*corev1.ConfigMap).Name
	}
	w.Stop()
	if seen != "abc" {
		t.Errorf("a watch begins with %s", seen)
	}
	must(cm.Create(t.Context(), configMap("a")))(t)
	if got := read(); got != "0" || list(registry.ListOptions{}) != "a b c" {
		t.Errorf("stored, then read %s", got)
	}
}
