package mesh

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

var errNoAddress = errors.New("its Node has no address")

// Peer is a device of the cluster, as its Node object describes it.
type Peer struct {
	Name     string
	Addrs    []netip.Addr   // where the device is reached, best first
	PodCIDRs []netip.Prefix // of its Pods, at most one per address family
}

// Path is how the kernel would send to an address now.
type Path struct {
	Link string
	MTU  int
	// Neighbor says that the address is on the link itself, and that the link
	// carries packets to whatever address (Ethernet and its like).
	Neighbor bool
}

// Way is how the Pods of a peer are reached.
type Way string

// The ways, and why there is none.
const (
	Direct   Way = "direct"
	Tunneled Way = "vxlan"
	NoWay    Way = "none"
)

// Wanted is all that the kernel must hold for a list of peers.
type Wanted struct {
	Routes  []Route   // sorted by destination
	Tunnels [2]Tunnel // over IPv4, over IPv6
	// MTU is what a Pod's packet may have on every way; 0 if there is no peer.
	MTU int
	// Remotes are all addresses that peers may send tunnel packets from.
	Remotes []netip.Addr
	// Ways tells per peer how its Pods are reached, Lost why they are not.
	Ways map[string]Way
	Lost map[string]error
}

// Route leads to the Pods of a peer. An invalid Via makes the destination
// unreachable.
type Route struct {
	Dst  netip.Prefix
	Via  netip.Addr
	Link string     // for tunnels: the tunnel's
	Src  netip.Addr // of this device's own packets; invalid: the kernel's choice
}

// Tunnel is a VXLAN device. One that is not Used is kept only to receive from
// peers that see the network differently.
type Tunnel struct {
	MTU   int
	Local netip.Addr   // our address in the network below; invalid: the kernel's choice
	Peers []TunnelPeer // sorted by address
	Used  bool         // by a route of ours
}

// TunnelPeer is what a tunnel must know of a peer.
type TunnelPeer struct {
	Remote netip.Addr   // the peer's address in the network below
	MAC    string       // in the tunnel
	Inner  []netip.Addr // the peer's addresses in the tunnel
}

// Overhead of VXLAN in front of a Pod's packet: the outer IP header, UDP, VXLAN
// and the inner Ethernet header.
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
	// minMTU6 is the least that IPv6 runs on (RFC 8200, 5).
	minMTU6 = 1280
)

// Plan is pure. self is this device; cluster are the CIDRs of all Pods; path
// answers how the kernel sends to an address.
func Plan(self Peer, cluster []netip.Prefix, peers []Peer, path func(netip.Addr) (Path, error)) *Wanted {
	w := &Wanted{Ways: map[string]Way{}, Lost: map[string]error{}}
	p := planner{self: self, path: path, out: w, taken: slices.Clone(self.PodCIDRs)}
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	for i := range peers {
		if peers[i].Name != self.Name {
			p.peer(&peers[i])
		}
	}
	for _, c := range cluster {
		if len(w.Ways) > 0 && !slices.Contains(self.PodCIDRs, c) {
			w.Routes = append(w.Routes, Route{Dst: c})
		}
	}
	slices.SortFunc(w.Routes, func(a, b Route) int { return comparePrefix(a.Dst, b.Dst) })
	slices.SortFunc(w.Remotes, netip.Addr.Compare)
	w.Remotes = slices.Compact(w.Remotes)
	for i := range w.Tunnels {
		slices.SortFunc(w.Tunnels[i].Peers, func(a, b TunnelPeer) int { return a.Remote.Compare(b.Remote) })
	}
	if w.MTU != 0 && w.MTU < minMTU6 && slices.ContainsFunc(self.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is6() }) {
		w.MTU = minMTU6
	}
	return w
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

type planner struct {
	self  Peer
	path  func(netip.Addr) (Path, error)
	out   *Wanted
	taken []netip.Prefix
}

// candidate is an address of a peer and the way there.
type candidate struct {
	addr netip.Addr
	path Path
}

