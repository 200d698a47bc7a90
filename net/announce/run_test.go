package announce_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/internal/netns/netnstest"
	"edged/net/announce"
)

// refusing lets nothing of one Service be written after it was made.
type refusing string

func (r refusing) Admit(context.Context, *registry.Attributes) error { return nil }
func (r refusing) Validate(_ context.Context, a *registry.Attributes) error {
	if a.Operation == admission.Update && a.Name == string(r) {
		return errors.New("not this one")
	}
	return nil
}

// TestOneServiceHoldsUpNoOther: of a Service whose address cannot be written, a webhook
// refuses it perhaps, the others hear nothing.
func TestOneServiceHoldsUpNoOther(t *testing.T) {
	reg := registrytest.New(t)
	reg.SetAdmission(refusing("a"))
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}); err != nil {
		t.Fatal(err)
	}
	services := registry.For[*corev1.Service](reg)
	for _, name := range []string{"a", "b"} {
		s := service(name)
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		if _, err := services.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- announce.RunPool(ctx, reg, pool(t, "192.0.2.10-192.0.2.11"), slog.New(slog.DiscardHandler))
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if s, _ := services.Get("ns", "b"); len(s.Status.LoadBalancer.Ingress) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("b has no address")
		}
	}
}

// TestRunPool allocates in a registry: a Service gets an address, keeps it through a
// change, and gives it to the next when it is a LoadBalancer no more.
func TestRunPool(t *testing.T) {
	reg := registrytest.New(t)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}); err != nil {
		t.Fatal(err)
	}
	services := registry.For[*corev1.Service](reg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- announce.RunPool(ctx, reg, pool(t, "192.0.2.10"), slog.New(slog.DiscardHandler))
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	create := func(name string) {
		t.Helper()
		s := service(name)
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		if _, err := services.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	has := func(name, ip string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			s, _ := services.Get("ns", name)
			got := ""
			if s != nil && len(s.Status.LoadBalancer.Ingress) > 0 {
				got = s.Status.LoadBalancer.Ingress[0].IP
			}
			if got == ip {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s has address %q, want %q", name, got, ip)
			}
		}
	}
	create("one")
	has("one", "192.0.2.10")
	create("two")
	if _, err := services.Update(t.Context(), "ns", "one", func(s *corev1.Service) error {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.Ports[0].NodePort = 0
		s.Spec.AllocateLoadBalancerNodePorts = nil
		s.Spec.ExternalTrafficPolicy = ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	has("two", "192.0.2.10")
	has("one", "")
	if err := services.Delete(t.Context(), "ns", "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create("three")
	has("three", "192.0.2.10")
}

// TestFollow: two devices, one address; the one that has it is not ready any
// more, and the other answers a client within 3 s.
func TestFollow(t *testing.T) {
	host := netnstest.Host()
	host.Run(t, "ip", "link", "add", "sw", "type", "bridge", "forward_delay", "0")
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "sw") })
	host.Run(t, "ip", "link", "set", "sw", "up")
	reg := registrytest.New(t)
	nodes, services := registry.For[*corev1.Node](reg), registry.For[*corev1.Service](reg)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		if _, err := nodes.Create(t.Context(), node(name, corev1.ConditionTrue)); err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, name, i+1)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Follow(ctx, name, reg) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	client := netnstest.New(t)
	plug(t, client, "client", 9)
	answeredBy := func(not string) (string, time.Duration) {
		t.Helper()
		for start := time.Now(); ; {
			name, _, err := ask(client, "192.0.2.100:80")
			if err == nil && name != not {
				return name, time.Since(start)
			}
			if time.Since(start) > 20*time.Second {
				t.Fatalf("answered by %q (%v), want another than %q", name, err, not)
			}
		}
	}
	s := service("web")
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	if _, err := services.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := services.UpdateStatus(t.Context(), "ns", "web", func(o *corev1.Service) error {
		o.Status = service("web", "=192.0.2.100").Status
		o.Status.Conditions[0].LastTransitionTime = metav1.Now()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	first, _ := answeredBy("nobody")
	if _, err := nodes.UpdateStatus(t.Context(), "", first, func(n *corev1.Node) error {
		n.Status.Conditions[0].Status = corev1.ConditionUnknown
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	second, took := answeredBy(first)
	if took > 3*time.Second {
		t.Errorf("moved from %s to %s in %s, want 3 s", first, second, took)
	}
	t.Logf("moved from %s to %s in %s", first, second, took)
}

// TestMissing: nothing is heard of the device that has an address, and nobody took it
// for gone yet. While it answers for the address it keeps it; when it does not, the
// other has it; and when it is back, its neighbors find it there again.
func TestMissing(t *testing.T) {
	host := netnstest.Host()
	host.Run(t, "ip", "link", "add", "sw", "type", "bridge", "forward_delay", "0")
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "sw") })
	host.Run(t, "ip", "link", "set", "sw", "up")
	reg := registrytest.New(t)
	nodes, services := registry.For[*corev1.Node](reg), registry.For[*corev1.Service](reg)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}); err != nil {
		t.Fatal(err)
	}
	s := service("web")
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	_, err := services.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	devices := map[string]device{}
	for i, name := range []string{"a", "b"} {
		if _, err := nodes.Create(t.Context(), node(name, corev1.ConditionTrue)); err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, name, i+1)
		devices[name] = d
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Follow(ctx, name, reg) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := services.UpdateStatus(t.Context(), "ns", "web", func(o *corev1.Service) error {
		o.Status = service("web", "=192.0.2.100", "=2001:db8::100").Status
		o.Status.Conditions[0].LastTransitionTime = metav1.Now()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	client := netnstest.New(t)
	plug(t, client, "client", 9)
	for _, addr := range []string{"192.0.2.100", "2001:db8::100"} {
		t.Run(addr, func(t *testing.T) {
			has := func(d device) bool {
				return strings.Contains(d.NS.Run(t, "ip", "addr", "show", "dev", "eth0"), " "+addr+"/")
			}
			eventually := func(what string, f func() bool) {
				t.Helper()
				for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("not %s within 20 s", what)
					}
				}
			}
			eventually("held", func() bool { return has(devices["a"]) || has(devices["b"]) })
			first, second := "a", "b"
			if has(devices["b"]) {
				first, second = "b", "a"
			}
			answers := func(want string) {
				t.Helper()
				eventually("answered by "+want, func() bool {
					name, _, err := ask(client, net.JoinHostPort(addr, "80"))
					return err == nil && name == want
				})
			}
			answers(first)
			devices[second].Missing([]string{first}, false)
			time.Sleep(3 * time.Second)
			if has(devices[second]) {
				t.Errorf("%s took the address from %s, which answers for it", second, first)
			}
			devices[second].Missing(nil, false)

			host.Run(t, "ip", "link", "set", "sw-"+first, "down")
			devices[second].Missing([]string{first}, false)
			answers(second)
			host.Run(t, "ip", "link", "set", "sw-"+first, "up")
			devices[first].Missing(nil, true)
			devices[second].Missing(nil, false)
			answers(first)
			eventually("given back", func() bool { return !has(devices[second]) })
		})
	}
}
