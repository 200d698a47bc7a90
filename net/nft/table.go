package nft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the name of the one table that edged has, in family inet.
const TableName = "edged"

// ErrNotApplied is returned when the kernel acknowledged a transaction and did
// not carry it out: it lacks something that the rules need.
var ErrNotApplied = errors.New("the kernel acknowledged the rules but does not have them; `edged check` names what it lacks")

// Ruleset is all that a section of the table holds.
type Ruleset struct {
	Chains []Chain
	Sets   []*Set
}

// String prints the ruleset in nft's form, sorted, for golden files.
func (r *Ruleset) String() string {
	var parts []string
	for _, s := range r.Sets {
		parts = append(parts, s.String())
	}
	for _, c := range r.Chains {
		var b strings.Builder
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Base != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Base.Type, c.Base.Hook, c.Base.Priority)
		}
		for _, rule := range c.Rules {
			b.WriteString("\t\t" + rule.String() + "\n")
		}
		b.WriteString("\t}\n")
		parts = append(parts, b.String())
	}
	slices.Sort(parts)
	return strings.Join(parts, "\n")
}

// Table is the nftables table of a device.
type Table struct {
	// Set by Open.
	kernel *nftables.Table

	mu sync.Mutex // guards the following, and one transaction at a time
	// conn stays open: closing it makes the kernel finish the work of its
	// transactions first, which takes 5 to 15 ms. nil after an error, so that
	// no late answer is taken for another question's.
	conn    *nftables.Conn
	applied map[string]*Ruleset
	markers map[string]uint32 // what the kernel's marker of a section must hold
}

// Open prepares access to the table in the network namespace of the caller's
// thread. Nothing is asked of the kernel yet.
func Open() *Table { return OpenNamed(TableName) }

// OpenNamed is Open of a table for what does not go with the device's own.
func OpenNamed(name string) *Table {
	return &Table{
		kernel:  &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		applied: map[string]*Ruleset{},
		markers: map[string]uint32{},
	}
}

// Apply makes a section hold want and nothing else. want is kept and must not be
// changed afterwards. On error the kernel has what it had before.
func (t *Table) Apply(section string, want *Ruleset) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.applyLocked(section, want); err != nil {
		delete(t.applied, section)
		t.disconnect()
		return fmt.Errorf("nftables section %s: %w", section, err)
	}
	t.applied[section] = want
	return nil
}

func (t *Table) applyLocked(section string, want *Ruleset) error {
	conn, err := t.connect()
	if err != nil {
		return err
	}
	x := begin(conn, t.kernel)
	have := t.applied[section]
	if have == nil {
		if have, err = t.adopt(x, section, want); err != nil {
			return err
		}
	}
	next := rand.Uint32() | 1 // never 0, which stands for none
	if err := x.diff(t.withMarker(section, have, t.markers[section]), t.withMarker(section, want, next)); err != nil {
		return err
	}
	if err := x.commit(); err != nil {
		return err
	}
	if err := t.readMarker(section, next); err != nil {
		return err
	}
	t.markers[section] = next
	return nil
}

// Drop removes a section if there is something of it.
func (t *Table) Drop(section string) error {
	t.mu.Lock()
	conn, err := t.connect()
	var chains []*nftables.Chain
	if err == nil {
		if chains, err = conn.ListChainsOfTableFamily(t.kernel.Family); err != nil {
			t.disconnect()
		}
	}
	t.mu.Unlock()
	if err != nil {
		return fmt.Errorf("nftables section %s: listing chains: %w", section, err)
	}
	if !slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == t.kernel.Name && strings.HasPrefix(c.Name, section+"-")
	}) {
		return nil
	}
	return t.Apply(section, &Ruleset{})
}

// Intact says whether the kernel still holds what was applied to a section last.
func (t *Table) Intact(section string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.readMarker(section, t.markers[section])
	if err == nil {
		return true, nil
	}
	delete(t.applied, section) // the next Apply looks for itself
	t.disconnect()
	if errors.Is(err, ErrNotApplied) {
		return false, nil
	}
	return false, err
}

// marker is the set that shows, by its one element, which transaction the
// kernel carried out last: transactions are atomic, so the marker stands for all.
func marker(section string) *Set { return &Set{Name: section + "-applied", Key: []Type{Mark()}} }

// withMarker is a section's ruleset as the kernel gets it.
func (t *Table) withMarker(section string, r *Ruleset, value uint32) *Ruleset {
	if value == 0 {
		return r // adopted: no marker yet
	}
	m := marker(section)
	m.Parts = []Part{{Elements: NewElements([]Element{{Key: string(AppendMark(nil, value))}})}}
	return &Ruleset{Chains: r.Chains, Sets: append(slices.Clone(r.Sets), m)}
}

