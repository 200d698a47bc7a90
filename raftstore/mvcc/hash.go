package mvcc

import (
	"bytes"
	"hash/crc32"
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
// last compaction left: the same on every member that has not compacted since.
func (db *DB) HashKV(at int64) (KVHash, error) {
	defer db.stats.hashRev.Since(time.Now())
	db.mu.RLock()
	defer db.mu.RUnlock()
	for _, h := range db.hashes {
		if at > 0 && h.Revision == at {
			h.Current = db.revision
			return h, nil
		}
	}
	return db.hashKV(at, false)
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

// hashBeforeCompaction remembers the hash up to a revision that is about to be
// compacted, as etcd does: members compare it although they compact at
// different times. It reads all that is stored.
func (db *DB) hashBeforeCompaction(at int64) {
	h, err := db.hashKV(at, true)
	if err != nil {
		db.log.Warn("what is compacted was not hashed", "revision", at, "err", err)
		return
	}
	if len(db.hashes) == keptHashes {
		db.hashes = db.hashes[1:]
	}
	db.hashes = append(db.hashes, h)
}

func (db *DB) hashKV(at int64, compacting bool) (KVHash, error) {
	out := KVHash{Revision: at, Compacted: db.compacted, Current: db.revision}
	switch {
	case at > db.revision:
		return KVHash{}, ErrFutureRev
	case at > 0 && at < db.compacted:
		return KVHash{}, ErrCompacted
	case at <= 0:
		out.Revision = db.revision
	}
	if db.compacted == 0 {
		out.Compacted = -1 // etcd's "never"
	}
	h := crc32.New(castagnoli)
	h.Write(keyBucket)
	kept := db.keptAt(out.Revision, compacting)
	row := func(rev Rev, deleted bool, data []byte) error {
		if rev.Main == db.compacted && deleted {
			return nil
		}
		if rev.Main <= db.compacted {
			if kv, err := decodeKV(rev, data); err != nil || !kept(kv.Key, rev) {
				return err
			}
		}
		h.Write(rowName(rev, deleted))
		h.Write(data)
		return nil
	}
	v := db.view()
	defer v.close()
	if err := v.rows(out.Revision, row); err != nil {
		return KVHash{}, err
	}
	out.Hash = h.Sum32()
	return out, nil
}

// keptAt tells which of the compacted rows count for a hash up to revision at, by
// etcd's rule, so that hashes are equal to etcd's of the same history: those that
// are what keys were at that revision, or, if there was no key, all that are
// there. A compaction takes a key that its own revision deleted for one.
func (db *DB) keptAt(at int64, compacting bool) func(key []byte, rev Rev) bool {
	alive := false
	db.index.tree.Ascend(func(e *entry) bool {
		_, alive = e.at(at)
		alive = alive || compacting && slices.ContainsFunc(e.gens, func(g generation) bool {
			return g.ended && g.revs[len(g.revs)-1].Main == at
		})
		return !alive
	})
	return func(key []byte, rev Rev) bool {
		if !alive {
			return db.index.holds(key, rev)
		}
		e := db.index.get(key)
		if e == nil {
			return false
		}
		v, ok := e.at(at)
		return ok && v.rev == rev
	}
}

// rows visits all rows up to a main revision, from disk and from memory.
func (v *view) rows(to int64, f func(Rev, bool, []byte) error) error {
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
		for k, data := c.First(); k != nil; k, data = c.Next() {
			rev, deleted, err := decodeRev(k)
			if err != nil {
				return err
			}
			if rev.Main > to || !rev.less(first) {
				break
			}
			if err := f(rev, deleted, data); err != nil {
				return err
			}
		}
	}
	for _, r := range v.pending {
		if r.rev.Main > to {
			break
		}
		if err := f(r.rev, r.deleted, r.data); err != nil {
			return err
		}
	}
	return nil
}
