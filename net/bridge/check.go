package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Check says whether an attachment is as Attach left it, and mends nothing. It
// returns the attachment's addresses.
func (b *Bridge) Check(ctx context.Context, req AttachRequest) ([]netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.pods[req.ID]
	if r == nil {
		return nil, fmt.Errorf("bridge %s: %s is not attached", b.cfg.Name, req.ID)
	}
	if err := errors.Join(ctx.Err(), b.checkHost(r), b.checkInside(r, req)); err != nil {
		return nil, fmt.Errorf("bridge %s: attachment %s: %w", b.cfg.Name, req.ID, err)
	}
	return slices.Clone(r.IPs), nil
}

func (b *Bridge) checkHost(r *record) error {
	host, err := b.nl.LinkByName(hostLinkName(r.ID))
	if err != nil {
		return fmt.Errorf("the host's end: %w", err)
	}
	if host.Attrs().MasterIndex != b.index || host.Attrs().OperState != netlink.OperUp {
		return fmt.Errorf("the host's end %s is not up on the bridge", host.Attrs().Name)
	}
	return nil
}

func (b *Bridge) checkInside(r *record, req AttachRequest) error {
	ns, err := vnetns.GetFromPath(req.NetNS)
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", req.NetNS, err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering network namespace %s: %w", req.NetNS, err)
	}
	defer pod.Close()
	link, err := pod.LinkByName(req.IfName)
	if err != nil {
		return fmt.Errorf("%s inside: %w", req.IfName, err)
	}
	addrs, err := pod.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	routes, err := pod.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, a := range r.IPs {
		want := netip.PrefixFrom(a, a.BitLen())
		if !slices.ContainsFunc(addrs, func(x netlink.Addr) bool { p, ok := prefixOf(x.IPNet); return ok && p == want }) {
			return fmt.Errorf("%s does not have the address %s", req.IfName, a)
		}
		gw := b.gatewayFor(a)
		if !slices.ContainsFunc(routes, func(x netlink.Route) bool { return x.Gw.Equal(gw.AsSlice()) }) {
			return fmt.Errorf("%s has no default route by %s", req.IfName, gw)
		}
	}
	return nil
}
