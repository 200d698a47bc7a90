package mvcc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore/auth"
)

// Errors of requests. raftstore hands them to its callers unchanged.
var (
	ErrCompacted     = errors.New("mvcc: required revision has been compacted")
	ErrFutureRev     = errors.New("mvcc: required revision is a future revision")
	ErrKeyNotFound   = errors.New("mvcc: key not found")
	ErrDuplicateKey  = errors.New("mvcc: duplicate key given in txn request")
	ErrLeaseNotFound = errors.New("lease: requested lease not found")
	ErrLeaseExists   = errors.New("lease: lease already exists")
)

const (
	// pageSize is fixed: a kernel with 16 KB pages would write four times the
	// bytes, and the file must be readable on another device.
	pageSize = 4096
	// initialMmap is address space, not memory: growing the map waits for every
	// reader, a snapshot that is being sent included, and makes new ones wait.
	// 32-bit devices have less of it to spare.
	initialMmap = 32 << 20 << (5 * (^uint(0) >> 63)) // 32 MB, 1 GB
)

// Config says where the file is.
type Config struct {
	Path   string
	Logger *slog.Logger
	// Authenticated, if set, is told what applying an entry means for tokens:
	// that token is user's; without a token, that user's, or without a user
	// everybody's, are worth nothing any more. It must not call back.
	Authenticated func(token, user string)
	// HashOnCompact remembers the hash of what a compaction forgets, at the cost
	// of reading everything each time.
	HashOnCompact bool
}

// Applied says how much of the log a state reflects.
type Applied struct{ Index, Term uint64 }

// record is one change that is not on disk yet.
type record struct {
	rev     Rev
	deleted bool
	data    []byte
}

// DB is the key space.
type DB struct {
	bolt          *bolt.DB
	dir           string
	log           *slog.Logger
	authenticated func(token, user string)
	hashOnCompact bool

	// swapping is held for reading by who needs the file to stay the same one,
	// committing by who writes to it, mu by who looks at the rest; taken in this
	// order. bolt itself changes with all three held.
	swapping   sync.RWMutex
	committing sync.Mutex

	mu sync.RWMutex
	// guarded by mu
	index     *index
	revision  int64 // of the newest transaction
	compacted int64
	finished  int64 // the last compaction that was carried out
	// compactedAt0 says that a compaction at revision 0 was, which forgets nothing.
	compactedAt0 bool
	// compactions are those after it, the first one under way.
	compactions []*compaction
	applied     Applied
	conf        []byte
	leases      map[int64]*lease
	attached    map[string]int64 // key -> lease
	auth        *auth.State
	alarms      map[pb.AlarmType]map[uint64]bool // by member
	rows        map[string]map[string][]byte     // of the small buckets
	pending     []record                         // ascending; not yet on disk
	bytes       int                              // of pending and dirty.gone
	dirty       struct {                         // what else the next Commit writes
		meta   bool
		leases map[int64]bool  // changed, added or removed
		rows   map[rowKey]bool // changed, added or removed
		gone   []gone          // to delete from "key"
	}
	size    int64    // of the file
	free    int64    // of that, in pages that are not used
	hashes  []KVHash // of compacted revisions
	counts  Counts
	recent  ring
	changed chan struct{} // closed and replaced when revision or compacted moves, if watched
	closed  bool

	compacting chan struct{} // holds one: compactions may hold something
	// watched says that somebody has taken changed since it was made.
	watched atomic.Bool
	// wanted is up to which revision events are kept with what was before them.
	wanted atomic.Int64
	stats  *stats
}

// Open opens the file, or makes one, and builds the key index from it.
func Open(cfg Config) (*DB, error) {
	b, err := open(cfg.Path)
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch) {
		return nil, damaged(cfg.Path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.Path, err)
	}
	db := &DB{bolt: b, dir: filepath.Dir(cfg.Path), log: cfg.Logger, authenticated: cfg.Authenticated, hashOnCompact: cfg.HashOnCompact, changed: make(chan struct{}), compacting: make(chan struct{}, 1), stats: newStats()}
	db.empty()
	err = db.load()
	if err == nil {
		err = db.measure()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return db, nil
}

// damaged says what can be done about a file that cannot be read. The log does
// not reach back to the beginning forever; Open of the store tells when it does
// not.
func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged (%w): move it away, and it is made anew from the log; where the log does not reach back far enough, from a snapshot or another device", path, err)
}

