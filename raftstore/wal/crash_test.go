package wal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/vfs"
)

var silent = slog.New(slog.DiscardHandler)

func testConfig(fs vfs.FS) Config {
	return Config{FS: fs, Dir: "/wal", Logger: silent, SegmentBytes: 4096, Reserve: 1}
}

// twin is what the log must hold, without files: everything since the last
// reset, and what of it may have been dropped.
type twin struct {
	base      Snapshot // of the last reset
	entries   []*raftpb.Entry
	state     *raftpb.HardState
	compacted uint64
	intent    Snapshot
}

func (w *twin) clone() *twin {
	c := *w
	c.entries = slices.Clone(w.entries)
	return &c
}

func (w *twin) last() uint64 { return w.base.Index + uint64(len(w.entries)) }

func (w *twin) append(e *raftpb.Entry) {
	w.entries = append(w.entries[:e.GetIndex()-w.base.Index-1:e.GetIndex()-w.base.Index-1], e)
}

// holds tells why got is not what w says, or nil.
func (w *twin) holds(c Content) error {
	if c.Snapshot.Index < w.base.Index || c.Snapshot.Index > max(w.compacted, w.base.Index) {
		return fmt.Errorf("begins at %d, want between %d and %d", c.Snapshot.Index, w.base.Index, w.compacted)
	}
	want := w.entries[c.Snapshot.Index-w.base.Index:]
	if len(want) != len(c.Entries) {
		return fmt.Errorf("%d entries after %d, want %d", len(c.Entries), c.Snapshot.Index, len(want))
	}
	for i := range want {
		if !proto.Equal(want[i], c.Entries[i]) {
			return fmt.Errorf("entry %v, want %v", c.Entries[i], want[i])
		}
	}
	if !proto.Equal(w.state, c.State) {
		return fmt.Errorf("hard state %v, want %v", c.State, w.state)
	}
	if w.intent != c.Intent {
		return fmt.Errorf("intent %v, want %v", c.Intent, w.intent)
	}
	return nil
}

// step is one operation on the log: how it is called and every state that a cut
// during it may leave, from nothing of it to all of it.
type step struct {
	run    func(*Log) error
	states []*twin
}

// nextStep draws an operation; now is what the log holds.
func nextStep(chance *rand.Rand, now *twin) step {
	switch n := chance.IntN(20); {
	case n < 4 && now.last() > now.base.Index:
		at := now.compacted + uint64(chance.Int64N(int64(now.last()-now.compacted)+1))
		after := now.clone()
		after.compacted = max(at, now.compacted)
		var term uint64
		if at > now.base.Index {
			term = now.entries[at-now.base.Index-1].GetTerm()
		}
		return step{func(l *Log) error { return l.Compact(Snapshot{after.compacted, term}) }, []*twin{after}}
	case n == 4 && chance.IntN(4) == 0:
		s := Snapshot{now.last() + 10 + uint64(chance.IntN(100)), now.state.GetTerm() + 1}
		intended, reset := now.clone(), now.clone()
		intended.intent = s
		reset.base, reset.entries, reset.compacted, reset.intent = s, nil, s.Index, Snapshot{}
		return step{func(l *Log) error {
			if err := l.Intend(s); err != nil {
				return err
			}
			return l.Reset(s)
		}, []*twin{now, intended, reset}}
	}
	states := []*twin{now}
	after := now.clone()
	var state *raftpb.HardState
	if chance.IntN(5) == 0 {
		state = &raftpb.HardState{Term: proto.Uint64(now.state.GetTerm() + 1), Vote: proto.Uint64(uint64(chance.IntN(3))), Commit: proto.Uint64(now.base.Index)}
	}
	from := after.last() + 1
	if tail := after.last() - max(after.compacted, after.base.Index); state != nil && tail > 0 && chance.IntN(2) == 0 {
		from -= uint64(chance.Int64N(int64(min(tail, 5)) + 1)) // a new leader overwrites
	}
	var batch []*raftpb.Entry
	for i := range 1 + chance.IntN(4) {
		size := chance.IntN(300)
		if chance.IntN(40) == 0 {
			size = 6000 // more than a segment
		}
		data := bytes.Repeat([]byte{byte(chance.IntN(256))}, size)
		e := &raftpb.Entry{Index: proto.Uint64(from + uint64(i)), Term: proto.Uint64(max(now.state.GetTerm(), now.base.Term) + 1), Data: data}
		batch = append(batch, e)
		after = after.clone()
		after.append(e)
		states = append(states, after)
	}
	if state != nil {
		after = after.clone()
		after.state = state
		states = append(states, after)
	}
	return step{func(l *Log) error { return l.Append(state, batch) }, states}
}

