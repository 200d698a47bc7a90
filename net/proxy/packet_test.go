package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/internal/netns/netnstest"
	"edged/net/bridge"
	"edged/net/nft"
	"edged/net/proxy"
)

// Addresses of the link between the device and the outside, which knows
// nothing of Pods and Services.
const (
	deviceIP  = "192.0.2.1"
	deviceIP6 = "2001:db8::1"
	outsideIP = "192.0.2.100"
)

// device is a device with a bridge, a proxier and a link to the outside.
type device struct {
	t       testing.TB
	host    netnstest.NS
	outside netnstest.NS
	bridge  *bridge.Bridge
	proxier *proxy.Proxier
	net     proxy.Network
}

func newDevice(t testing.TB, change func(*proxy.Network)) *device {
	t.Helper()
	d := &device{t: t, host: netnstest.Host(), outside: netnstest.New(t), net: network()}
	d.net.Balance = nil
	if change != nil {
		change(&d.net)
	}
	stateDir := filepath.Join(t.TempDir(), "bridge")
	d.openBridge(bridge.Config{PodCIDRs: d.net.PodCIDRs, ServiceCIDRs: d.net.ServiceCIDRs, HostAddrs: d.net.Reserved, StateDir: stateDir})
	d.host.Run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	d.host.Run(t, "ip", "link", "set", "up1", "netns", d.outside.Path)
	for _, a := range []string{deviceIP + "/24", deviceIP6 + "/64"} {
		d.host.Run(t, "ip", "addr", "add", a, "dev", "up0", "nodad")
	}
	for _, a := range []string{outsideIP + "/24", "2001:db8::100/64"} {
		d.outside.Run(t, "ip", "addr", "add", a, "dev", "up1", "nodad")
	}
	d.host.Run(t, "ip", "link", "set", "up0", "up")
	d.outside.Run(t, "ip", "link", "set", "up1", "up")
	d.openProxier()
	t.Cleanup(func() {
		d.host.Run(t, "ip", "link", "del", "up0")
		d.bridge.Close()
		if err := bridge.Cleanup(t.Context(), bridge.DefaultName, stateDir); err != nil {
			t.Error(err)
		}
		if err := nft.Open().Remove(); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("rules are left: %v\n%s", err, out)
		}
	})
	return d
}

func (d *device) openBridge(cfg bridge.Config) {
	var err error
	if d.bridge, err = bridge.New(cfg); err != nil {
		d.t.Fatal(err)
	}
}

// openProxier is also what a restart of the daemon does.
func (d *device) openProxier() {
	d.t.Helper()
	ct, err := bridge.OpenConntrack()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(ct.Close)
	if d.proxier, err = proxy.New(proxy.Config{Network: d.net, Table: nft.Open(), Conntrack: ct}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) apply(s proxy.State) {
	d.t.Helper()
	if err := d.proxier.Apply(s); err != nil {
		d.t.Fatal(err)
	}
}

// pod is a Pod that answers on port 8080 with its name.
type pod struct {
	netnstest.NS
	name string
	ip   string
	ip6  string
}

func (d *device) pod(name string) pod {
	d.t.Helper()
	ns := netnstest.New(d.t)
	att, err := d.bridge.Attach(d.t.Context(), bridge.AttachRequest{ID: name, NetNS: ns.Path})
	if err != nil {
		d.t.Fatal(err)
	}
	ns.Serve(d.t, name, ":8080")
	p := pod{NS: ns, name: name}
	for _, a := range att.IPs {
		if a.Is4() {
			p.ip = a.String()
		} else {
			p.ip6 = a.String()
		}
	}
	return p
}

func (d *device) podIPs(p pod) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(p.ip), netip.MustParseAddr(p.ip6)}
}

// service has one port 80, for TCP and UDP.
func service(name string, ips ...string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips, Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{
			{Name: "tcp", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP}}},
	}
}

func slice(svc *corev1.Service, is6 bool, pods ...pod) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + fmt.Sprint(is6), Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if is6 {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for i := range svc.Spec.Ports {
		port := int32(8080)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &svc.Spec.Ports[i].Name, Protocol: &svc.Spec.Ports[i].Protocol, Port: &port})
	}
	here := "here"
	for _, p := range pods {
		a := p.ip
		if is6 {
			a = p.ip6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: &here})
	}
	return s
}

