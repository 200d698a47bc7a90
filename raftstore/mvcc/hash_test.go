package mvcc_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/mvcc"
)

// The hashes are those that an etcd 3.7.3 gave for the same requests.
func TestHashKVIsEtcds(t *testing.T) {
	db, err := mvcc.Open(mvcc.Config{Path: filepath.Join(t.TempDir(), "state.db"), Logger: slog.New(slog.DiscardHandler), HashOnCompact: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := &machine{t: t, db: db}
	del := func(key, end string) {
		m.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}})
	}
	check := func(when string, want map[int64]uint32) {
		t.Helper()
		for at, hash := range want {
			got, err := db.HashKV(at)
			if err != nil {
				t.Errorf("%s, up to revision %d: %v", when, at, err)
			} else if got.Hash != hash {
				t.Errorf("%s, up to revision %d: %d, want %d", when, at, got.Hash, hash)
			}
		}
	}

	// A compaction changes no hash while it is carried out; its own is known at the end.
	compact := func(at int64) {
		m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: at}})
		rev, _ := db.Revision()
		before, err := db.HashKV(rev)
		if err != nil {
			t.Fatal(err)
		}
		steps := 1
		for ; db.CompactStep(1); steps++ {
			if rev != at {
				check("while compacting", map[int64]uint32{0: before.Hash, rev: before.Hash})
			}
		}
		if steps < 5 {
			t.Errorf("compacted in %d steps", steps)
		}
	}

	m.put("a", "1")
	m.put("b", "1")
	m.put("a", "2")
	m.put("c", "1")
	del("b", "")
	m.put("a", "3")
	m.put("b", "2")
	m.put("d", "1")
	del("d", "")
	m.put("c", "2")
	check("uncompacted", map[int64]uint32{0: 2174540262, 2: 2587454935, 4: 3086679940, 6: 1106805189, 7: 4128752123, 10: 2717325613, 11: 2174540262})
	compact(6)
	check("compacted at 6", map[int64]uint32{0: 4206167911, 6: 1106805189, 7: 185727024, 10: 3706506262, 11: 4206167911})
	if err := db.Commit(); err != nil {
		t.Fatal(err)
	}
	check("compacted at 6 and committed", map[int64]uint32{0: 4206167911, 6: 1106805189, 7: 185727024, 10: 3706506262, 11: 4206167911})
	m.put("e", "1")
	compact(10)
	check("compacted at 10", map[int64]uint32{0: 215593073, 10: 3706506262, 11: 2354151097, 12: 215593073})
	del("\x00", "\x00")
	check("everything deleted", map[int64]uint32{0: 1774370424, 12: 215593073, 13: 1774370424})
	compact(13)
	check("compacted at 13", map[int64]uint32{0: 1084519789, 13: 1320363857})
	m.put("f", "1")
	check("begun anew", map[int64]uint32{0: 3462078450})
}

// TestHashKVWhileOthersWrite: what is written, committed and compacted while the
// history is hashed changes nothing of the hash of what was there.
func TestHashKVWhileOthersWrite(t *testing.T) {
	db, err := mvcc.Open(mvcc.Config{Path: filepath.Join(t.TempDir(), "state.db"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := &machine{t: t, db: db}
	const keys = 2500 // several times what is hashed between two chances for writes
	write := func() {
		for i := range keys {
			m.put(fmt.Sprint("key", i), "x")
		}
	}
	write()
	rev, _ := db.Revision()
	want, err := db.HashKV(rev)
	if err != nil {
		t.Fatal(err)
	}
	for _, compact := range []bool{false, true} {
		done := make(chan struct{})
		var hashing sync.WaitGroup
		hashing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					if n > 0 {
						return
					}
				default:
				}
				got, err := db.HashKV(rev)
				if compact && errors.Is(err, mvcc.ErrCompacted) {
					return
				}
				if err != nil || got.Hash != want.Hash {
					t.Errorf("%d, %v; want %d", got.Hash, err, want.Hash)
					return
				}
			}
		})
		write()
		if err := db.Commit(); err != nil {
			t.Fatal(err)
		}
		if compact {
			m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev + 1}})
			for db.CompactStep(100) {
			}
		}
		close(done)
		hashing.Wait()
	}
}

// TestHashKVAtTheEdges has what an etcd 3.7.3 answered of revisions before the first,
// and of a compaction that forgets nothing, also after a restart.
func TestHashKVAtTheEdges(t *testing.T) {
	m := newMachine(t)
	const nothing = 1084519789
	check := func(at int64, want mvcc.KVHash) {
		t.Helper()
		if got, err := m.db.HashKV(at); err != nil || got != want {
			t.Errorf("up to revision %d: %+v, %v, want %+v", at, got, err, want)
		}
	}
	compact := func(at int64, want error) {
		t.Helper()
		if _, err := m.try(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: at}}); !errors.Is(err, want) {
			t.Errorf("compacted at %d: %v, want %v", at, err, want)
		}
	}
	check(-1, mvcc.KVHash{Hash: nothing, Revision: -1, Compacted: -1, Current: 1})
	m.put("a", "1")
	m.put("b", "1")
	m.put("a", "2")
	m.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("b")}})
	check(-7, mvcc.KVHash{Hash: nothing, Revision: -7, Compacted: -1, Current: 5})
	check(3, mvcc.KVHash{Hash: 2143169314, Revision: 3, Compacted: -1, Current: 5})
	compact(-1, mvcc.ErrCompacted)
	compact(0, nil)
	for range 2 {
		check(-1, mvcc.KVHash{Hash: nothing, Revision: -1, Compacted: 0, Current: 5})
		check(3, mvcc.KVHash{Hash: 2143169314, Revision: 3, Compacted: 0, Current: 5})
		compact(0, mvcc.ErrCompacted)
		m.reopen()
	}
	compact(3, nil)
	check(-1, mvcc.KVHash{Hash: nothing, Revision: -1, Compacted: 3, Current: 5})
	check(5, mvcc.KVHash{Hash: 194725478, Revision: 5, Compacted: 3, Current: 5})
}
