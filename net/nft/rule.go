package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Chain is a chain; Base is nil for one that is only jumped to.
type Chain struct {
	Name  string
	Base  *Base
	Rules []Rule
}

// Base attaches a chain to a hook. Its policy is accept.
type Base struct {
	Type     string // filter or nat
	Hook     string // prerouting, input, forward, output or postrouting
	Priority int32
}

// Priorities of base chains, as in nft(8).
const (
	PriorityRaw     = -300
	PriorityDstNAT  = -100
	PriorityFilter  = 0
	PrioritySrcNAT  = 100
	PriorityPreDNAT = PriorityDstNAT - 10 // sees addresses before translation
)

// Rule is a list of statements; a packet goes on to the next statement as long
// as each one matches.
type Rule []Stmt

func (r Rule) String() string {
	s := make([]string, len(r))
	for i, st := range r {
		s[i] = st.String()
	}
	return strings.Join(s, " ")
}

// Stmt is a statement of a rule.
type Stmt interface {
	String() string
	compile(*compiler)
}

// Value is what a statement loads: a packet's field or a number.
type Value interface {
	String() string
	size() int // in bytes, padded
	load(c *compiler, reg int)
}

// stmt is a statement of a text and a function.
type stmt struct {
	text string
	emit func(*compiler)
}

func (s stmt) String() string      { return s.text }
func (s stmt) compile(c *compiler) { s.emit(c) }

// Field is a property of the packet.
type Field struct {
	text   string
	bytes  int
	family byte // unix.NFPROTO_IPV4 or IPV6 if the field needs it, else 0
	emit   func(reg uint32) []expr.Any
}

func (f Field) String() string { return f.text }
func (f Field) size() int      { return padded(f.bytes) }
func (f Field) load(c *compiler, reg int) {
	c.require(f.family)
	c.add(f.emit(c.register(reg))...)
}

func payload(text string, family byte, base expr.PayloadBase, offset, bytes uint32) Field {
	return Field{text, int(bytes), family, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: bytes}}
	}}
}

func meta(text string, key expr.MetaKey, bytes int) Field {
	return Field{text, bytes, 0, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: reg}}
	}}
}

// SrcAddr and DstAddr are the packet's addresses; is6 names the family, which
// the rule then requires.
func SrcAddr(is6 bool) Field {
	if is6 {
		return payload("ip6 saddr", unix.NFPROTO_IPV6, expr.PayloadBaseNetworkHeader, 8, 16)
	}
	return payload("ip saddr", unix.NFPROTO_IPV4, expr.PayloadBaseNetworkHeader, 12, 4)
}
func DstAddr(is6 bool) Field {
	if is6 {
		return payload("ip6 daddr", unix.NFPROTO_IPV6, expr.PayloadBaseNetworkHeader, 24, 16)
	}
	return payload("ip daddr", unix.NFPROTO_IPV4, expr.PayloadBaseNetworkHeader, 16, 4)
}

// SrcPort and DstPort are the transport header's ports.
func SrcPort() Field { return payload("th sport", 0, expr.PayloadBaseTransportHeader, 0, 2) }
func DstPort() Field { return payload("th dport", 0, expr.PayloadBaseTransportHeader, 2, 2) }

// L4Proto is the transport protocol.
func L4Proto() Field { return meta("meta l4proto", expr.MetaKeyL4PROTO, 1) }

// InLink and OutLink are the names of the links of a packet.
func InLink() Field  { return meta("iifname", expr.MetaKeyIIFNAME, unix.IFNAMSIZ) }
func OutLink() Field { return meta("oifname", expr.MetaKeyOIFNAME, unix.IFNAMSIZ) }

// PacketMark is the packet's mark.
func PacketMark() Field { return meta("meta mark", expr.MetaKeyMARK, 4) }

// ConnState, ConnStatus and ConnMark are the connection track's.
func ConnState() Field  { return conntrack("ct state", expr.CtKeySTATE) }
func ConnStatus() Field { return conntrack("ct status", expr.CtKeySTATUS) }
func ConnMark() Field   { return conntrack("ct mark", expr.CtKeyMARK) }

func conntrack(text string, key expr.CtKey) Field {
	return Field{text, 4, 0, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Ct{Key: key, Register: reg}}
	}}
}

// SrcType and DstType say what an address is to this device; compare with Local.
func SrcType() Field { return fib("fib saddr type", &expr.Fib{FlagSADDR: true, ResultADDRTYPE: true}) }
func DstType() Field { return fib("fib daddr type", &expr.Fib{FlagDADDR: true, ResultADDRTYPE: true}) }

func fib(text string, e *expr.Fib) Field {
	return Field{text, 4, 0, func(reg uint32) []expr.Any {
		f := *e
		f.Register = reg
		return []expr.Any{&f}
	}}
}

// Random is a random number below n.
func Random(n uint32) Field {
	return Field{fmt.Sprintf("numgen random mod %d", n), 4, 0, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: n, Type: unix.NFT_NG_RANDOM}}
	}}
}

