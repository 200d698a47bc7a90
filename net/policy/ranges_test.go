package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// TestBlocks compares with the definition, address by address.
func TestBlocks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		prefixIn := func(p netip.Prefix) netip.Prefix {
			a := p.Addr().As4()
			a[3] |= byte(rnd.IntN(1 << (32 - p.Bits())))
			return netip.PrefixFrom(netip.AddrFrom4(a), p.Bits()+rnd.IntN(33-p.Bits())).Masked()
		}
		all := netip.MustParsePrefix("255.255.255.0/24")
		var list []*networkingv1.IPBlock
		for range 1 + rnd.IntN(4) {
			p := prefixIn(all)
			b := &networkingv1.IPBlock{CIDR: p.String()}
			for range rnd.IntN(3) {
				b.Except = append(b.Except, prefixIn(p).String())
			}
			list = append(list, b)
		}
		spans := blocks(list, false)
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{255, 255, 255, byte(i)})
			want, got := false, 0
			for _, b := range list {
				in := netip.MustParsePrefix(b.CIDR).Contains(a)
				for _, e := range b.Except {
					in = in && !netip.MustParsePrefix(e).Contains(a)
				}
				want = want || in
			}
			for _, s := range spans {
				if !a.Less(s.first) && !s.last.Less(a) {
					got++
				}
			}
			if (got == 1) != want || got > 1 {
				t.Fatalf("round %d: %s is in %d spans, want %v: %v %v", round, a, got, want, list, spans)
			}
		}
		for i := 1; i < len(spans); i++ {
			if spans[i-1].last.Next() == spans[i].first || !spans[i-1].last.Less(spans[i].first) {
				t.Fatalf("spans touch: %v", spans)
			}
		}
	}
	if got := fmt.Sprint(blocks([]*networkingv1.IPBlock{{CIDR: "fd00::/8", Except: []string{"fd00::/9"}}, {CIDR: "10.0.0.0/8"}}, true)); got != "[fd80::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]" {
		t.Errorf("IPv6: %s", got)
	}
	// An exception that cannot be read must not open what it was to close.
	if got := blocks([]*networkingv1.IPBlock{{CIDR: "10.0.0.0/8", Except: []string{"10.1"}}}, false); len(got) != 0 {
		t.Errorf("malformed exception: %v", got)
	}
}
