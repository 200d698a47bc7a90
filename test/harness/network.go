package harness

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Subnet is the link that all devices of a test share.
var Subnet = netip.MustParsePrefix("10.99.0.0/24")

// Switch is a bridge in a namespace of its own, at Subnet's first address.
type Switch struct {
	m     *machine
	ports int
}

// NewSwitch makes a switch with nothing plugged in.
func NewSwitch(tb TB) *Switch {
	tb.Helper()
	m, err := boot("switch", false, "")
	if err != nil {
		tb.Fatalf("switch: %v", err)
	}
	tb.Cleanup(m.halt)
	s := &Switch{m: m}
	err = m.inNetNS(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		if err := addAddr(br, Subnet.Addr().Next()); err != nil {
			return err
		}
		return upAll("lo", "br0")
	})
	if err != nil {
		tb.Fatalf("switch: %v", err)
	}
	return s
}

// plug connects machine m by a link that it sees as eth0 with address addr and
// hardware address mac.
func (s *Switch) plug(m *machine, addr netip.Addr, mac net.HardwareAddr) error {
	s.ports++
	port := fmt.Sprintf("port%d", s.ports)
	m.port = port
	err := s.m.inNetNS(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: "eth0", PeerNamespace: netlink.NsPid(m.pid), PeerHardwareAddr: mac}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", port, err)
		}
		br, err := netlink.LinkByName(linkOf(addr))
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	return m.inNetNS(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addAddr(eth0, addr); err != nil {
			return err
		}
		if err := upAll("lo", "eth0"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gatewayOf(addr)})
	})
}

// gatewayOf is where the devices of addr's subnet send what is for elsewhere.
// Nothing need be there.
func gatewayOf(addr netip.Addr) net.IP {
	return netip.PrefixFrom(addr, Subnet.Bits()).Masked().Addr().Next().AsSlice()
}

// hardwareAddr is a machine's own, the same after each reboot, as a board's is:
// neighbors remember it.
func hardwareAddr(addr netip.Addr) net.HardwareAddr {
	b := addr.As16()
	return append(net.HardwareAddr{2, 0xed}, b[12:]...)
}

func addAddr(link netlink.Link, addr netip.Addr) error {
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(Subnet.Bits(), addr.BitLen())}})
}

func upAll(names ...string) error {
	for _, n := range names {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return nil
}
