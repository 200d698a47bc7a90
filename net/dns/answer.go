package dns

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// result is what the zone says about a name.
type result struct {
	answer []dns.RR
	extra  []dns.RR
	exists bool   // the name is there, whatever types it has
	alias  string // the name that it stands for, outside of the zone
}

// Owns says whether a name is answered here and nowhere else.
func (r *Records) Owns(name string) bool {
	name = strings.ToLower(name)
	if dns.IsSubDomain(r.zone, name) {
		return true
	}
	a, ok := addrOfReverse(name)
	return ok && slices.ContainsFunc(r.inside, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Answer fills in the reply to a question that Owns. It returns a name outside
// of the zone whose records complete the answer, if there is one.
func (r *Records) Answer(reply *dns.Msg, q dns.Question) (alias string) {
	res := r.resolve(q)
	reply.Authoritative = true
	reply.Answer, reply.Extra = res.answer, append(reply.Extra, res.extra...)
	if res.alias != "" {
		return res.alias
	}
	if len(res.answer) == 0 {
		reply.Ns = append(reply.Ns, r.soa())
		if !res.exists {
			reply.Rcode = dns.RcodeNameError
		}
	}
	return ""
}

// maxAliases bounds a chain of ExternalName Services that name each other.
const maxAliases = 8

// resolve follows aliases as long as they stay in the zone.
func (r *Records) resolve(q dns.Question) result {
	r.mu.RLock()
	defer r.mu.RUnlock()
	res := r.lookup(q)
	if q.Qtype == dns.TypeCNAME {
		res.alias = ""
	}
	for range maxAliases {
		if res.alias == "" || !dns.IsSubDomain(r.zone, strings.ToLower(res.alias)) {
			return res
		}
		next := r.lookup(dns.Question{Name: res.alias, Qtype: q.Qtype, Qclass: q.Qclass})
		res.answer, res.extra, res.alias = append(res.answer, next.answer...), append(res.extra, next.extra...), next.alias
	}
	res.alias = "" // a circle
	return res
}

func (r *Records) lookup(q dns.Question) result {
	name := strings.ToLower(q.Name)
	if a, ok := addrOfReverse(name); ok {
		return r.reverse(q, a)
	}
	if !dns.IsSubDomain(r.zone, name) {
		return result{} // a reverse name that is no address
	}
	rest := strings.TrimSuffix(strings.TrimSuffix(name, r.zone), ".")
	var labels []string
	if rest != "" {
		labels = strings.Split(rest, ".")
		slices.Reverse(labels)
	}
	switch {
	case len(labels) == 0:
		return r.apex(q)
	case labels[0] == "svc":
		return r.service(q, labels[1:])
	case labels[0] == "pod":
		return r.pod(q, labels[1:])
	case labels[0] == "dns-version" && len(labels) == 1:
		res := result{exists: true}
		if q.Qtype == dns.TypeTXT {
			res.answer = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specVersion}}}
		}
		return res
	case labels[0] == "dns" && len(labels) == 1:
		return result{exists: true}
	case labels[0] == "dns" && len(labels) == 2 && labels[1] == "ns":
		return result{answer: addresses(q, r.servers), exists: true}
	}
	return result{}
}

func (r *Records) apex(q dns.Question) result {
	res := result{exists: true}
	switch q.Qtype {
	case dns.TypeSOA:
		res.answer = []dns.RR{r.soa()}
	case dns.TypeNS:
		res.answer = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: r.server()}}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			res.extra = append(res.extra, addresses(dns.Question{Name: r.server(), Qtype: t}, r.servers)...)
		}
	}
	return res
}

func (r *Records) server() string { return "ns.dns." + r.zone }

// soa is the same at all times: resolvers only use its last number, for how
// long a name does not exist.
func (r *Records) soa() dns.RR {
	return &dns.SOA{Hdr: header(r.zone, dns.TypeSOA), Ns: r.server(), Mbox: "hostmaster." + r.zone,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlSeconds}
}

// service answers [_port] [_proto | endpoint] service ns .svc; labels are from
// right to left.
func (r *Records) service(q dns.Question, labels []string) result {
	switch len(labels) {
	case 0:
		return result{exists: true}
	case 1:
		return result{exists: r.perNS[labels[0]] > 0}
	}
	k := key{labels[0], labels[1]}
	svc := r.services[k]
	if svc == nil {
		return result{}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		if len(labels) > 2 {
			return result{}
		}
		target := dns.Fqdn(svc.Spec.ExternalName)
		return result{exists: true, alias: target,
			answer: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}}
	}
	switch {
	case len(labels) == 2 && q.Qtype == dns.TypeSRV:
		return r.srv(q, k, svc, "", "")
	case len(labels) == 2:
		if svc.Spec.ClusterIP != corev1.ClusterIPNone {
			return result{exists: true, answer: addresses(q, clusterIPs(svc))}
		}
		return r.headless(q, k)
	case len(labels) == 3 && strings.HasPrefix(labels[2], "_"):
		return result{exists: r.srv(q, k, svc, "", labels[2]).exists}
	case len(labels) == 3:
		return r.endpoint(q, k, labels[2])
	case len(labels) == 4 && strings.HasPrefix(labels[2], "_") && strings.HasPrefix(labels[3], "_"):
		res := r.srv(q, k, svc, labels[3], labels[2])
		if q.Qtype != dns.TypeSRV {
			res.answer, res.extra = nil, nil
		}
		return res
	}
	return result{}
}