func state(objs ...any) proxy.State {
	var s proxy.State
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			s.Services = append(s.Services, o)
		case *discoveryv1.EndpointSlice:
			s.Slices = append(s.Slices, o)
		case proxy.HostPort:
			s.HostPorts = append(s.HostPorts, o)
		}
	}
	return s
}

// count asks n times and counts who answered.
func count(t testing.TB, from netnstest.NS, network, addr string, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		name, _, err := from.Ask(network, addr)
		if err != nil {
			t.Fatalf("%s %s: %v", network, addr, err)
		}
		got[name]++
	}
	return got
}

func wantEven(t testing.TB, what string, got map[string]int, names ...string) {
	t.Helper()
	total := 0
	for _, n := range got {
		total += n
	}
	// Five standard deviations of a binomial distribution, rounded up.
	for _, name := range names {
		if share := total / len(names); got[name] < share/2 {
			t.Errorf("%s: answers %v, want about %d of each of %v", what, got, share, names)
		}
	}
	if len(got) != len(names) {
		t.Errorf("%s: answers %v, want only %v", what, got, names)
	}
}

func TestBalancing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*proxy.Network)
		bridged string
	}{
		{"numgen", nil, "0"},
		{"numgen, bridge-nf-call", nil, "1"},
		{"hash", func(n *proxy.Network) { n.Balance = nft.FlowHash }, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t, tt.change)
			netnstest.BridgeNF(t, tt.bridged)
			if err := d.bridge.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			a, b, c, client := d.pod("a"), d.pod("b"), d.pod("c"), d.pod("client")
			svc := service("web", "10.43.0.1", "fd43::1")
			d.apply(state(svc, slice(svc, false, a, b, c), slice(svc, true, a, b, c)))
			for _, network := range []string{"tcp", "udp"} {
				for _, to := range []string{"10.43.0.1:80", "[fd43::1]:80"} {
					wantEven(t, network+" from a pod to "+to, count(t, client.NS, network, to, 120), "a", "b", "c")
					wantEven(t, network+" from the device to "+to, count(t, d.host, network, to, 120), "a", "b", "c")
				}
			}
			// A Pod sees another Pod's own address through a Service.
			_, seen, err := client.Ask("tcp", "10.43.0.1:80")
			if host, _, _ := net.SplitHostPort(seen); err != nil || host != client.ip {
				t.Errorf("seen as %s (%v), want %s", seen, err, client.ip)
			}
		})
	}
}

// TestHairpin: a Pod reaches itself through its Service, whether or not the
// kernel shows bridged frames to the packet filter.
func TestHairpin(t *testing.T) {
	for _, bridged := range []string{"0", "1"} {
		t.Run("bridge-nf-call "+bridged, func(t *testing.T) {
			d := newDevice(t, nil)
			netnstest.BridgeNF(t, bridged)
			if err := d.bridge.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			a := d.pod("a")
			svc := service("web", "10.43.0.1", "fd43::1")
			d.apply(state(svc, slice(svc, false, a), slice(svc, true, a)))
			for _, network := range []string{"tcp", "udp"} {
				for _, to := range []string{"10.43.0.1:80", "[fd43::1]:80"} {
					if name, _, err := a.Ask(network, to); err != nil || name != "a" {
						t.Errorf("%s %s from itself: %q, %v", network, to, name, err)
					}
				}
			}
		})
	}
}

func TestNoEndpointsRefuse(t *testing.T) {
	d := newDevice(t, nil)
	client := d.pod("client")
	svc := service("web", "10.43.0.1", "fd43::1")
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports[0].NodePort = 30080
	d.apply(state(svc))
	for _, tt := range []struct {
		from netnstest.NS
		to   string
	}{
		{client.NS, "10.43.0.1:80"}, {client.NS, "[fd43::1]:80"}, {d.host, "10.43.0.1:80"}, {d.host, "[fd43::1]:80"},
		{client.NS, "10.43.0.1:81"}, {client.NS, "10.43.9.9:80"}, {d.host, "10.43.9.9:80"}, // no such port, no such service
		{d.outside, deviceIP + ":30080"}, {client.NS, deviceIP + ":30080"}, {d.host, deviceIP + ":30080"},
	} {
		start := time.Now()
		if _, _, err := tt.from.Ask("tcp", tt.to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want refused", tt.to, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s to %s: refused after %s", tt.from.Path, tt.to, took)
		}
	}
	a := d.pod("a")
	d.apply(state(svc, slice(svc, false, a), slice(svc, true, a)))
	if name, _, err := client.Ask("tcp", "10.43.0.1:80"); err != nil || name != "a" {
		t.Errorf("with an endpoint: %q, %v", name, err)
	}
	d.apply(state(svc, slice(svc, false), slice(svc, true)))
	if _, _, err := client.Ask("tcp", "10.43.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("endpoint gone: %v, want refused", err)
	}
}

