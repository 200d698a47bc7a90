package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
	"edged/raftstore/vfs"
	"edged/raftstore/wal"
)

// The log is kept short, so that members that were away need the state.
const (
	commitEntries  = 40
	catchUpEntries = 15
)

// node is one member: what node.go is in the product.
type node struct {
	w    *world
	id   uint64
	disk *vfs.Mem
	path string // of bbolt's file

	up, gone  bool // gone: removed for good
	life      int  // counts starts: what was meant for an earlier one is lost
	db        *mvcc.DB
	core      *consensus.Core
	waiting   map[uint64]func(proto.Message, error)
	asked     map[uint64]*asked // of waiting
	applied   uint64            // the term of the newest applied entry
	reads     map[uint64]func()
	current   []reading
	lastRead  uint64
	committed mvcc.Applied
	term      uint64

	cutAfter  int // operations on the disk until the power is cut, 0 for never
	syncTakes time.Duration
	lag       time.Duration // of what is being processed
	busyUntil time.Duration
	jump      int // ticks to skip (below 0) or to catch up
}

// asked is a proposal that waits, and the term in which raft took it: 0 for not
// yet, the greatest if what became of it cannot be known.
type asked struct {
	data []byte
	term uint64
}

type reading struct {
	index uint64
	done  func()
}

func newNode(w *world, id uint64) *node {
	return &node{w: w, id: id, disk: vfs.NewMem(), path: filepath.Join(w.opt.Dir, fmt.Sprintf("n%d.db", id))}
}

func (n *node) config() wal.Config {
	return wal.Config{FS: n.disk, Dir: "/wal", Logger: n.w.log, SegmentBytes: 8 << 10}
}

// start starts a founder, or with no membership one that joins.
func (n *node) start(m *consensus.Membership) {
	n.disk.Before = n.operation
	l, err := wal.Create(n.config(), n.id)
	if err == nil {
		n.db, err = mvcc.Open(mvcc.Config{Path: n.path, Logger: n.w.log})
	}
	if err == nil && m != nil {
		err = consensus.Bootstrap(n.db, l, m, true)
	}
	if err != nil {
		n.w.fail("n%d: %v", n.id, err)
		return
	}
	content := wal.Content{MemberID: n.id}
	if m != nil {
		content.Snapshot = wal.Snapshot{Index: 1, Term: 1}
	}
	n.run(l, content)
}

func (n *node) run(l *wal.Log, content wal.Content) {
	n.up = true
	n.life++
	n.waiting, n.reads, n.current = map[uint64]func(proto.Message, error){}, map[uint64]func(){}, nil
	n.asked = map[uint64]*asked{}
	n.committed = n.db.Applied()
	n.applied = n.committed.Term
	var err error
	n.core, err = consensus.New(consensus.Config{State: n.db, Log: l, Content: content, Outside: n, Logger: n.w.log, ElectionTicks: electionTicks, Together: n.together})
	if errors.Is(err, vfs.ErrCut) {
		n.crash("cut while starting")
		return
	}
	if err != nil {
		n.w.fail("n%d does not start: %v", n.id, err)
		return
	}
	n.w.note("n%d starts at %v", n.id, n.db.Applied())
	n.pump()
}

// operation is called before each operation on the disk.
func (n *node) operation(op, _ string) error {
	if n.cutAfter > 0 {
		if n.cutAfter--; n.cutAfter == 0 {
			n.w.note("n%d's power is cut at %s", n.id, op)
			n.disk.Cut()
			return vfs.ErrCut
		}
	}
	if op == "wal.append" {
		n.lag += n.syncTakes / 2 // written and synced
	}
	return nil
}

// crash ends a member as a power cut does; it comes back later.
func (n *node) crash(why string) {
	if !n.up {
		return
	}
	n.w.res.Crashes++
	n.w.note("n%d: %s", n.id, why)
	n.close()
	n.disk = n.disk.Crash(n.w.chance)
	n.cutAfter = 0
	if !n.gone {
		n.w.after(n.w.delay(5*time.Second), n.restart)
	}
}