// headless answers with all endpoints, in another order each time.
func (r *Records) headless(q dns.Question, k key) result {
	var ips []netip.Addr
	for _, e := range r.endpoints(k) {
		ips = append(ips, e.addr)
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	if len(ips) == 0 {
		// CoreDNS says that the name does not exist; resolvers that try the
		// next search domain then do.
		return result{}
	}
	rand.Shuffle(len(ips), func(i, j int) { ips[i], ips[j] = ips[j], ips[i] })
	return result{exists: true, answer: addresses(q, ips)}
}

// endpoint answers for one endpoint of a Service.
func (r *Records) endpoint(q dns.Question, k key, name string) result {
	var ips []netip.Addr
	for _, e := range r.endpoints(k) {
		if strings.EqualFold(e.name, name) && !slices.Contains(ips, e.addr) {
			ips = append(ips, e.addr)
		}
	}
	return result{exists: len(ips) > 0, answer: addresses(q, ips)}
}

// srv answers with the ports of a Service; port and proto are labels with
// their underscore, or empty for all.
func (r *Records) srv(q dns.Question, k key, svc *corev1.Service, port, proto string) result {
	wanted := func(name string, p corev1.Protocol) bool {
		return (port == "" || name != "" && strings.EqualFold(port, "_"+name)) && (proto == "" || strings.EqualFold(proto, "_"+string(p)))
	}
	var res result
	add := func(target string, number int32, ips []netip.Addr) {
		res.exists = true
		res.answer = append(res.answer, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Priority: 0, Weight: 100, Port: uint16(number), Target: target})
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			res.extra = append(res.extra, addresses(dns.Question{Name: target, Qtype: t}, ips)...)
		}
	}
	base := k.name + "." + k.ns + ".svc." + r.zone
	if svc.Spec.ClusterIP != corev1.ClusterIPNone {
		for _, p := range svc.Spec.Ports {
			if wanted(p.Name, p.Protocol) {
				add(base, p.Port, clusterIPs(svc))
			}
		}
	} else {
		for _, e := range r.endpoints(k) {
			for _, p := range e.ports {
				proto := corev1.ProtocolTCP
				if p.Protocol != nil {
					proto = *p.Protocol
				}
				if p.Port != nil && wanted(portName(p.Name), proto) {
					add(e.name+"."+base, *p.Port, []netip.Addr{e.addr})
				}
			}
		}
	}
	if port == "" && proto == "" {
		res.exists = true
	}
	slices.SortStableFunc(res.extra, func(a, b dns.RR) int { return cmp.Compare(a.String(), b.String()) })
	res.extra = slices.CompactFunc(res.extra, func(a, b dns.RR) bool { return a.String() == b.String() })
	return res
}

// pod answers a-b-c-d.ns.pod; labels are from right to left.
func (r *Records) pod(q dns.Question, labels []string) result {
	switch len(labels) {
	case 0:
		return result{exists: true}
	case 1:
		return result{exists: r.perNS[labels[0]] > 0}
	case 2:
		if a, ok := undashed(labels[1]); ok && r.hasPod(labels[0], a) {
			return result{exists: true, answer: addresses(q, []netip.Addr{a})}
		}
	}
	return result{}
}

// reverse answers PTR.
func (r *Records) reverse(q dns.Question, a netip.Addr) result {
	var names []string
	for k := range r.owners[a] {
		base := k.name + "." + k.ns + ".svc." + r.zone
		if svc := r.services[k]; svc != nil && slices.Contains(clusterIPs(svc), a) {
			names = append(names, base)
			continue
		}
		for _, e := range r.endpoints(k) {
			if e.addr == a && e.named {
				names = append(names, e.name+"."+base)
			}
		}
	}
	slices.Sort(names)
	res := result{exists: len(names) > 0}
	if q.Qtype == dns.TypePTR {
		for _, n := range slices.Compact(names) {
			res.answer = append(res.answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: n})
		}
	}
	return res
}

// addresses are the records of the type that was asked for.
func addresses(q dns.Question, ips []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range ips {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header(q.Name, dns.TypeA), A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttlSeconds}
}

// addrOfReverse parses a whole in-addr.arpa or ip6.arpa name.
func addrOfReverse(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if b.WriteByte(rest[i]); (64-i)%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}