func TestSessionAffinity(t *testing.T) {
	d := newDevice(t, nil)
	pods := []pod{d.pod("a"), d.pod("b"), d.pod("c")}
	clients := []pod{d.pod("c1"), d.pod("c2"), d.pod("c3"), d.pod("c4"), d.pod("c5"), d.pod("c6")}
	svc := service("web", "10.43.0.1", "fd43::1")
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	timeout := int32(1)
	svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	long := svc.DeepCopy()
	*long.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = 10800
	ends := []any{slice(svc, false, pods...), slice(svc, true, pods...)}

	d.apply(state(append(ends, long)...))
	chosen := map[string]string{}
	used := map[string]bool{}
	for _, c := range clients {
		for _, to := range []string{"10.43.0.1:80", "[fd43::1]:80"} {
			got := count(t, c.NS, "tcp", to, 10)
			if len(got) != 1 {
				t.Errorf("%s went to %v at %s, want one endpoint", c.name, got, to)
			}
			for name := range got {
				chosen[c.name+to] = name
				used[name] = true
			}
		}
	}
	if len(used) < 2 {
		t.Errorf("12 clients all went to %v", used)
	}
	// An endpoint goes: its clients move, the others stay. And a restart of
	// the daemon forgets nothing.
	d.openProxier()
	d.apply(state(long, slice(svc, false, pods[1:]...), slice(svc, true, pods[1:]...)))
	for _, c := range clients {
		for _, to := range []string{"10.43.0.1:80", "[fd43::1]:80"} {
			got := count(t, c.NS, "tcp", to, 5)
			if was := chosen[c.name+to]; len(got) != 1 || was != "a" && got[was] == 0 || got["a"] > 0 {
				t.Errorf("%s at %s went to %v, was at %s, and a is gone", c.name, to, got, was)
			}
		}
	}
	// With a timeout of a second a client that rests moves in the end.
	d.apply(state(append(ends, svc)...))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for first := ""; ; {
		name, _, err := clients[0].Ask("tcp", "10.43.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		if first != "" && name != first {
			break
		}
		first = name
		select {
		case <-time.After(1100 * time.Millisecond): // the timeout that is tested
		case <-ctx.Done():
			t.Fatal("affinity did not end with its timeout")
		}
	}
}

func TestNodePortAndExternalAddresses(t *testing.T) {
	d := newDevice(t, nil)
	a, b, client := d.pod("a"), d.pod("b"), d.pod("client")
	d.outside.Run(t, "ip", "route", "add", "198.51.100.7/32", "via", deviceIP)
	d.outside.Run(t, "ip", "route", "add", "198.51.100.8/32", "via", deviceIP)
	svc := service("web", "10.43.0.1", "fd43::1")
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort = 30080, 30080
	svc.Spec.ExternalIPs = []string{"198.51.100.7"}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.8"}}
	ends := []any{slice(svc, false, a, b), slice(svc, true, a, b)}
	d.apply(state(append(ends, svc)...))
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []string{deviceIP + ":30080", "[" + deviceIP6 + "]:30080", "198.51.100.7:80", "198.51.100.8:80"} {
			wantEven(t, network+" outside to "+to, count(t, d.outside, network, to, 40), "a", "b")
		}
		wantEven(t, network+" pod to node port", count(t, client.NS, network, deviceIP+":30080", 40), "a", "b")
		wantEven(t, network+" device to node port", count(t, d.host, network, deviceIP+":30080", 40), "a", "b")
	}
	_, seen, err := d.outside.Ask("tcp", deviceIP+":30080")
	if host, _, _ := net.SplitHostPort(seen); err != nil || host == outsideIP {
		t.Errorf("policy Cluster: seen as %s (%v), want an address of the device", seen, err)
	}

	local := svc.DeepCopy()
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	elsewhere := slice(svc, false, a, b)
	there := "there"
	elsewhere.Endpoints[1].NodeName = &there
	d.apply(state(local, elsewhere))
	for _, to := range []string{deviceIP + ":30080", "198.51.100.8:80"} {
		wantEven(t, "policy Local to "+to, count(t, d.outside, "tcp", to, 20), "a")
		_, seen, err = d.outside.Ask("tcp", to)
		if host, _, _ := net.SplitHostPort(seen); err != nil || host != outsideIP {
			t.Errorf("policy Local to %s: seen as %s (%v), want the client's own address", to, seen, err)
		}
	}
	wantEven(t, "policy Local from a pod", count(t, client.NS, "tcp", "198.51.100.8:80", 40), "a", "b")

	guarded := svc.DeepCopy()
	guarded.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
	d.apply(state(append(ends, guarded)...))
	d.outside.Do(t, func() error {
		_, err := net.DialTimeout("tcp", "198.51.100.8:80", 300*time.Millisecond)
		if err == nil {
			return errors.New("a source outside of the ranges got through")
		}
		return nil
	})
	guarded = guarded.DeepCopy()
	guarded.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "192.0.2.0/24"}
	d.apply(state(append(ends, guarded)...))
	count(t, d.outside, "tcp", "198.51.100.8:80", 1)
}

