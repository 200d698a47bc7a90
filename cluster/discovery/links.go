package discovery

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"edged/internal/linknews"
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

// noticeGroups are what the kernel sends notices of. An address that comes or goes
// is a local route that does; notices of addresses would also come whenever the
// lifetime of one is renewed.
const noticeGroups = linknews.Links | linknews.Routes

// matters says whether a notice may be about a link or an address that others
// see. Pods' own come and go all day and are not.
func matters(notice []byte) bool {
	kind, body, _ := linknews.Split(notice)
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		const kind = 7 // in struct rtmsg
		return len(body) > kind && body[kind] == unix.RTN_LOCAL
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		name, ok := linknews.LinkName(body)
		return ok && !slices.ContainsFunc(ownLinks, func(p string) bool { return bytes.HasPrefix(name, []byte(p)) })
	}
	return false
}
