package dns_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/net/dns"
)

func TestRunFollowsTheRegistry(t *testing.T) {
	reg := registrytest.New(t)
	s, err := dns.New(dns.Config{Domain: "cluster.local", Addrs: []netip.Addr{serverAddr}, Inside: inside})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, reg) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if _, err := registry.For[*corev1.Namespace](reg).Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}); err != nil {
		t.Log(err) // may exist
	}
	is := func(name string, qtype uint16, want string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			got := text(query(t, "udp", name, qtype))
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s, want %s", name, got, want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	services, slices := registry.For[*corev1.Service](reg), registry.For[*discoveryv1.EndpointSlice](reg)
	svc := &corev1.Service{ObjectMeta: object("default", "web"), Spec: corev1.ServiceSpec{
		ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	if _, err := services.Create(ctx, svc); err != nil {
		t.Fatal(err)
	}
	if _, err := slices.Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.9"}, Hostname: ptr("w0")}},
	}); err != nil {
		t.Fatal(err)
	}
	is("web.default.svc.cluster.local.", mdns.TypeA, "A 10.42.0.9")
	is("9.0.42.10.in-addr.arpa.", mdns.TypePTR, "PTR w0.web.default.svc.cluster.local.")
	if _, err := slices.Update(ctx, "default", "web-1", func(s *discoveryv1.EndpointSlice) error {
		s.Endpoints[0].Addresses = []string{"10.42.0.8"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	is("w0.web.default.svc.cluster.local.", mdns.TypeA, "A 10.42.0.8")
	is("9.0.42.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN SOA")

	pod := &corev1.Pod{ObjectMeta: object("default", "p"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	pods := registry.For[*corev1.Pod](reg)
	if _, err := pods.Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.UpdateStatus(ctx, "default", "p", func(p *corev1.Pod) error {
		p.Status.PodIP, p.Status.PodIPs = "10.42.0.77", []corev1.PodIP{{IP: "10.42.0.77"}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	is("10-42-0-77.default.pod.cluster.local.", mdns.TypeA, "A 10.42.0.77")
	is("10-42-0-78.default.pod.cluster.local.", mdns.TypeA, "NXDOMAIN SOA")

	if err := services.Delete(ctx, "default", "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	is("web.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN SOA")
}
