package announce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// askTimes is how often the neighbors are asked whether somebody has an address,
	// askEvery so long: a board's radio sleeps for up to 100 ms, and loses some.
	askTimes = 3
	askEvery = 200 * time.Millisecond
)

// question is whether a neighbor has an address.
type question struct {
	addr  netip.Addr
	link  int
	mac   net.HardwareAddr
	fd    int
	asked int
	until time.Time // answers are waited for
}

// newQuestion opens a socket that hears the answers.
func newQuestion(link int, name string, mac net.HardwareAddr, a netip.Addr) (*question, error) {
	q := &question{addr: a, link: link, mac: mac}
	var err error
	if a.Is4() {
		q.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ARP)))
		if err == nil {
			err = unix.Bind(q.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: link})
		}
	} else {
		q.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
		if err == nil {
			var filter unix.ICMPv6Filter // a set bit is not let through
			for i := range filter.Data {
				filter.Data[i] = ^uint32(0)
			}
			filter.Data[136/32] &^= 1 << (136 % 32)
			err = errors.Join(
				unix.SetsockoptICMPv6Filter(q.fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
				unix.SetsockoptInt(q.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), // others are not taken
				unix.SetsockoptString(q.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name),
			)
		}
	}
	if err != nil {
		if q.fd > 0 {
			unix.Close(q.fd)
		}
		return nil, fmt.Errorf("opening a socket to ask with: %w", err)
	}
	return q, nil
}

func (q *question) close() { unix.Close(q.fd) }

// ask sends the question once more.
func (q *question) ask() error {
	q.asked++
	q.until = time.Now().Add(askEvery)
	a := q.addr.As16()
	if q.addr.Is4() {
		// A probe: one whose sender has no address yet (RFC 5227, 1.1).
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, q.mac...)
		b = append(append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), a[12:]...)
		return unix.Sendto(q.fd, b, 0, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: q.link, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
	}
	// A neighbor solicitation to those whose address ends so (RFC 4861, 4.3). The
	// kernel adds the checksum.
	b := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
	b = append(append(b, 1, 1), q.mac...) // option: source link-layer address
	to := &unix.SockaddrInet6{ZoneId: uint32(q.link), Addr: [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}}
	return unix.Sendto(q.fd, b, 0, to)
}

// answered tells whether a neighbor said, since it was asked, that it has the address.
func (q *question) answered() bool {
	buf := make([]byte, 128)
	for {
		n, _, err := unix.Recvfrom(q.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false
		}
		if q.isAnswer(buf[:n]) {
			return true
		}
	}
}

func (q *question) isAnswer(b []byte) bool {
	if q.addr.Is4() {
		// Whatever it says: who sends from the address has it.
		return len(b) >= 28 && binary.BigEndian.Uint16(b[2:]) == unix.ETH_P_IP && bytes.Equal(b[14:18], q.addr.AsSlice()) && !bytes.Equal(b[8:14], q.mac)
	}
	return len(b) >= 24 && b[0] == 136 && bytes.Equal(b[8:24], q.addr.AsSlice()) && (len(b) < 32 || b[24] != 2 || !bytes.Equal(b[26:32], q.mac))
}
