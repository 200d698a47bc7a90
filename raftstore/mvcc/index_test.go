package mvcc

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// history is all that is held in e.
func history(e *entry) string {
	var b strings.Builder
	for i := range e.spans() {
		s := e.span(i)
		created, version, _ := s.head()
		fmt.Fprintf(&b, " [%d, %d, %t", created, version, s.ended)
		s.revisions(func(_ int, rev Rev) bool { fmt.Fprintf(&b, " %v", rev); return true })
		b.WriteString("]")
	}
	return b.String()
}

// TestIndexOfLeaves: whatever was written, deleted and compacted, in leaves that were
// split, joined and emptied, an index holds what a map of entries does, in order.
func TestIndexOfLeaves(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		x, twin := newIndex(), map[string]*entry{}
		keys := make([][]byte, 1+r.IntN(400))
		for i := range keys {
			keys[i] = []byte(fmt.Sprintf("%d%s", r.IntN(len(keys)*2), strings.Repeat("k", []int{0, 5, 90, 1500}[min(r.IntN(12), 3)])))
		}
		rev, compacted := int64(1), int64(0)
		check := func() {
			t.Helper()
			from, to := keys[r.IntN(len(keys))], keys[r.IntN(len(keys))]
			var got, want []string
			x.ascend(from, to, func(e *entry) bool { got = append(got, string(e.key)); return len(got) < 50 })
			for _, k := range slices.Sorted(maps.Keys(twin)) {
				if k >= string(from) && k < string(to) && len(want) < 50 {
					want = append(want, k)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, revision %d, from %s to %s: %q, want %q", seed, rev, from, to, got, want)
			}
			got = nil
			x.all(func(e *entry) bool {
				got = append(got, string(e.key))
				k := string(e.key)
				if is, is2 := history(e), twin[k]; is2 == nil || is != history(is2) {
					t.Fatalf("seed %d, revision %d: %s is%s, want %v", seed, rev, k, is, is2)
				}
				return true
			})
			if !slices.Equal(got, slices.Sorted(maps.Keys(twin))) {
				t.Fatalf("seed %d, revision %d: %d keys, want %d", seed, rev, len(got), len(twin))
			}
			large := 0
			for _, e := range twin {
				if e.past != nil {
					large++
				}
			}
			if len(x.large) != large {
				t.Fatalf("seed %d, revision %d: %d large entries are held, want %d", seed, rev, len(x.large), large)
			}
			for _, l := range x.leaves {
				largest := 0
				for data := l.data; len(data) > 0; data = data[nextRow(data).size:] {
					largest = max(largest, nextRow(data).size)
				}
				if largest == 0 || len(l.data)-largest > leafBytes {
					t.Fatalf("seed %d, revision %d: a leaf of %d bytes", seed, rev, len(l.data))
				}
			}
		}
		for range 30 {
			for range r.IntN(300) {
				rev++
				for sub := range int64(1 + r.IntN(2)) {
					key, at := keys[r.IntN(len(keys))], Rev{rev, sub}
					if r.IntN(3) == 0 {
						key = keys[0] // of more revisions than a span
					}
					mine := twin[string(key)]
					e, ok := x.get(key)
					if ok != (mine != nil) || x.holds(key, at) {
						t.Fatalf("seed %d, revision %d: %s is held: %t", seed, rev, key, ok)
					}
					if alive := ok && !e.newest.ended; alive && r.IntN(4) == 0 {
						x.end(key, at)
						mine.end(at)
						continue
					}
					where, found := x.find(key)
					x.put(where, found, bytes.Clone(key), at)
					if mine == nil {
						twin[string(key)] = &entry{newest: newSpan(at, at.Main, 1)}
					} else {
						mine.put(at)
					}
				}
			}
			check()
			if r.IntN(4) > 0 {
				continue
			}
			compacted += r.Int64N(rev - compacted + 1)
			rows := map[gone]int{}
			for next := []byte(nil); ; {
				var some []gone
				some, next = x.compact(compacted, next, 1+r.IntN(100))
				for _, g := range some {
					rows[g]++
				}
				if next == nil {
					break
				}
			}
			for k, e := range twin {
				some, empty := e.compact(compacted, nil)
				for _, g := range some {
					rows[g]--
				}
				if empty {
					delete(twin, k)
				}
			}
			for g, n := range rows {
				if n != 0 {
					t.Fatalf("seed %d, compacted at %d: row %v is gone %d times more than it should", seed, compacted, g, n)
				}
			}
			check()
		}
		if r.IntN(2) == 0 { // all go
			for k, e := range twin {
				if rev++; !e.newest.ended {
					x.end([]byte(k), Rev{Main: rev})
				}
			}
			for next := []byte(nil); ; {
				if _, next = x.compact(rev+1, next, 50); next == nil {
					break
				}
			}
			clear(twin)
			check()
			if len(x.leaves) != 0 {
				t.Fatalf("seed %d: %d leaves of no keys", seed, len(x.leaves))
			}
		}
	}
}