func (t *Table) readMarker(section string, want uint32) error {
	conn, err := t.connect()
	if err != nil {
		return err
	}
	elems, err := conn.GetSetElements(marker(section).kernelSet(t.kernel))
	if missing(err) || err == nil && (len(elems) != 1 || string(elems[0].Key) != string(AppendMark(nil, want))) {
		return ErrNotApplied
	}
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	return nil
}

// missing says whether the kernel does not know what was asked for. The library
// keeps only the text of some errors.
func missing(err error) bool {
	return err != nil && strings.HasSuffix(err.Error(), unix.ENOENT.Error())
}

// adopt finds what an earlier daemon left in a section and removes it in the
// transaction, except dynamic sets that want has too: those hold what packets
// wrote, and are returned as what the kernel has.
func (t *Table) adopt(x *transaction, section string, want *Ruleset) (*Ruleset, error) {
	have := &Ruleset{}
	t.markers[section] = 0
	chains, err := x.conn.ListChainsOfTableFamily(t.kernel.Family)
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	mine := func(name string) bool { return strings.HasPrefix(name, section+"-") }
	var old []*nftables.Chain
	for _, c := range chains {
		if c.Table.Name == t.kernel.Name && mine(c.Name) {
			c.Table = t.kernel
			x.conn.FlushChain(c)
			old = append(old, c)
		}
	}
	sets, err := x.conn.GetSets(t.kernel)
	if err != nil && !missing(err) {
		return nil, fmt.Errorf("listing sets: %w", err)
	}
	for _, s := range sets {
		if !mine(s.Name) {
			continue
		}
		i := slices.IndexFunc(want.Sets, func(w *Set) bool { return w.Name == s.Name && w.Dynamic })
		if i >= 0 && s.Dynamic && int(s.KeyType.Bytes) == width(want.Sets[i].Key) && int(s.DataType.Bytes) == width(want.Sets[i].Value) {
			w := *want.Sets[i]
			w.Parts = nil
			have.Sets = append(have.Sets, &w)
			continue
		}
		x.conn.DelSet(&nftables.Set{Table: t.kernel, Name: s.Name})
	}
	for _, c := range old {
		x.conn.DelChain(c)
	}
	return have, nil
}

// Remove deletes the whole table, whoever filled it.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.applied)
	clear(t.markers)
	return remove(t.kernel)
}

func remove(table *nftables.Table) error {
	conn, err := dial()
	if err != nil {
		return fmt.Errorf("removing nftables table %s: %w", table.Name, err)
	}
	defer conn.CloseLasting()
	// Adding it first makes the deletion of a table that is not there no error.
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("removing nftables table %s: %w", table.Name, err)
	}
	return nil
}

// transaction collects changes that the kernel makes all at once.
type transaction struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// socketBufferBytes holds the largest transaction, the first one of a device
// with some 1000 Services of 10 endpoints (2 MB), and its acknowledgements.
const socketBufferBytes = 32 << 20

// elementsPerMessage keeps a list of elements below the 64 KB that a netlink
// attribute can have: the largest element is about 120 bytes.
const elementsPerMessage = 400

func begin(conn *nftables.Conn, table *nftables.Table) *transaction {
	return &transaction{conn, conn.AddTable(table)}
}

// connect returns the connection, opening it if need be.
func (t *Table) connect() (*nftables.Conn, error) {
	if t.conn != nil {
		return t.conn, nil
	}
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	t.conn = conn
	return conn, nil
}

func (t *Table) disconnect() {
	if t.conn != nil {
		t.conn.CloseLasting()
		t.conn = nil
	}
}

// Close releases the connection to the kernel. What was applied stays, and the
// Table can still be used.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disconnect()
	return nil
}

func dial() (*nftables.Conn, error) {
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		// Best effort: what fits into smaller buffers still works.
		_ = c.SetWriteBuffer(socketBufferBytes)
		_ = c.SetReadBuffer(socketBufferBytes)
		return nil
	}))
}

func (x *transaction) commit() error {
	if err := x.conn.Flush(); err != nil {
		return fmt.Errorf("transaction refused: %w", err)
	}
	return nil
}

