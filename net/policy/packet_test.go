package policy_test

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"edged/internal/netns"
	"edged/internal/netns/netnstest"
	"edged/net/bridge"
	"edged/net/nft"
	"edged/net/policy"
	"edged/net/proxy"
)

// device is a device with its bridge, rules and Pods, and an outside that has a
// route to the Pods, as another device of the cluster has.
type device struct {
	t        testing.TB
	host     netnstest.NS
	outside  netnstest.NS
	bridge   *bridge.Bridge
	table    *nft.Table
	proxier  *proxy.Proxier
	enforcer *policy.Enforcer
	state    policy.State
}

const outsideIP = "192.0.2.100" // and .101

func newDevice(t testing.TB) *device {
	t.Helper()
	d := &device{t: t, host: netnstest.Host(), outside: netnstest.New(t), table: nft.Open()}
	dir := filepath.Join(t.TempDir(), "bridge")
	pods := []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd42:0:0:1::/64")}
	services := []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	var err error
	if d.bridge, err = bridge.New(bridge.Config{PodCIDRs: pods, ServiceCIDRs: services, StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	d.host.Run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", d.outside.Path)
	d.host.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	d.host.Run(t, "ip", "link", "set", "up0", "up")
	d.outside.Run(t, "ip", "link", "set", "lo", "up")
	d.outside.Run(t, "ip", "addr", "add", outsideIP+"/24", "dev", "up1")
	d.outside.Run(t, "ip", "addr", "add", "192.0.2.101/24", "dev", "up1")
	d.outside.Run(t, "ip", "link", "set", "up1", "up")
	d.outside.Run(t, "ip", "route", "add", "10.40.0.0/13", "via", "192.0.2.1")
	d.outside.Serve(t, "outside", ":8080")
	d.outside.Serve(t, "outside", ":8081")
	if d.proxier, err = proxy.New(proxy.Config{Network: proxy.Network{NodeName: "here", Bridge: bridge.DefaultName, PodCIDRs: pods,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}, ServiceCIDRs: services}, Table: d.table}); err != nil {
		t.Fatal(err)
	}
	d.serve()
	d.enforcer = policy.New(policy.Config{NodeName: "here", Table: d.table, Local: d.bridge.Attached})
	t.Cleanup(func() {
		d.host.Run(t, "ip", "link", "del", "up0")
		err := errors.Join(d.bridge.Close(), bridge.Cleanup(t.Context(), bridge.DefaultName, dir), d.table.Remove(), d.table.Close())
		if err != nil {
			t.Error(err)
		}
	})
	return d
}

// serve has the proxy serve these Services.
func (d *device) serve(objs ...any) {
	d.t.Helper()
	var s proxy.State
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			s.Services = append(s.Services, o)
		case *discoveryv1.EndpointSlice:
			s.Slices = append(s.Slices, o)
		}
	}
	if err := d.proxier.Apply(s); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) namespace(name string, labels map[string]string) {
	d.state.Namespaces = append(d.state.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
}

// pod answers on 8080 and 8081 with its name. Its port named "web" is port.
type pod struct {
	netnstest.NS
	d       *device
	object  *corev1.Pod
	ip, ip6 string
}

func (d *device) pod(ns, name string, port int32) *pod {
	d.t.Helper()
	space := netnstest.New(d.t)
	att, err := d.bridge.Attach(d.t.Context(), bridge.AttachRequest{ID: name, NetNS: space.Path})
	if err != nil {
		d.t.Fatal(err)
	}
	space.Serve(d.t, name, ":8080")
	space.Serve(d.t, name, ":8081")
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(name), Labels: map[string]string{"name": name}},
		Spec: corev1.PodSpec{NodeName: "here", Containers: []corev1.Container{{
			Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port, Protocol: corev1.ProtocolTCP}}}}},
	}
	d.state.Pods = append(d.state.Pods, o)
	return &pod{NS: space, d: d, object: o, ip: att.IPs[0].String(), ip6: att.IPs[1].String()}
}

// policies makes exactly these the policies, each as YAML of its spec.
func (d *device) policies(list map[string]string) {
	d.t.Helper()
	d.state.Policies = nil
	for name, text := range list {
		ns, name, _ := strings.Cut(name, "/")
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		if err := yaml.UnmarshalStrict([]byte(text), &p.Spec); err != nil {
			d.t.Fatal(err)
		}
		d.state.Policies = append(d.state.Policies, p)
	}
	d.apply()
}

