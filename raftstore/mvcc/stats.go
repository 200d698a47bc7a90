package mvcc

import (
	"sync/atomic"
	"time"

	"edged/internal/histogram"
)

// Stats are what was done since the file was opened. Histograms are live.
type Stats struct {
	// Commit is of all of a commit to the file; the others are bbolt's parts.
	Commit, Rebalance, Spill, Write     *histogram.Histogram
	Defragment, Snapshot, Hash, HashRev *histogram.Histogram
	Defragmenting                       bool
	// Compaction is how long compactions took, from the first step to the last,
	// LastCompaction when the last one ended, in seconds since 1970, 0 for none yet.
	Compaction                             *histogram.Histogram
	LastCompaction                         int64
	CompactedRows, PutBytes, Reads, Ranges int64
}

// stats are counted from wherever things happen.
type stats struct {
	commit, rebalance, spill, write     *histogram.Histogram
	defragment, snapshot, hash, hashRev *histogram.Histogram
	compaction                          *histogram.Histogram
	lastCompaction                      atomic.Int64
	defragmenting                       atomic.Bool
	compacted, putBytes, ranges         atomic.Int64
}

func newStats() *stats {
	const ms = time.Millisecond // the bounds are etcd's
	commit := func() *histogram.Histogram { return histogram.Doubling(ms, 14) }
	return &stats{
		commit: commit(), rebalance: commit(), spill: commit(), write: commit(),
		defragment: histogram.Doubling(100*ms, 13), snapshot: histogram.Doubling(10*ms, 17),
		hash: histogram.Doubling(10*ms, 15), hashRev: histogram.Doubling(10*ms, 15),
		compaction: histogram.Doubling(100*ms, 14),
	}
}

// timed measures one commit; committing is held.
func (db *DB) timed(commit func() error) error {
	start, before := time.Now(), db.bolt.Stats().TxStats
	err := commit()
	db.stats.commit.Since(start)
	now := db.bolt.Stats().TxStats
	part := now.Sub(&before)
	db.stats.rebalance.Observe(part.GetRebalanceTime())
	db.stats.spill.Observe(part.GetSpillTime())
	db.stats.write.Observe(part.GetWriteTime())
	return err
}

// Stats returns them.
func (db *DB) Stats() Stats {
	s := db.stats
	st := Stats{
		Commit: s.commit, Rebalance: s.rebalance, Spill: s.spill, Write: s.write,
		Defragment: s.defragment, Snapshot: s.snapshot, Hash: s.hash, HashRev: s.hashRev,
		Compaction: s.compaction, LastCompaction: s.lastCompaction.Load(),
		Defragmenting: s.defragmenting.Load(), CompactedRows: s.compacted.Load(), PutBytes: s.putBytes.Load(), Ranges: s.ranges.Load(),
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	if !db.closed {
		st.Reads = int64(db.bolt.Stats().OpenTxN)
	}
	return st
}
