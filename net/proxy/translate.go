package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"edged/net/nft"
)

// markMasquerade is the bit of a packet's mark by which the chains that balance
// ask the last chain to replace the source address: kube-proxy's, which other
// software on a node knows to leave alone.
const markMasquerade = 0x4000

const (
	chainServices = section + "-services"
	chainOutside  = section + "-outside"
	chainRefuse   = section + "-refuse"
	chainReject   = section + "-reject"
)

// Translate makes the rules for a state. It is pure.
func Translate(n Network, s State) *nft.Ruleset {
	r, _ := newTranslator(&n).translate(s)
	return r
}

// translator translates one state after the other and keeps what did not
// change: a Service whose objects are the same pointers costs a comparison.
type translator struct {
	net   *Network
	fams  [2]*family // IPv4, IPv6; nil if the cluster does not have it
	zone  string
	parts map[string]*cached // by namespace/name
	hosts *cached
}

type cached struct {
	svc    *corev1.Service
	slices []*discoveryv1.EndpointSlice
	hosts  []HostPort
	part   *part
}

func newTranslator(n *Network) *translator {
	t := &translator{net: n, parts: map[string]*cached{}}
	for _, p := range slices.Concat(n.ClusterCIDRs, n.ServiceCIDRs) {
		if i := index(p.Addr().Is6()); t.fams[i] == nil {
			t.fams[i] = newFamily(i == 1)
		}
	}
	return t
}

// translate returns the rules and the services that they serve.
func (t *translator) translate(s State) (*nft.Ruleset, []*part) {
	if s.Zone != t.zone {
		clear(t.parts)
		t.zone = s.Zone
	}
	parts := t.update(s)
	parts = t.settle(parts)
	return t.ruleset(parts), parts
}

// update brings the cache to s and returns the parts, sorted by name.
func (t *translator) update(s State) []*part {
	byService := map[string][]*discoveryv1.EndpointSlice{}
	for _, e := range s.Slices {
		if name := e.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := e.Namespace + "/" + name
			byService[key] = append(byService[key], e)
		}
	}
	parts := make([]*part, 0, len(s.Services)+1)
	if t.hosts == nil || !slices.EqualFunc(t.hosts.hosts, s.HostPorts, equalHostPort) {
		t.hosts = &cached{hosts: slices.Clone(s.HostPorts), part: encode(t.fams, translateHostPorts(s.HostPorts), nil)}
	}
	parts = append(parts, t.hosts.part)
	seen := make(map[string]bool, len(s.Services))
	for _, svc := range s.Services {
		key := svc.Namespace + "/" + svc.Name
		slcs := byService[key]
		slices.SortFunc(slcs, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
		c := t.parts[key]
		if c == nil || c.svc != svc || !slices.Equal(c.slices, slcs) {
			c = &cached{svc: svc, slices: slcs, part: encode(t.fams, translateService(t.net, svc, slcs, t.zone), nil)}
			t.parts[key] = c
		}
		seen[key] = true
		parts = append(parts, c.part)
	}
	for key := range t.parts {
		if !seen[key] {
			delete(t.parts, key)
		}
	}
	slices.SortFunc(parts, func(a, b *part) int { return cmp.Compare(a.svc.name, b.svc.name) })
	return parts
}

func equalHostPort(a, b HostPort) bool {
	return a.HostIP == b.HostIP && a.HostPort == b.HostPort && a.Protocol == b.Protocol && a.PodPort == b.PodPort && slices.Equal(a.PodIPs, b.PodIPs)
}

// settle gives an address and port that several services claim (which an
// external IP allows) to the first by name.
func (t *translator) settle(parts []*part) []*part {
	owner := make(map[frontKey]string, 2*len(parts))
	out := parts
	for i, p := range parts {
		var omit map[frontKey]bool
		for j := range p.svc.frontends {
			k := p.svc.frontends[j].key()
			if o, taken := owner[k]; taken && o != p.svc.name {
				if omit == nil {
					omit = map[frontKey]bool{}
				}
				omit[k] = true
				continue
			}
			owner[k] = p.svc.name
		}
		if omit != nil {
			if &out[0] == &parts[0] {
				out = slices.Clone(parts)
			}
			out[i] = encode(t.fams, p.svc, omit)
		}
	}
	return out
}