// diff adds what leads from have to want, in an order in which nothing is
// referred to before it exists or removed while it is referred to.
func (x *transaction) diff(have, want *Ruleset) error {
	oldSets, oldChains := map[string]*Set{}, map[string]*Chain{}
	for _, s := range have.Sets {
		oldSets[s.Name] = s
	}
	for i := range have.Chains {
		oldChains[have.Chains[i].Name] = &have.Chains[i]
	}
	// 1. Chains and sets exist; rules of changed chains are gone.
	var changed []*Chain
	for i := range want.Chains {
		c := &want.Chains[i]
		same, err := x.prepareChain(oldChains[c.Name], c)
		if err != nil {
			return err
		}
		if !same {
			changed = append(changed, c)
		}
		delete(oldChains, c.Name)
	}
	for name := range oldChains {
		x.conn.FlushChain(&nftables.Chain{Table: x.table, Name: name})
	}
	for _, s := range want.Sets {
		old := oldSets[s.Name]
		delete(oldSets, s.Name)
		if old != nil && !old.sameShape(s) {
			return fmt.Errorf("set %s changed its type", s.Name) // a bug: types are constant
		}
		if err := x.diffSet(old, s); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	// 2. Rules, which refer to chains and sets.
	for _, c := range changed {
		if err := x.addRules(c); err != nil {
			return err
		}
	}
	// 3. What nothing refers to any more.
	for name := range oldSets {
		x.conn.DelSet(&nftables.Set{Table: x.table, Name: name})
	}
	for name := range oldChains {
		x.conn.DelChain(&nftables.Chain{Table: x.table, Name: name})
	}
	return nil
}

// prepareChain makes the chain exist without rules, or says that it is the same.
func (x *transaction) prepareChain(old, c *Chain) (same bool, err error) {
	if old != nil {
		if (old.Base == nil) != (c.Base == nil) || c.Base != nil && *c.Base != *old.Base {
			return false, fmt.Errorf("chain %s changed its hook", c.Name) // a bug: hooks are constant
		}
		if slices.EqualFunc(old.Rules, c.Rules, func(a, b Rule) bool { return a.String() == b.String() }) {
			return true, nil
		}
		x.conn.FlushChain(&nftables.Chain{Table: x.table, Name: c.Name})
		return false, nil
	}
	k := &nftables.Chain{Table: x.table, Name: c.Name}
	if c.Base != nil {
		if err := c.Base.kernelChain(k); err != nil {
			return false, fmt.Errorf("chain %s: %w", c.Name, err)
		}
	}
	x.conn.AddChain(k)
	return false, nil
}

func (x *transaction) addRules(c *Chain) error {
	for _, r := range c.Rules {
		exprs, err := compileRule(r)
		if err != nil {
			return fmt.Errorf("chain %s: %w", c.Name, err)
		}
		x.conn.AddRule(&nftables.Rule{Table: x.table, Chain: &nftables.Chain{Table: x.table, Name: c.Name}, Exprs: exprs})
	}
	return nil
}

// diffSet makes the set exist and brings its elements up to date, part by part.
func (x *transaction) diffSet(old, s *Set) error {
	k := s.kernelSet(x.table)
	if old == nil {
		if err := x.conn.AddSet(k, nil); err != nil {
			return err
		}
		old = &Set{}
	}
	var gone, added []Element
	i, j := 0, 0
	for i < len(old.Parts) || j < len(s.Parts) {
		switch {
		case j == len(s.Parts) || i < len(old.Parts) && old.Parts[i].Name < s.Parts[j].Name:
			gone = append(gone, old.Parts[i].Elements.All()...)
			i++
		case i == len(old.Parts) || s.Parts[j].Name < old.Parts[i].Name:
			added = append(added, s.Parts[j].Elements.All()...)
			j++
		default:
			if old.Parts[i].Elements != s.Parts[j].Elements {
				g, a := diffElements(old.Parts[i].Elements.All(), s.Parts[j].Elements.All())
				gone, added = append(gone, g...), append(added, a...)
			}
			i, j = i+1, j+1
		}
	}
	for chunk := range slices.Chunk(gone, elementsPerMessage) {
		if err := x.conn.SetDeleteElements(k, s.kernelElements(chunk)); err != nil {
			return err
		}
	}
	for chunk := range slices.Chunk(added, elementsPerMessage) {
		if err := x.conn.SetAddElements(k, s.kernelElements(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// diffElements compares two lists sorted by key.
func diffElements(old, want []Element) (gone, added []Element) {
	for len(old) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(old) > 0 && old[0].Key < want[0].Key:
			gone, old = append(gone, old[0]), old[1:]
		case len(old) == 0 || want[0].Key < old[0].Key:
			added, want = append(added, want[0]), want[1:]
		default:
			if old[0] != want[0] {
				gone, added = append(gone, old[0]), append(added, want[0])
			}
			old, want = old[1:], want[1:]
		}
	}
	return gone, added
}

func (s *Set) kernelElements(list []Element) []nftables.SetElement {
	out := make([]nftables.SetElement, len(list))
	for i, e := range list {
		out[i].Key, out[i].IntervalEnd = []byte(e.Key), e.end
		if s.Verdict {
			out[i].VerdictData = e.Verdict.expr()
		} else {
			out[i].Val = []byte(e.Value)
		}
	}
	return out
}
