package mvcc

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sort"
)

// leafBytes is when a leaf is split: who looks for a key reads half of one, and who
// writes it moves half of one.
const leafBytes = 1 << 10

// growBytes is what a leaf grows by.
const growBytes = 128

// leaf is some keys that follow each other, ascending, and their revisions, as packed
// by appendEntry one behind the other. It is never empty.
type leaf struct{ data []byte }

// index finds the revisions of keys. It is a tree of two levels: a pointer for each
// key, or an object that the collector has to look at, would take more memory than
// what there is to tell of it.
type index struct {
	leaves []*leaf
	// large are the entries of more than one span, which few are.
	large map[string]*entry
	work  workspace
}

// workspace is what one writer after the other uses.
type workspace struct {
	entry  entry
	packed []byte
	row    []byte
	leaf   []byte
}

func newIndex() *index { return &index{large: map[string]*entry{}} }

// place is where an entry is, or would be inserted: from and to are the same then.
type place struct {
	leaf     int
	from, to int
}

// row is an entry in a leaf.
type row struct {
	key, body []byte
	size      int // with what says how long they are
}

func nextRow(b []byte) (r row) {
	k, n := binary.Uvarint(b)
	m, o := binary.Uvarint(b[n:])
	at := n + o
	end := at + int(k)
	r.size = end + int(m)
	r.key, r.body = b[at:end:end], b[end:r.size:r.size]
	return r
}

const (
	endedFlag = 1 << iota
	packedFlag
	largeFlag
)

// appendEntry packs an entry: how long its key and its body are, both, and the body is
// flags, the last revision, how many there are, and span.packed. One of index.large is
// nothing but its flag.
func appendEntry(b []byte, e *entry) []byte {
	var body [4*binary.MaxVarintLen64 + 1]byte
	var packed []byte
	head := body[:1]
	if e.past != nil {
		head[0] = largeFlag
	} else {
		s := &e.newest
		if s.ended {
			head[0] |= endedFlag
		}
		head = binary.AppendUvarint(head, uint64(s.last.Main))
		head = binary.AppendUvarint(head, uint64(s.last.Sub))
		if packed = s.packed; packed != nil {
			head[0] |= packedFlag
			head = binary.AppendUvarint(head, uint64(s.n))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(e.key)))
	b = binary.AppendUvarint(b, uint64(len(head)+len(packed)))
	b = append(b, e.key...)
	b = append(b, head...)
	return append(b, packed...)
}

// unpack makes r an entry, which shares its memory.
func (x *index) unpack(r row, e *entry) {
	flags, b := r.body[0], r.body[1:]
	if flags&largeFlag != 0 {
		*e = *x.large[string(r.key)]
		e.key = r.key
		return
	}
	main, n := binary.Uvarint(b)
	sub, m := binary.Uvarint(b[n:])
	b = b[n+m:]
	*e = entry{key: r.key, newest: span{last: Rev{int64(main), int64(sub)}, n: 1, ended: flags&endedFlag != 0}}
	if flags&packedFlag != 0 {
		count, n := binary.Uvarint(b)
		e.newest.n, e.newest.packed = uint32(count), b[n:]
	}
}

// seek finds a key, and the row that is there.
func (x *index) seek(key []byte) (at place, r row, found bool) {
	// The last leaf that begins with it, or before it.
	at.leaf = sort.Search(len(x.leaves), func(i int) bool { return bytes.Compare(nextRow(x.leaves[i].data).key, key) > 0 }) - 1
	if at.leaf < 0 {
		at.leaf = 0
		return at, row{}, false
	}
	data := x.leaves[at.leaf].data
	for at.from < len(data) {
		r = nextRow(data[at.from:])
		switch c := bytes.Compare(r.key, key); {
		case c == 0:
			at.to = at.from + r.size
			return at, r, true
		case c > 0:
			at.to = at.from
			return at, row{}, false
		}
		at.from += r.size
	}
	at.to = at.from
	return at, row{}, false
}

// get is what is held about a key. It shares the memory of the index.
func (x *index) get(key []byte) (e entry, ok bool) {
	_, r, ok := x.seek(key)
	if ok {
		x.unpack(r, &e)
	}
	return e, ok
}

