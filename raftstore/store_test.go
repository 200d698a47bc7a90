package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, key, value string) int64 {
	t.Helper()
	resp, err := s.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func all(t *testing.T, s *Store) string {
	t.Helper()
	resp, err := s.Range(context.Background(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kv := range resp.Kvs {
		fmt.Fprintf(&b, "%s=%s@%d/%d/%d ", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	}
	fmt.Fprintf(&b, "rev %d", resp.Header.Revision)
	return b.String()
}

// copyDir is what a power cut leaves of a store that is still running: every
// sync has happened, no Close has.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestOpenShowsTheLog: who reads as soon as a store is open, without asking for a
// leader, sees what was acknowledged before a power cut, not the state on disk.
func TestOpenShowsTheLog(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	value := strings.Repeat("v", 1000)
	for i := range 1000 {
		put(t, s, fmt.Sprintf("k%04d", i), value)
	}
	again, err := OpenUnready(context.Background(), Config{Dir: copyDir(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	resp, err := again.Range(context.Background(), &pb.RangeRequest{Key: []byte("k0999"), Serializable: true})
	if err != nil || len(resp.Kvs) != 1 {
		t.Errorf("the last write is not there: %v, %v", resp, err)
	}
}

func TestHistory(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	put(t, s, "a", "1")
	put(t, s, "b", "1")
	put(t, s, "a", "2")
	if got, want := all(t, s), "a=2@2/4/2 b=1@3/3/1 rev 4"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	old, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 2})
	if err != nil || len(old.Kvs) != 1 || string(old.Kvs[0].Value) != "1" {
		t.Errorf("a at revision 2: %v, %v", old, err)
	}
	if _, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 99}); !errors.Is(err, ErrFutureRev) {
		t.Errorf("future revision: %v", err)
	}
	if _, err := s.Compact(ctx, &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 3}); !errors.Is(err, ErrCompacted) {
		t.Errorf("compacted revision: %v", err)
	}
	if put(t, s, "a", "3") != 6 {
		t.Error("revision after delete")
	}
	if got, want := all(t, s), "a=3@6/6/1 b=1@3/3/1 rev 6"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestReopen: closed, cut or replayed several times, the store is the same.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	for i := range 50 {
		put(t, s, fmt.Sprintf("k%02d", i%7), fmt.Sprint(i))
	}
	if _, err := s.Compact(context.Background(), &pb.CompactionRequest{Revision: 20}); err != nil {
		t.Fatal(err)
	}
	want := all(t, s)
	cut := openStore(t, copyDir(t, dir))
	if got := all(t, cut); got != want {
		t.Errorf("after a cut:\n%s\nwant\n%s", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openStore(t, dir)
	if got := all(t, again); got != want {
		t.Errorf("after Close:\n%s\nwant\n%s", got, want)
	}
	if put(t, again, "new", "x") != 52 {
		t.Error("revision does not go on")
	}
}

func TestTxn(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	create := func(key, value string) *pb.TxnRequest {
		return &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: 0}}},
			Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key + "/index"), Value: []byte(value)}}},
			},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}},
		}
	}
	first, err := s.Txn(ctx, create("x", "1"))
	if err != nil || !first.Succeeded || first.Header.Revision != 2 {
		t.Fatalf("%v, %v", first, err)
	}
	second, err := s.Txn(ctx, create("x", "2"))
	if err != nil || second.Succeeded || second.Header.Revision != 2 {
		t.Fatalf("%v, %v", second, err)
	}
	if kvs := second.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || string(kvs[0].Value) != "1" {
		t.Errorf("the loser sees %v", kvs)
	}
	twice := create("y", "1")
	twice.Success[1] = twice.Success[0]
	if _, err := s.Txn(ctx, twice); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("a key put twice: %v", err)
	}
	bad := create("z", "1")
	bad.Success[1].GetRequestPut().Lease = 77
	if _, err := s.Txn(ctx, bad); !errors.Is(err, ErrLeaseNotFound) {
		t.Errorf("unknown lease: %v", err)
	}
	if got, want := all(t, s), "x=1@2/2/1 x/index=1@2/2/1 rev 2"; got != want {
		t.Errorf("a refused transaction left something: %s, want %s", got, want)
	}
}

