package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var errNoRoute = errors.New("no route")

// path asks the kernel how it would send to a now.
func (m *Mesh) path(a netip.Addr) (Path, error) {
	routes, err := m.nl.RouteGet(a.AsSlice())
	if err != nil {
		return Path{}, err
	}
	if len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
		return Path{}, errNoRoute
	}
	r := routes[0]
	link, err := m.nl.LinkByIndex(r.LinkIndex)
	if err != nil {
		return Path{}, err
	}
	at := link.Attrs()
	if slices.Contains(tunnelNames[:], at.Name) {
		return Path{}, fmt.Errorf("%s is the address of a Pod", a)
	}
	p := Path{Link: at.Name, MTU: at.MTU}
	if r.MTU > 0 {
		p.MTU = min(p.MTU, r.MTU)
	}
	p.Neighbor = r.Gw == nil && r.Via == nil && at.EncapType == "ether" && at.RawFlags&(unix.IFF_POINTOPOINT|unix.IFF_NOARP) == 0
	return p, nil
}

// isOwn says whether this device has the address.
func (m *Mesh) isOwn(a netip.Addr) bool {
	routes, err := m.nl.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// applyTunnels makes the tunnels have the peers that are wanted. A kernel
// without VXLAN matters only where a tunnel is used.
func (m *Mesh) applyTunnels(w *Wanted) error {
	var errs []error
	for i, t := range w.Tunnels {
		if len(t.Peers) == 0 {
			errs = append(errs, m.removeLink(tunnelNames[i]))
			continue
		}
		link, err := m.ensureTunnel(i, t)
		if err == nil {
			err = m.applyNeighbors(link, t)
		}
		if err != nil && (t.Used || !errors.Is(err, unix.EOPNOTSUPP)) {
			errs = append(errs, fmt.Errorf("tunnel %s: %w", tunnelNames[i], err))
		}
	}
	return errors.Join(errs...)
}

func (m *Mesh) removeLink(name string) error {
	link, err := m.nl.LinkByName(name)
	if err == nil {
		err = m.nl.LinkDel(link)
	}
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// ensureTunnel makes the tunnel device with this device's addresses in it.
func (m *Mesh) ensureTunnel(i int, t Tunnel) (netlink.Link, error) {
	mac := hardwareAddr(m.cfg.Self.Name)
	want := &netlink.Vxlan{VxlanId: vni, Port: int(m.cfg.Port)}
	want.LinkAttrs = netlink.NewLinkAttrs()
	want.Name, want.MTU, want.HardwareAddr, want.Alias = tunnelNames[i], t.MTU, mac, linkAlias
	switch {
	case t.Local.IsValid():
		want.SrcAddr = t.Local.AsSlice()
	case i == 1:
		want.SrcAddr = net.IPv6zero // makes it a tunnel over IPv6
	}
	link, err := m.nl.LinkByName(want.Name)
	if vx, ok := link.(*netlink.Vxlan); err == nil && (!ok || vx.VxlanId != vni || vx.Port != want.Port || vx.Learning || !sameSource(vx.SrcAddr, want.SrcAddr)) {
		if err := m.nl.LinkDel(link); err != nil {
			return nil, fmt.Errorf("removing the one with other properties: %w", err)
		}
		link, err = nil, netlink.LinkNotFoundError{}
	}
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		if err := m.nl.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("creating it: %w", err)
		}
		if link, err = m.nl.LinkByName(want.Name); err == nil {
			err = m.nl.LinkSetAlias(link, linkAlias)
		}
	}
	if err != nil {
		return nil, err
	}
	return link, m.settleTunnel(link, t.MTU, mac)
}

// sameSource compares source addresses of tunnels; none is the same as zero.
func sameSource(a, b net.IP) bool {
	none := func(x net.IP) bool { return len(x) == 0 || x.IsUnspecified() }
	return none(a) && none(b) || a.Equal(b)
}

// settleTunnel sets what may differ on a tunnel that exists.
func (m *Mesh) settleTunnel(link netlink.Link, mtu int, mac net.HardwareAddr) error {
	at := link.Attrs()
	if at.MTU != mtu {
		if err := m.nl.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("setting MTU %d: %w", mtu, err)
		}
	}
	if !bytes.Equal(at.HardwareAddr, mac) {
		if err := m.nl.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("setting hardware address: %w", err)
		}
	}
	// Answers may come another way than the questions went.
	if err := writeIfPresent("/proc/sys/net/ipv4/conf/"+at.Name+"/rp_filter", "2"); err != nil {
		return err
	}
	// No addresses but ours, no solicitations, no advertisements.
	if err := m.nl.LinkSetIP6AddrGenMode(link, nl6AddrGenNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("turning off automatic addresses: %w", err)
	}
	have, err := m.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, c := range m.cfg.Self.PodCIDRs {
		g := Gateway(c)
		host := &net.IPNet{IP: g.AsSlice(), Mask: net.CIDRMask(g.BitLen(), g.BitLen())}
		if slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == host.String() }) {
			continue
		}
		if err := m.nl.AddrReplace(link, &netlink.Addr{IPNet: host, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("adding address %s: %w", g, err)
		}
	}
	if at.Flags&net.FlagUp != 0 {
		return nil
	}
	return m.nl.LinkSetUp(link)
}

// nl6AddrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const nl6AddrGenNone = 1

