package announce

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// tell sends, unasked, where an address is now.
func tell(link int, mac net.HardwareAddr, a netip.Addr) error {
	proto, to, payload := uint16(unix.ETH_P_ARP), net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, arpAnnouncement(mac, a)
	if a.Is6() {
		proto, to, payload = unix.ETH_P_IPV6, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, neighborAdvertisement(mac, a)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // 0: receives nothing
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	defer unix.Close(fd)
	dst := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: link, Halen: 6}
	copy(dst.Addr[:], to)
	return unix.Sendto(fd, payload, 0, dst)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// arpAnnouncement is an ARP request whose sender and target are the same
// address (RFC 5227, 3).
func arpAnnouncement(mac net.HardwareAddr, a netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, mac...), a.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
}

// neighborAdvertisement is one to all nodes of the link, which overrides what
// they know.
func neighborAdvertisement(mac net.HardwareAddr, a netip.Addr) []byte {
	const override, router = 1 << 5, 1 << 7
	icmp := []byte{136, 0, 0, 0, router | override, 0, 0, 0}
	icmp = append(icmp, a.AsSlice()...)
	icmp = append(append(icmp, 2, 1), mac...) // option: target link-layer address
	all := netip.IPv6LinkLocalAllNodes()
	head := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}
	head = append(append(head, a.AsSlice()...), all.AsSlice()...)
	// The checksum is over both addresses, length, protocol and message.
	pseudo := append(append(append([]byte{}, head[8:40]...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58), icmp...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo))
	return append(head, icmp...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