// TestWatchFromAnyRevision: history, whether in memory or on disk, and what
// comes after it, without gap or repetition.
func TestWatchFromAnyRevision(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	const n = 3000
	for i := range n {
		put(t, s, fmt.Sprintf("w/%d", i%10), fmt.Sprint(i))
	}
	check := func(s *Store, start int64, total int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		w, err := s.Watch(ctx, WatchOptions{Key: []byte("w/"), RangeEnd: []byte("w0"), StartRevision: start, PrevKV: true})
		if err != nil {
			t.Fatal(err)
		}
		for next := start; next < int64(total)+2; {
			b, err := w.Next(ctx)
			if err != nil {
				t.Fatalf("from %d at %d: %v", start, next, err)
			}
			for _, e := range b.Events {
				if e.Kv.ModRevision != next || string(e.Kv.Value) != fmt.Sprint(next-2) {
					t.Fatalf("from %d: event %v, want revision %d", start, e, next)
				}
				if next > 12 && (e.PrevKv == nil || string(e.PrevKv.Value) != fmt.Sprint(next-12)) {
					t.Fatalf("from %d: at %d previous %v", start, next, e.PrevKv)
				}
				next++
			}
			if b.Revision != next-1 {
				t.Fatalf("batch says %d, delivered up to %d", b.Revision, next-1)
			}
		}
	}
	for _, start := range []int64{2, 3, 700, n - 1, n + 1} {
		check(s, start, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	for _, start := range []int64{2, 1500} {
		check(s, start, n)
	}
	var wg sync.WaitGroup
	wg.Go(func() { check(s, n-5, n+100) })
	for i := n; i < n+100; i++ {
		put(t, s, fmt.Sprintf("w/%d", i%10), fmt.Sprint(i))
	}
	wg.Wait()
	if _, err := s.Compact(context.Background(), &pb.CompactionRequest{Revision: 100}); err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(context.Background(), WatchOptions{Key: []byte("w/0"), StartRevision: 50})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Next(context.Background()); !errors.Is(err, ErrCompacted) {
		t.Errorf("watch of compacted history: %v", err)
	}
}

func TestWatchSeesDeletions(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx := context.Background()
	put(t, s, "d", "1")
	w, err := s.Watch(ctx, WatchOptions{Key: []byte("d"), PrevKV: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("d")}); err != nil {
		t.Fatal(err)
	}
	b, err := w.Next(ctx)
	if err != nil || len(b.Events) != 1 || b.Events[0].Type != mvccpb.Event_DELETE || b.Events[0].Kv.ModRevision != 3 || string(b.Events[0].PrevKv.Value) != "1" {
		t.Errorf("%v, %v", b, err)
	}
}

func TestLeaseEndsAndTakesItsKeys(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := context.Background()
	l, err := s.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1})
	if err != nil || l.TTL != minLeaseTTL {
		t.Fatalf("%v, %v", l, err)
	}
	if _, err := s.Put(ctx, &pb.PutRequest{Key: []byte("leased"), Lease: l.ID}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	ttl, err := s.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID, Keys: true})
	if err != nil || ttl.GrantedTTL != 2 || len(ttl.Keys) != 1 {
		t.Errorf("after reopening: %v, %v", ttl, err)
	}
	w, err := s.Watch(ctx, WatchOptions{Key: []byte("leased")})
	if err != nil {
		t.Fatal(err)
	}
	tctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if b, err := w.Next(tctx); err != nil || b.Events[0].Type != mvccpb.Event_DELETE {
		t.Errorf("the lease did not end: %v, %v", b, err)
	}
}

// TestConcurrentWritersLoseNothing under a cut: what was acknowledged before
// the copy was made is in the copy.
func TestConcurrentWritersLoseNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 100 {
				if _, err := s.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "%d/%d", w, i), Value: make([]byte, 2000)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cut := openStore(t, copyDir(t, dir))
	resp, err := cut.Range(context.Background(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
	if err != nil || resp.Count != 1600 {
		t.Errorf("%v, %v: want 1600 keys", resp, err)
	}
}

func TestEmptyStoreIsSmall(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	put(t, s, "a", "b")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var total int64
	err := filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			total += fi.Size()
		}
		return err
	})
	if err != nil || total > 4<<20 {
		t.Errorf("%d bytes on disk, %v; want at most 4 MiB", total, err)
	}
}

func TestDamageIsRefusedByName(t *testing.T) {
	base := t.TempDir()
	s := openStore(t, base)
	for i := range 20 {
		put(t, s, fmt.Sprint(i), "v")
	}
	want := all(t, s)
	for name, c := range map[string]struct {
		damage  func(dir string) error
		refused string // "" if it must open with everything there
	}{
		"torn tail": {func(dir string) error { return appendAfterLastRecord(filepath.Join(dir, "wal/0000000000000001.wal")) }, ""},
		"log gone":  {func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) }, "state.db"},
		"hole in the log": {func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "wal/0000000000000001.wal"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("garbage!garbage!"), 400)
			return err
		}, "0000000000000001.wal"},
		"state is not a database": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "state.db"), []byte(strings.Repeat("x", 8192)), 0o600)
		}, "state.db"},
	} {
		dir := copyDir(t, base)
		if err := c.damage(dir); err != nil {
			t.Fatal(err)
		}
		s, err := Open(context.Background(), Config{Dir: dir})
		if c.refused == "" {
			if err != nil || all(t, s) != want {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.refused) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v does not name %s in one line", name, err, c.refused)
		}
		if err == nil {
			s.Close()
		}
	}
}

func appendAfterLastRecord(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	end := len(data)
	for end > 0 && data[end-1] == 0 {
		end--
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("half a record that was being written"), int64(end+15)&^7)
	return err
}