// TestCutAnywhere cuts the power at every operation on the disk of random
// workloads, several times each with other losses, and opens what is left:
// everything acknowledged is there, what was under way is there from its
// beginning or not at all, and the log can be used and cut again.
func TestCutAnywhere(t *testing.T) {
	want, seeds := 12_000, uint64(0)
	if testing.Short() {
		want = 1000
	}
	cuts, kinds := 0, map[string]int{}
	for ; cuts < want; seeds++ {
		cuts += cutWorkload(t, seeds, kinds)
		if t.Failed() {
			t.Fatalf("seed %d", seeds)
		}
	}
	for _, op := range []string{"wal.append", "wal.head", "wal.name", "wal.blank", "wal.recycle", "wal.drop", "wal.cut", "wal.stale"} {
		if kinds[op] == 0 && !testing.Short() {
			t.Errorf("no cut at %s", op)
		}
	}
	t.Logf("%d cuts in %d workloads: %v", cuts, seeds, kinds)
}

func cutWorkload(t *testing.T, seed uint64, kinds map[string]int) (cuts int) {
	chance := rand.New(rand.NewPCG(seed, 1))
	disk := vfs.NewMem()
	var l *Log
	states := []*twin{nil} // what a cut may leave now; nil: no log
	try := func(op, path string) error {
		for range 2 {
			cuts++
			kinds[op]++
			if err := reopen(cutWhileOpening(disk.Crash(chance), chance, kinds), states, chance); err != nil {
				t.Errorf("cut %d, before %s of %s: %v", cuts, op, path, err)
			}
		}
		return nil
	}
	disk.Before = try
	now := &twin{state: &raftpb.HardState{}}
	states = append(states, now)
	l, err := Create(testConfig(disk), 7)
	if err != nil {
		t.Fatal(err)
	}
	states = []*twin{now}
	for range 200 {
		if chance.IntN(15) == 0 {
			// A cut that the workload lives through.
			disk = disk.Crash(chance)
			disk.Before = try
			var c Content
			if l, c, err = Open(testConfig(disk)); err == nil {
				err = now.holds(c)
			}
			if err != nil {
				t.Errorf("after a cut between operations: %v", err)
				return cuts
			}
			if now.intent != (Snapshot{}) {
				t.Error("intent between operations")
			}
		}
		s := nextStep(chance, now)
		states = append([]*twin{now}, s.states...)
		if err := s.run(l); err != nil {
			t.Errorf("%v", err)
			return cuts
		}
		now = s.states[len(s.states)-1]
		states = []*twin{now}
		if t.Failed() {
			return cuts
		}
	}
	return cuts
}

// cutWhileOpening cuts the power again while the log is opened, now and then.
func cutWhileOpening(disk *vfs.Mem, chance *rand.Rand, kinds map[string]int) *vfs.Mem {
	if chance.IntN(2) == 0 {
		return disk
	}
	at := chance.IntN(3)
	disk.Before = func(op, _ string) error {
		if at--; at < 0 {
			kinds[op]++
			disk.Cut()
			return vfs.ErrCut
		}
		return nil
	}
	if ok, err := Exists(disk, "/wal"); ok && err == nil {
		// Cut or not: what is left must open.
		_, _, _ = Open(testConfig(disk))
	}
	disk.Before = nil
	return disk.Crash(chance)
}