func writeIfPresent(path, value string) error {
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// applyNeighbors writes who is behind which address, and removes the rest.
func (m *Mesh) applyNeighbors(link netlink.Link, t Tunnel) error {
	index := link.Attrs().Index
	want := map[string]netlink.Neigh{}
	for _, p := range t.Peers {
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return err
		}
		fdb := netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.Remote.AsSlice(), HardwareAddr: mac}
		want[neighKey(&fdb)] = fdb
		for _, a := range p.Inner {
			n := netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
			if a.Is6() {
				n.Family = unix.AF_INET6
			}
			want[neighKey(&n)] = n
		}
	}
	var errs []error
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		have, err := m.nl.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("listing neighbors: %w", err)
		}
		for _, n := range have {
			n.Family = family
			k := neighKey(&n)
			if w, ok := want[k]; ok && n.State&netlink.NUD_PERMANENT != 0 && w.IP.Equal(n.IP) && bytes.Equal(w.HardwareAddr, n.HardwareAddr) {
				delete(want, k)
				continue
			} else if ok || family != unix.AF_BRIDGE && n.State&netlink.NUD_NOARP != 0 {
				continue // replaced below, or the kernel's own
			}
			if family == unix.AF_BRIDGE {
				n.Flags |= netlink.NTF_SELF
			}
			if err := m.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("removing neighbor %s: %w", n.IP, err))
			}
		}
	}
	for _, n := range want {
		if err := m.nl.NeighSet(&n); err != nil {
			errs = append(errs, fmt.Errorf("adding neighbor %s: %w", n.IP, err))
		}
	}
	return errors.Join(errs...)
}

// neighKey is by what an entry is found: forwarding entries by hardware
// address, neighbors by address.
func neighKey(n *netlink.Neigh) string {
	if n.Family == unix.AF_BRIDGE {
		return "fdb " + n.HardwareAddr.String()
	}
	return "neigh " + n.IP.String()
}

// applyRoutes makes the routes of ours exactly those that are wanted.
func (m *Mesh) applyRoutes(w *Wanted) error {
	links := map[string]int{}
	var errs []error
	want := map[netip.Prefix]*netlink.Route{}
	for _, r := range w.Routes {
		k, err := m.kernelRoute(r, links)
		if err != nil {
			errs = append(errs, fmt.Errorf("route to %s: %w", r.Dst, err))
			continue
		}
		want[r.Dst] = k
	}
	have, err := m.routes()
	errs = append(errs, err)
	for _, r := range have {
		dst, ok := prefixOf(r.Dst)
		if k := want[dst]; ok && k != nil && sameRoute(k, &r) {
			delete(want, dst)
		} else if k == nil || k.Type != r.Type || k.Priority != r.Priority {
			if err := m.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("removing route to %s: %w", dst, err))
			}
		}
	}
	for dst, k := range want {
		if err := m.nl.RouteReplace(k); err != nil {
			errs = append(errs, fmt.Errorf("route to %s: %w", dst, err))
		}
	}
	return errors.Join(errs...)
}

// priority6 is the metric that the kernel gives IPv6 routes which name none.
const priority6 = 1024

func (m *Mesh) kernelRoute(r Route, links map[string]int) (*netlink.Route, error) {
	k := &netlink.Route{Dst: ipNet(r.Dst), Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Family: netlink.FAMILY_V4}
	if r.Dst.Addr().Is6() {
		k.Family, k.Priority = netlink.FAMILY_V6, priority6
	}
	if !r.Via.IsValid() {
		k.Type, k.Priority = unix.RTN_UNREACHABLE, unreachableMetric
		return k, nil
	}
	if links[r.Link] == 0 {
		link, err := m.nl.LinkByName(r.Link)
		if err != nil {
			return nil, err
		}
		links[r.Link] = link.Attrs().Index
	}
	k.LinkIndex, k.Gw, k.Flags = links[r.Link], r.Via.AsSlice(), int(netlink.FLAG_ONLINK)
	if r.Src.IsValid() {
		k.Src = r.Src.AsSlice()
	}
	return k, nil
}

func sameRoute(a, b *netlink.Route) bool {
	// The kernel puts routes that lead nowhere on its loopback link, for IPv6.
	nowhere := a.Type == unix.RTN_UNREACHABLE
	return a.Type == b.Type && a.Priority == b.Priority && (nowhere || a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src))
}

// routes are those of ours.
func (m *Mesh) routes() ([]netlink.Route, error) { return ourRoutes(m.nl) }

func ourRoutes(nl *netlink.Handle) ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := nl.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// Probe says whether the kernel has tunnels: it makes one and removes it.
func Probe() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("mesh: opening netlink: %w", err)
	}
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "edged-probe"
	link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni + 1, Port: DefaultPort}
	if err := nl.LinkAdd(link); err != nil {
		return fmt.Errorf("making a VXLAN link: %w", err)
	}
	return nl.LinkDel(link)
}

// Cleanup removes every route and tunnel that a Mesh ever made, with no memory
// of it. The packet filter's table is removed as a whole by its owner.
func Cleanup(ctx context.Context) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("mesh: opening netlink: %w", err)
	}
	defer nl.Close()
	routes, err := ourRoutes(nl)
	errs := []error{err}
	for _, r := range routes {
		if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing route to %s: %w", r.Dst, err))
		}
	}
	m := &Mesh{nl: nl}
	for _, name := range tunnelNames {
		errs = append(errs, m.removeLink(name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
