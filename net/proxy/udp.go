package proxy

import (
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// udpView is who may answer at which UDP address, to tell stale connection
// tracks. Keys with an unset address are ports of the device.
type udpView struct {
	parts    []*part // it was made from; those with UDP only
	backends map[netip.AddrPort][]netip.AddrPort
}

// viewUDP reuses old if no service with UDP changed.
func viewUDP(parts []*part, old udpView) udpView {
	v := udpView{parts: slices.DeleteFunc(slices.Clone(parts), func(p *part) bool { return !hasUDP(p.svc) })}
	if slices.Equal(v.parts, old.parts) {
		return old
	}
	v.backends = map[netip.AddrPort][]netip.AddrPort{}
	for _, p := range v.parts {
		for i := range p.svc.frontends {
			f := &p.svc.frontends[i]
			if f.proto != unix.IPPROTO_UDP {
				continue
			}
			at := netip.AddrPortFrom(f.addr, f.port)
			var to []netip.AddrPort
			if f.target.group != nil {
				to = append(to, f.target.group.endpoints...)
			}
			if f.outside != nil && f.outside.group != nil {
				to = append(to, f.outside.group.endpoints...)
			}
			v.backends[at] = append(v.backends[at], to...)
		}
	}
	return v
}

func hasUDP(s *service) bool {
	return slices.ContainsFunc(s.frontends, func(f frontend) bool { return f.proto == unix.IPPROTO_UDP })
}

func (v udpView) same(o udpView) bool {
	return maps.EqualFunc(v.backends, o.backends, slices.Equal)
}

// stale says whether a connection track leads where the rules would not, given
// the services of before and now.
func stale(old, now udpView, dst, backend netip.AddrPort) bool {
	for _, at := range []netip.AddrPort{dst, netip.AddrPortFrom(netip.Addr{}, dst.Port())} {
		to, serves := now.backends[at]
		if _, served := old.backends[at]; !serves && !served {
			continue
		}
		// At a port of the device, a track that was not translated is
		// somebody's own traffic to another host's port of that number.
		if !at.Addr().IsValid() && dst == backend {
			return false
		}
		return !slices.Contains(to, backend)
	}
	return false
}