func (d *device) apply() {
	d.t.Helper()
	d.state.Local = d.bridge.Attached()
	if err := d.enforcer.Apply(d.state); err != nil {
		d.t.Fatal(err)
	}
}

func at(ip string, port string) string { return net.JoinHostPort(ip, port) }

// wantOpen and wantShut ask by TCP and by UDP. Shut means that nothing comes
// back: neither an answer nor a refusal.
func wantOpen(t testing.TB, what string, from netnstest.NS, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			if _, _, err := from.Ask(network, a); err != nil {
				t.Errorf("%s: %s to %s: %v", what, network, a, err)
			}
		}
	}
}

func wantShut(t testing.TB, what string, from netnstest.NS, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			if err := ask(from, network, "", a, false); !timedOut(err) {
				t.Errorf("%s: %s to %s is not shut: %v", what, network, a, err)
			}
		}
	}
}

func timedOut(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// ask waits for an answer for as long as a loaded machine may need, or, where
// none is expected, for much longer than one takes.
func ask(from netnstest.NS, network, local, to string, expected bool) error {
	within := 150 * time.Millisecond
	if expected {
		within = 5 * time.Second
	}
	return netns.Do(from.Path, func() error {
		dial := net.Dialer{Timeout: within}
		if local != "" {
			dial.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
		}
		c, err := dial.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
}

func TestIngress(t *testing.T) {
	d := newDevice(t)
	d.namespace("red", map[string]string{"color": "red"})
	d.namespace("blue", map[string]string{"color": "blue"})
	a, b, c := d.pod("red", "a", 8080), d.pod("red", "b", 8080), d.pod("blue", "c", 8081)
	d.policies(nil)
	wantOpen(t, "no policy", a.NS, at(b.ip, "8080"), at(b.ip6, "8080"), at(c.ip, "8080"))

	d.policies(map[string]string{"red/deny": `{podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress]}`})
	wantShut(t, "default deny", a.NS, at(b.ip, "8080"), at(b.ip6, "8080"))
	wantShut(t, "default deny", d.outside, at(b.ip, "8080"))
	wantOpen(t, "the device itself", d.host, at(b.ip, "8080"), at(b.ip6, "8080"))
	wantOpen(t, "egress of an ingress policy", b.NS, at(a.ip, "8080"), at(a.ip6, "8080"), at(outsideIP, "8080"))
	wantOpen(t, "itself", b.NS, at(b.ip, "8080"))
	wantOpen(t, "a Pod that is not selected", a.NS, at(c.ip, "8080"))

	d.policies(map[string]string{"red/allow": `
podSelector: {matchLabels: {name: b}}
ingress:
- from: [{podSelector: {matchLabels: {name: a}}}]
`})
	wantOpen(t, "podSelector", a.NS, at(b.ip, "8080"), at(b.ip6, "8081"))
	wantShut(t, "podSelector of this namespace", c.NS, at(b.ip, "8080"))
	if err := a.Ping(b.ip); err != nil {
		t.Errorf("all protocols are allowed: %v", err)
	}

	d.policies(map[string]string{"red/allow": `
podSelector: {matchLabels: {name: b}}
ingress:
- from: [{namespaceSelector: {matchLabels: {color: blue}}}]
`})
	wantOpen(t, "namespaceSelector", c.NS, at(b.ip, "8080"))
	wantShut(t, "namespaceSelector", a.NS, at(b.ip, "8080"))

	d.policies(map[string]string{"red/allow": `
podSelector: {}
ingress:
- from: [{namespaceSelector: {}, podSelector: {matchLabels: {name: c}}}]
  ports: [{port: 8080}]
`})
	if err := ask(c.NS, "tcp", "", at(b.ip, "8080"), true); err != nil {
		t.Errorf("both selectors and a port: %v", err)
	}
	if err := ask(c.NS, "udp", "", at(b.ip, "8080"), false); !timedOut(err) {
		t.Errorf("another protocol than the port's: %v", err)
	}
	wantShut(t, "another port", c.NS, at(b.ip, "8081"))
	wantShut(t, "another Pod", a.NS, at(b.ip, "8080"))
}

func TestEgress(t *testing.T) {
	d := newDevice(t)
	d.namespace("red", nil)
	a, b := d.pod("red", "a", 8080), d.pod("red", "b", 8081)
	d.policies(map[string]string{"red/deny": `{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress]}`})
	wantShut(t, "default deny", a.NS, at(b.ip, "8080"), at(b.ip6, "8080"), at(outsideIP, "8080"))
	wantOpen(t, "ingress of an egress policy", b.NS, at(a.ip, "8080"))
	wantOpen(t, "ingress of an egress policy", d.outside, at(a.ip, "8080"))
	d.host.Serve(t, "device", at("10.42.1.1", "9000"))
	wantOpen(t, "the device itself", a.NS, at("10.42.1.1", "9000"))

	d.policies(map[string]string{
		"red/deny": `{podSelector: {}, policyTypes: [Egress, Ingress]}`,
		"red/out": `
podSelector: {matchLabels: {name: a}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {}}]
  ports: [{port: web}, {port: 8080, protocol: UDP}]
- to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.101/32]}}]
`,
		"red/in": `{podSelector: {matchLabels: {name: b}}, ingress: [{}]}`,
	})
	// web is 8081 at b, which is asked.
	for to, open := range map[string]bool{"tcp " + at(b.ip, "8081"): true, "tcp " + at(b.ip6, "8081"): true, "udp " + at(b.ip, "8080"): true,
		"tcp " + at(b.ip, "8080"): false, "udp " + at(b.ip, "8081"): false, "tcp " + at(outsideIP, "8080"): true, "tcp " + at("192.0.2.101", "8080"): false} {
		network, addr, _ := strings.Cut(to, " ")
		if err := ask(a.NS, network, "", addr, open); (err == nil) != open {
			t.Errorf("%s: open is %v, want %v: %v", to, err == nil, open, err)
		}
	}
	wantShut(t, "ingress of a, which nothing allows", b.NS, at(a.ip, "8080"))
}

func TestIngressOfBlocksAndPorts(t *testing.T) {
	d := newDevice(t)
	a, b := d.pod("red", "a", 8080), d.pod("red", "b", 8081)
	d.policies(map[string]string{"red/p": `
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.101/32]}}]
  ports: [{port: web}]
- from: [{ipBlock: {cidr: 192.0.2.101/32}}]
  ports: [{port: 8070, endPort: 8080}]
`})
	for _, tc := range []struct {
		from, to string
		open     bool
	}{
		{outsideIP, at(a.ip, "8080"), true}, {outsideIP, at(a.ip, "8081"), false}, // web is 8080 at a
		{outsideIP, at(b.ip, "8081"), true}, {outsideIP, at(b.ip, "8080"), false}, // and 8081 at b
		{"192.0.2.101", at(a.ip, "8080"), true}, {"192.0.2.101", at(a.ip, "8081"), false},
		{"192.0.2.101", at(b.ip, "8080"), true},
	} {
		if err := ask(d.outside, "tcp", tc.from, tc.to, tc.open); (err == nil) != tc.open {
			t.Errorf("%s to %s: open is %v, want %v: %v", tc.from, tc.to, err == nil, tc.open, err)
		}
	}
	wantShut(t, "nobody's block", a.NS, at(b.ip, "8080"), at(b.ip, "8081"))
}

// TestServices: policies see Pods on both sides of a Service, also a Pod that
// reaches itself by one.
func TestServices(t *testing.T) {
	for _, bridged := range []string{"0", "1"} {
		t.Run("bridge-nf-call "+bridged, func(t *testing.T) {
			d := newDevice(t)
			netnstest.BridgeNF(t, bridged)
			if err := d.bridge.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			services(t, d)
		})
	}
}

func services(t *testing.T, d *device) {
	a, b := d.pod("red", "a", 8080), d.pod("red", "b", 8080)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "svc"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, ClusterIP: "10.43.0.5", ClusterIPs: []string{"10.43.0.5"},
		Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}}}
	port, proto, name, node := int32(8080), corev1.ProtocolTCP, "", "here"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "svc-1", Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{b.ip}, NodeName: &node}}}
	d.serve(svc, slice)
	want := func(what string, from netnstest.NS, addr string, open bool) {
		t.Helper()
		if err := ask(from, "tcp", "", addr, open); (err == nil) != open {
			t.Errorf("%s: open is %v, want %v: %v", what, err == nil, open, err)
		}
	}
	d.policies(map[string]string{"red/p": `{podSelector: {matchLabels: {name: b}}, ingress: [{from: [{podSelector: {matchLabels: {name: a}}}], ports: [{port: 8080}]}]}`})
	want("a Pod that is allowed", a.NS, "10.43.0.5:80", true)
	want("a Pod to itself", b.NS, "10.43.0.5:80", true)
	want("a client outside", d.outside, "192.0.2.1:30080", false)
	want("the device", d.host, "10.43.0.5:80", true)
	// The Service's port is not what counts, nor its address.
	d.policies(map[string]string{"red/p": `{podSelector: {matchLabels: {name: b}}, ingress: [{ports: [{port: 80}]}]}`})
	want("the Service's port", a.NS, "10.43.0.5:80", false)
	d.policies(map[string]string{"red/p": `{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.43.0.0/16}}]}]}`})
	want("the Service's address", a.NS, "10.43.0.5:80", false)
	d.policies(map[string]string{"red/p": `{podSelector: {matchLabels: {name: b}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`})
	want("a client outside that is allowed", d.outside, "192.0.2.1:30080", true)
	want("a Pod that is not", a.NS, "10.43.0.5:80", false)
}

