package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
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
	formatVersion = 1
	// pageSize is fixed: a kernel with 16 KB pages would write four times the
	// bytes, and the file must be readable on another device.
	pageSize = 4096
	// initialMmap keeps the map from growing often without asking 32-bit
	// devices for address space that they lack.
	initialMmap = 4 << 20
)

var (
	revBucket   = []byte("rev")
	leaseBucket = []byte("lease")
	metaBucket  = []byte("meta")

	formatKey  = []byte("format")
	appliedKey = []byte("applied")
	confKey    = []byte("conf")
)

// Config says where the file is.
type Config struct {
	Path   string
	Logger *slog.Logger
}

// Applied says how much of the log a state reflects.
type Applied struct{ Index, Term uint64 }

// record is one change that is not on disk yet.
type record struct {
	rev  Rev
	data []byte
}

// DB is the key space.
type DB struct {
	bolt *bolt.DB
	log  *slog.Logger

	// committing serializes Commit with Close and Compact's deletions.
	committing sync.Mutex

	mu sync.RWMutex
	// guarded by mu
	index     *index
	revision  int64 // of the newest transaction
	compacted int64
	applied   Applied
	conf      []byte
	leases    map[int64]*lease
	attached  map[string]int64 // key -> lease
	pending   []record         // ascending; not yet on disk
	bytes     int              // of pending
	dirty     struct {         // what else the next Commit writes
		meta   bool
		leases map[int64]bool // changed, added or removed
		gone   []Rev          // to delete from "rev"
	}
	recent  ring
	changed chan struct{} // closed and replaced when revision or compacted moves
	closed  bool
}

// Open opens the file, or makes one, and builds the key index from it.
func Open(cfg Config) (*DB, error) {
	b, err := bolt.Open(cfg.Path, 0o600, &bolt.Options{
		PageSize: pageSize, InitialMmapSize: initialMmap, FreelistType: bolt.FreelistMapType, NoFreelistSync: true,
	})
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch) {
		return nil, damaged(cfg.Path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cfg.Path, err)
	}
	// The file grows in steps of this; bbolt would take 16 MB at once.
	b.AllocSize = 1 << 20
	db := &DB{
		bolt: b, log: cfg.Logger, index: newIndex(), revision: 1,
		leases: map[int64]*lease{}, attached: map[string]int64{}, changed: make(chan struct{}),
	}
	db.dirty.leases = map[int64]bool{}
	if err := db.load(); err != nil {
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
		if f := meta.Get(formatKey); len(f) != 1 || f[0] != formatVersion {
			return fmt.Errorf("%s: its format is %v, this program understands %d: use a newer edged", db.bolt.Path(), f, formatVersion)
		}
		err := db.loadMeta(meta)
		if err == nil {
			err = db.loadLeases(tx.Bucket(leaseBucket))
		}
		if err == nil {
			err = db.loadRevisions(tx.Bucket(revBucket))
		}
		if err != nil {
			return damaged(db.bolt.Path(), err)
		}
		return nil
	})
	return err
}

func (db *DB) loadMeta(meta *bolt.Bucket) error {
	a := meta.Get(appliedKey)
	if len(a) != 32 {
		return fmt.Errorf("%q is %d bytes", appliedKey, len(a))
	}
	db.applied = Applied{binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(a[8:])}
	db.revision = int64(binary.BigEndian.Uint64(a[16:]))
	db.compacted = int64(binary.BigEndian.Uint64(a[24:]))
	db.conf = append([]byte(nil), meta.Get(confKey)...)
	return nil
}

func (db *DB) loadRevisions(b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		rev, deleted, kv, err := decode(k, v)
		if err != nil {
			return err
		}
		if deleted {
			db.index.delete(kv.Key, rev)
			db.attach(kv.Key, 0)
			return nil
		}
		db.index.restore(kv.Key, rev, Rev{Main: kv.CreateRevision}, kv.Version)
		db.attach(kv.Key, kv.Lease)
		return nil
	})
}

func encodeRev(r Rev) []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint64(b, uint64(r.Main))
	binary.BigEndian.PutUint64(b[8:], uint64(r.Sub))
	return b
}