func TestHostPort(t *testing.T) {
	d := newDevice(t, nil)
	any, one, client := d.pod("any"), d.pod("one"), d.pod("client")
	hp := func(p pod, ip string, port uint16, proto string) proxy.HostPort {
		h := proxy.HostPort{HostPort: port, Protocol: proto, PodIPs: []netip.Addr{netip.MustParseAddr(p.ip), netip.MustParseAddr(p.ip6)}, PodPort: 8080}
		if ip != "" {
			h.HostIP = netip.MustParseAddr(ip)
		}
		return h
	}
	d.host.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "up0")
	d.apply(state(hp(any, "", 8000, "TCP"), hp(any, "", 8000, "UDP"), hp(one, "192.0.2.2", 9000, "TCP"), hp(any, "127.0.0.1", 9000, "TCP"), hp(one, deviceIP, 9000, "UDP")))
	for _, tt := range []struct {
		what     string
		from     netnstest.NS
		network  string
		to, want string
	}{
		{"outside", d.outside, "tcp", deviceIP + ":8000", "any"},
		{"outside, IPv6", d.outside, "tcp", "[" + deviceIP6 + "]:8000", "any"},
		{"outside, UDP", d.outside, "udp", deviceIP + ":8000", "any"},
		{"another pod", client.NS, "tcp", deviceIP + ":8000", "any"},
		{"the pod itself", any.NS, "tcp", deviceIP + ":8000", "any"},
		{"the device", d.host, "tcp", deviceIP + ":8000", "any"},
		{"the device, loopback", d.host, "tcp", "127.0.0.1:8000", "any"},
		{"host address", d.outside, "tcp", "192.0.2.2:9000", "one"},
		{"host address of the loopback", d.host, "tcp", "127.0.0.1:9000", "any"},
		{"other protocol at the same port", d.outside, "udp", deviceIP + ":9000", "one"},
	} {
		if name, seen, err := tt.from.Ask(tt.network, tt.to); err != nil || name != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.what, name, err, tt.want)
		} else if host, _, _ := net.SplitHostPort(seen); tt.what == "outside" && host != outsideIP {
			t.Errorf("%s: seen as %s, want the client's own address", tt.what, seen)
		}
	}
	if _, _, err := d.outside.Ask("tcp", deviceIP+":9000"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("host port of another address: %v, want refused", err)
	}
}

// TestPodsCannotReachTheDevicesLoopback: the bridge takes loopback addresses,
// but not from Pods.
func TestPodsCannotReachTheDevicesLoopback(t *testing.T) {
	d := newDevice(t, nil)
	d.apply(proxy.State{})
	p := d.pod("p")
	d.host.Serve(t, "secret", "127.0.0.1:7777")
	p.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
	p.Run(t, "ip", "route", "flush", "table", "local")
	p.Run(t, "ip", "route", "add", "local", p.ip, "dev", "eth0", "table", "local")
	p.Run(t, "ip", "route", "add", "127.0.0.1", "via", "10.42.3.1", "dev", "eth0", "src", p.ip)
	p.Do(t, func() error {
		dialer := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.ip)}}
		if _, err := dialer.Dial("tcp", "127.0.0.1:7777"); err == nil {
			return errors.New("a pod reached the device's loopback")
		}
		return nil
	})
}