// find is get for a key that is about to be written: nobody else looks at the index.
// The entry is the writer's until the next one asks.
func (x *index) find(key []byte) (at place, e *entry) {
	at, r, ok := x.seek(key)
	if !ok {
		return at, nil
	}
	e = &x.work.entry
	x.own(r, e)
	return at, e
}

// own is unpack into memory of the writer's, who may then add to it.
func (x *index) own(r row, e *entry) {
	x.unpack(r, e)
	if e.past == nil && e.newest.packed != nil {
		room := slices.Grow(x.work.packed[:0], len(e.newest.packed)+2*binary.MaxVarintLen64)
		x.work.packed = append(room, e.newest.packed...)
		e.newest.packed = x.work.packed
	}
}

// row packs an entry that was changed; was is the row it had.
func (x *index) row(e *entry, was row) []byte {
	before := len(was.body) > 0 && was.body[0]&largeFlag != 0
	switch {
	case e.past == nil && before:
		delete(x.large, string(e.key))
	case e.past != nil:
		kept := x.large[string(e.key)]
		if !before {
			kept = new(entry)
			x.large[string(e.key)] = kept
		}
		*kept = *e // not the workspace's: what makes an entry large is a new span
		kept.key = nil
	}
	x.work.row = appendEntry(x.work.row[:0], e)
	return x.work.row
}

// store puts an entry where it was found, or where it was not.
func (x *index) store(at place, e *entry) {
	if len(x.leaves) == 0 {
		x.leaves = append(x.leaves, &leaf{slices.Clone(x.row(e, row{}))})
		return
	}
	l := x.leaves[at.leaf]
	var was row
	if at.to > at.from {
		was = nextRow(l.data[at.from:])
	}
	b := x.row(e, was)
	size := len(l.data) + len(b) - (at.to - at.from)
	if size > leafBytes && len(l.data) > at.to-at.from {
		x.split(at, b, size)
		return
	}
	if size > cap(l.data) {
		l.data = roomy(l.data, size-len(l.data)+growBytes)
	}
	tail := len(l.data) - at.to
	old := l.data
	l.data = l.data[:size]
	copy(l.data[size-tail:], old[at.to:])
	copy(l.data[at.from:], b)
}

// roomy is a copy of b that may grow by more bytes, and by what the allocator would
// waste.
func roomy(b []byte, more int) []byte {
	return append(slices.Grow([]byte(nil), len(b)+more), b...)
}

// split stores b and makes two leaves of one. At the end of the last leaf, where keys
// come that only grow, the first is left full.
func (x *index) split(at place, b []byte, size int) {
	l := x.leaves[at.leaf]
	x.work.leaf = slices.Concat(l.data[:at.from], b, l.data[at.to:])
	all, half := x.work.leaf, 0
	limit := size / 2
	if at.from == len(l.data) && at.leaf == len(x.leaves)-1 {
		limit = at.from
	}
	for half == 0 || half < limit {
		n := nextRow(all[half:]).size
		if half > 0 && half+n == size {
			break // something is left for the second
		}
		half += n
	}
	l.data = roomy(all[:half], growBytes)
	x.leaves = slices.Insert(x.leaves, at.leaf+1, &leaf{roomy(all[half:], growBytes)})
}

// put records that a key was written at rev; at and e are what find says of it.
func (x *index) put(at place, e *entry, key []byte, rev Rev) {
	if e == nil {
		x.insert(at, key, newSpan(rev, rev.Main, 1))
		return
	}
	e.put(rev)
	x.store(at, e)
}

// insert adds a key of which nothing is held.
func (x *index) insert(at place, key []byte, s span) {
	x.work.entry = entry{key: key, newest: s}
	x.store(at, &x.work.entry)
	x.work.entry.key = nil
}

// end records that a key, which exists, was deleted at rev.
func (x *index) end(key []byte, rev Rev) {
	at, e := x.find(key)
	e.end(rev)
	x.store(at, e)
}

// restore is put for a value read from disk, which knows its creation.
func (x *index) restore(key []byte, rev Rev, created, version int64) {
	at, e := x.find(key)
	switch {
	case e == nil:
		x.insert(at, key, newSpan(rev, created, version))
		return
	case e.newest.ended:
		e.begin(newSpan(rev, created, version))
	default:
		e.put(rev)
	}
	x.store(at, e)
}

