package mesh_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged/internal/netns/netnstest"
	"edged/net/bridge"
	"edged/net/mesh"
	"edged/net/nft"
	"edged/net/proxy"
)

var (
	clusterCIDRs = []netip.Prefix{prefix("10.42.0.0/16"), prefix("fd42::/48")}
	serviceCIDRs = []netip.Prefix{prefix("10.43.0.0/16"), prefix("fd43::/112")}
)

// device is a device with a bridge, one Pod, and the rules of a proxy, so that
// what is masqueraded in the product is masqueraded here.
type device struct {
	netnstest.NS
	t      *testing.T
	peer   mesh.Peer
	bridge *bridge.Bridge
	mesh   *mesh.Mesh
	pod    netnstest.NS
	podIPs []netip.Addr
	mtus   []int
}

// network is a switch per network in the test's own namespace, which is also
// the router between them.
func network(t *testing.T, nets ...string) netnstest.NS {
	host := netnstest.Host()
	for i, gw := range nets {
		sw := fmt.Sprintf("sw%d", i)
		host.Run(t, "ip", "link", "add", sw, "type", "bridge", "forward_delay", "0")
		t.Cleanup(func() { host.Run(t, "ip", "link", "del", sw) })
		for _, a := range strings.Fields(gw) {
			host.Run(t, "ip", "addr", "add", a, "dev", sw, "nodad")
		}
		host.Run(t, "ip", "link", "set", sw, "up")
	}
	host.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	return host
}

// newDevice plugs a device into a switch. n is in all its addresses.
func newDevice(t *testing.T, name string, sw, n int, families string) *device {
	t.Helper()
	d := &device{NS: netnstest.New(t), t: t, peer: mesh.Peer{Name: name}}
	if strings.Contains(families, "4") {
		d.peer.PodCIDRs = append(d.peer.PodCIDRs, prefix(fmt.Sprintf("10.42.%d.0/24", n)))
	}
	if strings.Contains(families, "6") {
		d.peer.PodCIDRs = append(d.peer.PodCIDRs, prefix(fmt.Sprintf("fd42:0:0:%d::/64", n)))
	}
	d.Run(t, "ip", "link", "set", "lo", "up")
	d.plug("eth0", sw)
	d.address("eth0", fmt.Sprintf("10.9.%d.%d/24", sw, n), fmt.Sprintf("2001:db8:0:%d::%d/64", sw, n))
	d.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("10.9.%d.254", sw))
	d.Run(t, "ip", "-6", "route", "add", "default", "via", fmt.Sprintf("2001:db8:0:%d::fe", sw))

	d.Do(t, func() (err error) {
		d.bridge, err = bridge.New(bridge.Config{PodCIDRs: d.peer.PodCIDRs, ServiceCIDRs: serviceCIDRs, StateDir: filepath.Join(t.TempDir(), "bridge")})
		if err != nil {
			return err
		}
		t.Cleanup(func() { d.bridge.Close() })
		table := nft.Open()
		t.Cleanup(func() { table.Close() })
		px, err := proxy.New(proxy.Config{Network: proxy.Network{NodeName: name, Bridge: bridge.DefaultName, PodCIDRs: d.peer.PodCIDRs,
			ClusterCIDRs: clusterCIDRs, ServiceCIDRs: serviceCIDRs}, Table: table})
		if err != nil {
			return err
		}
		if err := px.Apply(proxy.State{}); err != nil {
			return err
		}
		d.open(table)
		d.pod = netnstest.New(t)
		att, err := d.bridge.Attach(t.Context(), bridge.AttachRequest{ID: name, NetNS: d.pod.Path})
		d.podIPs = att.IPs
		return err
	})
	d.pod.Serve(t, name, ":8080")
	return d
}

// open is also what a restart of the daemon does.
func (d *device) open(table *nft.Table) {
	var err error
	d.mesh, err = mesh.New(mesh.Config{Self: d.peer, ClusterCIDRs: clusterCIDRs, Table: table, SetMTU: func(ctx context.Context, mtu int) error {
		d.mtus = append(d.mtus, mtu)
		return d.bridge.SetMTU(ctx, mtu)
	}})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { d.mesh.Close() })
}