// Close closes the file. What was applied and not committed is in the log.
func (db *DB) Close() error {
	db.swapping.Lock()
	defer db.swapping.Unlock()
	db.committing.Lock()
	defer db.committing.Unlock()
	db.mu.Lock()
	db.closed = true
	close(db.changed)
	db.changed = make(chan struct{})
	db.mu.Unlock()
	return db.bolt.Close()
}

// load reads what the file holds. bbolt panics when a page is not what it
// should be; that is the file's fault, not the program's.
func (db *DB) load() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged(db.bolt.Path(), fmt.Errorf("%v", p))
		}
	}()
	err = db.bolt.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return nil // a new file, or one cut before its first Commit
		}
		err := db.loadMeta(meta)
		if err == nil {
			err = eachRow(tx.Bucket(leaseBucket), db.loadLease)
		}
		if err == nil {
			err = eachRow(tx.Bucket(keyBucket), db.loadRevision)
		}
		if err == nil {
			err = db.loadRows(tx)
		}
		if err != nil {
			return damaged(db.bolt.Path(), err)
		}
		// A file of etcd's does not tell its revision, and may have lost the
		// newest rows to a compaction.
		db.revision = max(db.revision, db.compacted)
		db.resume()
		db.index.all(func(e *entry) bool {
			if !e.newest.ended {
				db.counts.Keys++
			}
			return true
		})
		return nil
	})
	return err
}

func eachRow(b *bolt.Bucket, f func(k, v []byte) error) error {
	if b == nil {
		return nil
	}
	return b.ForEach(f)
}

// empty forgets everything in memory: the state of a store without entries.
func (db *DB) empty() {
	db.index, db.revision, db.compacted, db.applied, db.conf = newIndex(), 1, 0, Applied{}, nil
	db.leases, db.attached, db.alarms = map[int64]*lease{}, map[string]int64{}, map[pb.AlarmType]map[uint64]bool{}
	db.finished, db.compactedAt0, db.compactions = 0, false, nil
	db.auth, db.rows = auth.New(), map[string]map[string][]byte{}
	db.pending, db.bytes, db.recent, db.hashes, db.counts = nil, 0, ring{}, nil, Counts{}
	db.dirty.meta, db.dirty.gone = false, nil
	db.dirty.leases, db.dirty.rows = map[int64]bool{}, map[rowKey]bool{}
}

// view is a consistent look at what is on disk, opened when it is first needed:
// most reads of a small store find all they want in memory.
type view struct {
	db      *DB
	pending []record
	tx      *bolt.Tx
}

// view looks at what is there now; mu is held.
func (db *DB) view() view { return view{db: db, pending: db.pending} }

// pin opens the look at the disk, after which the view may be read without mu:
// what is not yet on that disk is in pending, whose records never change.
func (v *view) pin() error {
	_, err := v.bucket()
	return err
}

func (v *view) bucket() (*bolt.Bucket, error) {
	if v.tx == nil {
		tx, err := v.db.bolt.Begin(false)
		if err != nil {
			return nil, err
		}
		v.tx = tx
	}
	return v.tx.Bucket(keyBucket), nil
}

func (v *view) close() {
	if v.tx != nil {
		v.tx.Rollback() // of a read: cannot fail
	}
}

// read returns the row at rev, from memory or from disk. mu is held, or the view
// is pinned.
func (v *view) read(rev Rev) (*mvccpb.KeyValue, error) {
	pending := v.pending
	if i := sort.Search(len(pending), func(i int) bool { return !pending[i].rev.less(rev) }); i < len(pending) && pending[i].rev == rev {
		return decodeKV(pending[i].rev, pending[i].data)
	}
	b, err := v.bucket()
	if err != nil {
		return nil, err
	}
	if b != nil {
		if data := b.Get(encodeRev(rev)); data != nil {
			return decodeKV(rev, data)
		}
	}
	return nil, fmt.Errorf("revision %d.%d is indexed but not stored", rev.Main, rev.Sub)
}

// batch is what one Commit writes.
type batch struct {
	pending             []record
	leases              map[int64][]byte
	rows                map[rowKey][]byte
	gone                []gone
	applied             Applied
	revision            int64
	compacted, finished int64
	compactedAt0        bool
	conf                []byte
}

