package policy_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/net/policy"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestProtectIsNotUndone: what Run had read before a Pod was attached does not come
// after what Protect applied for it.
func TestProtectIsNotUndone(t *testing.T) {
	d := newDevice(t)
	reg := registrytest.New(t)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "red"}}); err != nil {
		t.Fatal(err)
	}
	p := d.pod("red", "a", 8080)
	o := p.object.DeepCopy()
	o.UID = ""
	o.Spec.Containers[0].Name, o.Spec.Containers[0].Image = "c", "c"
	o, err := registry.For[*corev1.Pod](reg).Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.bridge.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.For[*networkingv1.NetworkPolicy](reg).Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "deny"}}); err != nil {
		t.Fatal(err)
	}
	begun, protected := make(chan struct{}), make(chan struct{})
	var looked atomic.Bool
	e := policy.New(policy.Config{NodeName: "here", Table: d.table, Local: func() map[string][]netip.Addr {
		have := d.bridge.Attached()
		if !looked.Swap(true) { // Run's first look takes its time
			close(begun)
			select {
			case <-protected:
			case <-time.After(time.Second):
			}
		}
		return have
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx, reg) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-begun
	p.attach(string(o.UID))
	if err := e.Protect(ctx, o); err != nil {
		t.Fatal(err)
	}
	close(protected)
	time.Sleep(300 * time.Millisecond) // for Run to go on
	wantShut(t, "after Protect returned", d.outside, at(p.ip, "8080"))
}

// TestRun follows the registry, and protects a Pod before its status is known.
func TestRun(t *testing.T) {
	d := newDevice(t)
	reg := registrytest.New(t)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "red"}}); err != nil {
		t.Fatal(err)
	}
	policies, pods := registry.For[*networkingv1.NetworkPolicy](reg), registry.For[*corev1.Pod](reg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.enforcer.Run(ctx, reg) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	create := func(name string) *pod {
		t.Helper()
		p := d.pod("red", name, 8080)
		o := p.object.DeepCopy()
		o.UID = ""
		o.Spec.Containers[0].Name, o.Spec.Containers[0].Image = "c", "c"
		o, err := pods.Create(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		// The bridge calls it by its UID.
		if err := d.bridge.Detach(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		p.object = o
		return p
	}
	a := create("a")
	b := create("b")
	if _, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "deny"}}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*pod{a, b} {
		p.attach(string(p.object.UID))
		if err := d.enforcer.Protect(ctx, p.object); err != nil {
			t.Fatal(err)
		}
		wantShut(t, "as soon as Protect returned", d.outside, at(p.ip, "8080"))
	}
	if _, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "allow"}, Spec: networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"may": "yes"}}}}}},
	}}); err != nil {
		t.Fatal(err)
	}
	wantShut(t, "not allowed yet", a.NS, at(b.ip, "8080"))
	if _, err := pods.Update(t.Context(), "red", "a", func(p *corev1.Pod) error {
		p.Labels["may"] = "yes"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a label opens the way", func() bool { return ask(a.NS, "tcp", "", at(b.ip, "8080"), false) == nil })
	d.host.Run(t, "nft", "flush", "ruleset")
	for _, name := range []string{"deny", "allow"} {
		if err := policies.Delete(t.Context(), "red", name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "without policies all is open", func() bool { return ask(d.outside, "tcp", "", at(b.ip, "8080"), false) == nil })
}
