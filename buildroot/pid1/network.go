package pid1

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// network brings up whatever links there are and come later.
type network struct {
	cfg      NetworkConfig
	hostname string
	console  *console
	up       chan struct{} // closed when the first link has an address
	once     sync.Once

	mu     sync.Mutex
	leases map[string]lease // by link; static ones too
	busy   map[string]bool  // links that have a goroutine
}

func startNetwork(cfg NetworkConfig, hostname string, c *console) *network {
	n := &network{cfg: cfg, hostname: hostname, console: c, up: make(chan struct{}), leases: map[string]lease{}, busy: map[string]bool{}}
	c.check("bring up lo", linkUp("lo"))
	n.mu.Lock()
	c.check("write resolv.conf", n.writeResolver())
	n.mu.Unlock()
	go n.followLinks()
	return n
}

// wait returns when a link has an address, or later than limit not.
func (n *network) wait(limit time.Duration) {
	select {
	case <-n.up:
	case <-time.After(limit):
		n.console.say("no link has an address yet; going on without")
	}
}

// followLinks starts every physical link; the kernel tells when there is
// another one.
func (n *network) followLinks() {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK})
	}
	n.console.check("listen for links", err)
	buf := make([]byte, 8192)
	for {
		for _, link := range physicalLinks() {
			n.mu.Lock()
			started := n.busy[link]
			n.busy[link] = true
			n.mu.Unlock()
			if !started {
				go n.runLink(link)
			}
		}
		if err != nil {
			return
		}
		// An overrun (ENOBUFS) is a reason to look, as a message is.
		if _, _, err := unix.Recvfrom(fd, buf, 0); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			n.console.check("listen for links", err)
			return
		}
	}
}

func (n *network) runLink(link string) {
	defer func() {
		n.mu.Lock()
		delete(n.busy, link)
		n.mu.Unlock()
	}()
	if err := linkUp(link); err != nil {
		n.console.check("bring up "+link, err)
		return
	}
	for _, l := range n.cfg.Links {
		if l.Name == link {
			given := lease{address: l.Address, dns: n.cfg.DNS, valid: 1 << 32 * time.Second}
			if l.Gateway.IsValid() {
				given.routers = []netip.Addr{l.Gateway}
			}
			n.console.check(link, n.apply(link, given))
			return
		}
	}
	n.runDHCP(link)
}

// runDHCP keeps a lease as long as the link is there.
func (n *network) runDHCP(link string) {
	wait := time.Second
	for {
		iface, err := net.InterfaceByName(link)
		if err != nil {
			return // unplugged
		}
		if err := n.dhcpOnce(iface); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			n.console.check(link, err)
		}
		time.Sleep(wait)
		wait = min(2*wait, time.Minute)
	}
}

// dhcpOnce gets a lease and renews it until that fails.
func (n *network) dhcpOnce(iface *net.Interface) error {
	if len(iface.HardwareAddr) != 6 {
		return fmt.Errorf("its address %q is not Ethernet's", iface.HardwareAddr)
	}
	conn, err := listenDHCP(iface.Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	req := request{kind: dhcpDiscover, xid: randomID(), mac: [6]byte(iface.HardwareAddr), hostname: n.hostname}
	offer, err := exchange(conn, req, dhcpOffer, netip.IPv4Unspecified(), 3)
	if err != nil {
		return err
	}
	req.kind, req.wanted, req.server = dhcpRequest, offer.address.Addr(), offer.server
	got, err := exchange(conn, req, dhcpACK, netip.IPv4Unspecified(), 3)
	if err != nil {
		return err
	}
	for {
		if err := n.apply(iface.Name, got); err != nil {
			return err
		}
		start := time.Now()
		time.Sleep(got.renewal)
		renew := request{kind: dhcpRequest, xid: randomID(), mac: req.mac, hostname: n.hostname, client: got.address.Addr()}
		next, err := exchange(conn, renew, dhcpACK, got.server, 3)
		for err != nil && time.Since(start) < got.valid {
			// Rebinding: any server may answer.
			time.Sleep(min(time.Minute, got.valid/16))
			next, err = exchange(conn, renew, dhcpACK, netip.IPv4Unspecified(), 3)
		}
		if err != nil {
			n.drop(iface.Name, got)
			return fmt.Errorf("the lease of %s was not renewed: %w", got.address, err)
		}
		if next.address != got.address {
			n.drop(iface.Name, got)
		}
		got = next
	}
}

func randomID() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, as crypto/rand promises
	return binary.BigEndian.Uint32(b[:])
}

func listenDHCP(link string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		ctlErr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		})
		return errors.Join(ctlErr, err)
	}}
	return lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
}