// bury records a deletion read from disk, of which the life before it may have been
// compacted.
func (x *index) bury(key []byte, rev Rev) {
	at, e := x.find(key)
	if e != nil && !e.newest.ended {
		e.end(rev)
		x.store(at, e)
		return
	}
	lone := newSpan(rev, 0, 0)
	lone.ended = true
	if e == nil {
		x.insert(at, key, lone)
		return
	}
	e.begin(lone)
	x.store(at, e)
}

// holds reports whether rev of key has not been compacted.
func (x *index) holds(key []byte, rev Rev) bool {
	e, ok := x.get(key)
	if !ok {
		return false
	}
	found, _, _ := e.find(rev)
	return found
}

// ascend calls f for each key in [key, end) in order until it reports false; see
// rangeEnd for the meaning of end. The entry shares the memory of the index, and is
// another one with the next call.
func (x *index) ascend(key, end []byte, f func(*entry) bool) {
	at, r, found := x.seek(key)
	var e entry
	if len(end) == 0 {
		if found {
			x.unpack(r, &e)
			f(&e)
		}
		return
	}
	all := len(end) == 1 && end[0] == 0
	for from := at.from; at.leaf < len(x.leaves); at.leaf, from = at.leaf+1, 0 {
		for data := x.leaves[at.leaf].data[from:]; len(data) > 0; data = data[r.size:] {
			r = nextRow(data)
			if !all && bytes.Compare(r.key, end) >= 0 {
				return
			}
			if x.unpack(r, &e); !f(&e) {
				return
			}
		}
	}
}

// all is ascend for every key.
func (x *index) all(f func(*entry) bool) { x.ascend(nil, []byte{0}, f) }

// compact drops, of about so many revisions from key on, those that nobody can ask
// for when at is the oldest revision that may be read. It returns the rows to delete
// from disk, and the key to go on with, nil after the last.
func (x *index) compact(at int64, from []byte, revisions int) (rows []gone, next []byte) {
	p, _, _ := x.seek(from)
	for i, skip := p.leaf, p.from; i < len(x.leaves); skip = 0 {
		if revisions <= 0 && skip < len(x.leaves[i].data) {
			return rows, bytes.Clone(nextRow(x.leaves[i].data[skip:]).key)
		}
		rows, revisions, next = x.compactLeaf(i, skip, at, revisions, rows)
		if next != nil {
			return rows, next
		}
		if !x.join(i) { // else the next one is in its place now
			i++
		}
	}
	return rows, nil
}

// compactLeaf compacts the entries of a leaf behind skip, which may be empty then. It
// returns how many revisions are left to look at, and the key to go on with in this
// leaf.
func (x *index) compactLeaf(i, skip int, at int64, revisions int, rows []gone) (_ []gone, left int, next []byte) {
	l := x.leaves[i]
	out := append(x.work.leaf[:0], l.data[:skip]...)
	e := &x.work.entry
	before := len(rows)
	for data := l.data[skip:]; len(data) > 0; {
		r := nextRow(data)
		if revisions <= 0 {
			next = bytes.Clone(r.key)
			out = append(out, data...)
			break
		}
		x.own(r, e)
		revisions -= e.revisions()
		n := len(rows)
		var over bool
		switch rows, over = e.compact(at, rows); {
		case over:
			delete(x.large, string(r.key))
		case len(rows) == n:
			out = append(out, data[:r.size]...)
		default:
			out = append(out, x.row(e, r)...)
		}
		data = data[r.size:]
	}
	if x.work.leaf = out; len(rows) > before {
		l.data = slices.Clone(out)
	}
	return rows, revisions, next
}

// join removes leaf i if it is empty, or gives it to the one before if both together
// are small.
func (x *index) join(i int) (gone bool) {
	data := x.leaves[i].data
	if len(data) > 0 {
		if i == 0 || len(x.leaves[i-1].data)+len(data) > leafBytes/2 {
			return false
		}
		before := x.leaves[i-1]
		before.data = slices.Concat(before.data, data)
	}
	x.leaves = slices.Delete(x.leaves, i, i+1)
	return true
}
