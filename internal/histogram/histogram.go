// Package histogram counts durations in buckets, for /metrics.
//
// A [Histogram] is of fixed size and may be observed from any goroutine; it
// costs a few comparisons and two atomic additions. What is exported, and under
// which name, is decided by who serves it. May be imported by everything.
package histogram

import (
	"sync/atomic"
	"time"
)

// Histogram has a fixed set of buckets. The zero value counts, in one bucket.
type Histogram struct {
	bounds []time.Duration // ascending; what is above the last is in Count only
	counts []atomic.Uint64
	count  atomic.Uint64
	sum    atomic.Int64
}

// Doubling returns one whose first bucket ends at first and each further one at
// twice the one before.
func Doubling(first time.Duration, buckets int) *Histogram {
	h := &Histogram{bounds: make([]time.Duration, buckets), counts: make([]atomic.Uint64, buckets)}
	for i := range h.bounds {
		h.bounds[i] = first << i
	}
	return h
}

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) {
	h.count.Add(1)
	h.sum.Add(int64(d))
	for i, b := range h.bounds {
		if d <= b {
			h.counts[i].Add(1)
			return
		}
	}
}

// Since counts the time since start.
func (h *Histogram) Since(start time.Time) { h.Observe(time.Since(start)) }

// Snapshot is what was counted.
type Snapshot struct {
	Count uint64
	Sum   time.Duration
	// Buckets holds how many were at most as long as each bound.
	Buckets map[time.Duration]uint64
}

// Snapshot returns what was counted so far.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Buckets: make(map[time.Duration]uint64, len(h.bounds))}
	var below uint64
	for i, b := range h.bounds {
		below += h.counts[i].Load()
		s.Buckets[b] = below
	}
	// Read last: no bucket may hold more than there are.
	s.Count, s.Sum = h.count.Load(), time.Duration(h.sum.Load())
	return s
}
