package mvcc_test

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
	"edged/raftstore/mvcc"
)

// onMemory is a folder that costs no disk where there is one.
func onMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mvcc-fuzz-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// everything asks a store for all that it can be asked, for the sake of the
// asking.
func everything(t *testing.T, db *mvcc.DB) {
	t.Helper()
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	_, _ = db.Range(auth.Trusted, all)
	newest, compacted := db.Revision()
	_, _ = db.Range(auth.Trusted, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: max(compacted, 1)})
	_, _ = db.HashKV(0)
	w := db.Watch([]byte{0}, []byte{0}, compacted, true)
	for w.Position() < newest {
		b, changed, err := w.Poll()
		if err != nil || changed != nil {
			break
		}
		if b.Revision > newest {
			t.Fatalf("a batch goes to %d, the newest revision is %d", b.Revision, newest)
		}
	}
	db.Alarms(pb.AlarmType_NONE)
	_ = db.Permit(func(s *auth.State) error { return s.Read(auth.Caller{User: "u"}, []byte("k"), nil) })
}

var buckets = []string{"key", "lease", "meta", "auth", "authUsers", "authRoles", "alarm", "members", "members_removed", "cluster"}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzRows: whatever a file's rows hold, it is opened or refused; what was
// opened can be read, written to, and opened again.
func FuzzRows(f *testing.F) {
	rev := func(main, sub uint64, more string) []byte {
		b := binary.BigEndian.AppendUint64(nil, main)
		b = append(b, '_')
		return append(binary.BigEndian.AppendUint64(b, sub), more...)
	}
	kv := marshal(f, &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, ModRevision: 3, Version: 2, Lease: 7})
	f.Add(uint8(0), rev(2, 0, ""), kv, uint8(0), rev(3, 0, "t"), kv)
	f.Add(uint8(0), rev(5, 0, "t"), kv, uint8(2), []byte("scheduledCompactRev"), rev(9, 0, ""))
	f.Add(uint8(0), rev(1<<63, 1<<63, ""), kv, uint8(0), []byte("short"), []byte{255})
	f.Add(uint8(0), rev(3, 0, ""), marshal(f, &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: -1, Version: -5}), uint8(0), rev(3, 1, ""), kv)
	f.Add(uint8(1), binary.BigEndian.AppendUint64(nil, 7), []byte{8, 7, 16, 60, 24, 5}, uint8(0), rev(2, 0, ""), kv)
	f.Add(uint8(1), []byte("x"), []byte{0}, uint8(2), []byte("consistent_index"), []byte{1})
	f.Add(uint8(2), []byte("edgedRevision"), rev(1<<62, 0, "")[:8], uint8(2), []byte("edgedConf"), []byte(`{"version":1}`))
	f.Add(uint8(4), []byte("root"), marshal(f, &authpb.User{Name: []byte("root"), Roles: []string{"none"}}), uint8(3), []byte("authEnabled"), []byte{1})
	f.Add(uint8(5), []byte("r"), marshal(f, &authpb.Role{Name: []byte("r"), KeyPermission: []*authpb.Permission{{Key: []byte("z"), RangeEnd: []byte("a")}}}), uint8(4), []byte("u"), marshal(f, &authpb.User{Name: []byte("u"), Roles: []string{"r"}}))
	f.Add(uint8(6), marshal(f, &pb.AlarmMember{MemberID: 1, Alarm: 77}), []byte{}, uint8(9), []byte("downgrade"), []byte("{"))
	f.Fuzz(func(t *testing.T, b1 uint8, k1, v1 []byte, b2 uint8, k2, v2 []byte) {
		dir := onMemory(t)
		path := filepath.Join(dir, "state.db")
		b, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: 4096, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		err = b.Update(func(tx *bolt.Tx) error {
			for _, name := range buckets {
				if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			put := func(at uint8, k, v []byte) {
				// What bbolt does not take, no file holds.
				_ = tx.Bucket([]byte(buckets[int(at)%len(buckets)])).Put(k, v)
			}
			put(b1, k1, v1)
			put(b2, k2, v2)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			db, err := mvcc.Open(mvcc.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return
			}
			everything(t, db)
			db.ForgetMembers()
			if err := db.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzApply: whatever an entry of the log asks, it is done or refused, and two
// members come to the same state.
func FuzzApply(f *testing.F) {
	key := []byte("k")
	put := &pb.PutRequest{Key: key, Value: []byte("v")}
	ops := []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}, {Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}, {}}
	for _, r := range []*pb.InternalRaftRequest{
		{Put: put},
		{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, PrevKv: true}},
		{Txn: &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: 9, Result: 9}}, Success: ops, Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: ops}}}}}},
		{Compaction: &pb.CompactionRequest{Revision: 2}},
		{LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 5}},
		{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 7}},
		{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 7, Remaining_TTL: 1}, nil}}},
		{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 3, Alarm: pb.AlarmType_NOSPACE}},
		{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", HashedPassword: "x"}},
		{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: "r"}},
		{AuthEnable: &pb.AuthEnableRequest{}},
		{Authenticate: &pb.InternalAuthenticateRequest{Name: "u", SimpleToken: "t"}},
		{DowngradeInfoSet: nil},
	} {
		f.Add(marshal(f, r))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req := new(pb.InternalRaftRequest)
		if proto.Unmarshal(data, req) != nil {
			return
		}
		var hashes [2]uint32
		for i := range hashes {
			dir := onMemory(t)
			db, err := mvcc.Open(mvcc.Config{Path: filepath.Join(dir, "state.db"), Logger: slog.New(slog.DiscardHandler), HashOnCompact: true})
			if err != nil {
				t.Fatal(err)
			}
			for n, r := range []*pb.InternalRaftRequest{
				{Put: put}, {LeaseGrant: &pb.LeaseGrantRequest{ID: 7, TTL: 5}}, {Put: &pb.PutRequest{Key: []byte("l"), Lease: 7}}, {AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}}, req, req, {Put: put},
			} {
				if r != req {
					r.Header = &pb.RequestHeader{AuthRevision: auth.Trusted.Revision}
				}
				// A request may be refused; what it did must be the same.
				_, _ = db.Apply(mvcc.Applied{Index: uint64(n + 1), Term: 1}, proto.Clone(r).(*pb.InternalRaftRequest))
			}
			everything(t, db)
			for db.CompactStep(1) {
			}
			everything(t, db)
			if err := db.Commit(); err != nil {
				t.Fatal(err)
			}
			if hashes[i], _, err = db.Hash(); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if hashes[0] != hashes[1] {
			t.Errorf("two members that applied %v differ", req)
		}
	})
}
