package controller_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// Services take addresses of another range once it is ready, and keep it while they
// have them.
func TestServiceCIDRs(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	cidrs, services := registry.For[*networkingv1.ServiceCIDR](reg), registry.For[*corev1.Service](reg)
	service := func(name, ip string) error {
		_, err := services.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}})
		return err
	}
	is := func(name string, status metav1.ConditionStatus) func() string {
		return func() string {
			c, ok := cidrs.Get("", name)
			if !ok || !meta.IsStatusConditionPresentAndEqual(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady, status) {
				return fmt.Sprint(c)
			}
			return ""
		}
	}
	await(t, "the cluster's own range", is("kubernetes", metav1.ConditionTrue))
	if err := service("early", "10.50.0.9"); !apierrors.IsInvalid(err) {
		t.Errorf("an address of no range: %v", err)
	}
	if _, err := cidrs.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.50.0.0/28"}}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the new range", is("more", metav1.ConditionTrue))
	if err := service("asks", "10.50.0.9"); err != nil {
		t.Error(err)
	}
	if err := service("plain", ""); err != nil {
		t.Error(err)
	}
	if s, _ := services.Get("default", "plain"); !netip.MustParsePrefix("10.43.0.0/16").Contains(netip.MustParseAddr(s.Spec.ClusterIP)) {
		t.Errorf("who asks for nothing has %s", s.Spec.ClusterIP)
	}
	if err := cidrs.Delete(ctx, "", "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the range to wait for its Service", is("more", metav1.ConditionFalse))
	if err := service("late", "10.50.0.10"); !apierrors.IsInvalid(err) {
		t.Errorf("an address of a range that goes: %v", err)
	}
	if err := services.Delete(ctx, "default", "asks", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the range to go", func() string {
		if c, ok := cidrs.Get("", "more"); ok {
			return fmt.Sprint(c)
		}
		return ""
	})
}
