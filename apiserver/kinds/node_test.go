package kinds_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// Nodes that come at the same time get different Pod addresses, those of a
// deleted one are given again, and when there are none left that is said.
func TestPodCIDRs(t *testing.T) {
	reg := registrytest.NewWith(t, registry.Config{Kinds: kinds.All(kinds.Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.254.0/23"), netip.MustParsePrefix("fd00:1:2:8::/61")}})})
	nodes := registry.For[*corev1.Node](reg)
	create := func(name string, cidrs ...string) (*corev1.Node, error) {
		return nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}})
	}
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if _, err := create(fmt.Sprintf("n%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := map[string]bool{}
	for _, n := range nodes.List("") {
		if len(n.Spec.PodCIDRs) != 2 || n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
			t.Errorf("%s has %q, %q", n.Name, n.Spec.PodCIDR, n.Spec.PodCIDRs)
			continue
		}
		got[n.Spec.PodCIDRs[0]], got[n.Spec.PodCIDRs[1]] = true, true
	}
	for _, want := range []string{"10.42.254.0/24", "10.42.255.0/24", "fd00:1:2:8::/64", "fd00:1:2:9::/64"} {
		if !got[want] {
			t.Errorf("nobody has %s: %v", want, got)
		}
	}
	if _, err := create("n2"); err == nil {
		t.Error("a third range out of two")
	}
	if err := nodes.Delete(t.Context(), "", "n0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := create("n2"); err != nil {
		t.Errorf("the range of the deleted Node is not given again: %v", err)
	}
	if _, err := create("n3", "10.42.254.128/25"); !apierrors.IsInvalid(err) {
		t.Errorf("addresses of another Node: %v", err)
	}
	if n, err := create("n4", "192.168.7.0/24"); err != nil || n.Spec.PodCIDR != "192.168.7.0/24" {
		t.Errorf("a range of one's own: %v, %v", n, err)
	}
}