func (n *node) close() {
	if n.up {
		n.up = false
		n.life++
		// Without a Commit: the file holds what the last one wrote.
		if err := n.db.Close(); err != nil {
			n.w.fail("n%d: %v", n.id, err)
		}
	}
}

func (n *node) restart() {
	if n.up || n.gone {
		return
	}
	n.disk.Before = n.operation
	if !n.w.calm && n.w.chance.IntN(10) == 0 {
		n.cutAfter = 1 + n.w.chance.IntN(5)
	}
	l, content, err := wal.Open(n.config())
	if errors.Is(err, vfs.ErrCut) {
		n.disk = n.disk.Crash(n.w.chance)
		n.cutAfter = 0
		n.w.after(n.w.delay(time.Second), n.restart)
		return
	}
	if err == nil {
		n.db, err = mvcc.Open(mvcc.Config{Path: n.path, Logger: n.w.log})
	}
	if err != nil {
		n.w.fail("n%d does not open: %v", n.id, err)
		return
	}
	n.run(l, content)
}

// soon has f called for this life of the member, when it is not busy.
func (n *node) soon(d time.Duration, f func()) {
	life := n.life
	var again func()
	again = func() {
		if n.life != life || !n.up {
			return
		}
		if n.busyUntil > n.w.now {
			n.w.after(n.busyUntil-n.w.now, again)
			return
		}
		f()
	}
	n.w.after(d, again)
}

// clock ticks for as long as the world lasts.
func (n *node) clock() {
	n.w.after(tick-time.Millisecond+n.w.delay(2*time.Millisecond), n.clock)
	if !n.up || n.busyUntil > n.w.now {
		return
	}
	if n.jump < 0 {
		n.jump++
		return
	}
	for ; n.jump >= 0; n.jump-- {
		if n.core.NeedsTicks() {
			n.core.Tick()
		}
	}
	n.jump = 0
	n.pump()
}

// pump carries out what raft wants, and what follows from it.
func (n *node) pump() {
	if !n.up {
		return
	}
	n.lag = 0
	life := n.life
	err := n.core.Turn()
	for err == nil && n.core.More() && n.w.chance.IntN(4) > 0 {
		err = n.core.Turn()
	}
	if errors.Is(err, vfs.ErrCut) {
		n.crash("cut")
		return
	}
	if err != nil {
		n.w.fail("n%d: %v", n.id, err)
		return
	}
	if n.lag > 0 {
		n.busyUntil = n.w.now + n.lag
	}
	if n.core.More() { // with what comes until then
		n.soon(0, n.pump)
	}
	if n.takeAgain() {
		n.pump()
		return
	}
	n.db.CompactStep(3)
	n.release()
	if n.life == life && n.core.LogEntries(n.committed.Index) > commitEntries {
		n.commit()
	}
	if n.up && n.core.Decides() && n.core.Term() != n.term {
		n.term = n.core.Term()
		n.w.res.Elections++
		n.w.note("n%d leads in term %d", n.id, n.term)
	}
}

// takeAgain proposes once more what is lost with an earlier leader, as the
// product's node does.
func (n *node) takeAgain() (took bool) {
	term := n.db.Applied().Term
	if term == n.applied {
		return false
	}
	n.applied = term
	for _, id := range slices.Sorted(maps.Keys(n.asked)) {
		if a := n.asked[id]; a.term < term && n.core.Propose(a.data) == nil {
			a.term, took = n.core.Term(), true
			n.w.res.Again++
		}
	}
	return took
}

// together is part of consensus.Config: the two at the same time are one after the
// other, for what each does does not touch the other's.
func (n *node) together(a, b func()) {
	if n.w.chance.IntN(2) == 0 {
		a, b = b, a
	}
	a()
	b()
}

