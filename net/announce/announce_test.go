package announce_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/internal/netns"
	"edged/internal/netns/netnstest"
	"edged/net/announce"
)

func pool(t *testing.T, list ...string) announce.Pool {
	t.Helper()
	p, err := announce.ParsePool(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParsePool(t *testing.T) {
	p := pool(t, "192.0.2.10", "192.0.2.16/30", "192.0.2.30-192.0.2.31", "2001:db8::10-2001:db8::1f")
	for a, want := range map[string]bool{"192.0.2.10": true, "192.0.2.11": false, "192.0.2.16": true, "192.0.2.19": true, "192.0.2.20": false,
		"192.0.2.31": true, "192.0.2.32": false, "2001:db8::10": true, "2001:db8::20": false} {
		if p.Contains(netip.MustParseAddr(a)) != want {
			t.Errorf("contains %s: %v", a, !want)
		}
	}
	for _, s := range []string{"", "192.0.2", "192.0.2.9-192.0.2.3", "192.0.2.1-2001:db8::1", "a-b", "192.0.2.0/33"} {
		if _, err := announce.ParsePool([]string{s}); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

// service is of type LoadBalancer. Fields: "=ip" has it from the pool, "!ip" has
// it from somebody else, "?ip" asks for it, "46" families.
func service(name string, fields ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	for _, f := range fields {
		switch f[0] {
		case '=':
			s.Status.Conditions = []metav1.Condition{{Type: announce.ConditionPool, Status: metav1.ConditionTrue, Reason: "Allocated"}}
			fallthrough
		case '!':
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: f[1:]})
		case '?':
			s.Spec.LoadBalancerIP = f[1:]
		default:
			for _, c := range f {
				s.Spec.IPFamilies = append(s.Spec.IPFamilies, map[rune]corev1.IPFamily{'4': corev1.IPv4Protocol, '6': corev1.IPv6Protocol}[c])
			}
		}
	}
	return s
}

func TestAllocate(t *testing.T) {
	class := "other.example/lb"
	other := service("other")
	other.Spec.LoadBalancerClass = &class
	plain := service("plain", "=192.0.2.11")
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	late := service("a-late", "=192.0.2.10")
	late.CreationTimestamp = metav1.NewTime(time.Unix(1000, 0))
	for _, tc := range []struct {
		name     string
		services []*corev1.Service
		want     string
		short    []string
	}{
		{"the first free", []*corev1.Service{service("a"), service("b")}, "a [192.0.2.10] b [192.0.2.11]", nil},
		{"what it has stays", []*corev1.Service{service("a"), service("b", "=192.0.2.10")}, "a [192.0.2.11] b [192.0.2.10]", nil},
		{"what it asks for", []*corev1.Service{service("a"), service("b", "?192.0.2.10")}, "a [192.0.2.10]", []string{"b"}},
		{"what it asks for, in time", []*corev1.Service{service("a", "?192.0.2.12"), service("b")}, "a [192.0.2.12] b [192.0.2.10]", nil},
		{"asks for what the pool has not", []*corev1.Service{service("a", "?198.51.100.1")}, "", []string{"a"}},
		{"changed its mind", []*corev1.Service{service("a", "=192.0.2.10", "?192.0.2.12")}, "a [192.0.2.12]", nil},
		{"two have one", []*corev1.Service{late, service("b", "=192.0.2.10")}, "a-late [192.0.2.11] b [192.0.2.10]", nil},
		{"somebody else's, and one being given back", []*corev1.Service{other, service("a", "!192.0.2.10"), service("b"), plain}, "b [192.0.2.12]", nil},
		{"two families", []*corev1.Service{service("a", "46"), service("b", "6")}, "a [192.0.2.10 2001:db8::1] b [2001:db8::2]", nil},
		{"one family of two left", []*corev1.Service{service("a", "6"), service("b", "6"), service("c", "46")}, "a [2001:db8::1] b [2001:db8::2] c [192.0.2.10]", nil},
		{"none left", []*corev1.Service{service("a"), service("b"), service("c"), service("d")}, "a [192.0.2.10] b [192.0.2.11] c [192.0.2.12]", []string{"d"}},
		{"a pool that changed", []*corev1.Service{service("a", "=198.51.100.7")}, "a [192.0.2.10]", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want, short := pool(t, "192.0.2.10-192.0.2.12", "2001:db8::1-2001:db8::2").Allocate(tc.services)
			var got, without []string
			for k, a := range want {
				if len(a) > 0 {
					got = append(got, fmt.Sprint(strings.TrimPrefix(k, "ns/"), " ", a))
				}
			}
			for k := range short {
				without = append(without, strings.TrimPrefix(k, "ns/"))
			}
			slices.Sort(got)
			if g := strings.Join(got, " "); g != tc.want || !slices.Equal(without, tc.short) {
				t.Errorf("got %s, without %v; want %s, without %v", g, without, tc.want, tc.short)
			}
		})
	}
}

func node(name string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func TestOwned(t *testing.T) {
	var services []*corev1.Service
	for i := range 200 {
		services = append(services, service(fmt.Sprint(i), fmt.Sprintf("=192.0.2.%d", i)))
	}
	services = append(services, service("foreign", "!198.51.100.1"))
	owners := func(nodes ...*corev1.Node) map[netip.Addr]string {
		out := map[netip.Addr]string{}
		for _, n := range nodes {
			for _, a := range announce.Owned(n.Name, nodes, services, nil) {
				if out[a] != "" {
					t.Fatalf("%s is owned by %s and %s", a, out[a], n.Name)
				}
				out[a] = n.Name
			}
		}
		if len(out) != 200 {
			t.Fatalf("%d addresses have an owner, want 200", len(out))
		}
		return out
	}
	yes, no := corev1.ConditionTrue, corev1.ConditionFalse
	before := owners(node("a", yes), node("b", yes), node("c", yes), node("d", no))
	count := map[string]int{}
	for _, n := range before {
		count[n]++
	}
	if count["d"] > 0 || count["a"] < 40 || count["b"] < 40 || count["c"] < 40 {
		t.Errorf("uneven: %v", count)
	}
	after := owners(node("a", yes), node("b", no), node("c", yes), node("d", no))
	for a, n := range before {
		if n != "b" && after[a] != n {
			t.Errorf("%s moved from %s to %s although %s is there", a, n, after[a], n)
		}
	}
	excluded := node("a", yes)
	excluded.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""}
	owners(excluded, node("b", yes))
	if got := announce.Owned("a", []*corev1.Node{excluded, node("b", yes)}, services, nil); len(got) > 0 {
		t.Errorf("an excluded device owns %v", got)
	}

	// Policy Local: only where a Pod is ready.
	local := service("local", "=192.0.2.250")
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	f, a, b := false, "a", "b"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "local"}},
		Endpoints: []discoveryv1.Endpoint{{NodeName: &b}, {NodeName: &a, Conditions: discoveryv1.EndpointConditions{Ready: &f}}}}
	nodes := []*corev1.Node{node("a", yes), node("b", yes), node("c", yes)}
	for _, n := range nodes {
		if got := announce.Owned(n.Name, nodes, []*corev1.Service{local}, []*discoveryv1.EndpointSlice{slice}); (len(got) > 0) != (n.Name == "b") {
			t.Errorf("policy Local: %s owns %v", n.Name, got)
		}
	}
}