// TestConnectionsThatExistPass: a policy that comes later cuts nothing, and
// what it refuses is refused to the next connection.
func TestConnectionsThatExistPass(t *testing.T) {
	d := newDevice(t)
	a, b := d.pod("red", "a", 8080), d.pod("red", "b", 8080)
	d.policies(nil)
	l := b.Listen(t, ":7000")
	c, err := a.Dial("tcp", at(b.ip, "7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d.policies(map[string]string{"red/deny": `{podSelector: {}, policyTypes: [Ingress, Egress]}`})
	wantShut(t, "a new one", a.NS, at(b.ip, "8080"))
	for range 2 {
		for _, pair := range [][2]net.Conn{{c, s}, {s, c}} {
			if _, err := pair[0].Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			pair[1].SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := pair[1].Read(make([]byte, 1)); err != nil {
				t.Fatalf("a connection that existed: %v", err)
			}
		}
	}
}

// TestChangesAreElements: Pods that come, go and change their labels change
// neither chains nor rules.
func TestChangesAreElements(t *testing.T) {
	d := newDevice(t)
	d.namespace("red", nil)
	a, b := d.pod("red", "a", 8080), d.pod("red", "b", 8080)
	d.policies(map[string]string{"red/p": `{podSelector: {matchLabels: {name: b}}, ingress: [{from: [{podSelector: {matchLabels: {may: "yes"}}}]}]}`})
	chains := func() string {
		return d.host.Run(t, "nft", "-a", "list", "chains") + d.host.Run(t, "nft", "-a", "-t", "list", "table", "inet", "edged")
	}
	before := chains()
	wantShut(t, "without the label", a.NS, at(b.ip, "8080"))
	relabel := func(o *corev1.Pod, labels map[string]string) {
		for i, p := range d.state.Pods {
			if p.Name == o.Name {
				changed := p.DeepCopy()
				changed.Labels = labels
				d.state.Pods[i] = changed
			}
		}
		d.apply()
	}
	relabel(a.object, map[string]string{"name": "a", "may": "yes"})
	wantOpen(t, "with the label", a.NS, at(b.ip, "8080"))
	c := d.pod("red", "c", 8080)
	relabel(c.object, map[string]string{"may": "yes"})
	wantOpen(t, "a new Pod with the label", c.NS, at(b.ip, "8080"))
	if after := chains(); after != before {
		t.Errorf("rules changed from\n%s\nto\n%s", before, after)
	}
	relabel(a.object, map[string]string{"name": "a"})
	wantShut(t, "without it again", a.NS, at(b.ip, "8080"))
	relabel(b.object, map[string]string{})
	wantOpen(t, "not selected any more", a.NS, at(b.ip, "8080"))
}

// attach connects the Pod under another ID.
func (p *pod) attach(id string) {
	p.d.t.Helper()
	att, err := p.d.bridge.Attach(p.d.t.Context(), bridge.AttachRequest{ID: id, NetNS: p.Path})
	if err != nil {
		p.d.t.Fatal(err)
	}
	p.ip, p.ip6 = att.IPs[0].String(), att.IPs[1].String()
}