func (n *node) release() {
	applied := n.db.Applied().Index
	kept := n.current[:0]
	for _, r := range n.current {
		if r.index > applied {
			kept = append(kept, r)
		} else {
			r.done()
		}
	}
	n.current = kept
}

func (n *node) commit() {
	applied := n.db.Applied()
	err := n.db.Commit()
	if err == nil {
		n.committed = applied
		err = n.core.Truncate(applied, catchUpEntries, 1<<20, 0)
	}
	if errors.Is(err, vfs.ErrCut) {
		n.crash("cut while shortening the log")
	} else if err != nil {
		n.w.fail("n%d: %v", n.id, err)
	}
}

// Send is part of consensus.Outside.
func (n *node) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		to := n.w.node(m.GetTo())
		if to == nil {
			continue
		}
		if m.GetType() == raftpb.MsgSnap {
			n.stream(m, to)
			continue
		}
		data, err := proto.Marshal(m)
		if err != nil {
			n.w.fail("n%d: %v", n.id, err)
			return
		}
		copies := 1
		// A proposal that arrives twice is two proposals: raft leaves that to the
		// transport, and peer sends nothing again.
		if n.w.chance.Float64() < n.w.twice && m.GetType() != raftpb.MsgProp {
			copies = 2
		}
		for range copies {
			n.w.after(n.lag+time.Millisecond+n.w.delay(n.w.slow), func() { n.deliver(to, data) })
		}
	}
}

func (n *node) reaches(to *node) bool {
	return !n.w.severed[[2]uint64{n.id, to.id}] && n.w.chance.Float64() >= n.w.loss
}