// ruleset puts the parts together.
func (t *translator) ruleset(parts []*part) *nft.Ruleset {
	r := &nft.Ruleset{}
	classes := map[class]bool{}
	for _, p := range parts {
		for _, c := range p.classes {
			classes[c] = true
		}
		r.Chains = append(r.Chains, p.chains...)
	}
	// A service may reach the same balancer by several ports.
	slices.SortFunc(r.Chains, func(a, b nft.Chain) int { return cmp.Compare(a.Name, b.Name) })
	r.Chains = slices.CompactFunc(r.Chains, func(a, b nft.Chain) bool { return a.Name == b.Name })
	for c := range classes {
		r.Chains = append(r.Chains, t.balance(c))
	}
	for _, f := range t.fams {
		if f == nil {
			continue
		}
		for _, s := range f.all() {
			filled := *s
			for _, p := range parts {
				if e := p.sets[s]; e.Len() > 0 {
					filled.Parts = append(filled.Parts, nft.Part{Name: p.svc.name, Elements: e})
				}
			}
			if s == f.hairpin {
				filled.Parts = []nft.Part{{Elements: hairpins(parts, f.is6)}}
			}
			r.Sets = append(r.Sets, &filled)
		}
	}
	r.Chains = append(r.Chains, t.base()...)
	return r
}

// hairpins are made for all services at once: an endpoint may serve many.
func hairpins(parts []*part, is6 bool) *nft.Elements {
	seen := map[netip.Addr]bool{}
	var list []nft.Element
	for _, p := range parts {
		for _, a := range p.svc.local {
			if a.Is6() == is6 && !seen[a] {
				seen[a] = true
				list = append(list, nft.Element{Key: string(nft.AppendAddr(nft.AppendAddr(nil, a), a))})
			}
		}
	}
	return nft.NewElements(list)
}

// balance is the chain of a class.
func (t *translator) balance(c class) nft.Chain {
	tab := t.fams[index(c.is6)].table(c.byPort, c.outside)
	key := []nft.Value{nft.DstAddr(c.is6), nft.L4Proto(), nft.DstPort()}
	if c.byPort {
		key = key[1:]
	}
	with := func(v nft.Value) []nft.Value { return append(key[:len(key):len(key)], v) }
	draw := nft.Value(nft.Number(0))
	if c.n > 1 {
		draw = t.net.Balance(c.is6, uint32(c.n))
	}
	chain := nft.Chain{Name: c.chain()}
	switch c.masq {
	case masqAlways:
		chain.Rules = append(chain.Rules, nft.Rule{nft.SetMark(markMasquerade)})
	case masqOutside:
		chain.Rules = append(chain.Rules, append(t.notFromPods(c.is6), nft.SetMark(markMasquerade)))
	}
	if c.sticky == 0 {
		chain.Rules = append(chain.Rules, nft.Rule{nft.DNAT(c.is6, tab.numbered, with(draw)...)})
		return chain
	}
	client := append([]nft.Value{nft.SrcAddr(c.is6)}, key...)
	remember := nft.Update(tab.affinity, c.sticky, client, nft.ConnMark())
	lead := nft.DNAT(c.is6, tab.numbered, with(nft.ConnMark())...)
	chain.Rules = append(chain.Rules,
		// Where it was last, if that endpoint is still there;
		nft.Rule{nft.SetConnMark(tab.affinity, client...), nft.In(tab.members, with(nft.ConnMark())...), remember, lead},
		// else to any, which is remembered instead, if there is room.
		nft.Rule{nft.Delete(tab.affinity, client, nft.ConnMark())},
		nft.Rule{nft.SetConnMark(tab.picks, with(draw)...), remember, lead},
		nft.Rule{nft.SetConnMark(tab.picks, with(draw)...), lead})
	return chain
}

// notFromPods matches sources that are not Pods of the cluster.
func (t *translator) notFromPods(is6 bool) nft.Rule {
	return notIn(nft.SrcAddr(is6), t.net.ClusterCIDRs, is6)
}

func notIn(f nft.Field, list []netip.Prefix, is6 bool) nft.Rule {
	var r nft.Rule
	for _, p := range list {
		if p.Addr().Is6() == is6 {
			r = append(r, nft.NotInPrefix(f, p))
		}
	}
	return r
}

