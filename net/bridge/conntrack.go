package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Conntrack deletes entries of the kernel's connection tracking table, in the
// network namespace of the thread that opened it.
type Conntrack struct{ nl *netlink.Handle }

// OpenConntrack fails on kernels without conntrack netlink.
func OpenConntrack() (*Conntrack, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening connection tracking: %w", err)
	}
	return &Conntrack{nl}, nil
}

// Close releases the socket.
func (c *Conntrack) Close() { c.nl.Close() }

// ForgetUDP deletes every UDP entry for which stale says yes, given the
// original destination and the source of the answers. It reads the whole table,
// some 10 000 entries in 10 ms.
func (c *Conntrack) ForgetUDP(stale func(dst, backend netip.AddrPort) bool) error {
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := c.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, udpFilter(stale)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("deleting connection tracks: %w", err))
		}
	}
	return errors.Join(errs...)
}

type udpFilter func(dst, backend netip.AddrPort) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (stale udpFilter) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(f.Forward.DstIP)
	backend, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok1 && ok2 && stale(netip.AddrPortFrom(dst.Unmap(), f.Forward.DstPort), netip.AddrPortFrom(backend.Unmap(), f.Reverse.SrcPort))
}