// FlowHash is a number below n that is the same for all packets of a flow: what
// balances where a kernel has no Random.
func FlowHash(is6 bool, n uint32) Value { return flowHash{SrcAddr(is6), n} }

type flowHash struct {
	saddr Field
	mod   uint32
}

func (h flowHash) String() string {
	return fmt.Sprintf("jhash %s . th sport mod %d", h.saddr, h.mod)
}
func (h flowHash) size() int { return 4 }
func (h flowHash) load(c *compiler, reg int) {
	h.saddr.load(c, reg)
	SrcPort().load(c, reg+h.saddr.size()/4)
	c.add(&expr.Hash{
		SourceRegister: c.register(reg), DestRegister: c.register(reg),
		Length: uint32(h.saddr.size() + 4), Modulus: h.mod, Type: expr.HashTypeJenkins,
	})
}

// Number is a constant of 32 bits.
func Number(v uint32) Field {
	return Field{fmt.Sprint(v), 4, 0, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Immediate{Register: reg, Data: native(v)}}
	}}
}

// Const is what a field is compared with.
type Const struct {
	text string
	data []byte
}

func ProtoConst(p uint8) Const { return Const{protoName(p), []byte{p}} }
func PortConst(p uint16) Const { return Const{fmt.Sprint(p), []byte{byte(p >> 8), byte(p)}} }

// LinkConst is the whole name of a link.
func LinkConst(name string) Const {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return Const{fmt.Sprintf("%q", name), data}
}

// Local compares equal to the type of the device's own addresses.
func Local() Const { return Const{"local", native(unix.RTN_LOCAL)} }

// Equal and NotEqual compare a field.
func Equal(f Field, k Const) Stmt    { return compare(f, expr.CmpOpEq, "", k) }
func NotEqual(f Field, k Const) Stmt { return compare(f, expr.CmpOpNeq, "!= ", k) }

func compare(f Field, op expr.CmpOp, opText string, k Const) Stmt {
	return stmt{f.text + " " + opText + k.text, func(c *compiler) {
		f.load(c, 0)
		c.add(&expr.Cmp{Op: op, Register: c.register(0), Data: k.data})
	}}
}

// InPrefix and NotInPrefix match an address field of the prefix's family.
func InPrefix(f Field, p netip.Prefix) Stmt    { return inPrefix(f, expr.CmpOpEq, "", p) }
func NotInPrefix(f Field, p netip.Prefix) Stmt { return inPrefix(f, expr.CmpOpNeq, "!= ", p) }

func inPrefix(f Field, op expr.CmpOp, opText string, p netip.Prefix) Stmt {
	p = p.Masked()
	return stmt{f.text + " " + opText + p.String(), func(c *compiler) {
		f.load(c, 0)
		reg := c.register(0)
		c.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(f.bytes),
			Mask: net.CIDRMask(p.Bits(), f.bytes*8), Xor: make([]byte, f.bytes)},
			&expr.Cmp{Op: op, Register: reg, Data: p.Addr().AsSlice()})
	}}
}

// PortRange matches lo to hi, both included.
func PortRange(f Field, lo, hi uint16) Stmt {
	return stmt{fmt.Sprintf("%s %d-%d", f.text, lo, hi), func(c *compiler) {
		f.load(c, 0)
		c.add(&expr.Range{Op: expr.CmpOpEq, Register: c.register(0),
			FromData: PortConst(lo).data, ToData: PortConst(hi).data})
	}}
}

// Bits are flags of a field with their names.
type Bits struct {
	text string
	mask uint32
}

func StateNew() Bits { return Bits{"new", expr.CtStateBitNEW} }
func StateEstablished() Bits {
	return Bits{"established,related", expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED}
}
func StateInvalid() Bits     { return Bits{"invalid", expr.CtStateBitINVALID} }
func StatusDNAT() Bits       { return Bits{"dnat", statusDstNAT} }
func MarkBits(m uint32) Bits { return Bits{fmt.Sprintf("& %#x != 0", m), m} }

// statusDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDstNAT = 1 << 5

// Has matches if any of the bits is set.
func Has(f Field, b Bits) Stmt {
	return stmt{f.text + " " + b.text, func(c *compiler) {
		f.load(c, 0)
		reg := c.register(0)
		c.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(b.mask), Xor: native(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: native(0)})
	}}
}

// In and NotIn look a key up in a set.
func In(s *Set, key ...Value) Stmt {
	return stmt{join(key) + " @" + s.Name, func(c *compiler) {
		c.add(&expr.Lookup{SourceRegister: c.key(key), SetName: s.Name})
	}}
}
func NotIn(s *Set, key ...Value) Stmt {
	return stmt{join(key) + " != @" + s.Name, func(c *compiler) {
		c.add(&expr.Lookup{SourceRegister: c.key(key), SetName: s.Name, Invert: true})
	}}
}

