package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"edged/internal/netns"
)

// AttachRequest names a Pod and the namespace to connect.
type AttachRequest struct {
	ID        string // the Pod's UID
	NetNS     string // path of the Pod's network namespace
	IfName    string // inside the namespace; "eth0" if empty
	HostPorts []HostPort
}

// Attachment is what a Pod got.
type Attachment struct {
	IPs      []netip.Addr // one per Pod CIDR, in their order
	Gateway  netip.Addr   // of the first family
	Gateways []netip.Addr // one per address
	MTU      int
	HostLink string // the host's end of the veth pair
	MAC      net.HardwareAddr
}

// Attach connects a namespace and returns its addresses. Repeated for a Pod it
// gives the same addresses, mends what is missing, and takes over changed host
// ports. An error leaves a state that Attach can be repeated in, or Detach.
func (b *Bridge) Attach(ctx context.Context, req AttachRequest) (Attachment, error) {
	if err := checkID(req.ID); err != nil {
		return Attachment{}, fmt.Errorf("bridge %s: %w", b.cfg.Name, err)
	}
	if req.IfName == "" {
		req.IfName = "eth0"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Attachment{}, err
	}
	att, err := b.attachLocked(ctx, req)
	if err != nil {
		return Attachment{}, fmt.Errorf("bridge %s: attaching pod %s: %w", b.cfg.Name, req.ID, err)
	}
	return att, nil
}