// take hands over what is to be written; mu is held.
func (db *DB) take() batch {
	b := batch{
		pending: db.pending, gone: db.dirty.gone, applied: db.applied, revision: db.revision, compacted: db.compacted, finished: db.finished, compactedAt0: db.compactedAt0,
		conf: db.conf, leases: map[int64][]byte{}, rows: map[rowKey][]byte{},
	}
	for id := range db.dirty.leases {
		b.leases[id] = db.leases[id].encode(id)
	}
	for k := range db.dirty.rows {
		b.rows[k] = db.rows[k.bucket][k.key]
	}
	return b
}

// Commit writes everything applied so far to the file, in one transaction.
// When there is nothing to write it does not touch the file.
func (db *DB) Commit() error {
	db.committing.Lock()
	defer db.committing.Unlock()
	return db.commitLocked(false)
}

// commitLocked is Commit with committing held. always writes how far the log
// was applied even when nothing else changed.
func (db *DB) commitLocked(always bool) error {
	db.mu.Lock()
	b, dirty := db.take(), db.dirty
	if !always && !dirty.meta && len(b.pending) == 0 && len(b.leases) == 0 && len(b.rows) == 0 && len(b.gone) == 0 {
		db.mu.Unlock()
		return nil
	}
	db.dirty.meta, db.dirty.gone = false, nil
	db.dirty.leases, db.dirty.rows = map[int64]bool{}, map[rowKey]bool{}
	db.mu.Unlock()
	err := db.timed(func() error {
		return db.bolt.Update(func(tx *bolt.Tx) error { return b.write(tx) })
	})
	db.mu.Lock()
	defer db.mu.Unlock()
	if err != nil {
		// The file is as it was; the next Commit tries all of it again.
		db.dirty.meta = true
		db.dirty.gone = append(dirty.gone, db.dirty.gone...)
		for id := range dirty.leases {
			db.dirty.leases[id] = true
		}
		for k := range dirty.rows {
			db.dirty.rows[k] = true
		}
		return fmt.Errorf("commit %s: %w", db.bolt.Path(), err)
	}
	db.pending = append([]record(nil), db.pending[len(b.pending):]...)
	db.bytes = len(db.dirty.gone) * goneBytes
	for _, r := range db.pending {
		db.bytes += len(r.data)
	}
	return db.measure()
}

// Applied is how much of the log the state in memory reflects.
func (db *DB) Applied() Applied {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.applied
}

// ConfState is the raftpb.ConfState last set, or nil.
func (db *DB) ConfState() []byte {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.conf
}

// Advance records that the log was applied up to a, without a change to keys:
// an empty entry or a configuration change, with its ConfState if not nil.
func (db *DB) Advance(a Applied, conf []byte) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.applied = a
	if conf != nil {
		db.conf, db.dirty.meta = conf, true
	}
}

// Revision returns the newest revision and the oldest that may be read.
func (db *DB) Revision() (current, compacted int64) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.revision, db.compacted
}

// Pending is the size in bytes of what Commit would write.
func (db *DB) Pending() int {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.bytes
}

// Size is the size of the state, and of the part of it that is in use: what the
// file has, and what the next Commit adds.
func (db *DB) Size() (total, inUse int64) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.closed {
		return 0, 0
	}
	pending := int64(db.bytes)
	return db.size + max(pending-db.free, 0), db.size - db.free + pending
}

// measure notes how large the file is, for Size: every put asks. mu is held.
func (db *DB) measure() error {
	return db.bolt.View(func(tx *bolt.Tx) error {
		db.size, db.free = tx.Size(), int64(db.bolt.Stats().FreePageN)*pageSize
		return nil
	})
}

// WaitApplied returns when the entry at index has been applied. It is meant for
// entries that wake watchers.
func (db *DB) WaitApplied(ctx context.Context, index uint64) error {
	return db.wait(ctx, func() bool { return db.applied.Index >= index })
}

// wait returns when is is true; mu is held while it is called, and it is called when
// watchers are woken.
func (db *DB) wait(ctx context.Context, is func() bool) error {
	for {
		db.mu.RLock()
		done, closed, changed := is(), db.closed, db.change()
		db.mu.RUnlock()
		switch {
		case done:
			return nil
		case closed:
			return ErrClosed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Counts are what happened since the start, and how many keys there are.
type Counts struct{ Puts, Deletes, Txns, Keys int64 }

// Counts returns them.
func (db *DB) Counts() Counts {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.counts
}