// reopen opens what a cut left, which must be one of states, and uses it.
func reopen(disk *vfs.Mem, states []*twin, chance *rand.Rand) error {
	if ok, err := Exists(disk, "/wal"); err != nil {
		return err
	} else if !ok {
		if states[0] == nil {
			return nil
		}
		return errors.New("the log is gone")
	}
	l, c, err := Open(testConfig(disk))
	if err != nil {
		return err
	}
	found := (*twin)(nil)
	var why []string
	for _, s := range states {
		if s == nil {
			continue
		}
		err := s.holds(c)
		if err == nil {
			found = s
			break
		}
		why = append(why, err.Error())
	}
	if found == nil {
		return fmt.Errorf("none of the states that it may have: %s", strings.Join(why, "; "))
	}
	found = found.clone()
	e := &raftpb.Entry{Index: proto.Uint64(found.last() + 1), Term: proto.Uint64(1000), Data: []byte("after")}
	found.append(e)
	if err := l.Append(nil, []*raftpb.Entry{e}); err != nil {
		return fmt.Errorf("append after a cut: %w", err)
	}
	if _, c, err = Open(testConfig(disk.Crash(chance))); err != nil {
		return fmt.Errorf("after a second cut: %w", err)
	}
	if err := found.holds(c); err != nil {
		return fmt.Errorf("after a second cut: %w", err)
	}
	return nil
}