func TestMasqueradeToTheOutsideOnly(t *testing.T) {
	d := newDevice(t, nil)
	d.apply(proxy.State{})
	p, q := d.pod("p"), d.pod("q")
	d.outside.Serve(t, "outside", ":8080")
	for _, tt := range []struct{ to, want string }{
		{outsideIP + ":8080", deviceIP}, {"[2001:db8::100]:8080", deviceIP6}, {q.ip + ":8080", p.ip}, {"[" + q.ip6 + "]:8080", p.ip6},
	} {
		_, seen, err := p.Ask("tcp", tt.to)
		if host, _, _ := net.SplitHostPort(seen); err != nil || host != tt.want {
			t.Errorf("to %s: seen as %s (%v), want %s", tt.to, seen, err, tt.want)
		}
	}
}

// TestUDPClientsAreMoved: one socket asks all the time; its connection track
// would lead to the old endpoint for ever.
func TestUDPClientsAreMoved(t *testing.T) {
	d := newDevice(t, nil)
	a, b, client := d.pod("a"), d.pod("b"), d.pod("client")
	svc := service("web", "10.43.0.1")
	d.apply(state(svc, slice(svc, false, a)))
	c, err := client.Dial("udp", "10.43.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func() string {
		var name string
		buf := make([]byte, 100)
		for range 10 { // a packet may meet the moment of change
			if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("?")); err != nil {
				continue
			}
			if n, err := c.Read(buf); err == nil {
				fmt.Sscan(string(buf[:n]), &name)
				return name
			}
		}
		return "nobody"
	}
	if got := ask(); got != "a" {
		t.Fatalf("answered by %s", got)
	}
	d.apply(state(svc, slice(svc, false, b)))
	if got := ask(); got != "b" {
		t.Errorf("after the change answered by %s, want b", got)
	}
	d.openProxier() // the daemon is away while the endpoint changes again
	d.apply(state(svc, slice(svc, false, a)))
	if got := ask(); got != "a" {
		t.Errorf("after the change during a restart answered by %s, want a", got)
	}
}

// TestChangeUnderLoad: while endpoints come and go, no request fails: the ones
// that leave are still there to finish what they got.
func TestChangeUnderLoad(t *testing.T) {
	d := newDevice(t, nil)
	pods := []pod{d.pod("a"), d.pod("b"), d.pod("c")}
	client := d.pod("client")
	svc := service("web", "10.43.0.1")
	d.apply(state(svc, slice(svc, false, pods...)))
	stop := make(chan struct{})
	result := make(chan error, 1)
	asked := 0
	go func() {
		for {
			select {
			case <-stop:
				result <- nil
				return
			default:
			}
			if _, _, err := client.Ask("tcp", "10.43.0.1:80"); err != nil {
				result <- err
				return
			}
			asked++
		}
	}()
	for i := range 60 {
		k := i % 3
		d.apply(state(svc, slice(svc, false, append(append([]pod{}, pods[:k]...), pods[k+1:]...)...)))
	}
	close(stop)
	if err := <-result; err != nil {
		t.Errorf("a request failed: %v", err)
	}
	if asked == 0 {
		t.Error("no request was made meanwhile")
	}
}

func TestRestartKeepsConnections(t *testing.T) {
	d := newDevice(t, nil)
	a, client := d.pod("a"), d.pod("client")
	svc := service("web", "10.43.0.1")
	l := a.Listen(t, ":9090")
	s := slice(svc, false, a)
	*s.Ports[0].Port = 9090
	d.apply(state(svc, s))
	c, err := client.Dial("tcp", "10.43.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	d.openProxier()
	d.apply(state(svc, s))
	if _, err := fmt.Fprintln(c, "alive"); err != nil {
		t.Fatal(err)
	}
	var word string
	if _, err := fmt.Fscan(at, &word); err != nil || word != "alive" {
		t.Errorf("connection from before the restart: %q, %v", word, err)
	}
}

func TestMended(t *testing.T) {
	d := newDevice(t, nil)
	a, client := d.pod("a"), d.pod("client")
	svc := service("web", "10.43.0.1")
	d.apply(state(svc, slice(svc, false, a)))
	d.host.Run(t, "nft", "flush", "ruleset")
	if ok, err := d.proxier.Intact(); ok || err != nil {
		t.Errorf("after a flush: %v, %v", ok, err)
	}
	d.apply(state(svc, slice(svc, false, a)))
	if name, _, err := client.Ask("tcp", "10.43.0.1:80"); err != nil || name != "a" {
		t.Errorf("%q, %v", name, err)
	}
	out := d.host.Run(t, "nft", "list", "ruleset")
	if strings.Count(out, "table ") != 1 {
		t.Errorf("tables of:\n%s", out)
	}
}
