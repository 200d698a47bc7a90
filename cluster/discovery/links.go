package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mdnsPort = 5353
	// maxLinks bounds the sockets.
	maxLinks = 32
	// packetBytes is what is read of a packet: a device's own are a few hundred.
	packetBytes = 4 << 10
)

var groups = [2]netip.Addr{netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")}

// ownLinks are what this daemon, and container engines, make: nobody else is there.
var ownLinks = []string{"edged", "edv", "veth", "cali", "flannel", "cni"}

// link is what there is of a link of the device.
type link struct {
	index int
	name  string
	addrs []netip.Addr
}

// findLinks lists the links on which others may be, by index.
func findLinks() ([]link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	var out []link
	for _, i := range ifaces {
		const want = net.FlagUp | net.FlagMulticast
		if i.Flags&(want|net.FlagLoopback) != want || slices.ContainsFunc(ownLinks, func(p string) bool { return strings.HasPrefix(i.Name, p) }) {
			continue
		}
		l := link{index: i.Index, name: i.Name}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, p.Addr().WithZone(""))
			}
		}
		slices.SortFunc(l.addrs, netip.Addr.Compare)
		if len(l.addrs) > 0 && len(out) < maxLinks {
			out = append(out, l)
		}
	}
	return out, nil
}

// openLink makes a socket that hears and speaks mDNS on one link, in one family.
// It is bound to the group's address, so that it takes nothing from another
// program on the port.
func openLink(l link, group netip.Addr) (conn net.PacketConn, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mDNS on %s: %w", l.name, err)
		}
	}()
	family := unix.AF_INET
	if group.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "mdns")
	defer f.Close() // FilePacketConn has a copy
	set := func(level, opt, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, opt, value))
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err != nil {
		return nil, err
	}
	if err := unix.BindToDevice(fd, l.name); err != nil {
		return nil, os.NewSyscallError("bind to the link", err)
	}
	if group.Is4() {
		set(unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 255)
		set(unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(l.index)}); err != nil {
			return nil, os.NewSyscallError("join the group", err)
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(l.index)}); err != nil {
			return nil, os.NewSyscallError("choose the link", err)
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: mdnsPort, Addr: group.As4()})
	} else {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, l.index)
		if err != nil {
			return nil, err
		}
		if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(l.index)}); err != nil {
			return nil, os.NewSyscallError("join the group", err)
		}
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: mdnsPort, Addr: group.As16(), ZoneId: uint32(l.index)})
	}
	if err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return net.FilePacketConn(f)
}

// noticeGroups are what the kernel sends notices of: links and routes. An address
// that comes or goes is a local route that does; notices of addresses would also
// come whenever the lifetime of one is renewed.
const noticeGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

func openNotices() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's notices of links: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: noticeGroups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open the kernel's notices of links: %w", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// readNotices pokes for each notice that may be about a link to others, until the
// socket is closed.
func readNotices(f *os.File, poke func()) {
	buf := make([]byte, 256)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
			poke()
		case err != nil:
			return
		case matters(buf[:n]):
			poke()
		}
	}
}

// matters says whether a notice may be about a link or an address that others
// see. Pods' own come and go all day and are not.
func matters(b []byte) bool {
	const header = unix.SizeofNlMsghdr
	if len(b) < header {
		return false
	}
	switch body := b[header:]; binary.NativeEndian.Uint16(b[4:]) {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		const kind = 7 // in struct rtmsg
		return len(body) > kind && body[kind] == unix.RTN_LOCAL
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// The name is the first attribute.
		const name = unix.SizeofIfInfomsg + unix.SizeofRtAttr
		return len(body) >= name && !slices.ContainsFunc(ownLinks, func(p string) bool { return bytes.HasPrefix(body[name:], []byte(p)) })
	}
	return false
}
