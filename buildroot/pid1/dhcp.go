package pid1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// DHCP message types and options (RFC 2132).
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpACK      = 5
	dhcpNAK      = 6

	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostname  = 12
	optNTP       = 42
	optRequested = 50
	optLease     = 51
	optType      = 53
	optServer    = 54
	optWanted    = 55
	optRenewal   = 58
	optRebinding = 59
	optEnd       = 255
)

var dhcpCookie = [4]byte{99, 130, 83, 99}

// lease is what a DHCP server gave.
type lease struct {
	kind            byte
	xid             uint32
	address         netip.Prefix
	server          netip.Addr
	routers         []netip.Addr
	dns, ntp        []netip.Addr
	renewal, rebind time.Duration
	valid           time.Duration
}

// request describes a message to a server.
type request struct {
	kind     byte
	xid      uint32
	mac      [6]byte
	hostname string
	secs     uint16
	// client is the address in use (renewing); wanted the one asked for, of server.
	client, wanted, server netip.Addr
}

// encode writes a message of RFC 2131, figure 1. Replies are wanted by
// broadcast: without an address nothing else arrives.
func (r request) encode() []byte {
	b := make([]byte, 236, 300)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], r.xid)
	binary.BigEndian.PutUint16(b[8:], r.secs)
	if r.client.Is4() {
		copy(b[12:], r.client.AsSlice())
	} else {
		b[10] = 0x80
	}
	copy(b[28:], r.mac[:])
	b = append(b, dhcpCookie[:]...)
	b = append(b, optType, 1, r.kind)
	for _, a := range []struct {
		opt  byte
		addr netip.Addr
	}{{optRequested, r.wanted}, {optServer, r.server}} {
		if a.addr.Is4() {
			b = append(append(b, a.opt, 4), a.addr.AsSlice()...)
		}
	}
	if n := len(r.hostname); n > 0 && n < 64 {
		b = append(append(b, optHostname, byte(n)), r.hostname...)
	}
	b = append(b, optWanted, 6, optMask, optRouter, optDNS, optNTP, optRenewal, optRebinding, optEnd)
	for len(b) < 300 { // some relays drop shorter ones
		b = append(b, 0)
	}
	return b
}

var errDHCP = errors.New("not a DHCP reply")

// decodeDHCP reads a server's reply.
func decodeDHCP(b []byte, mac [6]byte) (l lease, err error) {
	if len(b) < 240 || b[0] != 2 || [6]byte(b[28:34]) != mac || [4]byte(b[236:240]) != dhcpCookie {
		return l, errDHCP
	}
	l.xid = binary.BigEndian.Uint32(b[4:])
	bits := -1
	for opts := b[240:]; len(opts) > 0 && opts[0] != optEnd; {
		if opts[0] == 0 {
			opts = opts[1:]
			continue
		}
		if len(opts) < 2 || len(opts) < 2+int(opts[1]) {
			return l, fmt.Errorf("%w: option %d is cut off", errDHCP, opts[0])
		}
		opt, v := opts[0], opts[2:2+int(opts[1])]
		opts = opts[2+len(v):]
		seconds := func() time.Duration {
			if len(v) != 4 {
				return 0
			}
			return time.Duration(binary.BigEndian.Uint32(v)) * time.Second
		}
		switch opt {
		case optType:
			if len(v) == 1 {
				l.kind = v[0]
			}
		case optMask:
			if len(v) == 4 {
				if bits, err = maskBits(binary.BigEndian.Uint32(v)); err != nil {
					return l, err
				}
			}
		case optRouter:
			l.routers = addrs(v)
		case optDNS:
			l.dns = addrs(v)
		case optNTP:
			l.ntp = addrs(v)
		case optServer:
			if a := addrs(v); len(a) == 1 {
				l.server = a[0]
			}
		case optLease:
			l.valid = seconds()
		case optRenewal:
			l.renewal = seconds()
		case optRebinding:
			l.rebind = seconds()
		}
	}
	if l.kind == dhcpNAK {
		return l, nil
	}
	if l.kind != dhcpOffer && l.kind != dhcpACK {
		return l, fmt.Errorf("%w: type %d", errDHCP, l.kind)
	}
	addr := netip.AddrFrom4([4]byte(b[16:20]))
	if bits < 0 || !addr.IsGlobalUnicast() {
		return l, fmt.Errorf("%w: address %s without a mask", errDHCP, addr)
	}
	l.address = netip.PrefixFrom(addr, bits)
	l.valid = max(l.valid, time.Minute)
	if l.renewal <= 0 || l.renewal >= l.valid {
		l.renewal = l.valid / 2
	}
	if l.rebind <= l.renewal || l.rebind >= l.valid {
		l.rebind = max(l.renewal, l.valid/8*7)
	}
	return l, nil
}

func maskBits(m uint32) (int, error) {
	for n := 0; n <= 32; n++ {
		if m == ^uint32(0)<<(32-n) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: mask %08x", errDHCP, m)
}

func addrs(v []byte) (out []netip.Addr) {
	for ; len(v) >= 4 && len(out) < 8; v = v[4:] {
		out = append(out, netip.AddrFrom4([4]byte(v[:4])))
	}
	return out
}