// exchange sends a request until a reply of the wanted kind comes.
func exchange(conn net.PacketConn, req request, want byte, server netip.Addr, tries int) (lease, error) {
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: 67}
	if !server.IsUnspecified() && server.IsValid() {
		to.IP = server.AsSlice()
	}
	buf := make([]byte, 1500)
	start := time.Now()
	err := error(os.ErrDeadlineExceeded)
	for try := range tries {
		req.secs = uint16(time.Since(start) / time.Second)
		if _, err = conn.WriteTo(req.encode(), to); err != nil {
			return lease{}, err
		}
		deadline := time.Now().Add(2 * time.Second << try)
		if err = conn.SetReadDeadline(deadline); err != nil {
			return lease{}, err
		}
		for {
			var size int
			if size, _, err = conn.ReadFrom(buf); err != nil {
				break
			}
			l, decodeErr := decodeDHCP(buf[:size], req.mac)
			if decodeErr != nil || l.xid != req.xid {
				continue // for somebody else
			}
			if l.kind == dhcpNAK {
				return lease{}, errors.New("the DHCP server refused")
			}
			if l.kind == want {
				return l, nil
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return lease{}, err
		}
	}
	return lease{}, err
}

// apply gives a link what a lease says.
func (n *network) apply(link string, l lease) error {
	if err := setAddress(link, l.address, unix.RTM_NEWADDR); err != nil {
		return fmt.Errorf("give %s to %s: %w", l.address, link, err)
	}
	if len(l.routers) > 0 {
		if err := defaultRoute(link, l.routers[0]); err != nil {
			return fmt.Errorf("route by %s: %w", l.routers[0], err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leases[link].address != l.address {
		n.console.say("%s has %s", link, l.address)
	}
	n.leases[link] = l
	err := n.writeResolver()
	n.once.Do(func() { close(n.up) })
	return err
}

func (n *network) drop(link string, l lease) {
	n.console.check("take "+l.address.String()+" from "+link, setAddress(link, l.address, unix.RTM_DELADDR))
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.leases, link)
	n.console.check("write resolv.conf", n.writeResolver())
}

// servers collects what all leases say, without doubles.
func (n *network) servers(of func(lease) []netip.Addr) (out []netip.Addr) {
	for _, l := range n.leases {
		for _, a := range of(l) {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func (n *network) timeServers() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.servers(func(l lease) []netip.Addr { return l.ntp })
}

// writeResolver is called with the mutex held.
func (n *network) writeResolver() error {
	dns := n.cfg.DNS
	if len(dns) == 0 {
		dns = n.servers(func(l lease) []netip.Addr { return l.dns })
	}
	var out strings.Builder
	for i, a := range dns {
		if i < 3 { // what resolvers read
			fmt.Fprintf(&out, "nameserver %s\n", a)
		}
	}
	if err := os.WriteFile("/run/resolv.conf.new", []byte(out.String()), 0o644); err != nil {
		return err
	}
	return os.Rename("/run/resolv.conf.new", "/run/resolv.conf")
}

// The three requests to rtnetlink(7) that are needed.

func linkUp(link string) error {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(iface.Index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	return rtnetlink(unix.RTM_NEWLINK, 0, body)
}

func setAddress(link string, p netip.Prefix, kind uint16) error {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = unix.AF_INET, byte(p.Bits())
	binary.NativeEndian.PutUint32(body[4:], uint32(iface.Index))
	body = attribute(body, unix.IFA_LOCAL, p.Addr().AsSlice())
	body = attribute(body, unix.IFA_ADDRESS, p.Addr().AsSlice())
	err = rtnetlink(kind, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func defaultRoute(link string, gateway netip.Addr) error {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[4], body[5], body[7] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTPROT_DHCP, unix.RTN_UNICAST
	index := make([]byte, 4)
	binary.NativeEndian.PutUint32(index, uint32(iface.Index))
	// The metric keeps routes of several links apart.
	metric := make([]byte, 4)
	binary.NativeEndian.PutUint32(metric, 100+uint32(iface.Index))
	body = attribute(body, unix.RTA_GATEWAY, gateway.AsSlice())
	body = attribute(body, unix.RTA_OIF, index)
	body = attribute(body, unix.RTA_PRIORITY, metric)
	return rtnetlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func attribute(body []byte, kind uint16, value []byte) []byte {
	head := make([]byte, 4)
	binary.NativeEndian.PutUint16(head, uint16(4+len(value)))
	binary.NativeEndian.PutUint16(head[2:], kind)
	body = append(append(body, head...), value...)
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	return body
}

// rtnetlink sends a request and waits for the kernel's answer.
func rtnetlink(kind, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	size, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if size < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer makes no sense")
	}
	if errno := -int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