func (b *Bridge) attachLocked(ctx context.Context, req AttachRequest) (Attachment, error) {
	ns, err := vnetns.GetFromPath(req.NetNS)
	if err != nil {
		return Attachment{}, fmt.Errorf("opening network namespace %s: %w", req.NetNS, err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return Attachment{}, fmt.Errorf("entering network namespace %s: %w", req.NetNS, err)
	}
	defer pod.Close()

	r, err := b.reserve(req, pod)
	if err != nil {
		return Attachment{}, err
	}
	att := Attachment{IPs: slices.Clone(r.IPs), MTU: b.mtu, HostLink: hostLinkName(req.ID), MAC: hardwareAddr(r.IPs[0])}
	for _, a := range r.IPs {
		att.Gateways = append(att.Gateways, b.gatewayFor(a))
	}
	att.Gateway = att.Gateways[0]

	if err := b.connect(r, ns, pod, att); err != nil {
		return Attachment{}, err
	}
	if err := b.configure(r, pod, att); err != nil {
		return Attachment{}, err
	}
	if err := b.awaitUp(ctx, att.HostLink, pod, r.IfName); err != nil {
		return Attachment{}, err
	}
	return att, nil
}

// upWithin bounds awaitUp. It takes below a millisecond, more on a busy device.
const upWithin = 2 * time.Second

// awaitUp waits until the kernel has noticed, in its own time, that both ends,
// and with its first port the bridge, have a carrier. What a Pod sent before would be lost, and the first thing that
// it sends, the question for the gateway's hardware address, is repeated only
// after a second.
func (b *Bridge) awaitUp(ctx context.Context, hostLink string, pod *netlink.Handle, podLink string) error {
	isUp := func(h *netlink.Handle, name string) (bool, error) {
		l, err := h.LinkByName(name)
		return err == nil && l.Attrs().OperState == netlink.OperUp, err
	}
	deadline := time.Now().Add(upWithin)
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		host, err1 := isUp(b.nl, hostLink)
		inside, err2 := isUp(pod, podLink)
		bridge, err3 := isUp(b.nl, b.cfg.Name)
		if err := errors.Join(err1, err2, err3); err != nil {
			return fmt.Errorf("waiting for the link: %w", err)
		}
		if host && inside && bridge {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("links %s, %s and the bridge are not all up after %s", hostLink, podLink, upWithin)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// reserve finds or makes the Pod's record: what is remembered, else what its
// namespace already has, else fresh addresses.
func (b *Bridge) reserve(req AttachRequest, pod *netlink.Handle) (*record, error) {
	old := b.pods[req.ID]
	r := &record{Version: version, ID: req.ID, NetNS: req.NetNS, IfName: req.IfName, HostPorts: req.HostPorts}
	if old != nil {
		r.IPs = old.IPs
	} else {
		r.IPs = b.addressesIn(pod, req)
	}
	now := sinceBoot()
	for _, p := range b.pools {
		if slices.ContainsFunc(r.IPs, func(a netip.Addr) bool { return a.Is4() == p.gateway.Is4() }) {
			continue
		}
		a, err := p.allocate(req.ID, now)
		if err != nil {
			b.release(r, old)
			return nil, err
		}
		r.IPs = append(slices.Clone(r.IPs), a)
	}
	if old != nil && slices.Equal(old.IPs, r.IPs) && slices.Equal(old.HostPorts, r.HostPorts) && old.NetNS == r.NetNS && old.IfName == r.IfName {
		return old, nil
	}
	if err := b.writeRecord(r); err != nil {
		b.release(r, old)
		return nil, err
	}
	b.pods[req.ID] = r
	if old == nil || !slices.Equal(old.HostPorts, r.HostPorts) || !slices.Equal(old.IPs, r.IPs) {
		if len(r.HostPorts) > 0 || old != nil && len(old.HostPorts) > 0 {
			b.publishLocked()
		}
	}
	return r, nil
}

// release gives back what reserve took for r beyond old.
func (b *Bridge) release(r, old *record) {
	for _, a := range r.IPs {
		if p := b.poolOf(a); p != nil && p.used[a] == r.ID && (old == nil || !slices.Contains(old.IPs, a)) {
			delete(p.used, a)
		}
	}
}

// addressesIn takes over addresses of ours that the namespace already has and
// that no other Pod claims: the case of a Pod whose record and link alias are
// both lost.
func (b *Bridge) addressesIn(pod *netlink.Handle, req AttachRequest) []netip.Addr {
	link, err := pod.LinkByName(req.IfName)
	if err != nil {
		return nil
	}
	addrs, err := pod.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	var ips []netip.Addr
	for _, p := range b.pools {
		for _, a := range addrs {
			if have, ok := prefixOf(a.IPNet); ok && p.prefix.Contains(have.Addr()) && p.claim(have.Addr(), req.ID) {
				ips = append(ips, have.Addr())
				break
			}
		}
	}
	return ips
}

// connect makes the veth pair unless the two ends are there and belong to
// each other.
func (b *Bridge) connect(r *record, ns vnetns.NsHandle, pod *netlink.Handle, att Attachment) error {
	host, err := b.nl.LinkByName(att.HostLink)
	inside, errInside := pod.LinkByName(r.IfName)
	if err == nil && errInside == nil && inside.Attrs().ParentIndex == host.Attrs().Index &&
		host.Attrs().ParentIndex == inside.Attrs().Index {
		return b.connectPort(r, host)
	}
	// Half a pair, from a crash or a namespace that died and came back.
	if err == nil {
		if err := b.nl.LinkDel(host); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("removing stale link %s: %w", att.HostLink, err)
		}
	}
	if errInside == nil {
		if inside, errInside = pod.LinkByName(r.IfName); errInside == nil {
			if err := pod.LinkDel(inside); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("removing stale link %s in the pod: %w", r.IfName, err)
			}
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = att.HostLink, att.MTU
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: r.IfName, PeerMTU: uint32(att.MTU),
		PeerHardwareAddr: att.MAC, PeerNamespace: netlink.NsFd(ns),
	}
	if err := b.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating veth pair %s: %w", att.HostLink, err)
	}
	return b.connectPort(r, veth)
}

// connectPort makes the host's end a port of the bridge.
func (b *Bridge) connectPort(r *record, host netlink.Link) error {
	name := hostLinkName(r.ID)
	if want := r.alias(); host.Attrs().Alias != want {
		if err := b.nl.LinkSetAlias(host, want); err != nil {
			return fmt.Errorf("naming the owner of link %s: %w", name, err)
		}
	}
	// A port needs no address of its own; without this each would announce
	// itself to every multicast listener.
	if err := setSysctlIfPresent("ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if host.Attrs().MasterIndex != b.index {
		if err := b.nl.LinkSetMasterByIndex(host, b.index); err != nil {
			return fmt.Errorf("adding link %s to the bridge: %w", name, err)
		}
	}
	if err := b.setPortMode(host, bridgedNAT()); err != nil {
		return err
	}
	if err := b.nl.LinkSetUp(host); err != nil {
		return fmt.Errorf("setting link %s up: %w", name, err)
	}
	return nil
}

// setPortMode is explained in the package comment, "Shape".
func (b *Bridge) setPortMode(host netlink.Link, bridged bool) error {
	if err := b.nl.LinkSetIsolated(host, !bridged); err != nil {
		return fmt.Errorf("isolating link %s: %w", host.Attrs().Name, err)
	}
	if err := b.nl.LinkSetHairpin(host, bridged); err != nil {
		return fmt.Errorf("setting hairpin mode of link %s: %w", host.Attrs().Name, err)
	}
	return nil
}

// Refresh follows a change of the bridge-nf sysctls, which other software makes
// (docker, on its start). It is cheap if there was none.
func (b *Bridge) Refresh(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	bridged := bridgedNAT()
	if bridged == b.bridged {
		return nil
	}
	if err := b.setPortModesLocked(bridged); err != nil {
		return err
	}
	b.log.Info("bridge-nf sysctls changed", "link", b.cfg.Name, "bridge-nf-call", bridged)
	return nil
}

// setPortModesLocked has all ports follow the bridge-nf sysctls.
func (b *Bridge) setPortModesLocked(bridged bool) error {
	links, err := b.links()
	errs := []error{err}
	for _, l := range links {
		errs = append(errs, b.setPortMode(l, bridged))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bridge %s: %w", b.cfg.Name, err)
	}
	b.bridged = bridged
	return nil
}

// configure sets addresses and routes inside the Pod.
func (b *Bridge) configure(r *record, pod *netlink.Handle, att Attachment) error {
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the pod's loopback: %w", err)
	}
	if err := pod.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting the pod's loopback up: %w", err)
	}
	link, err := pod.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("finding %s in the pod: %w", r.IfName, err)
	}
	has6 := slices.ContainsFunc(r.IPs, netip.Addr.Is6)
	if err := netns.Do(r.NetNS, func() error { return podSysctls(r.IfName, has6) }); err != nil {
		return err
	}
	for _, a := range r.IPs {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := pod.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("adding address %s: %w", a, err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up in the pod: %w", r.IfName, err)
	}
	for _, gw := range att.Gateways {
		if err := defaultRoute(pod, link.Attrs().Index, gw); err != nil {
			return err
		}
	}
	return nil
}

