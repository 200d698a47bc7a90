package raftstore

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
)

func TestJudgeFindsWhoDiffersFromTheMajority(t *testing.T) {
	hash := func(id uint64, h uint32, compacted int64) memberHash {
		return memberHash{id: id, KVHash: mvcc.KVHash{Hash: h, Compacted: compacted}}
	}
	silent := memberHash{id: 9, err: errors.New("silent")}
	for _, c := range []struct {
		what    string
		others  []memberHash
		corrupt []uint64
		whole   bool
	}{
		{"all are the same", []memberHash{hash(2, 7, 1), hash(3, 7, 1)}, nil, true},
		{"one is silent", []memberHash{hash(2, 7, 1), silent}, nil, false},
		{"one compacted less", []memberHash{hash(2, 7, 1), hash(3, 8, 0)}, nil, false},
		{"another differs", []memberHash{hash(2, 7, 1), hash(3, 8, 1)}, []uint64{3}, true},
		{"this one differs", []memberHash{hash(2, 8, 1), hash(3, 8, 1)}, []uint64{1}, true},
		{"two of five differ", []memberHash{hash(2, 7, 1), hash(3, 8, 1), hash(4, 9, 1), hash(5, 7, 1)}, []uint64{3, 4}, true},
		{"there is no majority", []memberHash{hash(2, 8, 1)}, []uint64{0}, true},
		{"nor among three", []memberHash{hash(2, 8, 1), hash(3, 9, 1)}, []uint64{0}, true},
		{"a silent one counts", []memberHash{hash(2, 8, 1), silent}, []uint64{0}, false},
	} {
		corrupt, whole := judge(1, mvcc.KVHash{Hash: 7, Compacted: 1}, c.others)
		if !slices.Equal(corrupt, c.corrupt) || whole != c.whole {
			t.Errorf("%s: corrupt %v, whole %v, want %v, %v", c.what, corrupt, whole, c.corrupt, c.whole)
		}
	}
}

func TestSuspectKnowsWhoCannotBeRight(t *testing.T) {
	before := mvcc.KVHash{Hash: 7, Revision: 10, Compacted: 2, Current: 10}
	after := mvcc.KVHash{Hash: 8, Revision: 12, Compacted: 3, Current: 12}
	other := func(h uint32, current, compacted int64) memberHash {
		return memberHash{id: 2, KVHash: mvcc.KVHash{Hash: h, Current: current, Compacted: compacted}}
	}
	for _, c := range []struct {
		what   string
		after  mvcc.KVHash
		others []memberHash
		id     uint64
	}{
		{"the same", after, []memberHash{other(7, 11, 2)}, 0},
		{"it has compacted further", after, []memberHash{other(9, 11, 3)}, 0},
		{"it differs", after, []memberHash{other(9, 11, 2)}, 2},
		{"it is ahead", after, []memberHash{other(7, 13, 2)}, 2},
		{"it compacted what the leader has not", after, []memberHash{other(7, 11, 4)}, 2},
		{"the leader changed without a write", mvcc.KVHash{Hash: 9, Revision: 10, Compacted: 2, Current: 10}, nil, 1},
		{"it is silent", after, []memberHash{{id: 2, err: errors.New("silent")}}, 0},
	} {
		if id, why := suspect(1, before, c.after, c.others); id != c.id || (why != "") != (c.id != 0) {
			t.Errorf("%s: suspected %d (%q), want %d", c.what, id, why, c.id)
		}
	}
}

// corruptState changes a value in a stopped member's file.
func corruptState(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		k, v := b.Cursor().First()
		kv := new(mvccpb.KeyValue)
		if err := proto.Unmarshal(v, kv); err != nil {
			return err
		}
		kv.Value[0]++
		data, err := proto.Marshal(kv)
		if err != nil {
			return err
		}
		return b.Put(k, data)
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestMembersThatDifferAreFound(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*Config)
	}{
		{"all that they hold", func(cfg *Config) { cfg.CheckEvery = 50 * time.Millisecond }},
		{"what they compacted", func(cfg *Config) { cfg.CheckCompactedEvery, cfg.HashOnCompact = 50*time.Millisecond, true }},
	} {
		t.Run(c.what, func(t *testing.T) {
			cl := newCluster(t, c.change, "a", "b", "c")
			for _, k := range []string{"x", "y", "z"} {
				put(t, cl.members["a"].Store, k, "1")
			}
			cl.same()
			victim := cl.follower()
			id := cl.members[victim].MemberID()
			cfg := cl.stop(victim)
			corruptState(t, cfg.statePath())
			cfg.CheckStart = true
			cfg.Network = cl.wire.listen(cfg.PeerURLs[0])
			if s, err := OpenUnready(context.Background(), cfg); err == nil {
				t.Error("a member that differs started although it was to compare")
				s.Close()
			}
			cfg.CheckStart = false
			cl.start(cfg)
			leader := cl.members[cl.leader()]
			// The alarm may be there already.
			if _, err := leader.Compact(context.Background(), &pb.CompactionRequest{Revision: 3}); err != nil && !errors.Is(err, ErrCorruptCluster) {
				t.Fatal(err)
			}
			eventually(t, "alarm", func() bool {
				return slices.ContainsFunc(leader.Alarms(), func(a *pb.AlarmMember) bool {
					return a.Alarm == pb.AlarmType_CORRUPT && a.MemberID == id
				})
			})
			if _, err := leader.Put(context.Background(), &pb.PutRequest{Key: []byte("k")}); !errors.Is(err, ErrCorruptCluster) {
				t.Errorf("a put after the alarm: %v, want %v", err, ErrCorruptCluster)
			}
		})
	}
}

func TestStateFileMayBeElsewhere(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	put(t, s, "k", "v")
	file := filepath.Join(t.TempDir(), "snapshot")
	save(t, s, file)
	to := filepath.Join(t.TempDir(), "store")
	if err := Restore(RestoreConfig{Dir: to, StateFile: "snap/db", Snapshot: file, Name: "n"}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(context.Background(), Config{Dir: to, StateFile: "snap/db", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if rows := r.db.Rows(mvcc.MembersBucket); len(rows) != 1 || !strings.Contains(string(rows[strconv.FormatUint(r.MemberID(), 16)]), `"name":"n"`) {
		t.Errorf("the members in the file: %q", rows)
	}
	if got := get(t, r, "k"); got != "v" {
		t.Errorf("k is %q, want v", got)
	}
	if index, term, err := AppliedOf(filepath.Join(dir, "none")); err != nil || index != 0 || term != 0 {
		t.Errorf("an empty file is applied to %d in term %d, %v", index, term, err)
	}
}
