package mvcc

import (
	"encoding/binary"
	"slices"
	"sort"
)

// Rev is a revision: Main counts transactions, Sub the changes inside one. Neither
// is negative.
type Rev struct{ Main, Sub int64 }

func (r Rev) less(o Rev) bool { return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub }

const (
	// maxSpan bounds the revisions of a span: who looks for an old one unpacks them.
	maxSpan = 64
	// slackBytes is what a span grows by at least: more is more bytes unused in each
	// key, less is a copy with each revision.
	slackBytes = 8
)

// span is the life of a key from its creation to its deletion, or a part of that if
// its revisions are many: then the next span goes on where this one, not ended, stops.
// Memory holds every revision that was not compacted; packed they are two to four bytes
// each, not 16 and a slice's room to grow.
type span struct {
	last  Rev // the newest one: the deletion if ended
	n     uint32
	ended bool
	// packed is when the key was created, which version the first revision here is
	// (those before it may have been compacted, or are in other spans), and the
	// revisions: each as the step from the one before, the first from the creation.
	// It is nil for a revision that creates a key, all there is of most.
	packed []byte
}

// newSpan is a span of one revision.
func newSpan(rev Rev, created, firstVersion int64) span {
	s := span{last: rev, n: 1}
	if created != rev.Main || firstVersion != 1 {
		s.pack(created, firstVersion, rev)
	}
	return s
}

// pack begins packed with a first revision.
func (s *span) pack(created, firstVersion int64, first Rev) {
	b := binary.AppendUvarint(make([]byte, 0, 2*slackBytes), uint64(created))
	b = binary.AppendUvarint(b, uint64(firstVersion))
	s.packed = appendStep(b, created, first)
}

// appendStep packs rev; its lowest bit says whether a Sub follows, which few have.
func appendStep(b []byte, before int64, rev Rev) []byte {
	step := uint64(rev.Main-before) << 1
	if rev.Sub == 0 {
		return binary.AppendUvarint(b, step)
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, step|1), uint64(rev.Sub))
}

func step(b []byte, before int64) (rev Rev, size int) {
	x, size := binary.Uvarint(b)
	rev.Main = before + int64(x>>1)
	if x&1 != 0 {
		sub, n := binary.Uvarint(b[size:])
		rev.Sub, size = int64(sub), size+n
	}
	return rev, size
}

// add adds a revision after the last.
func (s *span) add(rev Rev) {
	if s.packed == nil {
		s.pack(s.last.Main, 1, s.last)
	}
	if need := len(s.packed) + 2*binary.MaxVarintLen64; need > cap(s.packed) {
		var b [2 * binary.MaxVarintLen64]byte
		p := appendStep(b[:0], s.last.Main, rev)
		if len(s.packed)+len(p) > cap(s.packed) {
			s.packed = append(slices.Grow([]byte(nil), len(s.packed)+len(p)+slackBytes), s.packed...)
		}
		s.packed = append(s.packed, p...)
	} else {
		s.packed = appendStep(s.packed, s.last.Main, rev)
	}
	s.last = rev
	s.n++
}

// head is when the key was created, and which version the first revision is.
func (s *span) head() (created, firstVersion int64, revs []byte) {
	if s.packed == nil {
		return s.last.Main, 1, nil
	}
	c, n := binary.Uvarint(s.packed)
	v, m := binary.Uvarint(s.packed[n:])
	return int64(c), int64(v), s.packed[n+m:]
}

// revisions calls f for each one with its place, in order, until it reports false.
func (s *span) revisions(f func(i int, rev Rev) bool) {
	if s.n == 1 {
		f(0, s.last)
		return
	}
	before, _, revs := s.head()
	for i := range int(s.n) {
		rev, size := step(revs, before)
		if !f(i, rev) {
			return
		}
		before, revs = rev.Main, revs[size:]
	}
}

// first is the oldest revision.
func (s *span) first() (first Rev) {
	s.revisions(func(_ int, rev Rev) bool { first = rev; return false })
	return first
}

// upTo is the newest revision up to main revision at and its place, which is -1 for
// none.
func (s *span) upTo(at int64) (found Rev, place int) {
	if s.last.Main <= at {
		return s.last, int(s.n) - 1
	}
	place = -1
	s.revisions(func(i int, rev Rev) bool {
		if rev.Main > at {
			return false
		}
		found, place = rev, i
		return true
	})
	return found, place
}

// without is the span without its first revisions, of which it keeps one at least.
func (s *span) without(revisions int) span {
	created, version, _ := s.head()
	var out span
	s.revisions(func(i int, rev Rev) bool {
		switch {
		case i == revisions:
			out = newSpan(rev, created, version+int64(i))
		case i > revisions:
			out.add(rev)
		}
		return true
	})
	out.ended = s.ended
	return out
}

