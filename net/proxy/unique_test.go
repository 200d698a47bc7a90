package proxy_test

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"edged/net/proxy"
)

// sameHash finds two addresses that session affinity cannot tell apart by their hash:
// among a hundred thousand there are some.
func sameHash(t *testing.T, port uint16) (a, b netip.Addr) {
	t.Helper()
	seen := map[uint32]netip.Addr{}
	for i := range uint64(1_000_000) {
		ip := netip.MustParseAddr("fd42::").As16()
		binary.BigEndian.PutUint64(ip[8:], i*0x9e3779b97f4a7c15)
		h := fnv.New32a()
		h.Write(binary.BigEndian.AppendUint16(ip[:], port))
		if o, ok := seen[h.Sum32()]; ok {
			return o, netip.AddrFrom16(ip)
		}
		seen[h.Sum32()] = netip.AddrFrom16(ip)
	}
	t.Fatal("no two have one hash")
	return a, b
}

// TestNoKeyTwice: whatever a Service or a Pod says twice, no set gets a key twice, for
// which the kernel would refuse the rules of all Services.
func TestNoKeyTwice(t *testing.T) {
	svc := service("web", "10.43.0.7", "fd43::7")
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.ExternalIPs = []string{"2001:db8::7", "2001:db8::7", "2001:db8::8"}
	svc.Spec.LoadBalancerSourceRanges = []string{"2001:db8:1::/48"}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "2001:db8::8"}}
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	a, b := sameHash(t, 8080)
	port, name, tcp := int32(8080), svc.Spec.Ports[0].Name, corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{
		AddressType: discoveryv1.AddressTypeIPv6,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{a.String()}}, {Addresses: []string{b.String()}}},
	}
	slice.Namespace, slice.Name, slice.Labels = svc.Namespace, "web-1", map[string]string{discoveryv1.LabelServiceName: "web"}
	pod := []netip.Addr{netip.MustParseAddr("10.42.3.2")}
	rules := proxy.Translate(network(), proxy.State{
		Services: []*corev1.Service{svc}, Slices: []*discoveryv1.EndpointSlice{slice},
		HostPorts: []proxy.HostPort{
			{HostPort: 80, Protocol: "TCP", PodIPs: pod, PodPort: 1},
			{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, Protocol: "TCP", PodIPs: pod, PodPort: 2},
		},
	})
	elements := map[string]int{}
	for _, s := range rules.Sets {
		seen := map[string]bool{}
		for _, p := range s.Parts {
			for _, e := range p.Elements.All() {
				if seen[e.Key] {
					t.Errorf("twice in one set:\n%s", s)
				}
				seen[e.Key] = true
				elements[s.Name]++
			}
		}
	}
	// Nothing got lost: three addresses of two endpoints each, a host port.
	if elements["svc-addrs6"] != 3 || elements["svc-addr-members6"] != 6 || elements["svc-ranges6"] != len(svc.Spec.Ports) || elements["svc-ports4"] != 1 {
		t.Errorf("%v", elements)
	}
}
