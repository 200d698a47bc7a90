package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultName is the name of the bridge on a device.
const DefaultName = "edged0"

// defaultMTU is Ethernet's; a mesh that encapsulates asks for less.
const defaultMTU = 1500

// Config says which addresses the bridge serves.
type Config struct {
	// Name of the bridge; DefaultName if empty.
	Name string
	// PodCIDRs are the device's own, at most one per address family. The
	// first address of each is the bridge's, the Pods' gateway.
	PodCIDRs []netip.Prefix
	// ServiceCIDRs are routed to the bridge, so that the device's own
	// processes have a way (and a source address) to Service addresses
	// without a default route. They never arrive there: net/proxy rewrites
	// or refuses them.
	ServiceCIDRs []netip.Prefix
	// HostAddrs are assigned to the bridge as the device's own: the address
	// at which its DNS server answers.
	HostAddrs []netip.Addr
	// HostOnly says that others connect the Pods: the bridge holds the device's own
	// addresses, without a way to the rest of the Pod CIDRs.
	HostOnly bool
	// MTU in bytes of the bridge and of every Pod's interface; 0 means 1500.
	MTU int
	// StateDir holds a file per attached Pod. It must be emptied by a reboot.
	StateDir string
	// HostPorts, if set, is called with all host ports of all attached Pods:
	// by New, and whenever the set changes, before Attach returns. It must
	// not call back into the Bridge.
	HostPorts func([]PortMapping)
	// Logger; nil discards.
	Logger *slog.Logger
}

// HostPort asks that a port of the device leads to a port of the Pod.
type HostPort struct {
	HostIP        netip.Addr `json:"hostIP,omitzero"` // unset: every address of the device
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // TCP, UDP or SCTP
}

// PortMapping is a HostPort of an attached Pod with the Pod's addresses.
type PortMapping struct {
	HostPort
	PodID  string
	PodIPs []netip.Addr
}

// Bridge is the device's bridge.
type Bridge struct {
	// Set by New.
	cfg      Config
	log      *slog.Logger
	nl       *netlink.Handle
	index    int // of the bridge link
	gateways []netip.Addr

	mu      sync.Mutex // guards the following, and serializes changes to links
	mtu     int
	bridged bool               // bridge-nf was on when ports were set last
	pools   []*pool            // one per Pod CIDR
	pods    map[string]*record // by Pod UID
}

// New makes the bridge, or takes over the one that an earlier daemon left, with
// the Pods attached to it.
func New(cfg Config) (*Bridge, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("bridge: opening netlink: %w", err)
	}
	b := &Bridge{cfg: cfg, log: cfg.Logger, nl: nl, mtu: cfg.MTU, pods: map[string]*record{}}
	if err := b.open(); err != nil {
		nl.Close()
		return nil, fmt.Errorf("bridge %s: %w", cfg.Name, err)
	}
	// An earlier daemon's ports, too: it may not have seen a change.
	if err := b.setPortModesLocked(bridgedNAT()); err != nil {
		nl.Close()
		return nil, err
	}
	b.publishLocked()
	return b, nil
}

func (b *Bridge) open() error {
	for _, p := range b.cfg.PodCIDRs {
		pool := newPool(p)
		b.pools = append(b.pools, pool)
		b.gateways = append(b.gateways, pool.gateway)
	}
	if err := os.MkdirAll(filepath.Join(b.cfg.StateDir, recordsDir), 0o700); err != nil {
		return err
	}
	if err := b.ensureLink(); err != nil {
		return err
	}
	if err := b.ensureAddresses(); err != nil {
		return err
	}
	return b.recover()
}

// complete checks the configuration and fills in defaults.
func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if len(c.Name) >= unix.IFNAMSIZ {
		return fmt.Errorf("link name %q is longer than %d bytes", c.Name, unix.IFNAMSIZ-1)
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.StateDir == "" {
		return errors.New("no state folder given")
	}
	if len(c.PodCIDRs) == 0 {
		return errors.New("no Pod CIDR given")
	}
	var v4, v6 int
	for i, p := range c.PodCIDRs {
		if p.Bits() > p.Addr().BitLen()-2 {
			return fmt.Errorf("the Pod CIDR %s has no room for a Pod", p)
		}
		c.PodCIDRs[i] = p.Masked()
		if p.Addr().Is4() {
			v4++
		} else {
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return fmt.Errorf("more than one Pod CIDR of one address family in %v", c.PodCIDRs)
	}
	return nil
}

// has6 says whether Pods get IPv6 addresses.
func (c *Config) has6() bool {
	return slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// Close ends the use of the bridge and leaves everything as it is: Pods stay
// connected, and a later New finds them.
func (b *Bridge) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nl.Close()
	return nil
}

// Attached are the addresses of every attached Pod by its ID.
func (b *Bridge) Attached() map[string][]netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string][]netip.Addr, len(b.pods))
	for id, r := range b.pods {
		out[id] = r.IPs // never changed once it is there
	}
	return out
}

// Gateways are the bridge's own addresses, one per Pod CIDR, in their order.
func (b *Bridge) Gateways() []netip.Addr { return slices.Clone(b.gateways) }

