package kinds_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// Privileged containers are valid; upstream's validation refuses them in a
// process that did not say otherwise.
func TestPrivilegedContainer(t *testing.T) {
	reg := registrytest.NewWith(t, registry.Config{Kinds: kinds.All(kinds.Config{})})
	yes := true
	_, err := registry.For[*corev1.Pod](reg).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", SecurityContext: &corev1.SecurityContext{Privileged: &yes}}}},
	})
	if err != nil {
		t.Error(err)
	}
}
