package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"edged/net/nft"
)

// policy makes the chains of a policy that selects a Pod of this device: each
// accepts what the policy allows.
func (t *translator) policy(p *networkingv1.NetworkPolicy) {
	if len(t.selected[keyOf(p)]) == 0 {
		return
	}
	if isolates(p, egress) {
		c := nft.Chain{Name: policyChain(keyOf(p), egress)}
		for i := range p.Spec.Egress {
			c.Rules = append(c.Rules, t.rules(p, egress, p.Spec.Egress[i].To, p.Spec.Egress[i].Ports)...)
		}
		t.chains = append(t.chains, c)
	}
	if isolates(p, ingress) {
		c := nft.Chain{Name: policyChain(keyOf(p), ingress)}
		for i := range p.Spec.Ingress {
			c.Rules = append(c.Rules, t.rules(p, ingress, p.Spec.Ingress[i].From, p.Spec.Ingress[i].Ports)...)
		}
		t.chains = append(t.chains, c)
	}
}

// rules of one ingress or egress rule: every kind of peer with every kind of
// port.
func (t *translator) rules(p *networkingv1.NetworkPolicy, direction int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) []nft.Rule {
	pods, list := t.peers(p, peers)
	whos := [][]nft.Stmt{nil} // anybody
	if len(peers) > 0 {
		whos = t.peerStmts(p, direction, peers, pods, list)
	}
	plain, named := splitPorts(ports)
	var whats [][]nft.Stmt
	if len(ports) == 0 {
		whats = [][]nft.Stmt{nil} // any port, any protocol
	} else {
		whats = t.portStmts(plain)
	}
	var out []nft.Rule
	for _, who := range whos {
		for _, what := range whats {
			out = append(out, append(slices.Concat(nft.Rule(who), what), nft.Accept()))
		}
	}
	if len(named) == 0 {
		return out
	}
	// A name means what the receiver says: an element is its address and port.
	if direction == ingress {
		for _, is6 := range []bool{false, true} {
			if set := t.namedSet(is6, t.selected[keyOf(p)], named); set != nil {
				for _, who := range whos {
					if len(who) == 0 || familyOf(who) == is6 {
						out = append(out, append(slices.Concat(nft.Rule(who), nft.Rule{lookup(set, is6)}), nft.Accept()))
					}
				}
			}
		}
		return out
	}
	receivers := pods
	if len(peers) == 0 {
		receivers = t.pods
	}
	for _, is6 := range []bool{false, true} {
		if set := t.namedSet(is6, receivers, named); set != nil {
			out = append(out, nft.Rule{lookup(set, is6), nft.Accept()})
		}
	}
	return out
}

func lookup(set *nft.Set, is6 bool) nft.Stmt {
	return nft.In(set, nft.DstAddr(is6), nft.L4Proto(), nft.DstPort())
}

// who is a statement that matches peers of one family.
type who struct {
	nft.Stmt
	is6 bool
}

func familyOf(list []nft.Stmt) bool { return list[0].(who).is6 }

// peers finds the Pods and the blocks that a rule's peers name.
func (t *translator) peers(p *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer) (pods []*pod, list []*networkingv1.IPBlock) {
	seen := map[*pod]bool{}
	for i := range peers {
		peer := &peers[i]
		if peer.IPBlock != nil {
			list = append(list, peer.IPBlock)
			continue
		}
		inNamespace := func(ns string) bool { return ns == p.Namespace }
		if peer.NamespaceSelector != nil {
			sel := selector(peer.NamespaceSelector)
			inNamespace = func(ns string) bool {
				l, ok := t.namespaces[ns]
				return ok && sel.Matches(l)
			}
		}
		any := peer.PodSelector == nil
		if any && peer.NamespaceSelector == nil {
			continue // names nobody
		}
		podSel := selector(peer.PodSelector) // of nil: nothing
		for _, q := range t.pods {
			if !seen[q] && inNamespace(q.ns) && (any || podSel.Matches(q.labels)) {
				seen[q] = true
				pods = append(pods, q)
			}
		}
	}
	return pods, list
}

