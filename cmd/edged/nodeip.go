package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"strings"
)

// findNodeIP is the address of a family of the default route's link, else the
// first global address of a link that is up, else loopback: a device starts with
// whatever is there.
func findNodeIP(is6 bool) netip.Addr {
	if link := defaultRouteLink("/proc/net/route"); link != "" {
		if iface, err := net.InterfaceByName(link); err == nil {
			if a := globalAddr(iface, is6); a.IsValid() {
				return a
			}
		}
	}
	ifaces, err := net.Interfaces()
	if err == nil {
		for i := range ifaces {
			if ifaces[i].Flags&net.FlagUp == 0 || strings.HasPrefix(ifaces[i].Name, "edged") {
				continue
			}
			if a := globalAddr(&ifaces[i], is6); a.IsValid() {
				return a
			}
		}
	}
	if is6 {
		return netip.IPv6Loopback()
	}
	return netip.MustParseAddr("127.0.0.1")
}

// otherNodeIP is the address of the second family that the device has where its
// first one is; invalid if there is none, or the cluster has one family only.
func (d *device) otherNodeIP() netip.Addr {
	if len(d.cfg.parsed.clusterCIDRs) < 2 {
		return netip.Addr{}
	}
	ifaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}
	}
	own := d.address()
	for i := range ifaces {
		var other netip.Addr
		here := false
		for _, a := range addrsOf(&ifaces[i]) {
			here = here || a == own
			if a.Is4() != own.Is4() && a.IsGlobalUnicast() && !other.IsValid() {
				other = a
			}
		}
		if here {
			return other
		}
	}
	return netip.Addr{}
}

func addrsOf(iface *net.Interface) (out []netip.Addr) {
	addrs, err := iface.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

func globalAddr(iface *net.Interface, is6 bool) netip.Addr {
	for _, a := range addrsOf(iface) {
		if a.Is6() == is6 && a.IsGlobalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}

// defaultRouteLink reads the kernel's IPv4 routing table (proc(5),
// /proc/net/route) and returns the link of the default route of least metric.
func defaultRouteLink(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	best, link := uint64(1<<63), ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 8 || !zeroHex(fields[1]) || !zeroHex(fields[7]) {
			continue
		}
		var metric uint64
		for _, c := range fields[6] {
			metric = metric*10 + uint64(c-'0')
		}
		if metric < best {
			best, link = metric, fields[0]
		}
	}
	return link
}

func zeroHex(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 4 && binary.LittleEndian.Uint32(b) == 0
}