// logOf returns a disk with a log of n batches, each synced.
func logOf(t testing.TB, n int) *vfs.Mem {
	disk := vfs.NewMem()
	l, err := Create(testConfig(disk), 7)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		e := &raftpb.Entry{Index: proto.Uint64(uint64(i + 1)), Term: proto.Uint64(1), Data: fmt.Appendf(nil, "entry %d", i)}
		if err := l.Append(nil, []*raftpb.Entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

func patch(t testing.TB, disk *vfs.Mem, name string, at int64, b byte) {
	f, err := disk.Open("", name, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt("", []byte{b}, at); err != nil {
		t.Fatal(err)
	}
}

// TestHolesAreRefused: any byte of a record that was on disk before another was
// written, changed, is refused with a way out; so is a segment that is missing.
// Nothing acknowledged is ever cut off silently.
func TestHolesAreRefused(t *testing.T) {
	intact := func(n int) (Content, []byte) {
		disk := logOf(t, n)
		_, c, err := Open(testConfig(disk))
		if err != nil {
			t.Fatal(err)
		}
		f, err := disk.Open("", "/wal/0000000000000001.wal", false)
		if err != nil {
			t.Fatal(err)
		}
		data, err := vfs.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return c, data
	}
	want, data := intact(12)
	end := len(bytes.TrimRight(data, "\x00"))
	refused := 0
	for at := range end - 120 { // the last two records have nothing behind them that tells
		disk := logOf(t, 12)
		patch(t, disk, "/wal/0000000000000001.wal", int64(at), data[at]^0x41)
		_, c, err := Open(testConfig(disk))
		switch {
		case errors.Is(err, ErrCorrupt):
			refused++
			if !strings.Contains(err.Error(), "snapshot restore") || !strings.Contains(err.Error(), "0000000000000001.wal") {
				t.Fatalf("byte %d: the error does not say what to do: %v", at, err)
			}
		case err != nil:
			if !strings.Contains(err.Error(), "newer edged") {
				t.Fatalf("byte %d: %v", at, err)
			}
		case len(c.Entries) != len(want.Entries):
			t.Fatalf("byte %d of %d changed: %d entries left of %d, silently", at, end, len(c.Entries), len(want.Entries))
		}
	}
	if refused < (end-120)/2 {
		t.Errorf("only %d of %d changes were refused", refused, end-120)
	}
	disk := logOf(t, 400)
	if err := disk.Remove("", "/wal/0000000000000002.wal"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(testConfig(disk)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a missing segment: %v", err)
	}
}

func TestTornTailIsCutAndTold(t *testing.T) {
	disk := logOf(t, 5)
	f, err := disk.Open("", "/wal/0000000000000001.wal", false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := vfs.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	end := (len(bytes.TrimRight(data, "\x00")) + 7) &^ 7
	if err := f.WriteAt("", []byte("\x20\x00\x00\x00 half a record"), int64(end)); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	cfg := testConfig(disk)
	cfg.Logger = slog.New(slog.NewTextHandler(&told, nil))
	_, c, err := Open(cfg)
	if err != nil || len(c.Entries) != 5 {
		t.Fatalf("%d entries, %v", len(c.Entries), err)
	}
	if !strings.Contains(told.String(), "torn tail") {
		t.Errorf("not told: %q", told.String())
	}
	told.Reset()
	if _, c, err := Open(cfg); err != nil || len(c.Entries) != 5 || told.Len() > 0 {
		t.Errorf("opened again: %d entries, %v, %q", len(c.Entries), err, told.String())
	}
}

// TestFormerVersion: a log of version 1 is read and goes on in version 2.
func TestFormerVersion(t *testing.T) {
	disk := vfs.NewMem()
	for _, name := range []string{"0000000000000001.wal", "0000000000000002.wal"} {
		data, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err != nil {
			t.Fatal(err)
		}
		f, err := disk.Open("", "/wal/"+name, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.WriteAt("", data, 0); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(60); n < 200; {
		l, c, err := Open(testConfig(disk))
		if err != nil || uint64(len(c.Entries)) != n || c.MemberID != 7 {
			t.Fatalf("%d entries of member %d, %v, want %d of 7", len(c.Entries), c.MemberID, err, n)
		}
		for range 10 {
			n++
			e := &raftpb.Entry{Index: proto.Uint64(n), Term: proto.Uint64(1), Data: make([]byte, 100)}
			if err := l.Append(nil, []*raftpb.Entry{e}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOldBytesStayOld: a record that was torn off, and lies behind the log's end in
// a recycled segment, does not come back when the one before it is written again as
// it was.
func TestOldBytesStayOld(t *testing.T) {
	entry := func(i, size int) *raftpb.Entry {
		return &raftpb.Entry{Index: proto.Uint64(uint64(i)), Term: proto.Uint64(1), Data: make([]byte, size)}
	}
	recycled := func() (disk *vfs.Mem, l *Log, n int) {
		disk = logOf(t, 0)
		l, _, err := Open(testConfig(disk))
		if err != nil {
			t.Fatal(err)
		}
		for ; !l.form.recycled; n++ {
			if n == 100 {
				t.Fatal("no segment is recycled")
			}
			if err := l.Append(nil, []*raftpb.Entry{entry(n+1, 300)}); err != nil {
				t.Fatal(err)
			}
			if err := l.Compact(Snapshot{uint64(n + 1), 1}); err != nil {
				t.Fatal(err)
			}
		}
		return disk, l, n
	}
	disk, l, n := recycled()
	at := l.at
	for i := range 2 {
		if err := l.Append(nil, []*raftpb.Entry{entry(n+1+i, 300)}); err != nil {
			t.Fatal(err)
		}
	}
	patch(t, disk, l.path(l.seq), at+headerBytes, 0xff)
	if _, c, err := Open(testConfig(disk)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("damage before a record that was written after it was on disk was taken for a torn tail: %d entries, %v", len(c.Entries), err)
	}
	disk, l, n = recycled()
	at = l.at
	if err := l.Append(nil, []*raftpb.Entry{entry(n+1, 100), entry(n+2, 0)}); err != nil {
		t.Fatal(err)
	}
	patch(t, disk, l.path(l.seq), at+headerBytes, 0xff) // both are torn off
	reopened, c, err := Open(testConfig(disk))
	if err != nil {
		t.Fatal(err)
	}
	last := c.Snapshot.Index + uint64(len(c.Entries))
	if last != uint64(n) {
		t.Fatalf("ends at entry %d, want %d", last, n)
	}
	if err := reopened.Append(nil, []*raftpb.Entry{entry(n+1, 100)}); err != nil {
		t.Fatal(err)
	}
	if _, c, err = Open(testConfig(disk)); err != nil || c.Snapshot.Index+uint64(len(c.Entries)) != uint64(n+1) {
		t.Errorf("ends at entry %d, %v, want %d", c.Snapshot.Index+uint64(len(c.Entries)), err, n+1)
	}
}

// TestPacked: a batch of similar entries takes a fraction of its size, one of noise
// no more than it is, and both are read as they were.
func TestPacked(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand) byte{
		"alike": func(*rand.Rand) byte { return 'v' },
		"noise": func(r *rand.Rand) byte { return byte(r.Uint32()) },
	} {
		disk := vfs.NewMem()
		cfg := Config{FS: disk, Dir: "/wal", Logger: silent}
		l, err := Create(cfg, 7)
		if err != nil {
			t.Fatal(err)
		}
		chance := rand.New(rand.NewPCG(1, 1))
		var batch []*raftpb.Entry
		size := 0
		for i := range 500 {
			data := make([]byte, 256)
			for j := range data {
				data[j] = draw(chance)
			}
			e := &raftpb.Entry{Index: proto.Uint64(uint64(i + 1)), Term: proto.Uint64(1), Data: data}
			batch, size = append(batch, e), size+proto.Size(e)+headerBytes+8
		}
		from := l.at
		if err := l.Append(nil, batch); err != nil {
			t.Fatal(err)
		}
		if took := int(l.at - from); name == "alike" && took > size/5 || took > size {
			t.Errorf("%s: %d bytes for %d", name, took, size)
		}
		_, c, err := Open(cfg)
		if err != nil || len(c.Entries) != len(batch) {
			t.Fatalf("%s: %d entries, %v", name, len(c.Entries), err)
		}
		for i, e := range c.Entries {
			if !proto.Equal(e, batch[i]) {
				t.Fatalf("%s: entry %v, want %v", name, e, batch[i])
			}
		}
	}
}

// TestFullDisk: without room nothing is written, and the same batch goes
// through when there is some.
func TestFullDisk(t *testing.T) {
	disk := logOf(t, 1)
	l, _, err := Open(testConfig(disk))
	if err != nil {
		t.Fatal(err)
	}
	full := true
	disk.Before = func(op, _ string) error {
		if full && op == "wal.blank" {
			return errFull
		}
		return nil
	}
	next := uint64(2)
	for refused := 0; refused < 3; {
		e := &raftpb.Entry{Index: proto.Uint64(next), Term: proto.Uint64(1), Data: make([]byte, 900)}
		err := l.Append(nil, []*raftpb.Entry{e})
		switch {
		case err == nil:
			next++
		case errors.Is(err, ErrNoSpace):
			if refused++; refused == 3 {
				full = false
				if err := l.Append(nil, []*raftpb.Entry{e}); err != nil {
					t.Fatal(err)
				}
			}
		default:
			t.Fatal(err)
		}
	}
	if _, c, err := Open(testConfig(disk)); err != nil || len(c.Entries) != int(next) {
		t.Errorf("%d entries, %v, want %d", len(c.Entries), err, next)
	}
}

// FuzzOpen: whatever a segment holds, it is read or refused, and what was read
// once is read again.
func FuzzOpen(f *testing.F) {
	disk := logOf(f, 5)
	file, err := disk.Open("", "/wal/0000000000000001.wal", false)
	if err != nil {
		f.Fatal(err)
	}
	seed, err := vfs.ReadAll(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:200])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := vfs.NewMem()
		file, err := disk.Open("", "/wal/0000000000000001.wal", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.WriteAt("", data, 0); err != nil {
			t.Fatal(err)
		}
		l, c, err := Open(testConfig(disk))
		if err != nil {
			return
		}
		if err := l.Append(nil, nil); err != nil {
			t.Fatal(err)
		}
		_, again, err := Open(testConfig(disk))
		if err != nil || len(again.Entries) != len(c.Entries) || again.Snapshot != c.Snapshot || again.MemberID != c.MemberID {
			t.Errorf("read once: %v, again: %v, %v", c, again, err)
		}
	})
}