func (p *planner) peer(peer *Peer) {
	lose := func(err error) { p.out.Ways[peer.Name], p.out.Lost[peer.Name] = NoWay, err }
	cidrs := p.cidrsOf(peer)
	if len(cidrs) == 0 {
		return // not a device with Pods that we could exchange packets with
	}
	for _, c := range cidrs {
		if i := slices.IndexFunc(p.taken, c.Overlaps); i >= 0 {
			lose(fmt.Errorf("its Pod CIDR %s overlaps %s of another device", c, p.taken[i]))
			return
		}
	}
	candidates, err := p.candidates(peer)
	if len(candidates) == 0 {
		lose(err)
		return
	}
	p.taken = append(p.taken, cidrs...)
	p.enterTunnels(peer, cidrs, candidates)
	p.out.Ways[peer.Name] = Direct
	for _, c := range cidrs {
		if near, ok := neighborFor(c, candidates); ok {
			p.out.Routes = append(p.out.Routes, Route{Dst: c, Via: near.addr, Link: near.path.Link})
			p.lower(near.path.MTU)
			continue
		}
		p.out.Ways[peer.Name] = Tunneled
		p.tunnel(c, candidates[0])
	}
}

// cidrsOf are the peer's CIDRs of families that this device's Pods have.
func (p *planner) cidrsOf(peer *Peer) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range peer.PodCIDRs {
		if slices.ContainsFunc(p.self.PodCIDRs, func(own netip.Prefix) bool { return own.Addr().Is4() == c.Addr().Is4() }) {
			out = append(out, c.Masked())
		}
	}
	return out
}

func (p *planner) candidates(peer *Peer) (out []candidate, err error) {
	err = errNoAddress
	for _, a := range peer.Addrs {
		a = a.Unmap().WithZone("")
		if a.IsLoopback() || a.IsUnspecified() || slices.Contains(p.self.Addrs, a) {
			err = fmt.Errorf("its address %s leads to this device itself", a)
			continue
		}
		got, perr := p.path(a)
		if perr != nil {
			err = fmt.Errorf("no way to its address %s: %w", a, perr)
			continue
		}
		out = append(out, candidate{a, got})
	}
	return out, err
}

// neighborFor finds an address on a shared link by which a router of c's family
// can be named.
func neighborFor(c netip.Prefix, list []candidate) (candidate, bool) {
	i := slices.IndexFunc(list, func(k candidate) bool { return k.path.Neighbor && k.addr.Is4() == c.Addr().Is4() })
	if i < 0 {
		return candidate{}, false
	}
	return list[i], true
}

// enterTunnels makes the peer known to the tunnel below which its first address
// lies, also if this device does not send through it.
func (p *planner) enterTunnels(peer *Peer, cidrs []netip.Prefix, list []candidate) {
	first := list[0]
	t := &p.out.Tunnels[familyIndex(first.addr)]
	tp := TunnelPeer{Remote: first.addr, MAC: hardwareAddr(peer.Name).String()}
	for _, c := range cidrs {
		tp.Inner = append(tp.Inner, Gateway(c))
	}
	t.Peers = append(t.Peers, tp)
	for _, k := range list {
		p.out.Remotes = append(p.out.Remotes, k.addr)
	}
	if mtu := first.path.MTU - overhead(first.addr); t.MTU == 0 || mtu < t.MTU {
		t.MTU = mtu
	}
}

func (p *planner) tunnel(c netip.Prefix, to candidate) {
	i := familyIndex(to.addr)
	p.out.Tunnels[i].Used = true
	p.lower(to.path.MTU - overhead(to.addr))
	own := slices.IndexFunc(p.self.PodCIDRs, func(s netip.Prefix) bool { return s.Addr().Is4() == c.Addr().Is4() })
	p.out.Routes = append(p.out.Routes, Route{Dst: c, Via: Gateway(c), Link: tunnelNames[i], Src: Gateway(p.self.PodCIDRs[own])})
}

func (p *planner) lower(mtu int) {
	if p.out.MTU == 0 || mtu < p.out.MTU {
		p.out.MTU = mtu
	}
}

// Gateway is the address that a device has among its Pods: the bridge's, and
// the device's in the tunnel.
func Gateway(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

func familyIndex(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

func overhead(below netip.Addr) int {
	if below.Is6() {
		return overhead6
	}
	return overhead4
}

// hardwareAddr is a device's address in the tunnel: locally administered, made
// from its name, so that nobody has to be told.
func hardwareAddr(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return append(net.HardwareAddr{0x0a}, sum[:5]...)
}
