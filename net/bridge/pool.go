package bridge

import (
	"fmt"
	"net/netip"
	"time"
)

// reuseAfter is how long a freed address rests: longer than the proxies of
// other devices need to forget the endpoint, and than a UDP connection track
// without answers lives (30 s).
const reuseAfter = 30 * time.Second

// pool hands out the addresses of one Pod CIDR. Time is the kernel's time since
// boot, passed in: devices without a battery clock jump.
//
// Invariants: an address is in at most one of used and freed; neither holds the
// gateway, the network's or (IPv4) the broadcast address.
type pool struct {
	prefix  netip.Prefix
	gateway netip.Addr // the first address
	last    netip.Addr // the last that may be given to a Pod
	cursor  netip.Addr // where the next search begins

	used  map[netip.Addr]string        // to the Pod that has it
	freed map[netip.Addr]time.Duration // to the time since boot when it was freed
}

func newPool(prefix netip.Prefix) *pool {
	p := &pool{
		prefix:  prefix,
		gateway: prefix.Addr().Next(),
		last:    lastAddr(prefix),
		used:    map[netip.Addr]string{},
		freed:   map[netip.Addr]time.Duration{},
	}
	if prefix.Addr().Is4() {
		p.last = p.last.Prev() // broadcast
	}
	p.cursor = p.gateway
	return p
}

// allocate takes the address after the one given last, round robin, so that a
// freed one comes up as late as possible.
func (p *pool) allocate(id string, now time.Duration) (netip.Addr, error) {
	resting := 0
	start := p.after(p.cursor)
	for a := start; ; {
		if _, used := p.used[a]; !used {
			since, freed := p.freed[a]
			if !freed || now-since >= reuseAfter {
				p.claim(a, id)
				p.cursor = a
				return a, nil
			}
			resting++
		}
		if a = p.after(a); a == start {
			return netip.Addr{}, fmt.Errorf("no address free in Pod CIDR %s: %d in use, %d resting for up to %s after use",
				p.prefix, len(p.used), resting, reuseAfter)
		}
	}
}

// after is the next address that a Pod may have, the first after the last.
func (p *pool) after(a netip.Addr) netip.Addr {
	if a == p.last || !p.prefix.Contains(a) {
		return p.gateway.Next()
	}
	return a.Next()
}

// claim records that id has a. It reports false if another has it.
func (p *pool) claim(a netip.Addr, id string) bool {
	if owner, ok := p.used[a]; ok {
		return owner == id
	}
	if !p.prefix.Contains(a) || a == p.gateway || a == p.prefix.Addr() || a.Compare(p.last) > 0 {
		return false
	}
	delete(p.freed, a)
	p.used[a] = id
	return true
}

// free lets a rest.
func (p *pool) free(a netip.Addr, now time.Duration) {
	if _, ok := p.used[a]; !ok {
		return
	}
	delete(p.used, a)
	p.freed[a] = now
}

// prune forgets addresses that have rested long enough, so that freed stays as
// small as the number of Pods that ended within reuseAfter.
func (p *pool) prune(now time.Duration) {
	for a, since := range p.freed {
		if now-since >= reuseAfter || since > now {
			delete(p.freed, a)
		}
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
