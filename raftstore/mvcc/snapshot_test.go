package mvcc_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
	"edged/raftstore/mvcc"
)

// machine applies requests to a DB as the log would.
type machine struct {
	t     *testing.T
	db    *mvcc.DB
	path  string
	index uint64
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, path: filepath.Join(t.TempDir(), "state.db")}
	m.open()
	t.Cleanup(func() { m.db.Close() })
	return m
}

func (m *machine) open() {
	m.t.Helper()
	db, err := mvcc.Open(mvcc.Config{Path: m.path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	m.db, m.index = db, db.Applied().Index
}

// reopen closes the file and opens it again.
func (m *machine) reopen() {
	m.t.Helper()
	if err := m.db.Commit(); err != nil {
		m.t.Fatal(err)
	}
	if err := m.db.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
}

func (m *machine) try(req *pb.InternalRaftRequest) (proto.Message, error) {
	m.index++
	if req.Header == nil {
		req.Header = &pb.RequestHeader{AuthRevision: auth.Trusted.Revision}
	}
	return m.db.Apply(mvcc.Applied{Index: m.index, Term: 1}, req)
}

func (m *machine) apply(req *pb.InternalRaftRequest) proto.Message {
	m.t.Helper()
	resp, err := m.try(req)
	if err != nil {
		m.t.Fatal(err)
	}
	return resp
}

func (m *machine) put(key, value string) {
	m.t.Helper()
	m.apply(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}})
}

// dump is everything that can be read at the newest revision.
func (m *machine) dump() string {
	m.t.Helper()
	resp, err := m.db.Range(auth.Trusted, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		m.t.Fatal(err)
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, "revision", resp.Header.Revision)
	for _, kv := range resp.Kvs {
		fmt.Fprintln(&out, string(kv.Key), string(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
	}
	for _, l := range m.db.Leases() {
		fmt.Fprintln(&out, "lease", l.ID, l.TTL)
	}
	for _, a := range m.db.Alarms(pb.AlarmType_NONE) {
		fmt.Fprintln(&out, "alarm", a.MemberID, a.Alarm)
	}
	return out.String()
}

// fill makes a state with something of everything.
func (m *machine) fill() {
	m.t.Helper()
	m.apply(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 77, TTL: 30}})
	for i := range 50 {
		m.put(fmt.Sprintf("k%02d", i%20), fmt.Sprint(i))
	}
	m.apply(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("leased"), Lease: 77}})
	m.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("k03"), RangeEnd: []byte("k06")}})
	m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 30}})
	m.apply(&pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 5, Alarm: pb.AlarmType_CORRUPT}})
	m.apply(&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", HashedPassword: "eA=="}})
	m.apply(&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}})
	m.apply(&pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})
}

func TestSnapshotHoldsWhatWasAppliedWhenItWasTaken(t *testing.T) {
	from := newMachine(t)
	from.fill()
	from.db.Advance(mvcc.Applied{Index: 999, Term: 4}, []byte("conf"))
	want := from.dump()
	s, err := from.db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if s.Applied != (mvcc.Applied{Index: 999, Term: 4}) || string(s.Conf) != "conf" {
		t.Errorf("the snapshot reflects %v %q", s.Applied, s.Conf)
	}
	// The store goes on meanwhile.
	from.apply(&pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 5, Alarm: pb.AlarmType_CORRUPT}})
	for i := range 100 {
		from.put(fmt.Sprint("later", i), "x")
	}
	if err := from.db.Commit(); err != nil {
		t.Fatal(err)
	}
	to := newMachine(t)
	to.put("old", "must go")
	w := to.db.Watch([]byte("k"), []byte("l"), 40, false)
	file := to.path + ".received"
	var buf bytes.Buffer
	if n, err := s.WriteTo(&buf); err != nil || n != s.Size {
		t.Fatalf("wrote %d of %d bytes: %v", n, s.Size, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := to.db.Restore(file); err != nil {
		t.Fatal(err)
	}
	if got := to.dump(); got != want {
		t.Errorf("restored:\n%s\nwant:\n%s", got, want)
	}
	if a := to.db.Applied(); a.Index != 999 || string(to.db.ConfState()) != "conf" {
		t.Errorf("restored at %v %q", a, to.db.ConfState())
	}
	batch, err := w.Next(t.Context())
	if err != nil || batch.Events[0].Kv.ModRevision != 40 {
		t.Errorf("a watcher from before went on with %v, %v", batch, err)
	}
	to.reopen()
	if got := to.dump(); got != want {
		t.Errorf("reopened:\n%s\nwant:\n%s", got, want)
	}
}

func TestDefragmentKeepsAllAndGivesSpaceBack(t *testing.T) {
	m := newMachine(t)
	value := string(make([]byte, 4000))
	for range 2000 {
		m.put("k", value)
	}
	if err := m.db.Commit(); err != nil {
		t.Fatal(err)
	}
	rev, _ := m.db.Revision()
	m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}})
	for m.db.CompactStep(100) {
	}
	if err := m.db.Commit(); err != nil {
		t.Fatal(err)
	}
	want, before := m.dump(), fileSize(t, m.path)
	if err := m.db.Defragment(); err != nil {
		t.Fatal(err)
	}
	if after := fileSize(t, m.path); after > before/4 {
		t.Errorf("the file shrank from %d to %d", before, after)
	}
	if total, used := m.db.Size(); total > 64<<10 || used > total {
		t.Errorf("size %d, in use %d", total, used)
	}
	if got := m.dump(); got != want {
		t.Errorf("defragmented: %s, want %s", got, want)
	}
	m.put("after", "x")
	want = m.dump()
	m.reopen()
	if got := m.dump(); got != want {
		t.Errorf("reopened: %s, want %s", got, want)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// Two members that commit at different times have the same hash, before and
// after a compaction and when one of them was opened anew.
func TestHashKVDoesNotDependOnWhatIsOnDisk(t *testing.T) {
	a, b := newMachine(t), newMachine(t)
	step := func(f func(*machine)) {
		t.Helper()
		f(a)
		f(b)
		if err := b.db.Commit(); err != nil {
			t.Fatal(err)
		}
		ha, errA := a.db.HashKV(0)
		hb, errB := b.db.HashKV(0)
		if errA != nil || errB != nil || ha != hb {
			t.Fatalf("%v %v, %v %v", ha, errA, hb, errB)
		}
	}
	step(func(m *machine) { m.put("a", "1"); m.put("b", "1") })
	h1, _ := a.db.HashKV(2)
	h2, _ := a.db.HashKV(3)
	if h1.Hash == h2.Hash {
		t.Error("another history has the same hash")
	}
	step(func(m *machine) {
		m.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a")}})
		m.put("b", "2")
	})
	step(func(m *machine) {
		m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 4}})
	})
	b.reopen()
	step(func(m *machine) { m.put("c", "1") })
	step(func(m *machine) {
		m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 6}})
	})
	if _, err := a.db.HashKV(3); err != mvcc.ErrCompacted {
		t.Errorf("hash of a compacted revision: %v", err)
	}
	if _, err := a.db.HashKV(99); err != mvcc.ErrFutureRev {
		t.Errorf("hash of a future revision: %v", err)
	}
	ha, _, errA := a.db.Hash()
	hb, _, errB := b.db.Hash()
	if ha != hb || errA != nil || errB != nil {
		t.Errorf("hash %x %v, %x %v", ha, errA, hb, errB)
	}
}