// defaultRoute leads everything to gw, which is on the link although no prefix
// of the Pod says so.
func defaultRoute(pod *netlink.Handle, index int, gw netip.Addr) error {
	direct := &netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(gw, gw.BitLen())), Scope: netlink.SCOPE_LINK}
	if err := pod.RouteReplace(direct); err != nil {
		return fmt.Errorf("adding route to gateway %s: %w", gw, err)
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if err := pod.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(all), Gw: gw.AsSlice()}); err != nil {
		return fmt.Errorf("adding default route by %s: %w", gw, err)
	}
	return nil
}

// gatewayFor is the bridge's address of a's family.
func (b *Bridge) gatewayFor(a netip.Addr) netip.Addr {
	for _, g := range b.gateways {
		if g.Is4() == a.Is4() {
			return g
		}
	}
	return netip.Addr{}
}

// Detach disconnects a Pod and frees its addresses. A Pod that is not attached
// is not an error; its namespace may be gone.
func (b *Bridge) Detach(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("bridge %s: %w", b.cfg.Name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.pods[id]
	if err := b.detachLocked(id); err != nil {
		return err
	}
	if r != nil && len(r.HostPorts) > 0 {
		b.publishLocked()
	}
	return nil
}

// detachLocked removes the link first and the record last: a crash in between
// leaves an address taken, never one given twice.
func (b *Bridge) detachLocked(id string) error {
	link, err := b.nl.LinkByName(hostLinkName(id))
	if err == nil {
		err = b.nl.LinkDel(link)
	}
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !missing && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("bridge %s: detaching pod %s: removing link: %w", b.cfg.Name, id, err)
	}
	r := b.pods[id]
	if r == nil {
		return nil
	}
	now := sinceBoot()
	for _, a := range r.IPs {
		if p := b.poolOf(a); p != nil && p.used[a] == id {
			p.free(a, now)
		}
	}
	delete(b.pods, id)
	if err := b.writeResting(); err != nil {
		return fmt.Errorf("bridge %s: detaching pod %s: %w", b.cfg.Name, id, err)
	}
	if err := os.Remove(b.recordPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bridge %s: detaching pod %s: %w", b.cfg.Name, id, err)
	}
	return nil
}

// publishLocked hands all host ports to their owner.
func (b *Bridge) publishLocked() {
	if b.cfg.HostPorts == nil {
		return
	}
	var all []PortMapping
	for _, r := range b.pods {
		for _, hp := range r.HostPorts {
			all = append(all, PortMapping{HostPort: hp, PodID: r.ID, PodIPs: r.IPs})
		}
	}
	slices.SortFunc(all, func(x, y PortMapping) int {
		if x.HostPort.HostPort != y.HostPort.HostPort {
			return int(x.HostPort.HostPort) - int(y.HostPort.HostPort)
		}
		return x.HostIP.Compare(y.HostIP)
	})
	b.cfg.HostPorts(all)
}

func (b *Bridge) setPodMTU(r *record, mtu int) error {
	host, err := b.nl.LinkByName(hostLinkName(r.ID))
	if err != nil {
		return nil // being detached
	}
	if err := b.nl.LinkSetMTU(host, mtu); err != nil {
		return err
	}
	ns, err := vnetns.GetFromPath(r.NetNS)
	if err != nil {
		return nil
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer pod.Close()
	inside, err := pod.LinkByName(r.IfName)
	if err != nil {
		return err
	}
	return pod.LinkSetMTU(inside, mtu)
}

// hostLinkName is derived from the Pod's UID alone, so that a Pod's link is
// found without any record. 44 bits tell apart more Pods than a device ever has.
func hostLinkName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "edv" + hex.EncodeToString(sum[:])[:11]
}
