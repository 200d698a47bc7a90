package mvcc

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Hash is one of all that is stored but how far the log was applied, and the
// revision that it is of.
func (db *DB) Hash() (hash uint32, revision int64, err error) {
	defer db.stats.hash.Since(time.Now())
	db.swapping.RLock()
	defer db.swapping.RUnlock()
	db.committing.Lock()
	defer db.committing.Unlock()
	if err := db.commitLocked(false); err != nil {
		return 0, 0, err
	}
	h := crc32.New(castagnoli)
	err = db.bolt.View(func(tx *bolt.Tx) error {
		probe := DB{}
		if meta := tx.Bucket(metaBucket); meta != nil {
			if err := probe.loadMeta(meta); err != nil {
				return err
			}
		}
		revision = max(probe.revision, 1)
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			h.Write(name)
			return b.ForEach(func(k, v []byte) error {
				if bytes.Equal(name, metaBucket) && (bytes.Equal(k, indexKey) || bytes.Equal(k, termKey)) {
					return nil
				}
				h.Write(k)
				h.Write(v)
				return nil
			})
		})
	})
	return h.Sum32(), revision, err
}

// KVHash is a hash of the keys' history.
type KVHash struct {
	Hash uint32
	// Revision up to which it was taken, Compacted that of the last compaction,
	// Current the newest one.
	Revision, Compacted, Current int64
}

// HashKV hashes the history up to revision at, 0 for the newest, from what the
// last compaction left: the same on every member that has not compacted since. Writes
// go on meanwhile.
func (db *DB) HashKV(at int64) (KVHash, error) {
	defer db.stats.hashRev.Since(time.Now())
	db.swapping.RLock() // the file stays the same one
	defer db.swapping.RUnlock()
	db.mu.RLock()
	defer db.mu.RUnlock()
	for tries := 0; ; tries++ {
		if db.closed {
			return KVHash{}, ErrClosed
		}
		for _, h := range db.hashes {
			if at > 0 && h.Revision == at {
				h.Current = db.revision
				return h, nil
			}
		}
		// Whoever compacts all the time does not keep it from an end.
		step := hashRows
		if tries == 3 {
			step = math.MaxInt
		}
		out, err := db.hashKV(at, step)
		if !errors.Is(err, errCompactedMeanwhile) {
			return out, err
		}
	}
}

// CompactionHashes are the hashes that were taken of what the last compactions
// forgot, if HashOnCompact is set.
func (db *DB) CompactionHashes() []KVHash {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return slices.Clone(db.hashes)
}

// keptHashes is how many hashes of compacted revisions are remembered.
const keptHashes = 10

// hashRows is how many rows are hashed between two chances for writes.
const hashRows = 1000

var errCompactedMeanwhile = errors.New("compacted while it was hashed")

// hashKV lets go of mu, which is held for reading, after each so many rows. What is
// hashed does not change but by a compaction.
func (db *DB) hashKV(at int64, step int) (KVHash, error) {
	out := KVHash{Revision: at, Compacted: db.neverCompacted(db.compacted), Current: db.revision}
	switch {
	case at > db.revision:
		return KVHash{}, ErrFutureRev
	case at > 0 && at < db.compacted:
		return KVHash{}, ErrCompacted
	case at < 0: // as in etcd, nothing was written before
		out.Hash = newSum().Sum32()
		return out, nil
	case at == 0:
		out.Revision = db.revision
	}
	before := db.compacted
	h, counts := newSum(), db.counted(out.Revision, before, false)
	v := db.view()
	if err := v.pin(); err != nil {
		return KVHash{}, err
	}
	defer v.close()
	n := 0
	if err := v.rows(Rev{}, out.Revision, func(rev Rev, deleted bool, data []byte) (bool, error) {
		if n++; n%step == 0 {
			db.mu.RUnlock()
			db.mu.RLock()
			if db.compacted != before {
				return false, errCompactedMeanwhile
			}
		}
		return true, counts(h, rev, deleted, data)
	}); err != nil {
		return KVHash{}, err
	}
	out.Hash = h.Sum32()
	return out, nil
}

// neverCompacted is etcd's name of a compaction that never was.
func (db *DB) neverCompacted(at int64) int64 {
	if at == 0 && !db.compactedAt0 {
		return -1
	}
	return at
}

// counted adds rows to a hash up to revision at, after the compaction before, by
// etcd's rule, so that hashes are equal to etcd's of the same history. Of the compacted
// rows those count that are what keys were at revision at, or, if there was no key,
// all that the compaction leaves. A compaction's own hash takes a key that its
// revision deleted for one. mu is held while it is used.
func (db *DB) counted(at, before int64, compacting bool) func(h io.Writer, rev Rev, deleted bool, data []byte) error {
	alive := false
	db.index.all(func(e *entry) bool {
		_, alive = e.at(at)
		alive = alive || compacting && e.deletedAt(at)
		return !alive
	})
	since := at
	if !alive {
		since = before
	}
	return func(h io.Writer, rev Rev, deleted bool, data []byte) error {
		if rev.Main == before && deleted {
			return nil
		}
		if rev.Main <= before {
			kv, err := decodeKV(rev, data)
			if err != nil {
				return err
			}
			e, ok := db.index.get(kv.Key)
			if !ok {
				return nil
			}
			if v, ok := e.at(since); !ok || v.rev != rev {
				return nil
			}
		}
		h.Write(rowName(rev, deleted))
		h.Write(data)
		return nil
	}
}

// rows visits rows from one on, up to a main revision, from disk and from memory,
// until f reports false.
func (v *view) rows(from Rev, to int64, f func(Rev, bool, []byte) (bool, error)) error {
	first := Rev{math.MaxInt64, 0}
	if len(v.pending) > 0 {
		first = v.pending[0].rev
	}
	b, err := v.bucket()
	if err != nil {
		return err
	}
	if b != nil {
		c := b.Cursor()
		for k, data := c.Seek(encodeRev(from)); k != nil; k, data = c.Next() {
			rev, deleted, err := decodeRev(k)
			if err != nil {
				return err
			}
			if rev.Main > to || !rev.less(first) {
				break
			}
			if on, err := f(rev, deleted, data); err != nil || !on {
				return err
			}
		}
	}
	for _, r := range v.pending {
		if r.rev.Main > to {
			break
		}
		if r.rev.less(from) {
			continue
		}
		if on, err := f(r.rev, r.deleted, r.data); err != nil || !on {
			return err
		}
	}
	return nil
}
