package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"edged/internal/linknews"
)

// settleAddress is how long the kernel's news of addresses are gathered: a lease
// that is replaced is several.
const settleAddress = 200 * time.Millisecond

// address is where this device is now.
func (d *device) address() netip.Addr {
	if a := d.moved.Load(); a != nil {
		return *a
	}
	return d.nodeIP
}

// onMoved has f called whenever the device has got another address.
func (d *device) onMoved(f func()) {
	d.movedMu.Lock()
	d.whenMoved = append(d.whenMoved, f)
	d.movedMu.Unlock()
}

// followAddress tells the cluster when this device loses its address and has
// another, until ctx ends. It sleeps until the kernel says that addresses changed.
// With --node-ip there is nothing to follow.
func (d *device) followAddress(ctx context.Context) error {
	if d.cfg.parsed.nodeIP.IsValid() {
		return nil
	}
	news, err := linknews.Open(linknews.Addrs | linknews.Links)
	if err != nil {
		d.log.Warn("a change of this device's address is not followed until it starts again", "err", err)
		return nil
	}
	stop := context.AfterFunc(ctx, func() { news.Close() })
	defer stop()
	defer news.Close()
	buf := make([]byte, 32<<10)
	link := "" // that has the address
	for {
		link = d.follow(link)
		if _, err := news.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) { // lost news are news
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow this device's addresses: %w", err)
		}
		for err := news.SetReadDeadline(time.Now().Add(settleAddress)); err == nil; {
			_, err = news.Read(buf)
		}
		if err := news.SetReadDeadline(time.Time{}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("follow this device's addresses: %w", err)
		}
	}
}

// follow looks whether the device still has its address, on a link that is
// returned. One that it has left is replaced once there is another: until then
// nobody reaches it anyway.
func (d *device) follow(link string) string {
	was := d.address()
	if on := linkOf(was); on != "" && !was.IsLoopback() {
		return on
	}
	now := nextAddress(was, link)
	if now == was || now.IsLoopback() {
		return link
	}
	d.log.Info("this device has another address", "address", now, "was", was)
	d.moved.Store(&now)
	d.identity.SetIPs(d.servingIPs())
	d.store.Move(d.peerURLs())
	d.movedMu.Lock()
	told := slices.Clone(d.whenMoved)
	d.movedMu.Unlock()
	for _, f := range told {
		f()
	}
	return linkOf(now)
}

// nextAddress is where a device is found that was at an address on link: on the
// link of the default route, or where it was; not on any other, of which a
// machine with containers of other programs has some. One that had no address
// yet takes what there is.
func nextAddress(was netip.Addr, link string) netip.Addr {
	if was.IsLoopback() {
		return findNodeIP(was.Is6())
	}
	for _, name := range []string{defaultRouteLink("/proc/net/route"), link} {
		if iface, err := net.InterfaceByName(name); err == nil {
			if a := globalAddr(iface, was.Is6()); a.IsValid() {
				return a
			}
		}
	}
	return was
}

// linkOf is the link that is up and has the address, "" for none.
func linkOf(a netip.Addr) string {
	ifaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for i := range ifaces {
		if ifaces[i].Flags&net.FlagUp != 0 && slices.Contains(addrsOf(&ifaces[i]), a) {
			return ifaces[i].Name
		}
	}
	return ""
}