// entry is all that is kept about a key: its newest span and those before it,
// ascending. Few keys have some, so that a pointer is what those need that have none.
//
// Worked example: put@2, put@3, delete@4, put@6 is {created 2, revs 2 3 4, ended} and
// {created 6, revs 6}. Compacted at 3 it is {created 2, firstVersion 2, revs 3 4,
// ended}, {created 6, revs 6}; at 4 the deletion alone is left of the first life, at 5
// nothing.
type entry struct {
	key    []byte
	newest span
	past   *[]span
}

// spans are how many there are, the newest included.
func (e *entry) spans() int {
	if e.past == nil {
		return 1
	}
	return len(*e.past) + 1
}

func (e *entry) span(i int) *span {
	if e.past == nil || i == len(*e.past) {
		return &e.newest
	}
	return &(*e.past)[i]
}

// begin makes s the newest span.
func (e *entry) begin(s span) {
	if e.past == nil {
		e.past = new([]span)
	}
	done := e.newest
	done.packed = slices.Clip(append([]byte(nil), done.packed...))
	*e.past = append(*e.past, done)
	e.newest = s
}

// put records that the key was written at rev.
func (e *entry) put(rev Rev) {
	switch {
	case e.newest.ended:
		e.begin(newSpan(rev, rev.Main, 1))
	case e.newest.n < maxSpan:
		e.newest.add(rev)
	default:
		e.begin(e.after(rev))
	}
}

// after is a span with which the life goes on at rev.
func (e *entry) after(rev Rev) span {
	created, version, _ := e.newest.head()
	return newSpan(rev, created, version+int64(e.newest.n))
}

// end records that the key, which exists, was deleted at rev.
func (e *entry) end(rev Rev) {
	e.put(rev)
	e.newest.ended = true
}

// version is what a key was at some revision.
type version struct {
	rev     Rev
	created int64
	n       int64
}

// at finds the key's state at main revision at; ok is false if it did not exist.
func (e *entry) at(at int64) (v version, ok bool) {
	i := e.spans() - 1
	if e.newest.last.Main > at {
		// The first span that ends after it, or the one before that.
		i = sort.Search(i, func(i int) bool { return e.span(i).last.Main > at })
	}
	s := e.span(i)
	rev, place := s.upTo(at)
	if place < 0 {
		if i == 0 {
			return version{}, false
		}
		s = e.span(i - 1)
		rev, place = s.last, int(s.n)-1
	}
	if s.ended && place == int(s.n)-1 {
		return version{}, false
	}
	created, first, _ := s.head()
	return version{rev, created, first + int64(place)}, true
}

// find looks for a revision. before is the one of the same life before it, ok false
// if there is none.
func (e *entry) find(rev Rev) (found bool, before Rev, ok bool) {
	i := sort.Search(e.spans()-1, func(i int) bool { return !e.span(i).last.less(rev) })
	if i > 0 && !e.span(i-1).ended {
		before, ok = e.span(i-1).last, true
	}
	e.span(i).revisions(func(_ int, r Rev) bool {
		if found = r == rev; found || rev.less(r) {
			return false
		}
		before, ok = r, true
		return true
	})
	return found, before, ok
}

// deletedAt reports whether a life ended at main revision at, and that is still held.
func (e *entry) deletedAt(at int64) bool {
	for i := range e.spans() {
		if s := e.span(i); s.ended && s.last.Main == at {
			return true
		}
	}
	return false
}

// revisions is how many are held.
func (e *entry) revisions() (n int) {
	for i := range e.spans() {
		n += int(e.span(i).n)
	}
	return n
}

// compact forgets what nobody can ask for when at is the oldest revision that may be
// read, and adds that to rows. Nothing may be left: empty.
func (e *entry) compact(at int64, rows []gone) (_ []gone, empty bool) {
	spans := e.spans()
	if spans == 1 && e.newest.n == 1 && !e.newest.ended || e.span(0).first().Main > at {
		return rows, false
	}
	var kept []span
	for i := range spans {
		s := e.span(i)
		keep := s.keepFrom(at, i+1 < spans && !s.ended && e.span(i+1).first().Main <= at)
		s.revisions(func(i int, rev Rev) bool {
			if i < keep {
				rows = append(rows, gone{rev, s.ended && i == int(s.n)-1})
			}
			return i < keep
		})
		switch {
		case keep == 0:
			kept = append(kept, *s)
		case keep < int(s.n):
			kept = append(kept, s.without(keep))
		}
	}
	e.past = nil
	if len(kept) == 0 {
		return rows, true
	}
	e.newest = kept[len(kept)-1]
	if kept = kept[:len(kept)-1]; len(kept) > 0 {
		past := slices.Clone(kept)
		e.past = &past
	}
	return rows, false
}

// keepFrom is the place of the first revision that is still visible at `at` or later.
// superseded says that the life goes on in another span not after at.
func (s *span) keepFrom(at int64, superseded bool) int {
	_, place := s.upTo(at)
	n := int(s.n)
	switch {
	case superseded:
		return n
	case !s.ended || place < n-1:
		return max(place, 0)
	case s.last.Main == at:
		return n - 1 // deleted then: a watch from `at` on has still to tell of it
	}
	return n // the whole life is over
}