// base are the chains that do not depend on any Service.
func (t *translator) base() []nft.Chain {
	hook := func(name, kind, hook string, priority int32, rules []nft.Rule) nft.Chain {
		return nft.Chain{Name: section + "-" + name, Base: &nft.Base{Type: kind, Hook: hook, Priority: priority}, Rules: rules}
	}
	refuse := []nft.Rule{{nft.Has(nft.ConnState(), nft.StateNew()), nft.Jump(chainRefuse)}}
	services := nft.Chain{Name: chainServices}
	outside := nft.Chain{Name: chainOutside}
	refused := nft.Chain{Name: chainRefuse}
	var guard, pre []nft.Rule
	for _, f := range t.fams {
		if f == nil {
			continue
		}
		at := []nft.Value{nft.DstAddr(f.is6), nft.L4Proto(), nft.DstPort()}
		guard = append(guard, nft.Rule{nft.VerdictMap(f.ranges, at...)})
		pre = append(pre, append(t.notFromPods(f.is6), nft.NotEqual(nft.SrcType(), nft.Local()), nft.Jump(chainOutside)))
		outside.Rules = append(outside.Rules,
			nft.Rule{nft.VerdictMap(f.outAddrs.verdicts, at...)},
			append(here(f.is6), nft.VerdictMap(f.outPorts.verdicts, at[1:]...)))
		services.Rules = append(services.Rules,
			nft.Rule{nft.VerdictMap(f.addrs.verdicts, at...)},
			append(here(f.is6), nft.VerdictMap(f.ports.verdicts, at[1:]...)))
		refused.Rules = append(refused.Rules,
			nft.Rule{nft.VerdictMap(f.refusedAddrs, at...)},
			append(here(f.is6), nft.VerdictMap(f.refusedPorts, at[1:]...)))
	}
	for _, p := range t.net.ServiceCIDRs {
		// Addresses that no Service has, or not with this port.
		refused.Rules = append(refused.Rules, nft.Rule{
			nft.InPrefix(nft.DstAddr(p.Addr().Is6()), p), nft.NotEqual(nft.DstType(), nft.Local()), nft.Goto(chainReject)})
	}
	pre = append(pre, nft.Rule{nft.Jump(chainServices)})
	return []nft.Chain{
		hook("raw", "filter", "prerouting", nft.PriorityRaw, t.loopbackGuard()),
		hook("source-ranges", "filter", "prerouting", nft.PriorityPreDNAT, guard),
		hook("prerouting", "nat", "prerouting", nft.PriorityDstNAT, pre),
		hook("output", "nat", "output", nft.PriorityDstNAT, []nft.Rule{{nft.Jump(chainServices)}}),
		hook("postrouting", "nat", "postrouting", nft.PrioritySrcNAT, t.masquerades()),
		hook("refuse-input", "filter", "input", nft.PriorityFilter, refuse),
		hook("refuse-forward", "filter", "forward", nft.PriorityFilter, refuse),
		hook("refuse-output", "filter", "output", nft.PriorityFilter, refuse),
		services, outside, refused,
		{Name: chainReject, Rules: []nft.Rule{
			{nft.Equal(nft.L4Proto(), nft.ProtoConst(unix.IPPROTO_TCP)), nft.RejectTCP()},
			{nft.Reject()},
		}},
	}
}

// here matches the device's own addresses, except those that only it can use.
func here(is6 bool) nft.Rule {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if is6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	return nft.Rule{nft.NotInPrefix(nft.DstAddr(is6), loopback), nft.Equal(nft.DstType(), nft.Local())}
}

// loopbackGuard keeps Pods from the device's loopback services: the bridge
// takes loopback addresses for the answers to host ports (CVE-2020-8558).
func (t *translator) loopbackGuard() []nft.Rule {
	if t.fams[0] == nil {
		return nil
	}
	return []nft.Rule{{nft.Equal(nft.InLink(), nft.LinkConst(t.net.Bridge)), nft.InPrefix(nft.DstAddr(false), netip.MustParsePrefix("127.0.0.0/8")), nft.Drop()}}
}

// masquerades replace source addresses where answers would not come back.
func (t *translator) masquerades() []nft.Rule {
	rules := []nft.Rule{{nft.Has(nft.PacketMark(), nft.MarkBits(markMasquerade)), nft.ClearMark(markMasquerade), nft.Masquerade()}}
	for _, f := range t.fams {
		if f != nil {
			rules = append(rules, nft.Rule{nft.Has(nft.ConnStatus(), nft.StatusDNAT()),
				nft.In(f.hairpin, nft.SrcAddr(f.is6), nft.DstAddr(f.is6)), nft.Masquerade()})
		}
	}
	bridge := nft.LinkConst(t.net.Bridge)
	if t.fams[0] != nil {
		rules = append(rules, nft.Rule{nft.Equal(nft.OutLink(), bridge), nft.InPrefix(nft.SrcAddr(false), netip.MustParsePrefix("127.0.0.0/8")), nft.Masquerade()})
	}
	if t.net.KeepSources {
		return rules
	}
	for _, p := range t.net.PodCIDRs {
		is6 := p.Addr().Is6()
		inside := slices.Concat(t.net.ClusterCIDRs, t.net.ServiceCIDRs)
		rule := append(nft.Rule{nft.InPrefix(nft.SrcAddr(is6), p)}, notIn(nft.DstAddr(is6), inside, is6)...)
		rules = append(rules, append(rule, nft.NotEqual(nft.OutLink(), bridge), nft.Masquerade()))
	}
	return rules
}
