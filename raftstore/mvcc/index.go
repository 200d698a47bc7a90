package mvcc

import (
	"bytes"

	"github.com/google/btree"
)

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

// find is get for a key that is about to be written: nobody else looks at the index.
func (x *index) find(key []byte) *entry {
	x.probe.key = key
	e, _ := x.tree.Get(&x.probe)
	x.probe.key = nil
	return e
}

// put records that key, whose entry e is, nil for none, was written at rev.
func (x *index) put(e *entry, key []byte, rev Rev) {
	if e == nil {
		x.insert(key, newSpan(rev, rev.Main, 1))
	} else {
		e.put(rev)
	}
}

// insert adds a key of which nothing is held.
func (x *index) insert(key []byte, s span) {
	x.tree.ReplaceOrInsert(&entry{key: bytes.Clone(key), newest: s})
}

// restore is put for a value read from disk, which knows its creation.
func (x *index) restore(key []byte, rev Rev, created, version int64) {
	e := x.find(key)
	switch {
	case e == nil:
		x.insert(key, newSpan(rev, created, version))
	case e.newest.ended:
		e.begin(newSpan(rev, created, version))
	default:
		e.put(rev)
	}
}

// bury records a deletion read from disk, of which the life before it may have been
// compacted.
func (x *index) bury(key []byte, rev Rev) {
	e := x.find(key)
	if e != nil && !e.newest.ended {
		e.end(rev)
		return
	}
	lone := newSpan(rev, 0, 0)
	lone.ended = true
	if e == nil {
		x.insert(key, lone)
	} else {
		e.begin(lone)
	}
}

// holds reports whether rev of key has not been compacted.
func (x *index) holds(key []byte, rev Rev) bool {
	e := x.get(key)
	if e == nil {
		return false
	}
	found, _, _ := e.find(rev)
	return found
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