// ensureLink makes the bridge and sets what a bridge of ours must have.
func (b *Bridge) ensureLink() error {
	link, err := b.nl.LinkByName(b.cfg.Name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.cfg.Name, b.cfg.MTU
		// A bridge without an address of its own takes the lowest of its
		// ports and changes it as Pods come and go: every Pod's neighbor
		// entry for the gateway would be wrong.
		attrs.HardwareAddr = hardwareAddr(b.gateways[0])
		attrs.Alias = aliasPrefix + "bridge"
		snooping := false
		if err := b.routeOnly(); err != nil {
			return err
		}
		if err := b.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("creating the link: %w", err)
		}
		if link, err = b.nl.LinkByName(b.cfg.Name); err != nil {
			return err
		}
		if err := b.nl.LinkSetAlias(link, attrs.Alias); err != nil {
			return fmt.Errorf("naming the link's owner: %w", err)
		}
	} else if err != nil {
		return err
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("a link of this name exists and is a %s", link.Type())
	}
	b.index = link.Attrs().Index
	if link.Attrs().MTU != b.cfg.MTU {
		if err := b.nl.LinkSetMTU(link, b.cfg.MTU); err != nil {
			return fmt.Errorf("setting MTU %d: %w", b.cfg.MTU, err)
		}
	}
	if want := hardwareAddr(b.gateways[0]); link.Attrs().HardwareAddr.String() != want.String() {
		if err := b.nl.LinkSetHardwareAddr(link, want); err != nil {
			return fmt.Errorf("setting hardware address %s: %w", want, err)
		}
	}
	if err := hostSysctls(b.cfg.Name, b.cfg.has6()); err != nil {
		return err
	}
	return b.nl.LinkSetUp(link)
}

// routeOnly turns bridge-nf off, which the kernel has on unless told otherwise,
// where no bridge is there that could need it: all packets of Pods are routed,
// and would pass the packet filter as bridged frames once more on either side of
// that, some hundredths of the throughput between two Pods. Software with bridges that
// need it (docker) turns it on when it makes them.
func (b *Bridge) routeOnly() error {
	if !bridgedNAT() {
		return nil
	}
	links, err := b.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("listing links: %w", err)
	}
	if slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Type() == "bridge" }) {
		return nil
	}
	for _, name := range bridgeNF {
		if err := setSysctlIfPresent("bridge/"+name, "0"); err != nil {
			b.log.Warn("bridged frames pass the packet filter, which costs throughput", "err", err)
		}
	}
	return nil
}

// ensureAddresses makes the bridge's addresses and routes exactly those that
// the configuration asks for.
func (b *Bridge) ensureAddresses() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.index, Name: b.cfg.Name}}
	want := map[netip.Prefix]bool{}
	for _, p := range b.pools {
		bits := p.prefix.Bits()
		if b.cfg.HostOnly {
			bits = p.gateway.BitLen()
		}
		want[netip.PrefixFrom(p.gateway, bits)] = true
	}
	for _, a := range b.cfg.HostAddrs {
		want[netip.PrefixFrom(a, a.BitLen())] = true
	}
	have, err := b.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range have {
		p, ok := prefixOf(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() || want[p] {
			delete(want, p)
			continue
		}
		if err := b.nl.AddrDel(link, &a); err != nil {
			return fmt.Errorf("removing address %s: %w", p, err)
		}
	}
	for p := range want {
		if err := b.nl.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("adding address %s: %w", p, err)
		}
	}
	for _, p := range b.cfg.ServiceCIDRs {
		route := &netlink.Route{LinkIndex: b.index, Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_LINK, Protocol: routeProtocol}
		i := slices.IndexFunc(b.gateways, func(g netip.Addr) bool { return g.Is4() == p.Addr().Is4() })
		if i < 0 {
			continue // a family that Pods do not have
		}
		route.Src = b.gateways[i].AsSlice()
		if err := b.nl.RouteReplace(route); err != nil {
			return fmt.Errorf("routing Service CIDR %s: %w", p, err)
		}
	}
	return nil
}

// routeProtocol marks routes of ours in `ip route`.
const routeProtocol netlink.RouteProtocol = 0xed

// SetMTU changes the MTU of the bridge and of every attached Pod, for Pods
// attached later too. Pods whose namespace is gone are skipped: their detaching
// is under way.
func (b *Bridge) SetMTU(ctx context.Context, mtu int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if mtu == b.mtu {
		return nil
	}
	var errs []error
	for _, r := range b.pods {
		if err := b.setPodMTU(r, mtu); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", r.ID, err))
		}
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.index}}
	if err := b.nl.LinkSetMTU(link, mtu); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bridge %s: setting MTU %d: %w", b.cfg.Name, mtu, err)
	}
	b.mtu = mtu
	b.log.Info("MTU changed", "link", b.cfg.Name, "mtu", mtu)
	return nil
}

// Cleanup removes every link that a Bridge of this name made, whatever state
// they are in, and stateDir. Those on another bridge are another's (net/cniplugin).
// Addresses and routes go with their links; sysctls
// stay, because others may by now rely on them. stateDir may be empty.
func Cleanup(ctx context.Context, name, stateDir string) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("bridge: opening netlink: %w", err)
	}
	defer nl.Close()
	links, err := nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("bridge: listing links: %w", err)
	}
	index := -1
	for _, l := range links {
		if l.Attrs().Name == name {
			index = l.Attrs().Index
		}
	}
	var errs []error
	for _, l := range links {
		at := l.Attrs()
		isPort := l.Type() == "veth" && ours(l) && (at.MasterIndex == index || at.MasterIndex == 0)
		if at.Name != name && !isPort {
			continue
		}
		if err := nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("bridge: removing link %s: %w", l.Attrs().Name, err))
		}
	}
	if stateDir != "" {
		errs = append(errs, os.RemoveAll(stateDir))
	}
	return errors.Join(errs...)
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

// hardwareAddr derives a locally administered MAC from an address, so that
// whoever gets the address again has the same one and no neighbor entry of it
// goes stale.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0xed}, b[len(b)-4:]...)
}
