package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
)

var (
	authEnabledKey  = "authEnabled"
	authRevisionKey = "authRevision"
)

// loadRows reads the small buckets, and what they say of alarms and users.
func (db *DB) loadRows(tx *bolt.Tx) error {
	for _, name := range smallBuckets {
		rows := map[string][]byte{}
		if err := eachRow(tx.Bucket([]byte(name)), func(k, v []byte) error {
			rows[string(k)] = bytes.Clone(v)
			return nil
		}); err != nil {
			return err
		}
		db.rows[name] = rows
	}
	for k := range db.rows[AlarmBucket] {
		m := new(pb.AlarmMember)
		if err := proto.Unmarshal([]byte(k), m); err != nil {
			return fmt.Errorf("alarm %x: %w", k, err)
		}
		db.setAlarm(m, true)
	}
	return db.loadAuth()
}

func (db *DB) loadAuth() error {
	var users []*authpb.User
	for k, v := range db.rows[usersBucket] {
		u := new(authpb.User)
		if err := proto.Unmarshal(v, u); err != nil {
			return fmt.Errorf("user %q: %w", k, err)
		}
		users = append(users, u)
	}
	var roles []*authpb.Role
	for k, v := range db.rows[rolesBucket] {
		r := new(authpb.Role)
		if err := proto.Unmarshal(v, r); err != nil {
			return fmt.Errorf("role %q: %w", k, err)
		}
		roles = append(roles, r)
	}
	var revision uint64
	if v := db.rows[authBucket][authRevisionKey]; len(v) == 8 {
		revision = binary.BigEndian.Uint64(v)
	}
	enabled := db.rows[authBucket][authEnabledKey]
	db.auth = auth.Restore(len(enabled) == 1 && enabled[0] == 1, revision, users, roles)
	return nil
}

// Rows returns the rows of a small bucket.
func (db *DB) Rows(bucket string) map[string][]byte {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return maps.Clone(db.rows[bucket])
}

// SetRow stores a row of a small bucket with the next Commit, or deletes it if
// value is nil. Called while applying: a row depends on the log alone.
func (db *DB) SetRow(bucket, key string, value []byte) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.setRow(bucket, key, value)
}

func (db *DB) setRow(bucket, key string, value []byte) {
	if db.rows[bucket] == nil {
		db.rows[bucket] = map[string][]byte{}
	}
	if value == nil {
		delete(db.rows[bucket], key)
	} else {
		db.rows[bucket][key] = value
	}
	db.dirty.rows[rowKey{bucket, key}] = true
}

// saveAuth makes the rows say what the users' state is.
func (db *DB) saveAuth() {
	enabled := []byte{0}
	if db.auth.Enabled() {
		enabled[0] = 1
	}
	want := map[string]map[string][]byte{
		authBucket: {
			authEnabledKey:  enabled,
			authRevisionKey: binary.BigEndian.AppendUint64(nil, db.auth.Revision()),
		},
		usersBucket: {}, rolesBucket: {},
	}
	for _, u := range db.auth.Users() {
		want[usersBucket][string(u.Name)] = mustMarshal(u)
	}
	for _, r := range db.auth.Roles() {
		want[rolesBucket][string(r.Name)] = mustMarshal(r)
	}
	for bucket, rows := range want {
		for k := range db.rows[bucket] {
			if rows[k] == nil {
				db.setRow(bucket, k, nil)
			}
		}
		for k, v := range rows {
			if !bytes.Equal(db.rows[bucket][k], v) {
				db.setRow(bucket, k, v)
			}
		}
	}
}

// mustMarshal encodes a message that was itself decoded or made of strings from
// one: that always works.
func mustMarshal(m proto.Message) []byte {
	data, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

// ReplaceRows makes these the rows of a small bucket.
func (db *DB) ReplaceRows(bucket string, rows map[string][]byte) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for k := range db.rows[bucket] {
		if _, stays := rows[k]; !stays {
			db.setRow(bucket, k, nil)
		}
	}
	for k, v := range rows {
		if !bytes.Equal(db.rows[bucket][k], v) {
			db.setRow(bucket, k, v)
		}
	}
}

// ForgetMembers drops what a snapshot of etcd's says of the members that it was
// taken from.
func (db *DB) ForgetMembers() {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, bucket := range []string{MembersBucket, RemovedBucket, ClusterBucket} {
		for k := range db.rows[bucket] {
			db.setRow(bucket, k, nil)
		}
	}
	// An alarm is of a member.
	for k := range db.rows[AlarmBucket] {
		db.setRow(AlarmBucket, k, nil)
	}
	clear(db.alarms)
}