// decode reads a row of bucket "rev".
func decode(k, v []byte) (rev Rev, deleted bool, kv *mvccpb.KeyValue, err error) {
	if len(k) != 16 || len(v) < 1 || v[0] > 1 {
		return rev, false, nil, fmt.Errorf("row %x of revisions", k)
	}
	rev = Rev{int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[8:]))}
	kv = new(mvccpb.KeyValue)
	if err := proto.Unmarshal(v[1:], kv); err != nil {
		return rev, false, nil, fmt.Errorf("row %x of revisions: %w", k, err)
	}
	return rev, v[0] == 1, kv, nil
}

// read returns the row at rev, from memory or from disk. mu is held.
func (db *DB) read(rev Rev) (*mvccpb.KeyValue, error) {
	if i := sort.Search(len(db.pending), func(i int) bool { return !db.pending[i].rev.less(rev) }); i < len(db.pending) && db.pending[i].rev == rev {
		_, _, kv, err := decode(encodeRev(rev), db.pending[i].data)
		return kv, err
	}
	var kv *mvccpb.KeyValue
	err := db.bolt.View(func(tx *bolt.Tx) error {
		key := encodeRev(rev)
		v := tx.Bucket(revBucket).Get(key)
		if v == nil {
			return fmt.Errorf("revision %d.%d is indexed but not stored", rev.Main, rev.Sub)
		}
		var err error
		_, _, kv, err = decode(key, v)
		return err
	})
	return kv, err
}

// Commit writes everything applied so far to the file, in one transaction.
// When there is nothing to write it does not touch the file.
func (db *DB) Commit() error {
	db.committing.Lock()
	defer db.committing.Unlock()
	db.mu.Lock()
	dirty := db.dirty
	db.dirty.meta, db.dirty.leases, db.dirty.gone = false, map[int64]bool{}, nil
	pending := db.pending
	applied := make([]byte, 32)
	binary.BigEndian.PutUint64(applied, db.applied.Index)
	binary.BigEndian.PutUint64(applied[8:], db.applied.Term)
	binary.BigEndian.PutUint64(applied[16:], uint64(db.revision))
	binary.BigEndian.PutUint64(applied[24:], uint64(db.compacted))
	conf := db.conf
	leases := map[int64][]byte{}
	for id := range dirty.leases {
		leases[id] = db.leases[id].encode()
	}
	db.mu.Unlock()
	if !dirty.meta && len(pending) == 0 && len(leases) == 0 && len(dirty.gone) == 0 {
		return nil
	}
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		return write(tx, pending, leases, dirty.gone, applied, conf)
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
		return fmt.Errorf("commit %s: %w", db.bolt.Path(), err)
	}
	db.pending = append([]record(nil), db.pending[len(pending):]...)
	db.bytes = 0
	for _, r := range db.pending {
		db.bytes += len(r.data)
	}
	return nil
}

func write(tx *bolt.Tx, pending []record, leases map[int64][]byte, gone []Rev, applied, conf []byte) error {
	revs, err := tx.CreateBucketIfNotExists(revBucket)
	if err != nil {
		return err
	}
	revs.FillPercent = 0.9 // revisions only grow: no room is needed in between
	for _, r := range pending {
		if err := revs.Put(encodeRev(r.rev), r.data); err != nil {
			return err
		}
	}
	for _, rev := range gone {
		if err := revs.Delete(encodeRev(rev)); err != nil {
			return err
		}
	}
	lb, err := tx.CreateBucketIfNotExists(leaseBucket)
	if err != nil {
		return err
	}
	for id, data := range leases {
		key := binary.BigEndian.AppendUint64(nil, uint64(id))
		if data == nil {
			err = lb.Delete(key)
		} else {
			err = lb.Put(key, data)
		}
		if err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if err := meta.Put(formatKey, []byte{formatVersion}); err != nil {
		return err
	}
	if err := meta.Put(confKey, conf); err != nil {
		return err
	}
	return meta.Put(appliedKey, applied)
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

// Size is the size of the file, and of the part of it that is in use.
func (db *DB) Size() (total, inUse int64) {
	err := db.bolt.View(func(tx *bolt.Tx) error {
		total = tx.Size()
		return nil
	})
	if err != nil {
		return 0, 0
	}
	return total, total - int64(db.bolt.Stats().FreePageN)*pageSize
}
