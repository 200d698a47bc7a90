package proxy

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"

	"edged/net/nft"
)

// section is our share of the nftables table: every name begins with it.
const section = "svc"

// table is a way in which connections find a Service: by address, protocol and
// port, or by protocol and port alone (NodePorts). Three maps with the same key:
// which chain balances; then, with a number behind the key, which endpoint has
// that number. Endpoints of sessions with affinity have their identity
// (stickyID) for a number, and picks leads to it from a drawn one.
type table struct {
	byPort   bool
	verdicts *nft.Set
	numbered *nft.Set
	picks    *nft.Set
	members  *nft.Set // key and identity: the endpoints that there are
	affinity *nft.Set // by client and key: the identity it had last
}

// family holds the sets of one address family.
type family struct {
	is6 bool

	addrs, ports       table // for everybody
	outAddrs, outPorts table // for traffic not from Pods, where that differs

	refusedAddrs, refusedPorts *nft.Set // nobody serves these
	ranges                     *nft.Set // load balancers with source ranges
	hairpin                    *nft.Set // a local endpoint's address twice: its way to itself
}

func newFamily(is6 bool) *family {
	ip, digit := nft.IPv4(), "4"
	if is6 {
		ip, digit = nft.IPv6(), "6"
	}
	at := []nft.Type{ip, nft.Proto(), nft.Port()}
	port := at[1:]
	verdicts := func(name string, key []nft.Type) *nft.Set {
		return &nft.Set{Name: section + "-" + name + digit, Key: key, Verdict: true}
	}
	maps := func(name string, key []nft.Type, value ...nft.Type) *nft.Set {
		return &nft.Set{Name: section + "-" + name + digit, Key: key, Value: value}
	}
	affinity := func(name string, key []nft.Type) *nft.Set {
		s := maps(name, append([]nft.Type{ip}, key...), nft.Mark())
		s.Dynamic = true
		return s
	}
	tables := func(name string, key []nft.Type, sticky *nft.Set) table {
		numbered := append(key[:len(key):len(key)], nft.Mark())
		return table{
			byPort:   len(key) == len(port),
			verdicts: verdicts(name+"s", key),
			numbered: maps(name+"-endpoints", numbered, ip, nft.Port()),
			picks:    maps(name+"-picks", numbered, nft.Mark()),
			members:  maps(name+"-members", numbered),
			affinity: sticky,
		}
	}
	byAddr, byPort := affinity("addr-affinity", at), affinity("port-affinity", port)
	return &family{
		is6:          is6,
		addrs:        tables("addr", at, byAddr),
		ports:        tables("port", port, byPort),
		outAddrs:     tables("outside-addr", at, byAddr),
		outPorts:     tables("outside-port", port, byPort),
		refusedAddrs: verdicts("refused-addrs", at),
		refusedPorts: verdicts("refused-ports", port),
		ranges:       verdicts("ranges", at),
		hairpin:      &nft.Set{Name: section + "-hairpin" + digit, Key: []nft.Type{ip, ip}},
	}
}

func (f *family) all() []*nft.Set {
	out := []*nft.Set{f.refusedAddrs, f.refusedPorts, f.ranges, f.hairpin, f.addrs.affinity, f.ports.affinity}
	for _, t := range []table{f.addrs, f.ports, f.outAddrs, f.outPorts} {
		out = append(out, t.verdicts, t.numbered, t.picks, t.members)
	}
	return out
}

// table is the one that a frontend's connections are looked up in.
func (f *family) table(byPort, outside bool) *table {
	switch {
	case byPort && outside:
		return &f.outPorts
	case byPort:
		return &f.ports
	case outside:
		return &f.outAddrs
	}
	return &f.addrs
}

// class names the chain that balances: all frontends of a class share it.
type class struct {
	is6     bool
	byPort  bool // looked up by port alone
	outside bool
	masq    masquerade
	n       int // endpoints
	sticky  time.Duration
}

func (c class) chain() string {
	digit, table := "4", "addrs"
	if c.is6 {
		digit = "6"
	}
	if c.byPort {
		table = "ports"
	}
	if c.outside {
		table = "outside-" + table
	}
	name := fmt.Sprintf("%s-lb%s-%s-%d", section, digit, table, c.n)
	if c.sticky > 0 {
		name += fmt.Sprintf("-sticky%d", int(c.sticky.Seconds()))
	}
	switch c.masq {
	case masqOutside:
		name += "-masqoutside"
	case masqAlways:
		name += "-masq"
	}
	return name
}

