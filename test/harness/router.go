package harness

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// MoveTo puts the device on link n of its switch, 10.99.n.0/24, with the address
// 10.99.n.host. Link 0 is [Subnet]; the switch is the router between them. Reboots
// keep it.
func (d *Device) MoveTo(n, host byte) {
	d.tb.Helper()
	addr := netip.AddrFrom4([4]byte{10, 99, n, host})
	d.onPort("move to another link", func(port netlink.Link) error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			return err
		}
		br, err := netlink.LinkByName(linkOf(addr))
		if err != nil {
			br = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: linkOf(addr)}}
			if err := netlink.LinkAdd(br); err != nil {
				return err
			}
			if err := addAddr(br, netip.AddrFrom4([4]byte{10, 99, n, 1})); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(br); err != nil {
				return err
			}
		}
		return netlink.LinkSetMaster(port, br)
	})
	d.Readdress(addr)
}

// linkOf is the bridge of the switch that an address is on, if it was made.
func linkOf(addr netip.Addr) string {
	if b := addr.As4(); Subnet.Contains(addr) || b[0] != 10 || b[1] != 99 {
		return "br0"
	} else {
		return fmt.Sprint("link", b[2])
	}
}