// TestCompactionGoesOnAfterARestart: one that was cut short, by a restart or in a copy
// of the file, is finished later, to the same file as one that was not; another that
// came meanwhile follows it.
func TestCompactionGoesOnAfterARestart(t *testing.T) {
	a, b := newMachine(t), newMachine(t)
	finish := func(m *machine) {
		for m.db.CompactStep(1) {
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.db.WaitCompacted(ctx, 25); err != nil {
			t.Fatalf("not compacted: %v", err)
		}
	}
	for _, m := range []*machine{a, b} {
		for i := range 30 {
			m.put(fmt.Sprint("k", i%6), fmt.Sprint(i))
		}
		m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 20}})
		if !m.db.CompactStep(1) {
			t.Fatal("one step is all")
		}
		m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 25}})
		m.db.CompactStep(1)
		if err := m.db.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	finish(a)
	b.reopen()
	select {
	case <-b.db.Compacting():
	default:
		t.Error("nobody is told that there is a compaction to finish")
	}
	finish(b)
	ha, _, errA := a.db.Hash()
	hb, _, errB := b.db.Hash()
	if ha != hb || errA != nil || errB != nil {
		t.Errorf("hash %x %v, %x %v", ha, errA, hb, errB)
	}
}

// A watcher that starts at the revision of the last compaction sees what
// happened at it, a deletion included, also after the store was opened anew.
func TestWatchFromTheCompactedRevisionSeesADeletion(t *testing.T) {
	m := newMachine(t)
	m.put("k", "v")
	m.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}})
	m.put("other", "v")
	m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 3}})
	for range 2 {
		b, err := m.db.Watch([]byte("k"), nil, 3, false).Next(t.Context())
		if err != nil || len(b.Events) != 1 || b.Events[0].Kv.ModRevision != 3 {
			t.Fatalf("%v, %v", b, err)
		}
		m.reopen()
	}
	m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 4}})
	if err := m.db.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.db.Watch([]byte("k"), nil, 3, false).Next(t.Context()); err != mvcc.ErrCompacted {
		t.Fatalf("a watch from before the compaction: %v", err)
	}
}

// A compaction between a write and the watcher that follows takes nothing from
// it: what came last is in memory.
func TestWatcherIsNotOvertakenByACompaction(t *testing.T) {
	m := newMachine(t)
	m.put("k", "1")
	w := m.db.Watch([]byte("k"), nil, 0, false)
	m.put("k", "2")
	m.put("k", "3")
	m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 4}})
	if err := m.db.Commit(); err != nil {
		t.Fatal(err)
	}
	b, err := w.Next(t.Context())
	if err != nil || len(b.Events) != 2 || b.Events[0].Kv.ModRevision != 3 || b.Events[1].Kv.ModRevision != 4 {
		t.Fatalf("%v, %v", b, err)
	}
	// One that comes afterwards is refused, although the memory still has it.
	if _, err := m.db.Watch([]byte("k"), nil, 3, false).Next(t.Context()); err != mvcc.ErrCompacted {
		t.Fatalf("a watch from before the compaction: %v", err)
	}
}
