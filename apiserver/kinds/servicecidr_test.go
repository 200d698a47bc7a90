package kinds_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// When the cluster's own range is full, Services get addresses of another that is
// ready.
func TestServiceCIDRTakesOver(t *testing.T) {
	r := registrytest.NewWith(t, registry.Config{Store: registrytest.NewMemStore(), Kinds: kinds.All(kinds.Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/29")}})})
	services, cidrs := registry.For[*corev1.Service](r), registry.For[*networkingv1.ServiceCIDR](r)
	create := func(name string) (string, error) {
		s, err := services.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}})
		if err != nil {
			return "", err
		}
		return s.Spec.ClusterIP, nil
	}
	for i := range 6 {
		if _, err := create(fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := create("seventh"); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Fatalf("in a full range: %v", err)
	}
	if _, err := cidrs.Create(t.Context(), &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.50.0.0/28"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := create("seventh"); err == nil {
		t.Error("an address of a range that is not ready")
	}
	if _, err := cidrs.UpdateStatus(t.Context(), "", "more", func(c *networkingv1.ServiceCIDR) error {
		c.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, LastTransitionTime: metav1.Now(), Message: "ready"}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if ip, err := create("seventh"); err != nil || !strings.HasPrefix(ip, "10.50.0.") {
		t.Errorf("of the other range: %q %v", ip, err)
	}
}