func (d *device) plug(link string, sw int) {
	host, outer := netnstest.Host(), fmt.Sprintf("%s-%s", d.peer.Name, link)
	host.Run(d.t, "ip", "link", "add", outer, "type", "veth", "peer", "name", link, "netns", d.Path)
	d.t.Cleanup(func() { host.Run(d.t, "ip", "link", "del", outer) })
	host.Run(d.t, "ip", "link", "set", outer, "master", fmt.Sprintf("sw%d", sw), "up")
	d.Run(d.t, "ip", "link", "set", link, "up")
}

func (d *device) address(link string, addrs ...string) {
	for _, a := range addrs {
		d.Run(d.t, "ip", "addr", "add", a, "dev", link, "nodad")
		d.peer.Addrs = append(d.peer.Addrs, prefix(a).Addr())
	}
}

// apply gives every device the whole list.
func apply(t *testing.T, devices ...*device) {
	t.Helper()
	var peers []mesh.Peer
	for _, d := range devices {
		peers = append(peers, d.peer)
	}
	for _, d := range devices {
		d.Do(t, func() error {
			w, err := d.mesh.Apply(t.Context(), peers)
			if err == nil && len(w.Lost) > 0 {
				err = fmt.Errorf("%s lost %v", d.peer.Name, w.Lost)
			}
			return err
		})
	}
}

// wantConnected has every Pod speak to every other, and both see each other's
// own addresses; and every device to every Pod.
func wantConnected(t *testing.T, devices ...*device) {
	t.Helper()
	for _, from := range devices {
		for _, to := range devices {
			for i, ip := range to.podIPs {
				for _, network := range []string{"tcp", "udp"} {
					name, client, err := from.pod.Ask(network, net.JoinHostPort(ip.String(), "8080"))
					if err != nil {
						t.Fatalf("%s: Pod of %s to Pod of %s at %s: %v", network, from.peer.Name, to.peer.Name, ip, err)
					}
					if host, _, _ := net.SplitHostPort(client); name != to.peer.Name || host != from.podIPs[i].String() {
						t.Errorf("Pod of %s (%s) to Pod of %s: answered by %s, which saw %s", from.peer.Name, from.podIPs[i], to.peer.Name, name, host)
					}
				}
				if _, _, err := from.Ask("tcp", net.JoinHostPort(ip.String(), "8080")); err != nil {
					t.Errorf("device %s to Pod of %s at %s: %v", from.peer.Name, to.peer.Name, ip, err)
				}
			}
		}
	}
}

