package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
)

// probeTable is made and removed again to find out what the kernel can do.
const probeTable = "edged-probe"

// Feature is something that rules may need of the kernel.
type Feature struct {
	Name     string
	Purpose  string
	Required bool   // nothing stands in for it
	Instead  string // what is used where it is missing, if not Required
	Options  string // of the kernel's configuration, without CONFIG_
	rules    func() ([]Rule, []*Set, Base)
}

// The features, by name.
const (
	FeatureTables     = "tables"
	FeatureMaps       = "maps"
	FeatureVerdictMap = "verdict maps"
	FeatureNAT        = "dnat"
	FeatureMasquerade = "masquerade"
	FeatureFIB        = "fib"
	FeatureReject     = "reject"
	FeatureConntrack  = "ct"
	FeatureNumgen     = "numgen"
	FeatureHash       = "hash"
	FeatureDynamic    = "dynamic maps"
	FeatureRanges     = "ranges"
)

var natHook = Base{"nat", "prerouting", PriorityDstNAT}
var filterHook = Base{"filter", "forward", PriorityFilter}

// Features lists what net/proxy and net/policy make use of, basics first.
func Features() []Feature {
	return []Feature{
		{Name: FeatureTables, Purpose: "all packet filtering", Options: "NETFILTER NETFILTER_ADVANCED IPV6 NF_TABLES NF_TABLES_INET", Required: true,
			rules: func() ([]Rule, []*Set, Base) {
				return []Rule{{InPrefix(DstAddr(false), netip.MustParsePrefix("192.0.2.0/24")), Equal(DstPort(), PortConst(9)), Drop()}}, nil, filterHook
			}},
		{Name: FeatureMaps, Purpose: "Services", Required: true, rules: probeMaps},
		{Name: FeatureVerdictMap, Purpose: "Services", Required: true, rules: func() ([]Rule, []*Set, Base) {
			s := &Set{Name: "verdicts", Key: []Type{Proto(), Port()}, Verdict: true, Parts: []Part{{Elements: NewElements(
				[]Element{{Key: string(AppendPort(AppendProto(nil, 6), 9)), Verdict: Drop()}})}}}
			return []Rule{{VerdictMap(s, L4Proto(), DstPort())}}, []*Set{s}, filterHook
		}},
		{Name: FeatureNAT, Purpose: "Services and host ports", Options: "NF_NAT NFT_NAT", Required: true, rules: func() ([]Rule, []*Set, Base) {
			m := endpointsMap()
			return []Rule{{DNAT(false, m, DstAddr(false), DstPort())}}, []*Set{m}, natHook
		}},
		{Name: FeatureMasquerade, Purpose: "Pods reaching the outside", Options: "NFT_MASQ", Required: true, rules: func() ([]Rule, []*Set, Base) {
			return []Rule{{InPrefix(SrcAddr(false), netip.MustParsePrefix("192.0.2.0/24")), Masquerade()}}, nil, Base{"nat", "postrouting", PrioritySrcNAT}
		}},
		{Name: FeatureFIB, Purpose: "NodePorts", Options: "NFT_FIB_IPV4 NFT_FIB_IPV6 NFT_FIB_INET", Required: true, rules: func() ([]Rule, []*Set, Base) {
			return []Rule{{Equal(DstType(), Local()), Return()}}, nil, natHook
		}},
		{Name: FeatureReject, Purpose: "refusing connections to Services without endpoints", Options: "NFT_REJECT", Required: true,
			rules: func() ([]Rule, []*Set, Base) {
				return []Rule{{Equal(L4Proto(), ProtoConst(6)), Equal(DstPort(), PortConst(9)), Reject()}}, nil, filterHook
			}},
		{Name: FeatureConntrack, Purpose: "Services and NetworkPolicy", Options: "NF_CONNTRACK NFT_CT", Required: true, rules: func() ([]Rule, []*Set, Base) {
			return []Rule{{Has(ConnState(), StateInvalid()), Has(ConnStatus(), StatusDNAT()), Drop()}}, nil, filterHook
		}},
		{Name: FeatureNumgen, Purpose: "balancing each connection at random", Options: "NFT_NUMGEN", Instead: "a hash of the client's address and port",
			rules: func() ([]Rule, []*Set, Base) {
				m := endpointsMap()
				m.Key = []Type{Mark()}
				return []Rule{{DNAT(false, m, Random(2))}}, []*Set{m}, natHook
			}},
		{Name: FeatureHash, Purpose: "balancing where numgen is missing", Options: "NFT_HASH", Instead: "numgen",
			rules: func() ([]Rule, []*Set, Base) {
				m := endpointsMap()
				m.Key = []Type{Mark()}
				return []Rule{{DNAT(false, m, FlowHash(false, 2))}}, []*Set{m}, natHook
			}},
		{Name: FeatureDynamic, Purpose: "session affinity", Options: "NF_CONNTRACK_MARK", Instead: "Services with session affinity are not served",
			rules: func() ([]Rule, []*Set, Base) {
				m := &Set{Name: "seen", Key: []Type{IPv4()}, Value: []Type{Mark()}, Dynamic: true}
				return []Rule{{SetConnMark(m, SrcAddr(false)), Update(m, time.Minute, []Value{SrcAddr(false)}, ConnMark()),
					Delete(m, []Value{SrcAddr(false)}, ConnMark())}}, []*Set{m}, natHook
			}},
		{Name: FeatureRanges, Purpose: "NetworkPolicy with ipBlock", Instead: "policies with ipBlock are not enforced",
			rules: func() ([]Rule, []*Set, Base) {
				s := &Set{Name: "ranges", Key: []Type{IPv4()}, Interval: true, Parts: []Part{{Elements: NewElements(
					AppendRange(nil, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")))}}}
				return []Rule{{In(s, SrcAddr(false)), Drop()}}, []*Set{s}, filterHook
			}},
	}
}

func endpointsMap() *Set {
	return &Set{Name: "endpoints", Key: []Type{IPv4(), Port()}, Value: []Type{IPv4(), Port()}}
}

func probeMaps() ([]Rule, []*Set, Base) {
	m := endpointsMap()
	a := netip.MustParseAddr("192.0.2.1")
	pair := string(AppendPort(AppendAddr(nil, a), 9))
	m.Parts = []Part{{Elements: NewElements([]Element{{Key: pair, Value: pair}})}}
	marks := &Set{Name: "marks", Key: []Type{IPv4(), Port()}, Parts: []Part{{Elements: NewElements([]Element{{Key: pair}})}}}
	return []Rule{{In(marks, DstAddr(false), DstPort()), Drop()}}, []*Set{m, marks}, filterHook
}

// Probe says whether the kernel has a feature: nil if it took a rule with it
// and showed it when asked. The rules of a probe match no packet that matters
// and are gone before it returns.
func Probe(name string) error {
	for _, f := range Features() {
		if f.Name == name {
			return f.Probe()
		}
	}
	return fmt.Errorf("no nftables feature is called %q", name)
}

// Probe is the method form of [Probe].
func (f Feature) Probe() (err error) {
	table := &nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet}
	rules, sets, base := f.rules()
	defer func() {
		err = errors.Join(err, remove(table))
	}()
	conn, err := dial()
	if err != nil {
		return fmt.Errorf("nftables %s: %w", f.Name, err)
	}
	defer conn.CloseLasting()
	x := begin(conn, table)
	chain := Chain{Name: "probe", Base: &base, Rules: rules}
	if err := x.diff(&Ruleset{}, &Ruleset{Chains: []Chain{chain}, Sets: sets}); err != nil {
		return fmt.Errorf("nftables %s: %w", f.Name, err)
	}
	if err := x.commit(); err != nil {
		return fmt.Errorf("nftables %s: %w", f.Name, err)
	}
	got, err := x.conn.GetRules(table, &nftables.Chain{Table: table, Name: chain.Name})
	if err != nil || len(got) != len(rules) {
		return fmt.Errorf("nftables %s: %w", f.Name, errors.Join(ErrNotApplied, err))
	}
	return nil
}
