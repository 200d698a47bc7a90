package mvcc

import (
	"bytes"
	"sort"

	"github.com/google/btree"
)

// Rev is a revision: Main counts transactions, Sub the changes inside one.
type Rev struct{ Main, Sub int64 }

func (r Rev) less(o Rev) bool { return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub }

// generation is the life of a key from its creation to its deletion. revs are
// ascending; ended says that the last one is the deletion.
//
// versions before revs[0] may have been compacted, so the version of revs[i] is
// firstVersion+i.
type generation struct {
	created      Rev
	firstVersion int64
	revs         []Rev
	ended        bool
}

// entry is all that is kept about a key; gens are ascending and never empty.
//
// Worked example: put@2, put@3, delete@4, put@6 is
// {created 2, revs 2 3 4, ended}, {created 6, revs 6}. Compacted at 3 it is
// {created 2, firstVersion 2, revs 3 4, ended}, {created 6, revs 6}; at 4 the
// deletion alone is left of the first generation, at 5 nothing.
type entry struct {
	key  []byte
	gens []generation
}

func entryLess(a, b *entry) bool { return bytes.Compare(a.key, b.key) < 0 }

// index finds the revisions of keys.
type index struct {
	tree  *btree.BTreeG[*entry]
	probe entry // what a writer looks for
}

func newIndex() *index { return &index{tree: btree.NewG(32, entryLess)} }

func (x *index) get(key []byte) *entry {
	e, _ := x.tree.Get(&entry{key: key})
	return e
}

// obtain is get for a key that is about to be written: the entry is made if
// there is none. Nobody else looks at the index.
func (x *index) obtain(key []byte) *entry {
	x.probe.key = key
	e, ok := x.tree.Get(&x.probe)
	x.probe.key = nil
	if !ok {
		e = &entry{key: bytes.Clone(key)}
		x.tree.ReplaceOrInsert(e)
	}
	return e
}

// put records that key was written at rev.
func (x *index) put(key []byte, rev Rev) { x.obtain(key).put(rev) }

func (e *entry) put(rev Rev) {
	if n := len(e.gens); n > 0 && !e.gens[n-1].ended {
		e.gens[n-1].revs = append(e.gens[n-1].revs, rev)
		return
	}
	e.gens = append(e.gens, generation{created: rev, firstVersion: 1, revs: []Rev{rev}})
}

// restore is put for a value read from disk, which knows its creation.
func (x *index) restore(key []byte, rev, created Rev, version int64) {
	e := x.get(key)
	if e != nil && !e.gens[len(e.gens)-1].ended {
		x.put(key, rev)
		return
	}
	if e == nil {
		e = &entry{key: bytes.Clone(key)}
		x.tree.ReplaceOrInsert(e)
	}
	e.gens = append(e.gens, generation{created: created, firstVersion: version, revs: []Rev{rev}})
}

// delete records that key was deleted at rev; it reports whether it existed.
func (x *index) delete(key []byte, rev Rev) bool {
	e := x.get(key)
	if e == nil || e.gens[len(e.gens)-1].ended {
		return false
	}
	g := &e.gens[len(e.gens)-1]
	g.revs, g.ended = append(g.revs, rev), true
	return true
}

// bury is delete for a deletion read from disk, of which the life before it may
// have been compacted.
func (x *index) bury(key []byte, rev Rev) {
	if x.delete(key, rev) {
		return
	}
	e := x.get(key)
	if e == nil {
		e = &entry{key: bytes.Clone(key)}
		x.tree.ReplaceOrInsert(e)
	}
	e.gens = append(e.gens, generation{revs: []Rev{rev}, ended: true})
}

// holds reports whether rev of key has not been compacted.
func (x *index) holds(key []byte, rev Rev) bool {
	e := x.get(key)
	if e == nil {
		return false
	}
	for i := range e.gens {
		revs := e.gens[i].revs
		if n := sort.Search(len(revs), func(j int) bool { return !revs[j].less(rev) }); n < len(revs) && revs[n] == rev {
			return true
		}
	}
	return false
}

// version is what a key was at some revision.
type version struct {
	rev, created Rev
	n            int64
}

// at finds the key's state at main revision at; ok is false if it did not exist.
func (e *entry) at(at int64) (v version, ok bool) {
	for i := len(e.gens) - 1; i >= 0; i-- {
		g := &e.gens[i]
		n := sort.Search(len(g.revs), func(j int) bool { return g.revs[j].Main > at })
		if n == 0 {
			continue
		}
		if g.ended && n == len(g.revs) {
			return version{}, false
		}
		return version{g.revs[n-1], g.created, g.firstVersion + int64(n-1)}, true
	}
	return version{}, false
}

// ascend calls f for each key in [key, end) in order; see rangeEnd for the
// meaning of end.
func (x *index) ascend(key, end []byte, f func(*entry) bool) {
	switch {
	case len(end) == 0:
		if e := x.get(key); e != nil {
			f(e)
		}
	case len(end) == 1 && end[0] == 0:
		x.tree.AscendGreaterOrEqual(&entry{key: key}, f)
	default:
		x.tree.AscendRange(&entry{key: key}, &entry{key: end}, f)
	}
}

func (e *entry) compact(at int64, rows []gone) []gone {
	kept := e.gens[:0]
	for _, g := range e.gens {
		// keep is the first revision that is still visible at `at` or later.
		n := sort.Search(len(g.revs), func(j int) bool { return g.revs[j].Main > at })
		keep := max(n-1, 0)
		if g.ended && n == len(g.revs) {
			keep = n // deleted before `at`: the whole life is over
			if n > 0 && g.revs[n-1].Main == at {
				keep = n - 1 // a watch from `at` on has still to tell of it
			}
		}
		for i, rev := range g.revs[:keep] {
			rows = append(rows, gone{rev, g.ended && i == len(g.revs)-1})
		}
		if keep == len(g.revs) {
			continue
		}
		if keep > 0 {
			g.revs = append([]Rev(nil), g.revs[keep:]...)
			g.firstVersion += int64(keep)
		}
		kept = append(kept, g)
	}
	e.gens = kept
	return rows
}
