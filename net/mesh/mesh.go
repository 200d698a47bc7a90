package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged/net/nft"
)

const (
	// DefaultPort is the UDP port of tunnels: the number that the devices'
	// other conversation, by TCP, has by default.
	DefaultPort = 2380
	// vni tells our packets from those of others on the same port.
	vni = 0xed
	// routeProtocol marks routes of ours in `ip route`; net/bridge has 0xed.
	routeProtocol netlink.RouteProtocol = 0xee
	// unreachableMetric lets any route of somebody else win.
	unreachableMetric = 0xffff
	linkAlias         = "edged:mesh"
	section           = "mesh"
)

// tunnelNames are the tunnel devices' by the family of the network below.
var tunnelNames = [2]string{"edged-vx4", "edged-vx6"}

// Config is what a Mesh needs.
type Config struct {
	// Self is this device. Its Addrs may be empty; they keep a Node that
	// claims our own address from being taken for a peer.
	Self         Peer
	ClusterCIDRs []netip.Prefix // of all Pods of the cluster
	Port         uint16         // of tunnels; DefaultPort if 0
	// SetMTU is told what a Pod's packet may have, whenever it changes;
	// may be nil.
	SetMTU func(ctx context.Context, mtu int) error
	Table  *nft.Table
	Logger *slog.Logger
}

// Mesh keeps the routes of this device.
type Mesh struct {
	// Set by New.
	cfg Config
	log *slog.Logger
	nl  *netlink.Handle

	mu      sync.Mutex // guards the following, and serializes changes
	mtu     int
	ways    map[string]Way
	guarded []netip.Addr // peers that the packet filter knows
	guardOn bool
}

// New opens access to the kernel; nothing is changed yet.
func New(cfg Config) (*Mesh, error) {
	if cfg.Self.Name == "" || len(cfg.Self.PodCIDRs) == 0 {
		return nil, errors.New("mesh: a device needs a name and a Pod CIDR")
	}
	for i, c := range cfg.Self.PodCIDRs {
		cfg.Self.PodCIDRs[i] = c.Masked()
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("mesh: opening netlink: %w", err)
	}
	m := &Mesh{cfg: cfg, log: cfg.Logger, nl: nl, ways: map[string]Way{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m, nil
}

// Close ends the use of the mesh and leaves everything as it is.
func (m *Mesh) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nl.Close()
	return nil
}

// Apply makes the kernel reach exactly these peers; this device itself may be
// among them, which tells its addresses. A peer that cannot be
// reached is no error; it is logged when that changes.
func (m *Mesh) Apply(ctx context.Context, peers []Peer) (*Wanted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := Plan(m.cfg.Self, m.cfg.ClusterCIDRs, peers, m.path)
	m.sources(w, peers)
	errs := []error{m.guard(w), m.applyTunnels(w), m.applyRoutes(w)}
	if w.MTU != 0 && w.MTU != m.mtu && m.cfg.SetMTU != nil {
		err := m.cfg.SetMTU(ctx, w.MTU)
		if err == nil {
			m.mtu = w.MTU
		}
		errs = append(errs, err)
	}
	m.report(w)
	if err := errors.Join(errs...); err != nil {
		return w, fmt.Errorf("mesh: %w", err)
	}
	return w, nil
}

// sources makes this device send tunnel packets from the address that its peers
// know, as long as it has it.
func (m *Mesh) sources(w *Wanted, peers []Peer) {
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.Name == m.cfg.Self.Name })
	if i < 0 {
		return
	}
	for _, a := range slices.Backward(peers[i].Addrs) {
		if a = a.Unmap(); m.isOwn(a) {
			w.Tunnels[familyIndex(a)].Local = a
		}
	}
}

// report logs each peer whose way changed.
func (m *Mesh) report(w *Wanted) {
	told := maps.Clone(w.Ways)
	for _, name := range slices.Sorted(maps.Keys(w.Ways)) {
		switch way := w.Ways[name]; {
		case way == m.ways[name]:
		case m.ways[name] == "" && errors.Is(w.Lost[name], errNoAddress):
			// A Node that was made a moment ago, which runs no Pods yet.
			delete(told, name)
		case way == NoWay:
			m.log.Warn("the Pods of a device are not reached", "device", name, "err", w.Lost[name])
		default:
			m.log.Info("the Pods of a device are reached", "device", name, "way", string(way), "mtu", w.MTU)
		}
	}
	m.ways = told
}

// guard keeps strangers from putting packets into the tunnels.
func (m *Mesh) guard(w *Wanted) error {
	if m.cfg.Table == nil {
		return nil
	}
	remotes := w.Remotes
	if m.guardOn && slices.Equal(remotes, m.guarded) {
		if ok, err := m.cfg.Table.Intact(section); ok || err != nil {
			return err
		}
		m.log.Warn("packet filter rules of the tunnels were removed by somebody else and are put back")
	} else if !m.guardOn && len(remotes) == 0 {
		return nil
	}
	if err := m.cfg.Table.Apply(section, guardRules(m.cfg.Port, remotes)); err != nil {
		return err
	}
	m.guarded, m.guardOn = remotes, true
	return nil
}

func guardRules(port uint16, remotes []netip.Addr) *nft.Ruleset {
	r := &nft.Ruleset{}
	input := nft.Chain{Name: section + "-input", Base: &nft.Base{Type: "filter", Hook: "input", Priority: nft.PriorityFilter}}
	for i, key := range []nft.Type{nft.IPv4(), nft.IPv6()} {
		set := &nft.Set{Name: fmt.Sprintf("%s-peers%d", section, 4+2*i), Key: []nft.Type{key}}
		var elems []nft.Element
		for _, a := range remotes {
			if familyIndex(a) == i {
				elems = append(elems, nft.Element{Key: string(nft.AppendAddr(nil, a))})
			}
		}
		set.Parts = []nft.Part{{Elements: nft.NewElements(elems)}}
		r.Sets = append(r.Sets, set)
		input.Rules = append(input.Rules, nft.Rule{
			nft.Equal(nft.L4Proto(), nft.ProtoConst(unix.IPPROTO_UDP)), nft.Equal(nft.DstPort(), nft.PortConst(port)),
			nft.NotIn(set, nft.SrcAddr(i == 1)), nft.Drop()})
	}
	r.Chains = []nft.Chain{input}
	return r
}