func (n *node) deliver(to *node, data []byte) {
	if !n.reaches(to) {
		if n.up {
			n.core.ReportUnreachable(to.id)
		}
		return
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(data, m); err != nil {
		n.w.fail("message: %v", err)
		return
	}
	to.soon(0, func() {
		n.w.note("n%d->n%d %v %d/%d (%d)", n.id, to.id, m.GetType(), m.GetTerm(), m.GetIndex(), len(m.GetEntries()))
		// Not taken is as good as lost.
		_ = to.core.Step(m)
		to.pump()
	})
}

// stream sends the state as it is now.
func (n *node) stream(m *raftpb.Message, to *node) {
	var file bytes.Buffer
	snap, err := n.db.Snapshot()
	if err != nil {
		n.w.fail("n%d: %v", n.id, err)
		return
	}
	_, err = snap.WriteTo(&file)
	members, decodeErr := consensus.DecodeMembership(snap.Conf)
	if err := errors.Join(err, decodeErr, snap.Close()); err != nil {
		n.w.fail("n%d: snapshot: %v", n.id, err)
		return
	}
	m = proto.CloneOf(m)
	m.Snapshot.Metadata = &raftpb.SnapshotMetadata{Index: proto.Uint64(snap.Applied.Index), Term: proto.Uint64(snap.Applied.Term), ConfState: members.ConfState()}
	takes := 20*time.Millisecond + n.w.delay(500*time.Millisecond)
	reached := n.reaches(to) && to.up
	if reached {
		to.soon(takes, func() { to.install(m, file.Bytes()) })
	}
	n.soon(takes, func() {
		n.core.ReportSnapshot(to.id, reached)
		n.pump()
	})
}

func (n *node) install(m *raftpb.Message, file []byte) {
	path := n.path + ".received"
	if err := os.WriteFile(path, file, 0o600); err != nil {
		n.w.fail("n%d: %v", n.id, err)
		return
	}
	taken, err := n.core.Install(m, path)
	n.w.note("n%d takes the state at %d: %v", n.id, m.GetSnapshot().GetMetadata().GetIndex(), taken)
	if !taken {
		if err := os.Remove(path); err != nil {
			n.w.fail("n%d: %v", n.id, err)
		}
	}
	switch {
	case errors.Is(err, vfs.ErrCut):
		n.crash("cut while taking the state")
		return
	case err != nil:
		n.w.fail("n%d: %v", n.id, err)
		return
	case taken:
		n.w.res.Snapshots++
		n.committed = n.db.Applied()
		for _, a := range n.asked {
			a.term = math.MaxUint64
		}
	}
	n.pump()
}

// Applied is part of consensus.Outside.
func (n *node) Applied(req *pb.InternalRaftRequest, resp proto.Message, err error) {
	n.answer(req.GetHeader().GetID(), resp, err)
}

func (n *node) answer(id uint64, resp proto.Message, err error) {
	done := n.waiting[id]
	delete(n.waiting, id)
	delete(n.asked, id)
	if done != nil {
		// The outcome does not change any more; the way to the client takes time.
		n.w.after(n.lag+n.w.delay(5*time.Millisecond), func() { done(resp, err) })
	}
}

// Changed is part of consensus.Outside.
func (n *node) Changed(request uint64, m *consensus.Membership, err error) {
	if request != 0 && err == nil {
		n.w.note("n%d: members %v, learners %v", n.id, m.Voters(), m.Learners())
	}
	n.answer(request, nil, err)
	if m.Member(n.id) == nil && m.WasRemoved(n.id) && !n.gone {
		n.gone = true
		n.soon(time.Second, func() {
			n.w.note("n%d is gone", n.id)
			n.close()
		})
	}
}

// MayRead is part of consensus.Outside.
func (n *node) MayRead(ctx []byte, index uint64) {
	if len(ctx) != 16 || binary.BigEndian.Uint64(ctx) != n.id {
		return
	}
	id := binary.BigEndian.Uint64(ctx[8:])
	done := n.reads[id]
	delete(n.reads, id)
	if done != nil {
		n.current = append(n.current, reading{index, done})
	}
}

// propose proposes; done is called with the outcome, or never.
func (n *node) propose(req *pb.InternalRaftRequest, done func(proto.Message, error)) {
	n.w.requests++
	req.Header = &pb.RequestHeader{ID: n.w.requests, AuthRevision: auth.Trusted.Revision}
	data, err := proto.Marshal(req)
	if err != nil {
		n.w.fail("propose: %v", err)
		return
	}
	if done != nil {
		n.waiting[n.w.requests] = done
	}
	a := &asked{data: data}
	n.asked[n.w.requests] = a
	if n.core.Propose(data) == nil {
		a.term = n.core.Term()
	}
	n.pump()
}

func (n *node) change(c consensus.Change, learner bool) {
	typ := raftpb.ConfChangeAddNode
	if learner {
		typ = raftpb.ConfChangeAddLearnerNode
	}
	n.proposeChange(typ, c)
}

func (n *node) remove(id uint64) {
	n.proposeChange(raftpb.ConfChangeRemoveNode, consensus.Change{Member: consensus.Member{ID: id}})
}

func (n *node) proposeChange(typ raftpb.ConfChangeType, c consensus.Change) {
	n.w.requests++
	cc, err := c.ConfChange(typ, n.w.requests)
	if err != nil {
		n.w.fail("propose: %v", err)
		return
	}
	n.w.note("n%d asks for %v n%d", n.id, typ, c.Member.ID)
	n.waiting[n.w.requests] = func(_ proto.Message, err error) {
		if err == nil {
			n.w.res.Changes++
		}
	}
	_ = n.core.ProposeChange(cc)
	n.pump()
}

// read has done called when this member may answer a linearizable read, or
// never.
func (n *node) read(done func()) {
	n.lastRead++
	// Numbers of an earlier life must not be taken for this one's.
	id := uint64(n.life)<<32 | n.lastRead
	n.reads[id] = done
	ctx := binary.BigEndian.AppendUint64(nil, n.id)
	n.core.ReadIndex(binary.BigEndian.AppendUint64(ctx, id))
	n.pump()
}
