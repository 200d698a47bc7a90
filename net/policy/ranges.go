package policy

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
)

// span is a range of addresses of one family, both ends included.
type span struct{ first, last netip.Addr }

func (s span) String() string { return s.first.String() + "-" + s.last.String() }

// blocks are the addresses of one family that ipBlocks hold: sorted spans that
// do not touch each other. What the API server would not have accepted is left
// out of what is allowed, or, as an exception, kept out.
func blocks(list []*networkingv1.IPBlock, is6 bool) []span {
	var out []span
	for _, b := range list {
		p, err := netip.ParsePrefix(b.CIDR)
		if err != nil || p.Addr().Is6() != is6 {
			continue
		}
		rest := []span{spanOf(p)}
		for _, e := range b.Except {
			x, err := netip.ParsePrefix(e)
			if err != nil {
				rest = nil
				break
			}
			if x.Addr().Is6() == is6 {
				rest = without(rest, spanOf(x))
			}
		}
		out = append(out, rest...)
	}
	return merge(out)
}

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return span{p.Addr(), last}
}

// without takes x out of every span.
func without(list []span, x span) (out []span) {
	for _, s := range list {
		if x.last.Less(s.first) || s.last.Less(x.first) {
			out = append(out, s)
			continue
		}
		if s.first.Less(x.first) {
			out = append(out, span{s.first, x.first.Prev()})
		}
		if x.last.Less(s.last) {
			out = append(out, span{x.last.Next(), s.last})
		}
	}
	return out
}

// merge sorts and joins what overlaps or touches.
func merge(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return a.first.Compare(b.first) })
	out := list[:0]
	for _, s := range list {
		if k := len(out) - 1; k >= 0 && (!out[k].last.Less(s.first) || out[k].last.Next() == s.first) {
			if out[k].last.Less(s.last) {
				out[k].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}
