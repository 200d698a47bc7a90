package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The file is laid out as etcd's is, so that a snapshot is a copy of it, and
// etcd's tools read ours and we theirs.
var (
	keyBucket   = []byte("key")
	leaseBucket = []byte("lease")
	metaBucket  = []byte("meta")

	indexKey     = []byte("consistent_index")
	termKey      = []byte("term")
	storageKey   = []byte("storageVersion")
	scheduledKey = []byte("scheduledCompactRev")
	finishedKey  = []byte("finishedCompactRev")
	// Two rows are not etcd's: the newest revision, which rows tell no more once
	// the newest were deleted and compacted, and the cluster's configuration.
	revisionKey = []byte("edgedRevision")
	confKey     = []byte("edgedConf")
)

// storageVersion is the etcd release whose layout this is.
const storageVersion = "3.7.0"

// Small buckets, which are held in memory as they are.
const (
	AlarmBucket   = "alarm"
	ClusterBucket = "cluster"
	MembersBucket = "members"
	RemovedBucket = "members_removed"
	authBucket    = "auth"
	usersBucket   = "authUsers"
	rolesBucket   = "authRoles"
)

var smallBuckets = []string{AlarmBucket, ClusterBucket, MembersBucket, RemovedBucket, authBucket, usersBucket, rolesBucket}

const (
	revBytes  = 17
	tombstone = 't'
	// goneBytes is what deleting a row counts for in Pending.
	goneBytes = 64
)

type rowKey struct{ bucket, key string }

// gone is a row of bucket "key" to be deleted.
type gone struct {
	rev     Rev
	deleted bool
}

// encodeRev is the key of a row: main, '_', sub; deletions have a 't' behind.
func encodeRev(r Rev) []byte {
	b := make([]byte, revBytes, revBytes+1)
	binary.BigEndian.PutUint64(b, uint64(r.Main))
	b[8] = '_'
	binary.BigEndian.PutUint64(b[9:], uint64(r.Sub))
	return b
}

func rowName(r Rev, deleted bool) []byte {
	if deleted {
		return append(encodeRev(r), tombstone)
	}
	return encodeRev(r)
}

func decodeRev(k []byte) (rev Rev, deleted bool, err error) {
	deleted = len(k) == revBytes+1 && k[revBytes] == tombstone
	if (len(k) != revBytes && !deleted) || k[8] != '_' {
		return rev, false, fmt.Errorf("row %x of revisions", k)
	}
	if rev = (Rev{int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:]))}); rev.Main < 0 || rev.Sub < 0 {
		return rev, false, fmt.Errorf("row %x of revisions", k)
	}
	return rev, deleted, nil
}

func decodeKV(rev Rev, data []byte) (*mvccpb.KeyValue, error) {
	kv := new(mvccpb.KeyValue)
	if err := proto.Unmarshal(data, kv); err != nil {
		return nil, fmt.Errorf("row %d.%d of revisions: %w", rev.Main, rev.Sub, err)
	}
	return kv, nil
}

// decode reads a row of bucket "key".
func decode(k, v []byte) (rev Rev, deleted bool, kv *mvccpb.KeyValue, err error) {
	if rev, deleted, err = decodeRev(k); err != nil {
		return rev, false, nil, err
	}
	kv, err = decodeKV(rev, v)
	return rev, deleted, kv, err
}

func (db *DB) loadMeta(meta *bolt.Bucket) error {
	number := func(key []byte) (uint64, error) {
		switch v := meta.Get(key); len(v) {
		case 0:
			return 0, nil
		case 8:
			return binary.BigEndian.Uint64(v), nil
		default:
			return 0, fmt.Errorf("%q is %d bytes", key, len(v))
		}
	}
	var err error
	if db.applied.Index, err = number(indexKey); err != nil {
		return err
	}
	if db.applied.Term, err = number(termKey); err != nil {
		return err
	}
	newest, err := number(revisionKey)
	if err != nil {
		return err
	}
	db.revision = max(int64(newest), 1)
	for _, key := range [][]byte{scheduledKey, finishedKey} {
		if v := meta.Get(key); v != nil {
			rev, _, err := decodeRev(v)
			if err != nil {
				return fmt.Errorf("%q: %w", key, err)
			}
			db.compacted = max(db.compacted, rev.Main)
			db.compactedAt0 = db.compactedAt0 || rev.Main == 0
			if &key[0] == &finishedKey[0] {
				db.finished = rev.Main
			}
		}
	}
	db.conf = bytes.Clone(meta.Get(confKey))
	return nil
}

