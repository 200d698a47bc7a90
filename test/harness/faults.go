package harness

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// From linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Freeze makes the disk of a device of NewOnDisk hang: whoever writes waits until
// Thaw, which the test's end does too.
func (d *Device) Freeze() { d.tb.Helper(); d.freezing("make its disk hang", fiFreeze) }

// Thaw has the disk go on.
func (d *Device) Thaw() { d.tb.Helper(); d.freezing("have its disk go on", fiThaw) }

func (d *Device) freezing(what string, request uint) {
	d.tb.Helper()
	f, err := os.Open(d.DataDir())
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), request, 0)
		f.Close()
	}
	if err != nil {
		d.tb.Fatalf("%s: %s: %v", d.Name, what, err)
	}
	d.frozen = request == fiFreeze
}

// onPort does something to a device's port of its switch.
func (d *Device) onPort(what string, f func(port netlink.Link) error) {
	d.tb.Helper()
	err := d.sw.m.inNetNS(func() error {
		port, err := netlink.LinkByName(d.m.port)
		if err != nil {
			return err
		}
		return f(port)
	})
	if err != nil {
		d.tb.Fatalf("%s: %s: %v", d.Name, what, err)
	}
}

// unplugGone removes the port of a machine that has no power. Its end of the cable would
// stay for as long as the test holds a connection that it made from there, and the
// kernel there answer in the name of the machine that is started next.
func (s *Switch) unplugGone(port string) {
	_ = s.m.inNetNS(func() error { // there is none any more if there is no such namespace
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// Unplug pulls the device's cable; Plug puts it in again.
func (d *Device) Unplug() {
	d.tb.Helper()
	d.onPort("pull the cable", func(port netlink.Link) error { return netlink.LinkSetDown(port) })
}

// Plug puts the cable in again.
func (d *Device) Plug() {
	d.tb.Helper()
	d.onPort("put the cable in", func(port netlink.Link) error { return netlink.LinkSetUp(port) })
}

// Split puts devices on a link of their own, apart from those that stay; Join
// undoes it.
func (s *Switch) Split(devices ...*Device) {
	for _, d := range devices {
		d.onPort("move to another link", func(port netlink.Link) error {
			apart, err := netlink.LinkByName("br1")
			if err != nil {
				apart = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1"}}
				if err := netlink.LinkAdd(apart); err != nil {
					return err
				}
				if err := netlink.LinkSetUp(apart); err != nil {
					return err
				}
			}
			return netlink.LinkSetMaster(port, apart)
		})
	}
}

// Join puts devices back on the link that all share.
func (s *Switch) Join(devices ...*Device) {
	for _, d := range devices {
		d.onPort("move back", func(port netlink.Link) error {
			br, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(port, br)
		})
	}
}

// Readdress takes the device's address from its link and gives it another, as a
// DHCP client does with a new lease. Reboots keep it. It may be of another subnet of
// the same size, whose devices reach each other on the switch.
func (d *Device) Readdress(addr netip.Addr) {
	d.tb.Helper()
	err := d.m.inNetNS(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for i := range old {
			if err := netlink.AddrDel(eth0, &old[i]); err != nil {
				return fmt.Errorf("remove %v: %w", old[i].IPNet, err)
			}
		}
		if err := addAddr(eth0, addr); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gatewayOf(addr)})
	})
	if err != nil {
		d.tb.Fatalf("%s: another address: %v", d.Name, err)
	}
	d.Addr = addr
}

// Rename gives the machine another host name. Reboots keep it.
func (d *Device) Rename(hostname string) {
	d.tb.Helper()
	if out, err := d.Run("hostname", hostname); err != nil {
		d.tb.Fatalf("%s: another host name: %v %s", d.Name, err, out)
	}
	d.Hostname = hostname
}

// Traffic is how many bytes the device's link has sent and received.
func (d *Device) Traffic() (sent, received uint64) {
	d.tb.Helper()
	d.onPort("read its counters", func(port netlink.Link) error {
		st := port.Attrs().Statistics
		sent, received = st.RxBytes, st.TxBytes // as the switch sees them
		return nil
	})
	return sent, received
}