// VerdictMap does what the map says for the key, if it says anything.
func VerdictMap(s *Set, key ...Value) Stmt {
	return stmt{join(key) + " vmap @" + s.Name, func(c *compiler) {
		c.add(&expr.Lookup{SourceRegister: c.key(key), SetName: s.Name,
			IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
	}}
}

// Update adds a key with a value to a dynamic map, or renews the timeout of the
// key if the map has it, in which case the value stays.
func Update(s *Set, timeout time.Duration, key []Value, value Field) Stmt {
	return dynamic(fmt.Sprintf("update @%s { %s timeout %s : %s }", s.Name, join(key), timeout, value),
		unix.NFT_DYNSET_OP_UPDATE, s, timeout, key, value)
}

// Delete removes a key from a dynamic map; the rule ends where it has none. The
// kernel wants a value and ignores it.
func Delete(s *Set, key []Value, value Field) Stmt {
	return dynamic(fmt.Sprintf("delete @%s { %s : %s }", s.Name, join(key), value), opDelete, s, 0, key, value)
}

// opDelete is NFT_DYNSET_OP_DELETE of linux/netfilter/nf_tables.h (Linux 5.4).
const opDelete = 2

func dynamic(text string, op uint32, s *Set, timeout time.Duration, key []Value, value Field) Stmt {
	return stmt{text, func(c *compiler) {
		next := c.loadKey(key)
		value.load(c, next)
		c.add(&expr.Dynset{SetName: s.Name, Operation: op, Timeout: timeout, SrcRegKey: c.register(0), SrcRegData: c.register(next)})
	}}
}

// SetConnMark sets the connection's mark to what a map has for the key; the rule
// ends where it has nothing.
func SetConnMark(m *Set, key ...Value) Stmt {
	return stmt{"ct mark set " + join(key) + " map @" + m.Name, func(c *compiler) {
		c.lookup(m, key)
		c.add(&expr.Ct{Key: expr.CtKeyMARK, Register: c.register(0), SourceRegister: true})
	}}
}

// DNAT sends the connection to the address and port that a map has for the key;
// the rule ends where it has nothing.
func DNAT(is6 bool, m *Set, key ...Value) Stmt {
	family, text, words := uint32(unix.NFPROTO_IPV4), "dnat ip to ", 1
	if is6 {
		family, text, words = unix.NFPROTO_IPV6, "dnat ip6 to ", 4
	}
	return stmt{text + join(key) + " map @" + m.Name, func(c *compiler) {
		c.lookup(m, key)
		c.add(&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, Specified: true,
			RegAddrMin: c.register(0), RegProtoMin: c.register(words)})
	}}
}

// Masquerade gives the packet the address of the link it leaves by.
func Masquerade() Stmt {
	return stmt{"masquerade fully-random", func(c *compiler) { c.add(&expr.Masq{FullyRandom: true}) }}
}

// SetMark sets bits of the packet's mark, ClearMark clears them.
func SetMark(bits uint32) Stmt {
	return changeMark(fmt.Sprintf("or %#x", bits), native(^bits), native(bits))
}
func ClearMark(bits uint32) Stmt {
	return changeMark(fmt.Sprintf("and not %#x", bits), native(^bits), native(0))
}

func changeMark(text string, mask, xor []byte) Stmt {
	return stmt{"meta mark set meta mark " + text, func(c *compiler) {
		reg := c.register(0)
		c.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: xor},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
	}}
}

// Reject refuses with ICMP's port unreachable, which a client sees as
// "connection refused".
func Reject() Stmt {
	return stmt{"reject", func(c *compiler) {
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	}}
}

// RejectTCP refuses a TCP connection with a reset, which, unlike ICMP, has no
// limit of one per client and second.
func RejectTCP() Stmt {
	return stmt{"reject with tcp reset", func(c *compiler) {
		c.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	}}
}

// Verdict ends a rule, as a statement and as the value of a verdict map.
type Verdict struct {
	kind  string
	chain string
}

func Accept() Verdict           { return Verdict{kind: "accept"} }
func Drop() Verdict             { return Verdict{kind: "drop"} }
func Return() Verdict           { return Verdict{kind: "return"} }
func Jump(chain string) Verdict { return Verdict{"jump", chain} }
func Goto(chain string) Verdict { return Verdict{"goto", chain} }

func (v Verdict) String() string      { return strings.TrimSpace(v.kind + " " + v.chain) }
func (v Verdict) compile(c *compiler) { c.add(v.expr()) }

func (v Verdict) expr() *expr.Verdict {
	kinds := map[string]expr.VerdictKind{
		"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "return": expr.VerdictReturn,
		"jump": expr.VerdictJump, "goto": expr.VerdictGoto,
	}
	return &expr.Verdict{Kind: kinds[v.kind], Chain: v.chain}
}

func join(values []Value) string {
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = v.String()
	}
	return strings.Join(s, " . ")
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

func (b *Base) kernelChain(c *nftables.Chain) error {
	hooks := map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput,
		"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput,
		"postrouting": nftables.ChainHookPostrouting,
	}
	if hooks[b.Hook] == nil {
		return fmt.Errorf("no hook is called %q", b.Hook)
	}
	accept := nftables.ChainPolicyAccept
	c.Type, c.Hooknum = nftables.ChainType(b.Type), hooks[b.Hook]
	c.Priority, c.Policy = nftables.ChainPriorityRef(nftables.ChainPriority(b.Priority)), &accept
	return nil
}
