package mesh_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edged/net/mesh"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func peer(name string, fields ...string) mesh.Peer {
	p := mesh.Peer{Name: name}
	for _, f := range fields {
		if strings.Contains(f, "/") {
			p.PodCIDRs = append(p.PodCIDRs, prefix(f))
		} else {
			p.Addrs = append(p.Addrs, addr(f))
		}
	}
	return p
}

// show is a plan in short.
func show(w *mesh.Wanted) (out []string) {
	for _, r := range w.Routes {
		switch {
		case !r.Via.IsValid():
			out = append(out, fmt.Sprintf("%s unreachable", r.Dst))
		case r.Src.IsValid():
			out = append(out, fmt.Sprintf("%s via %s dev %s src %s", r.Dst, r.Via, r.Link, r.Src))
		default:
			out = append(out, fmt.Sprintf("%s via %s dev %s", r.Dst, r.Via, r.Link))
		}
	}
	for _, t := range w.Tunnels {
		for _, p := range t.Peers {
			out = append(out, fmt.Sprintf("tunnel mtu %d used %v: %s is %v", t.MTU, t.Used, p.Remote, p.Inner))
		}
	}
	return append(out, fmt.Sprintf("mtu %d", w.MTU))
}

// paths is a kernel: 192.0.2.0/24 and 2001:db8::/64 are on eth0, 198.51.100.0/24
// and 2001:db8:1::/64 behind a router; 10.9.0.0/16 is behind a WireGuard link.
func paths(a netip.Addr) (mesh.Path, error) {
	switch {
	case prefix("192.0.2.0/24").Contains(a), prefix("2001:db8::/64").Contains(a):
		return mesh.Path{Link: "eth0", MTU: 1500, Neighbor: true}, nil
	case prefix("198.51.100.0/24").Contains(a), prefix("2001:db8:1::/64").Contains(a):
		return mesh.Path{Link: "eth0", MTU: 1500}, nil
	case prefix("10.9.0.0/16").Contains(a):
		return mesh.Path{Link: "wg0", MTU: 1420}, nil
	}
	return mesh.Path{}, errors.New("network is unreachable")
}

func TestPlan(t *testing.T) {
	self := peer("a", "192.0.2.1", "10.42.0.0/24")
	dual := peer("a", "192.0.2.1", "10.42.0.0/24", "fd42:0:0:0::/64")
	cluster := []netip.Prefix{prefix("10.42.0.0/16")}
	for _, tc := range []struct {
		name  string
		self  mesh.Peer
		peers []mesh.Peer
		want  []string
		lost  map[string]string
	}{
		{"alone", self, []mesh.Peer{self}, []string{"mtu 0"}, nil},
		{"on one link", self, []mesh.Peer{self, peer("b", "192.0.2.2", "10.42.1.0/24")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 192.0.2.2 dev eth0",
			"tunnel mtu 1450 used false: 192.0.2.2 is [10.42.1.1]", "mtu 1500"}, nil},
		{"behind a router", self, []mesh.Peer{peer("b", "198.51.100.2", "10.42.1.0/24")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 10.42.1.1 dev edged-vx4 src 10.42.0.1",
			"tunnel mtu 1450 used true: 198.51.100.2 is [10.42.1.1]", "mtu 1450"}, nil},
		{"over a link without Ethernet", self, []mesh.Peer{peer("b", "10.9.0.2", "10.42.1.0/24"), peer("c", "192.0.2.3", "10.42.2.0/24")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 10.42.1.1 dev edged-vx4 src 10.42.0.1", "10.42.2.0/24 via 192.0.2.3 dev eth0",
			"tunnel mtu 1370 used true: 10.9.0.2 is [10.42.1.1]", "tunnel mtu 1370 used true: 192.0.2.3 is [10.42.2.1]", "mtu 1370"}, nil},
		{"IPv6 below", self, []mesh.Peer{peer("b", "2001:db8:1::2", "10.42.1.0/24")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 10.42.1.1 dev edged-vx6 src 10.42.0.1",
			"tunnel mtu 1430 used true: 2001:db8:1::2 is [10.42.1.1]", "mtu 1430"}, nil},
		{"dual stack on one link, one address only", dual, []mesh.Peer{peer("b", "192.0.2.2", "10.42.1.0/24", "fd42:0:0:1::/64")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 192.0.2.2 dev eth0", "fd42:0:0:1::/64 via fd42:0:0:1::1 dev edged-vx4 src fd42::1",
			"tunnel mtu 1450 used true: 192.0.2.2 is [10.42.1.1 fd42:0:0:1::1]", "mtu 1450"}, nil},
		{"dual stack with both addresses", dual, []mesh.Peer{peer("b", "192.0.2.2", "2001:db8::2", "10.42.1.0/24", "fd42:0:0:1::/64")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 192.0.2.2 dev eth0", "fd42:0:0:1::/64 via 2001:db8::2 dev eth0",
			"tunnel mtu 1450 used false: 192.0.2.2 is [10.42.1.1 fd42:0:0:1::1]", "mtu 1500"}, nil},
		{"a family that this device does not have", self, []mesh.Peer{peer("b", "192.0.2.2", "fd42:0:0:1::/64")}, []string{"mtu 0"}, nil},
		{"no way, no address, our address, our CIDR, its CIDR twice", self, []mesh.Peer{
			peer("b", "203.0.113.9", "10.42.1.0/24"), peer("c", "10.42.2.0/24"), peer("d", "192.0.2.1", "10.42.3.0/24"),
			peer("e", "192.0.2.5", "10.42.0.0/24"), peer("f", "192.0.2.6", "10.42.4.0/24"), peer("g", "192.0.2.7", "10.42.4.0/24")},
			[]string{"10.42.0.0/16 unreachable", "10.42.4.0/24 via 192.0.2.6 dev eth0", "tunnel mtu 1450 used false: 192.0.2.6 is [10.42.4.1]", "mtu 1500"},
			map[string]string{"b": "unreachable", "c": "no address", "d": "this device itself", "e": "overlaps", "g": "overlaps"}},
		{"a second address where the first leads nowhere", self, []mesh.Peer{peer("b", "203.0.113.9", "192.0.2.2", "10.42.1.0/24")}, []string{
			"10.42.0.0/16 unreachable", "10.42.1.0/24 via 192.0.2.2 dev eth0", "tunnel mtu 1450 used false: 192.0.2.2 is [10.42.1.1]", "mtu 1500"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := mesh.Plan(tc.self, cluster, tc.peers, paths)
			got := show(w)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			if len(w.Lost) != len(tc.lost) {
				t.Errorf("lost %v, want %v", w.Lost, tc.lost)
			}
			for name, text := range tc.lost {
				if err := w.Lost[name]; err == nil || !strings.Contains(err.Error(), text) || w.Ways[name] != mesh.NoWay {
					t.Errorf("%s: lost with %v, way %s; want %q", name, err, w.Ways[name], text)
				}
			}
		})
	}
}

func TestPlanDoesNotDependOnTheOrderOfPeers(t *testing.T) {
	peers := []mesh.Peer{peer("b", "192.0.2.2", "10.42.1.0/24"), peer("c", "198.51.100.3", "10.42.2.0/24"), peer("d", "192.0.2.4", "10.42.1.0/24")}
	self := peer("a", "10.42.0.0/24")
	one := fmt.Sprint(mesh.Plan(self, nil, peers, paths))
	slices.Reverse(peers)
	if two := fmt.Sprint(mesh.Plan(self, nil, peers, paths)); one != two {
		t.Errorf("two orders, two plans:\n%s\n%s", one, two)
	}
}
