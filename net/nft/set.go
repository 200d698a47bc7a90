package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Type is the type of one column of a set's key or value.
type Type struct {
	bytes  int
	kernel nftables.SetDatatype
	format func([]byte) string
}

// The types that sets are made of.
func IPv4() Type { return Type{4, nftables.TypeIPAddr, formatAddr} }
func IPv6() Type { return Type{16, nftables.TypeIP6Addr, formatAddr} }
func Proto() Type {
	return Type{1, nftables.TypeInetProto, func(b []byte) string { return protoName(b[0]) }}
}
func Port() Type {
	return Type{2, nftables.TypeInetService, func(b []byte) string { return fmt.Sprint(binary.BigEndian.Uint16(b)) }}
}

// Mark is a number of 32 bits without further meaning.
func Mark() Type {
	return Type{4, nftables.TypeMark, func(b []byte) string { return fmt.Sprintf("%#x", binary.NativeEndian.Uint32(b)) }}
}

func formatAddr(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// padded is the size of a column in a concatenation: whole registers.
func padded(bytes int) int { return (bytes + 3) &^ 3 }

func width(types []Type) int {
	n := 0
	for _, t := range types {
		n += padded(t.bytes)
	}
	return n
}

// Set is a set, a map (if Value is not empty) or a verdict map.
type Set struct {
	Name    string
	Key     []Type
	Value   []Type
	Verdict bool // the value is a verdict; Value is empty
	Dynamic bool // packets add elements, which time out
	// Interval says that elements are ranges of addresses (AppendRange). Such
	// a set never changes: another content has another name.
	Interval bool
	Parts    []Part
}

// Part is a named share of a set's elements. Two parts never hold the same key.
// Parts of a set are sorted by name.
type Part struct {
	Name     string
	Elements *Elements
}

// Elements are immutable and sorted by key.
type Elements struct{ list []Element }

// Element is an element of a set; Key and Value are packed by the Append
// functions in the order of the set's columns.
type Element struct {
	Key     string
	Value   string
	Verdict Verdict
	end     bool // Key is the first that a range does not hold
}

// AppendRange adds a range of addresses, both included, to the elements of an
// interval set. Ranges of a set must not touch each other.
func AppendRange(list []Element, first, last netip.Addr) []Element {
	list = append(list, Element{Key: string(first.AsSlice())})
	if next := last.Next(); next.IsValid() { // else it ends with the address space
		list = append(list, Element{Key: string(next.AsSlice()), end: true})
	}
	return list
}

// NewElements sorts a list, which it takes over.
func NewElements(list []Element) *Elements {
	slices.SortFunc(list, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
	return &Elements{list}
}

// Len is the number of elements; a nil *Elements has none.
func (e *Elements) Len() int {
	if e == nil {
		return 0
	}
	return len(e.list)
}

// All returns the elements, sorted by key. They must not be changed.
func (e *Elements) All() []Element {
	if e == nil {
		return nil
	}
	return e.list
}

// AppendAddr packs an address (types IPv4, IPv6).
func AppendAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }

// AppendProto packs an IP protocol number.
func AppendProto(b []byte, proto uint8) []byte { return append(b, proto, 0, 0, 0) }

// AppendPort packs a port.
func AppendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

// AppendMark packs a 32 bit number, in the byte order in which the kernel's
// own number generators write it.
func AppendMark(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }

// String prints the set as nft does.
func (s *Set) String() string {
	var b strings.Builder
	kind := "set"
	if s.isMap() {
		kind = "map"
	}
	fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s", kind, s.Name, typeNames(s.Key))
	if s.Verdict {
		b.WriteString(" : verdict")
	} else if len(s.Value) > 0 {
		b.WriteString(" : " + typeNames(s.Value))
	}
	if s.Dynamic {
		b.WriteString("\n\t\tflags dynamic,timeout")
	}
	if s.Interval {
		b.WriteString("\n\t\tflags interval")
	}
	b.WriteString("\n")
	var lines []string
	for _, p := range s.Parts {
		for _, e := range p.Elements.All() {
			lines = append(lines, "\t\t"+s.format(e)+"\n")
		}
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	b.WriteString("\t}\n")
	return b.String()
}

func (s *Set) format(e Element) string {
	text := formatColumns(s.Key, e.Key)
	if s.Interval {
		// Sorted as text, a range's end stands next to nothing: say what it is.
		text = map[bool]string{false: "from ", true: "before "}[e.end] + text
	}
	if s.Verdict {
		return text + " : " + e.Verdict.String()
	}
	if len(s.Value) > 0 {
		return text + " : " + formatColumns(s.Value, e.Value)
	}
	return text
}

func (s *Set) isMap() bool { return s.Verdict || len(s.Value) > 0 }

// sameShape says whether the kernel's set can stay and only elements differ.
func (s *Set) sameShape(o *Set) bool {
	return s.Verdict == o.Verdict && s.Dynamic == o.Dynamic && s.Interval == o.Interval &&
		typeNames(s.Key) == typeNames(o.Key) && typeNames(s.Value) == typeNames(o.Value)
}

func typeNames(types []Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.kernel.Name
	}
	return strings.Join(names, " . ")
}

func formatColumns(types []Type, packed string) string {
	cols := make([]string, 0, len(types))
	for _, t := range types {
		if len(packed) < padded(t.bytes) {
			return fmt.Sprintf("malformed %x", packed)
		}
		cols = append(cols, t.format([]byte(packed[:t.bytes])))
		packed = packed[padded(t.bytes):]
	}
	return strings.Join(cols, " . ")
}

// kernelSet translates to the library's words.
func (s *Set) kernelSet(t *nftables.Table) *nftables.Set {
	k := &nftables.Set{
		Table: t, Name: s.Name, IsMap: s.isMap(), Dynamic: s.Dynamic, Interval: s.Interval, HasTimeout: s.Dynamic,
		KeyType: concat(s.Key), Concatenation: len(s.Key) > 1,
	}
	if s.Dynamic {
		k.Size = dynamicSetSize
	}
	if s.Verdict {
		k.DataType = nftables.TypeVerdict
	} else if len(s.Value) > 0 {
		k.DataType = concat(s.Value)
	}
	return k
}

// dynamicSetSize bounds what packets can make the kernel remember: an address
// that scans can fill a set, not the device's memory (about 6 MB).
const dynamicSetSize = 65536

func concat(types []Type) nftables.SetDatatype {
	if len(types) == 1 {
		return types[0].kernel
	}
	k := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		k[i] = t.kernel
	}
	return nftables.MustConcatSetType(k...) // at most five columns: a bug in our own rules
}
