package proxy_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/internal/netns/netnstest"
	"edged/net/proxy"
)

// eventually waits for a state, bounded.
func eventually(t testing.TB, what string, reached func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := reached()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestRunFollowsTheRegistry(t *testing.T) {
	d := newDevice(t, nil)
	a, b, client := d.pod("a"), d.pod("b"), d.pod("client")
	reg := registrytest.New(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.proxier.Run(ctx, reg) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	if _, err := registry.For[*corev1.Namespace](reg).Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}); err != nil {
		t.Log(err) // may exist
	}
	svc := service("web", "10.43.0.1")
	svc.Spec.Selector = map[string]string{"app": "web"}
	services, slices := registry.For[*corev1.Service](reg), registry.For[*discoveryv1.EndpointSlice](reg)
	if _, err := services.Create(ctx, svc); err != nil {
		t.Fatal(err)
	}
	if _, err := slices.Create(ctx, slice(svc, false, a)); err != nil {
		t.Fatal(err)
	}
	answers := func(want string) func() error {
		return func() error {
			name, _, err := client.Ask("tcp", "10.43.0.1:80")
			if err == nil && name != want {
				err = fmt.Errorf("answered by %s, want %s", name, want)
			}
			return err
		}
	}
	eventually(t, "service", answers("a"))
	if _, err := slices.Update(ctx, "default", "webfalse", func(s *discoveryv1.EndpointSlice) error {
		s.Endpoints[0].Addresses = []string{b.ip}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "changed endpoint", answers("b"))

	d.proxier.SetHostPorts([]proxy.HostPort{{HostPort: 8000, Protocol: "TCP", PodIPs: d.podIPs(a), PodPort: 8080}})
	eventually(t, "host port", func() error {
		_, _, err := d.outside.Ask("tcp", deviceIP+":8000")
		return err
	})
	// The DNS server's way out where another process has its port.
	d.host.Serve(t, "dns", "10.43.0.10:10053")
	if err := d.proxier.Redirect(netip.MustParseAddrPort("10.43.0.10:53"), 10053); err != nil {
		t.Fatal(err)
	}
	for _, from := range []netnstest.NS{client.NS, d.host} {
		eventually(t, "redirect", func() error {
			_, _, err := from.Ask("udp", "10.43.0.10:53")
			return err
		})
	}
	if err := services.Delete(ctx, "default", "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "deleted service", func() error {
		if _, _, err := client.Ask("tcp", "10.43.0.1:80"); err == nil {
			return fmt.Errorf("still answers")
		}
		return nil
	})
}