// wantMTU sends the largest packet that the Pod's link has, whole.
func wantMTU(t *testing.T, from, to *device, mtu int) {
	t.Helper()
	link := from.pod.Run(t, "ip", "-o", "link", "show", "eth0")
	if !strings.Contains(link, fmt.Sprintf("mtu %d ", mtu)) {
		t.Errorf("the Pod of %s has %s, want MTU %d", from.peer.Name, link, mtu)
	}
	got := make(chan int, 1)
	c := to.pod.ListenPacket(t, ":9999")
	defer c.Close()
	go func() {
		buf := make([]byte, 65536)
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			n = -1
		}
		got <- n
	}()
	out, err := from.pod.Dial("udp", net.JoinHostPort(to.podIPs[0].String(), "9999"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	header := 28
	if to.podIPs[0].Is6() {
		header = 48
	}
	// A retry: the first packet may wait for a neighbor longer than its queue.
	for range 3 {
		if _, err := out.Write(make([]byte, mtu-header)); err != nil {
			t.Fatal(err)
		}
		select {
		case n := <-got:
			if n != mtu-header {
				t.Errorf("%d bytes arrived, want %d", n, mtu-header)
			}
			return
		case <-time.After(2 * time.Second):
		}
	}
	t.Errorf("a packet of %d bytes did not arrive", mtu)
}

func (d *device) routes() string {
	return d.Run(d.t, "ip", "route", "show", "proto", "238") + d.Run(d.t, "ip", "-6", "route", "show", "proto", "238")
}

func TestOneLinkAndRouted(t *testing.T) {
	network(t, "10.9.0.254/24 2001:db8:0:0::fe/64", "10.9.1.254/24 2001:db8:0:1::fe/64")
	a, b := newDevice(t, "a", 0, 1, "46"), newDevice(t, "b", 0, 2, "46")
	apply(t, a, b)
	wantConnected(t, a, b)
	wantMTU(t, a, b, 1500)
	if r := a.routes(); strings.Contains(r, "edged-vx") {
		t.Errorf("devices on one link use a tunnel:\n%s", r)
	}
	// A third one behind a router: both use a tunnel to it, and the route
	// between the two stays.
	c := newDevice(t, "c", 1, 3, "46")
	apply(t, a, b, c)
	wantConnected(t, a, b, c)
	wantMTU(t, a, c, 1450)
	wantMTU(t, c, b, 1450)
	r := a.routes()
	for _, want := range []string{"10.42.2.0/24 via 10.9.0.2 dev eth0", "10.42.3.0/24 via 10.42.3.1 dev edged-vx4", "fd42:0:0:2::/64 via 2001:db8::2 dev eth0", "unreachable 10.42.0.0/16"} {
		if !strings.Contains(r, want) {
			t.Errorf("no route %q in\n%s", want, r)
		}
	}
	// Again: nothing changes, which the tunnel's counters of neighbors show.
	before := a.routes() + a.Run(t, "bridge", "fdb", "show", "dev", "edged-vx4") + a.Run(t, "ip", "-o", "neigh", "show", "dev", "edged-vx4", "nud", "permanent")
	apply(t, a, b, c)
	after := a.routes() + a.Run(t, "bridge", "fdb", "show", "dev", "edged-vx4") + a.Run(t, "ip", "-o", "neigh", "show", "dev", "edged-vx4", "nud", "permanent")
	if before != after {
		t.Errorf("the second time changed\n%s\nto\n%s", before, after)
	}
	if len(a.mtus) != 2 {
		t.Errorf("MTUs set: %v, want two", a.mtus)
	}
	// c goes: all that is left of it is nothing, and the MTU is back.
	apply(t, a, b)
	for what, out := range map[string]string{"routes": a.routes(), "fdb": a.Run(t, "bridge", "fdb", "show", "dev", "edged-vx4"), "neighbors": a.Run(t, "ip", "neigh", "show", "dev", "edged-vx4")} {
		if strings.Contains(out, "10.42.3") || strings.Contains(out, "10.9.1.3") || strings.Contains(out, "fd42:0:0:3:") {
			t.Errorf("%s of a device that left:\n%s", what, out)
		}
	}
	wantMTU(t, a, b, 1500)
}

func TestChangesAreFollowed(t *testing.T) {
	network(t, "10.9.0.254/24 2001:db8:0:0::fe/64", "10.9.1.254/24 2001:db8:0:1::fe/64")
	a, b := newDevice(t, "a", 0, 1, "4"), newDevice(t, "b", 0, 2, "4")
	apply(t, a, b)
	wantConnected(t, a, b)

	// b gets another address on the same link.
	b.Run(t, "ip", "addr", "del", "10.9.0.2/24", "dev", "eth0")
	b.Run(t, "ip", "addr", "add", "10.9.0.22/24", "dev", "eth0")
	b.Run(t, "ip", "route", "replace", "default", "via", "10.9.0.254")
	b.peer.Addrs = []netip.Addr{addr("10.9.0.22")}
	apply(t, a, b)
	wantConnected(t, a, b)

	// b moves to another network: the way changes from the link to a tunnel.
	b.Run(t, "ip", "link", "del", "eth0")
	netnstest.Host().Run(t, "ip", "link", "add", "b-eth0", "type", "veth", "peer", "name", "eth0", "netns", b.Path)
	netnstest.Host().Run(t, "ip", "link", "set", "b-eth0", "master", "sw1", "up")
	b.Run(t, "ip", "link", "set", "eth0", "up")
	b.peer.Addrs = nil
	b.address("eth0", "10.9.1.2/24")
	b.Run(t, "ip", "route", "add", "default", "via", "10.9.1.254")
	apply(t, a, b)
	wantConnected(t, a, b)
	wantMTU(t, a, b, 1450)

	// b gets another address there: the tunnel's entries follow on both sides.
	b.Run(t, "ip", "addr", "del", "10.9.1.2/24", "dev", "eth0")
	b.Run(t, "ip", "addr", "add", "10.9.1.23/24", "dev", "eth0")
	b.Run(t, "ip", "route", "replace", "default", "via", "10.9.1.254")
	b.peer.Addrs = []netip.Addr{addr("10.9.1.23")}
	apply(t, a, b)
	wantConnected(t, a, b)

	// The network below carries less.
	for _, d := range []*device{a, b} {
		d.Run(t, "ip", "link", "set", "eth0", "mtu", "1400")
	}
	apply(t, a, b)
	wantMTU(t, a, b, 1350)

	// A daemon that starts anew takes over, also what somebody damaged.
	a.Run(t, "ip", "route", "del", "10.42.2.0/24")
	a.Run(t, "ip", "route", "add", "unreachable", "10.42.77.0/24", "proto", "238")
	a.Run(t, "bridge", "fdb", "add", "02:00:00:00:00:01", "dev", "edged-vx4", "dst", "10.9.1.99")
	a.Do(t, func() error {
		table := nft.Open()
		t.Cleanup(func() { table.Close() })
		a.open(table)
		return nil
	})
	apply(t, a, b)
	wantConnected(t, a, b)
	if out := a.routes() + a.Run(t, "bridge", "fdb", "show", "dev", "edged-vx4"); strings.Contains(out, "10.42.77") || strings.Contains(out, "10.9.1.99") {
		t.Errorf("left by an earlier daemon:\n%s", out)
	}
}

// TestAPodAddressOfNobodyIsUnreachable: at once, and nothing of it goes to the
// default router.
func TestAPodAddressOfNobodyIsUnreachable(t *testing.T) {
	network(t, "10.9.0.254/24 2001:db8:0:0::fe/64")
	a, b := newDevice(t, "a", 0, 1, "4"), newDevice(t, "b", 0, 2, "4")
	apply(t, a, b)
	start := time.Now()
	_, _, err := a.pod.Ask("tcp", "10.42.200.5:8080")
	if err == nil || !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "unreachable") || time.Since(start) > 4*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

// TestStrangersAreKeptOut sends a tunnel packet from an address that is not a
// peer's, and the same from one that is.
func TestStrangersAreKeptOut(t *testing.T) {
	network(t, "10.9.0.254/24 2001:db8:0:0::fe/64", "10.9.1.254/24 2001:db8:0:1::fe/64")
	a, b := newDevice(t, "a", 0, 1, "4"), newDevice(t, "b", 1, 2, "4")
	apply(t, a, b)
	wantConnected(t, a, b)
	stranger := netnstest.New(t)
	host := netnstest.Host()
	host.Run(t, "ip", "link", "add", "x-eth0", "type", "veth", "peer", "name", "eth0", "netns", stranger.Path)
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "x-eth0") })
	host.Run(t, "ip", "link", "set", "x-eth0", "master", "sw0", "up")
	stranger.Run(t, "ip", "addr", "add", "10.9.0.66/24", "dev", "eth0")
	stranger.Run(t, "ip", "link", "set", "eth0", "up")
	received := func() int {
		var links []struct {
			Stats64 struct{ Rx struct{ Packets int } }
		}
		if err := json.Unmarshal([]byte(a.Run(t, "ip", "-j", "-s", "link", "show", "edged-vx4")), &links); err != nil || len(links) != 1 {
			t.Fatal(links, err)
		}
		return links[0].Stats64.Rx.Packets
	}
	// An inner Ethernet frame with an ARP question, for all.
	frame := append([]byte{0x08, 0, 0, 0, 0, 0, 0xed, 0}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6)
	frame = append(frame, make([]byte, 46)...)
	send := func(from netnstest.NS, to string) {
		c, err := from.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	before := received()
	send(stranger, "10.9.0.1:2380")
	// What a peer sends afterwards arrives, and is the only packet.
	send(b.NS, "10.9.0.1:2380")
	deadline := time.Now().Add(5 * time.Second)
	for received() == before && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if n := received() - before; n != 1 {
		t.Errorf("%d packets came out of the tunnel, want the peer's one", n)
	}
}

// TestCleanup leaves what the device had before.
func TestCleanup(t *testing.T) {
	network(t, "10.9.0.254/24 2001:db8:0:0::fe/64", "10.9.1.254/24 2001:db8:0:1::fe/64")
	a, b, c := newDevice(t, "a", 0, 1, "46"), newDevice(t, "b", 0, 2, "46"), newDevice(t, "c", 1, 3, "46")
	look := func() string {
		return a.Run(t, "ip", "route") + a.Run(t, "ip", "-6", "route") + a.Run(t, "ip", "-br", "link")
	}
	before := look()
	apply(t, a, b, c)
	if look() == before {
		t.Fatal("nothing was applied")
	}
	for range 2 {
		a.Do(t, func() error { return mesh.Cleanup(t.Context()) })
		if after := look(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}