// peerStmts match the peers of a rule: per family a set of Pods' addresses and
// a set of ranges.
func (t *translator) peerStmts(p *networkingv1.NetworkPolicy, direction int, peers []networkingv1.NetworkPolicyPeer, pods []*pod, list []*networkingv1.IPBlock) [][]nft.Stmt {
	var out [][]nft.Stmt
	hasPods := slices.ContainsFunc(peers, func(x networkingv1.NetworkPolicyPeer) bool { return x.IPBlock == nil })
	for _, is6 := range []bool{false, true} {
		ip, digit, field := nft.IPv4(), "4", nft.DstAddr(is6)
		if is6 {
			ip, digit = nft.IPv6(), "6"
		}
		if direction == ingress {
			field = nft.SrcAddr(is6)
		}
		if hasPods {
			s := &nft.Set{Name: section + "-peers" + digit + "-" + hash(peersText(p.Namespace, peers)), Key: []nft.Type{ip}}
			var elems []nft.Element
			for _, q := range pods {
				for _, a := range q.ips {
					if a.Is6() == is6 {
						elems = append(elems, nft.Element{Key: string(nft.AppendAddr(nil, a))})
					}
				}
			}
			fill(s, elems)
			t.sets[s.Name] = s
			out = append(out, []nft.Stmt{who{nft.In(s, field), is6}})
		}
		if spans := blocks(list, is6); len(spans) > 0 {
			s := &nft.Set{Name: section + "-blocks" + digit + "-" + hash(fmt.Sprint(spans)), Key: []nft.Type{ip}, Interval: true}
			var elems []nft.Element
			for _, sp := range spans {
				elems = nft.AppendRange(elems, sp.first, sp.last)
			}
			s.Parts = []nft.Part{{Elements: nft.NewElements(elems)}}
			t.sets[s.Name] = s
			out = append(out, []nft.Stmt{who{nft.In(s, field), is6}})
		}
	}
	return out
}

// peersText names a set of peers: what has the same text selects the same Pods.
func peersText(ns string, peers []networkingv1.NetworkPolicyPeer) string {
	list := make([]string, 0, len(peers))
	for i := range peers {
		if peers[i].IPBlock == nil {
			b, err := json.Marshal(&peers[i])
			if err != nil {
				b = []byte(err.Error()) // does not happen: plain structs
			}
			list = append(list, string(b))
		}
	}
	slices.Sort(list)
	return ns + fmt.Sprint(slices.Compact(list))
}

// plainPort is a port or a range of ports of a protocol.
type plainPort struct {
	proto uint8
	first uint16
	last  uint16
}

type portName struct {
	name  string
	proto uint8
}

func splitPorts(ports []networkingv1.NetworkPolicyPort) (plain []plainPort, named []portName) {
	for _, p := range ports {
		proto := uint8(unix.IPPROTO_TCP)
		if p.Protocol != nil {
			proto = protocol(*p.Protocol)
		}
		switch {
		case p.Port == nil:
			plain = append(plain, plainPort{proto, 0, 65535})
		case p.Port.Type == intstr.String:
			named = append(named, portName{p.Port.StrVal, proto})
		case p.EndPort != nil && *p.EndPort >= p.Port.IntVal:
			plain = append(plain, plainPort{proto, uint16(p.Port.IntVal), uint16(*p.EndPort)})
		default:
			plain = append(plain, plainPort{proto, uint16(p.Port.IntVal), uint16(p.Port.IntVal)})
		}
	}
	return plain, named
}

// portStmts match ports: single ones by one set, each range by itself.
func (t *translator) portStmts(ports []plainPort) (out [][]nft.Stmt) {
	var elems []nft.Element
	for _, p := range ports {
		proto := nft.Equal(nft.L4Proto(), nft.ProtoConst(p.proto))
		switch {
		case p.first == 0 && p.last == 65535:
			out = append(out, []nft.Stmt{proto})
		case p.first != p.last:
			out = append(out, []nft.Stmt{proto, nft.PortRange(nft.DstPort(), p.first, p.last)})
		default:
			elems = append(elems, nft.Element{Key: string(nft.AppendPort(nft.AppendProto(nil, p.proto), p.first))})
		}
	}
	if len(elems) > 0 {
		s := &nft.Set{Key: []nft.Type{nft.Proto(), nft.Port()}}
		fill(s, elems)
		s.Name = section + "-ports-" + hash(s.String())
		t.sets[s.Name] = s
		out = append(out, []nft.Stmt{nft.In(s, nft.L4Proto(), nft.DstPort())})
	}
	return out
}

// namedSet holds address and port of every receiver that has one of the names;
// nil if none of the family has.
func (t *translator) namedSet(is6 bool, receivers []*pod, names []portName) *nft.Set {
	ip, digit := nft.IPv4(), "4"
	if is6 {
		ip, digit = nft.IPv6(), "6"
	}
	var elems []nft.Element
	for _, q := range receivers {
		for _, port := range q.ports {
			if !slices.Contains(names, portName{port.name, port.proto}) {
				continue
			}
			for _, a := range q.ips {
				if a.Is6() == is6 {
					elems = append(elems, nft.Element{Key: endpointKey(a, port)})
				}
			}
		}
	}
	if len(elems) == 0 {
		return nil
	}
	s := &nft.Set{Key: []nft.Type{ip, nft.Proto(), nft.Port()}}
	fill(s, elems)
	s.Name = section + "-named" + digit + "-" + hash(s.String())
	t.sets[s.Name] = s
	return s
}

func endpointKey(a netip.Addr, p namedPort) string {
	return string(nft.AppendPort(nft.AppendProto(nft.AppendAddr(nil, a), p.proto), p.port))
}

func protocol(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}
