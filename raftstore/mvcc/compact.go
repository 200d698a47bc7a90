package mvcc

import (
	"context"
	"hash"
	"hash/crc32"
	"log/slog"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A compaction takes effect when it is applied: what is before its revision cannot be
// read any more. What that leaves in memory and on disk is forgotten in steps
// ([DB.CompactStep]), key by key, between which writes go on. The file tells by
// etcd's two rows which compaction was begun and which is over; one that a crash or
// a copy of the file cut short begins anew when the file is opened.

// maxLater bounds the compactions that wait for the one under way; beyond it the
// newest takes the place of the one before it, whose hash is then not taken.
const maxLater = keptHashes

// compaction is one that was applied; guarded by DB.mu, its hash by the goroutine
// that makes steps.
type compaction struct {
	at     int64
	before int64 // the compaction before this one
	sum    hash.Hash32
	seen   Rev // hashed up to this row, it included

	keys  []byte // the index was compacted before this key
	rows  int
	began time.Time
}

func (db *DB) compact(req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	switch {
	case req.Revision == 0 && db.compacted == 0 && !db.compactedAt0:
		// Nothing to forget; as in etcd it is done once.
		db.compactedAt0, db.dirty.meta = true, true
		return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: db.revision}}, nil
	case req.Revision <= db.compacted:
		return nil, ErrCompacted
	case req.Revision > db.revision:
		return nil, ErrFutureRev
	}
	c := &compaction{at: req.Revision, before: db.compacted}
	if db.hashOnCompact {
		c.sum = newSum()
	}
	if len(db.compactions) > maxLater {
		c.sum = nil
		db.compactions[len(db.compactions)-1] = c
	} else {
		db.compactions = append(db.compactions, c)
	}
	db.compacted = req.Revision
	db.dirty.meta = true
	db.askCompact()
	db.signal()
	return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: db.revision}}, nil
}

func newSum() hash.Hash32 {
	h := crc32.New(castagnoli)
	h.Write(keyBucket)
	return h
}

// resume begins anew what the file tells was not finished. Its hash would lack what
// was forgotten already.
func (db *DB) resume() {
	if db.compacted > db.finished {
		db.compactions = []*compaction{{at: db.compacted, before: db.finished}}
		db.askCompact()
	}
}

func (db *DB) askCompact() {
	select {
	case db.compacting <- struct{}{}:
	default:
	}
}

// Compacting receives when there may be a compaction to carry out.
func (db *DB) Compacting() <-chan struct{} { return db.compacting }

// CompactStep carries out a part of what compactions have left to do: it looks at
// about so many revisions. It reports whether there is more. Steps must not overlap.
func (db *DB) CompactStep(revisions int) (more bool) {
	db.swapping.RLock() // the file stays the same one
	defer db.swapping.RUnlock()
	db.mu.RLock()
	var c *compaction
	if len(db.compactions) > 0 && !db.closed {
		c = db.compactions[0]
	}
	db.mu.RUnlock()
	if c == nil {
		return false
	}
	if c.began.IsZero() {
		c.began = time.Now()
	}
	if c.sum != nil && c.keys == nil {
		over, err := db.hashStep(c, revisions)
		if err != nil {
			db.log.Warn("what is compacted was not hashed", "revision", c.at, "err", err)
			c.sum, over = nil, true
		}
		if !over {
			return true
		}
	}
	return db.forgetStep(c, revisions)
}

// hashStep hashes the next rows of what there was at the compaction's revision: that
// does not change any more. over says that it was the last part.
func (db *DB) hashStep(c *compaction, rows int) (over bool, err error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	counts := db.counted(c.at, c.before, true)
	n := 0
	v := db.view()
	defer v.close()
	err = v.rows(Rev{c.seen.Main, c.seen.Sub + 1}, c.at, func(rev Rev, deleted bool, data []byte) (bool, error) {
		if err := counts(c.sum, rev, deleted, data); err != nil {
			return false, err
		}
		c.seen = rev
		n++
		return n < rows, nil
	})
	return n < rows, err
}

// forgetStep compacts the next keys of the index. The last step ends the compaction:
// with the commit that deletes its last rows, the file tells so.
func (db *DB) forgetStep(c *compaction, revisions int) (more bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.compactions) == 0 || db.compactions[0] != c {
		return len(db.compactions) > 0 // another state took this one's place
	}
	rows, next := db.index.compact(c.at, c.keys, revisions)
	c.keys, c.rows = next, c.rows+len(rows)
	db.stats.compacted.Add(int64(len(rows)))
	db.dirty.gone = append(db.dirty.gone, rows...)
	db.bytes += len(rows) * goneBytes
	if next != nil {
		return true
	}
	db.finished = c.at
	db.dirty.meta = true
	db.compactions = append([]*compaction(nil), db.compactions[1:]...)
	db.tellCompacted(c)
	db.signal()
	return len(db.compactions) > 0
}

// tellCompacted keeps the hash of a compaction that is over, and says that it is: to
// an operator only where hashes are compared.
func (db *DB) tellCompacted(c *compaction) {
	took := time.Since(c.began)
	db.stats.compaction.Observe(took)
	db.stats.lastCompaction.Store(time.Now().Unix())
	level, fields := slog.LevelDebug, []any{"compact-revision", c.at, "took", took.String(), "number-of-keys-compacted", c.rows}
	if db.hashOnCompact {
		level = slog.LevelInfo
	}
	if c.sum != nil {
		h := KVHash{Hash: c.sum.Sum32(), Revision: c.at, Compacted: db.neverCompacted(c.before)}
		if len(db.hashes) == keptHashes {
			db.hashes = db.hashes[1:]
		}
		db.hashes = append(db.hashes, h)
		fields = append(fields, "hash", h.Hash)
	} else if db.hashOnCompact {
		db.log.Info("previous compaction was interrupted, skip storing compaction hash value")
	}
	db.log.Log(context.Background(), level, "finished scheduled compaction", fields...)
}

// WaitCompacted returns when nothing before revision at is left in memory, and the
// next Commit leaves nothing on disk.
func (db *DB) WaitCompacted(ctx context.Context, at int64) error {
	return db.wait(ctx, func() bool { return db.finished >= at })
}