// part is a service as the sets hold it.
type part struct {
	svc     *service
	sets    map[*nft.Set]*nft.Elements
	classes []class
	chains  []nft.Chain // that are its own: source ranges
}

// frontKey is what must be unique over all Services: one lookup has one answer.
type frontKey struct {
	addr  netip.Addr
	is6   bool
	proto uint8
	port  uint16
}

func (f *frontend) key() frontKey { return frontKey{f.addr, f.is6, f.proto, f.port} }

// encode turns a service into elements. omit are frontends that another
// service has already.
func encode(fams [2]*family, svc *service, omit map[frontKey]bool) *part {
	lists := map[*nft.Set][]nft.Element{}
	p := &part{svc: svc, sets: map[*nft.Set]*nft.Elements{}}
	for i := range svc.frontends {
		fr := &svc.frontends[i]
		if f := fams[index(fr.is6)]; f != nil && !omit[fr.key()] {
			p.encodeFrontend(f, fr, lists)
		}
	}
	for s, list := range lists {
		p.sets[s] = nft.NewElements(list)
	}
	return p
}

func (p *part) encodeFrontend(f *family, fr *frontend, lists map[*nft.Set][]nft.Element) {
	byPort := !fr.addr.IsValid()
	key := packFrontend(fr)
	add := func(s *nft.Set, e nft.Element) { lists[s] = append(lists[s], e) }
	lead := func(t target, outside bool) bool {
		tab := f.table(byPort, outside)
		if t.drop {
			add(tab.verdicts, nft.Element{Key: key, Verdict: nft.Drop()})
			return true
		}
		if t.group == nil || len(t.group.endpoints) == 0 {
			return false
		}
		c := class{fr.is6, byPort, outside, t.masq, len(t.group.endpoints), t.group.sticky}
		p.classes = append(p.classes, c)
		add(tab.verdicts, nft.Element{Key: key, Verdict: nft.Goto(c.chain())})
		ids := map[uint32]bool{}
		for i, e := range t.group.endpoints {
			number := uint32(i)
			if t.group.sticky > 0 {
				for number = stickyID(e); ids[number]; number++ { // two that have one hash
				}
				ids[number] = true
				add(tab.picks, nft.Element{Key: numbered(key, uint32(i)), Value: string(nft.AppendMark(nil, number))})
				add(tab.members, nft.Element{Key: numbered(key, number)})
			}
			add(tab.numbered, nft.Element{Key: numbered(key, number), Value: string(nft.AppendPort(nft.AppendAddr(nil, e.Addr()), e.Port()))})
		}
		return true
	}
	if !lead(fr.target, false) {
		refused := f.refusedAddrs
		if byPort {
			refused = f.refusedPorts
		}
		add(refused, nft.Element{Key: key, Verdict: nft.Goto(chainReject)})
	}
	if fr.outside != nil {
		lead(*fr.outside, true)
	}
	if fr.guarded {
		c := rangesChain(fr)
		p.chains = append(p.chains, c)
		add(f.ranges, nft.Element{Key: key, Verdict: nft.Jump(c.Name)})
	}
}

// stickyID is what an affinity map remembers of an endpoint. It is the same as
// long as the endpoint is, so that clients stay when others come and go. It
// travels in the connection's mark.
func stickyID(e netip.AddrPort) uint32 {
	h := fnv.New32a()
	h.Write(e.Addr().AsSlice())
	h.Write([]byte{byte(e.Port() >> 8), byte(e.Port())})
	return h.Sum32()
}

func numbered(key string, n uint32) string { return string(nft.AppendMark([]byte(key), n)) }

// rangesChain lets the sources of a load balancer through.
func rangesChain(fr *frontend) nft.Chain {
	c := nft.Chain{Name: fmt.Sprintf("%s-ranges-%s-%d-%d", section, fr.addr, fr.proto, fr.port)}
	for _, p := range fr.ranges {
		c.Rules = append(c.Rules, nft.Rule{nft.InPrefix(nft.SrcAddr(fr.is6), p), nft.Return()})
	}
	c.Rules = append(c.Rules, nft.Rule{nft.Drop()})
	return c
}

func packFrontend(fr *frontend) string {
	var b []byte
	if fr.addr.IsValid() {
		b = nft.AppendAddr(b, fr.addr)
	}
	return string(nft.AppendPort(nft.AppendProto(b, fr.proto), fr.port))
}

func index(is6 bool) int {
	if is6 {
		return 1
	}
	return 0
}