// device is on a switch with a client.
type device struct {
	netnstest.NS
	*announce.Announcer
}

func newDevice(t *testing.T, name string, n int) device {
	d := device{netnstest.New(t), announce.New(nil)}
	plug(t, d.NS, name, n)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Do(t, func() error { return d.Announcer.Run(ctx) })
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return d
}

func plug(t *testing.T, ns netnstest.NS, name string, n int) {
	host := netnstest.Host()
	ns.Run(t, "ip", "link", "set", "lo", "up")
	link := "sw-" + name
	host.Run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns.Path)
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", link) })
	host.Run(t, "ip", "link", "set", link, "master", "sw", "up")
	ns.Run(t, "ip", "addr", "add", fmt.Sprintf("192.0.2.%d/24", n), "dev", "eth0")
	ns.Run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8::%d/64", n), "dev", "eth0", "nodad")
	ns.Run(t, "ip", "link", "set", "eth0", "up")
	ns.Serve(t, name, ":80")
}

// ask gives up early: what is lost on the way to the device that had an address
// is sent again late.
func ask(client netnstest.NS, to string) (name, seen string, err error) {
	err = netns.Do(client.Path, func() error {
		c, err := net.DialTimeout("tcp", to, 300*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		_, err = fmt.Fscan(c, &name, &seen)
		return err
	})
	return name, seen, err
}

func TestAddressesMove(t *testing.T) {
	host := netnstest.Host()
	host.Run(t, "ip", "link", "add", "sw", "type", "bridge", "forward_delay", "0")
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "sw") })
	host.Run(t, "ip", "link", "set", "sw", "up")
	a, b := newDevice(t, "a", 1), newDevice(t, "b", 2)
	client := netnstest.New(t)
	plug(t, client, "client", 9)

	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("2001:db8::100")}
	answeredBy := func(want string) time.Duration {
		t.Helper()
		start := time.Now()
		for _, addr := range addrs {
			var got string
			var err error
			for deadline := start.Add(20 * time.Second); ; {
				if got, _, err = ask(client, netip.AddrPortFrom(addr, 80).String()); got == want {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: answered by %q (%v), want %s", addr, got, err, want)
				}
			}
		}
		return time.Since(start)
	}
	a.Hold("services", addrs)
	answeredBy("a")
	// The client knows a's hardware address by now: it must be told.
	a.Hold("services", nil)
	b.Hold("services", addrs)
	if took := answeredBy("b"); took > 3*time.Second {
		t.Errorf("moved after %s, want 3 s", took)
	}
	var links []struct {
		Info []struct {
			Local     string
			Prefixlen int
			Valid     int `json:"valid_life_time"`
		} `json:"addr_info"`
	}
	held := func(d device) (n int) {
		if err := json.Unmarshal([]byte(d.NS.Run(t, "ip", "-j", "addr", "show", "dev", "eth0")), &links); err != nil {
			t.Fatal(err)
		}
		for _, i := range links[0].Info {
			if slices.Contains(addrs, netip.MustParseAddr(i.Local)) {
				n++
				// What is not renewed goes.
				if i.Valid > 9 {
					t.Errorf("%s is valid for %d s", i.Local, i.Valid)
				}
			}
		}
		return n
	}
	if n := held(b); n != 2 {
		t.Errorf("%d addresses are held, want 2", n)
	}
	// Who was told to let go may be slower than the neighbors.
	for end := time.Now().Add(5 * time.Second); held(a) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("addresses that moved away are still held")
		}
	}
	// Removed by somebody: put back. Two reasons to hold: one of them suffices.
	b.Hold("api", addrs[:1])
	b.Hold("services", addrs[1:])
	b.NS.Run(t, "ip", "addr", "del", "192.0.2.100/32", "dev", "eth0")
	answeredBy("b")
}
