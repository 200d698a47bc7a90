package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edged/net/nft"
)

// section is our share of the nftables table: every name begins with it.
const section = "pol"

// State is all that the rules are made from. Objects are not changed.
type State struct {
	Policies   []*networkingv1.NetworkPolicy
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	// Local are the addresses of the Pods attached to this device, by UID:
	// known earlier than their status.
	Local map[string][]netip.Addr
}

// Translate makes the rules for the Pods of a device. It is pure.
func Translate(nodeName string, s State) *nft.Ruleset {
	t := &translator{sets: map[string]*nft.Set{}, namespaces: map[string]labels.Set{}, selected: map[string][]*pod{}}
	policies := slices.Clone(s.Policies)
	if len(policies) == 0 {
		return &nft.Ruleset{}
	}
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	for _, n := range s.Namespaces {
		t.namespaces[n.Name] = n.Labels
	}
	for _, p := range s.Pods {
		if q := podOf(nodeName, p, s.Local); q != nil {
			t.pods = append(t.pods, q)
		}
	}
	slices.SortFunc(t.pods, func(a, b *pod) int { return cmp.Compare(a.ns+"/"+a.name, b.ns+"/"+b.name) })
	t.isolate(policies)
	if len(t.isolated) == 0 {
		return &nft.Ruleset{}
	}
	for _, p := range policies {
		t.policy(p)
	}
	return t.ruleset()
}

func keyOf(p *networkingv1.NetworkPolicy) string { return p.Namespace + "/" + p.Name }

// pod is what the rules need of a Pod that has addresses.
type pod struct {
	ns, name string
	labels   labels.Set
	local    bool
	ips      []netip.Addr
	ports    []namedPort
	by       [2][]string // for each direction the policies that isolate it
}

type namedPort struct {
	name  string
	proto uint8
	port  uint16
}

// podOf is nil for a Pod whose packets are not its own: that is the device's
// (hostNetwork), or over.
func podOf(nodeName string, p *corev1.Pod, local map[string][]netip.Addr) *pod {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	q := &pod{ns: p.Namespace, name: p.Name, labels: p.Labels, local: p.Spec.NodeName == nodeName}
	if q.local {
		q.ips = local[string(p.UID)]
	}
	if len(q.ips) == 0 {
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				q.ips = append(q.ips, a.Unmap())
			}
		}
	}
	if len(q.ips) == 0 {
		return nil
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, c := range list[i].Ports {
				if c.Name != "" {
					q.ports = append(q.ports, namedPort{c.Name, protocol(c.Protocol), uint16(c.ContainerPort)})
				}
			}
		}
	}
	return q
}

// The directions, as indices.
const (
	egress  = 0
	ingress = 1
)

var directionNames = [2]string{"egress", "ingress"}

type translator struct {
	pods       []*pod
	namespaces map[string]labels.Set
	selected   map[string][]*pod // by policy: those of this device
	isolated   []*pod
	sets       map[string]*nft.Set
	chains     []nft.Chain
}

// isolate finds out which Pods of this device policies select.
func (t *translator) isolate(policies []*networkingv1.NetworkPolicy) {
	for _, p := range policies {
		sel := selector(&p.Spec.PodSelector)
		for _, q := range t.pods {
			if !q.local || q.ns != p.Namespace || !sel.Matches(q.labels) {
				continue
			}
			if len(q.by[egress]) == 0 && len(q.by[ingress]) == 0 {
				t.isolated = append(t.isolated, q)
			}
			t.selected[keyOf(p)] = append(t.selected[keyOf(p)], q)
			for d := range directionNames {
				if isolates(p, d) {
					q.by[d] = append(q.by[d], keyOf(p))
				}
			}
		}
	}
}

func isolates(p *networkingv1.NetworkPolicy, direction int) bool {
	if len(p.Spec.PolicyTypes) == 0 { // not defaulted: as the API would
		return direction == ingress || len(p.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if direction == egress {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(p.Spec.PolicyTypes, want)
}

// selector of what the API server has validated; anything else selects nothing.
func selector(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

func policyChain(key string, direction int) string {
	return fmt.Sprintf("%s-%s-policy-%s", section, directionNames[direction], hash(key))
}

// ruleset adds what stands around the policies.
func (t *translator) ruleset() *nft.Ruleset {
	t.base(egress, nft.PriorityFilter-1)
	t.base(ingress, nft.PriorityFilter)
	r := &nft.Ruleset{Chains: t.chains}
	for _, s := range t.sets {
		r.Sets = append(r.Sets, s)
	}
	slices.SortFunc(r.Sets, func(a, b *nft.Set) int { return cmp.Compare(a.Name, b.Name) })
	return r
}

// base makes the chain of a direction, the map that leads each isolated Pod to
// the chain of its policies, and those chains.
func (t *translator) base(direction int, priority int32) {
	name := section + "-" + directionNames[direction]
	chain := nft.Chain{Name: name, Base: &nft.Base{Type: "filter", Hook: "forward", Priority: priority},
		Rules: []nft.Rule{{nft.Has(nft.ConnState(), nft.StateEstablished()), nft.Accept()}}}
	made := map[string]bool{}
	for _, is6 := range []bool{false, true} {
		ip, digit := nft.IPv4(), "4"
		if is6 {
			ip, digit = nft.IPv6(), "6"
		}
		self := &nft.Set{Name: section + "-self" + digit, Key: []nft.Type{ip, ip}}
		pods := &nft.Set{Name: name + "-pods" + digit, Key: []nft.Type{ip}, Verdict: true}
		var selves, verdicts []nft.Element
		for _, q := range t.isolated {
			for _, a := range q.ips {
				if a.Is6() != is6 {
					continue
				}
				selves = append(selves, nft.Element{Key: string(nft.AppendAddr(nft.AppendAddr(nil, a), a))})
				if len(q.by[direction]) == 0 {
					continue
				}
				to := t.together(q.by[direction], direction, made)
				verdicts = append(verdicts, nft.Element{Key: string(nft.AppendAddr(nil, a)), Verdict: nft.Goto(to)})
			}
		}
		fill(self, selves)
		fill(pods, verdicts)
		t.sets[self.Name], t.sets[pods.Name] = self, pods
		who := nft.SrcAddr(is6)
		if direction == ingress {
			who = nft.DstAddr(is6)
		}
		chain.Rules = append(chain.Rules,
			nft.Rule{nft.In(self, nft.SrcAddr(is6), nft.DstAddr(is6)), nft.Accept()},
			nft.Rule{nft.VerdictMap(pods, who)})
	}
	t.chains = append(t.chains, chain)
}

// together is the chain of the Pods that are isolated by exactly these policies.
func (t *translator) together(policies []string, direction int, made map[string]bool) string {
	name := fmt.Sprintf("%s-%s-all-%s", section, directionNames[direction], hash(strings.Join(policies, " ")))
	if made[name] {
		return name
	}
	made[name] = true
	c := nft.Chain{Name: name}
	for _, p := range policies {
		c.Rules = append(c.Rules, nft.Rule{nft.Jump(policyChain(p, direction))})
	}
	c.Rules = append(c.Rules, nft.Rule{nft.Drop()})
	t.chains = append(t.chains, c)
	return name
}

// fill sorts the elements and leaves each key once.
func fill(s *nft.Set, list []nft.Element) {
	slices.SortFunc(list, func(a, b nft.Element) int { return cmp.Compare(a.Key, b.Key) })
	list = slices.CompactFunc(list, func(a, b nft.Element) bool { return a.Key == b.Key })
	s.Parts = []nft.Part{{Elements: nft.NewElements(list)}}
}