func (db *DB) loadRevision(k, v []byte) error {
	rev, deleted, kv, err := decode(k, v)
	if err != nil {
		return err
	}
	db.revision = max(db.revision, rev.Main)
	if deleted {
		db.index.bury(kv.Key, rev)
		db.attach(kv.Key, 0)
		return nil
	}
	if kv.CreateRevision < 0 || kv.CreateRevision > rev.Main {
		return fmt.Errorf("row %x of revisions was made at revision %d", k, kv.CreateRevision)
	}
	db.index.restore(kv.Key, rev, kv.CreateRevision, kv.Version)
	db.attach(kv.Key, kv.Lease)
	return nil
}

func (b *batch) write(tx *bolt.Tx) error {
	keys, err := tx.CreateBucketIfNotExists(keyBucket)
	if err != nil {
		return err
	}
	keys.FillPercent = 1 // revisions only grow: no room is needed in between
	for _, r := range b.pending {
		if err := keys.Put(rowName(r.rev, r.deleted), r.data); err != nil {
			return err
		}
	}
	for _, g := range b.gone {
		if err := keys.Delete(rowName(g.rev, g.deleted)); err != nil {
			return err
		}
	}
	leases, err := tx.CreateBucketIfNotExists(leaseBucket)
	if err != nil {
		return err
	}
	for id, data := range b.leases {
		if err := putOrDelete(leases, binary.BigEndian.AppendUint64(nil, uint64(id)), data); err != nil {
			return err
		}
	}
	for _, name := range smallBuckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	for k, data := range b.rows {
		if err := putOrDelete(tx.Bucket([]byte(k.bucket)), []byte(k.key), data); err != nil {
			return err
		}
	}
	return b.writeMeta(tx)
}

func putOrDelete(b *bolt.Bucket, key, data []byte) error {
	if data == nil {
		return b.Delete(key)
	}
	return b.Put(key, data)
}

func (b *batch) writeMeta(tx *bolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	rows := map[string][]byte{
		string(indexKey):    binary.BigEndian.AppendUint64(nil, b.applied.Index),
		string(termKey):     binary.BigEndian.AppendUint64(nil, b.applied.Term),
		string(revisionKey): binary.BigEndian.AppendUint64(nil, uint64(b.revision)),
		string(storageKey):  []byte(storageVersion),
	}
	if b.compacted > 0 || b.compactedAt0 {
		rows[string(scheduledKey)] = encodeRev(Rev{Main: b.compacted})
	}
	if b.finished > 0 || b.compactedAt0 {
		rows[string(finishedKey)] = encodeRev(Rev{Main: b.finished})
	}
	if b.conf != nil {
		rows[string(confKey)] = b.conf
	}
	for k, v := range rows {
		if err := meta.Put([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

// encode returns the row of bucket "lease", nil for a lease that is gone.
func (l *lease) encode(id int64) []byte {
	if l == nil {
		return nil
	}
	var b []byte
	for i, n := range []int64{id, l.ttl, l.remaining} {
		b = protowire.AppendTag(b, protowire.Number(i+1), protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(n))
	}
	return b
}

func (db *DB) loadLease(k, v []byte) error {
	var fields [4]int64
	for rest := v; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 || typ != protowire.VarintType || num > 3 {
			return fmt.Errorf("lease %x does not decode", k)
		}
		rest = rest[n:]
		x, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return fmt.Errorf("lease %x does not decode", k)
		}
		fields[num], rest = int64(x), rest[n:]
	}
	if len(k) != 8 || fields[1] != int64(binary.BigEndian.Uint64(k)) {
		return fmt.Errorf("lease %x is that of %x", k, fields[1])
	}
	db.leases[fields[1]] = &lease{ttl: fields[2], remaining: fields[3], keys: map[string]struct{}{}}
	return nil
}
