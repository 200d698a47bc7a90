package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
	"edged/raftstore/wal"
)

const (
	// maxBatch bounds the proposals that share one sync. A longer queue than
	// this gains nothing more per proposal.
	maxBatch = 1024
	// commitBytes is when the applied state goes to bbolt: seldom enough that
	// a page is written once for many entries, often enough that replay after a
	// crash takes well under a second.
	commitBytes = 4 << 20
	// maxPendingBytes bounds memory while bbolt cannot be written.
	maxPendingBytes = 16 << 20
	// retryFull is how often a full disk is tried again.
	retryFull = time.Second
)

// result is the outcome of applying an entry.
type result struct {
	resp proto.Message
	err  error
}

type proposal struct {
	id   uint64
	data []byte
	done chan result // buffered: the node never waits for a proposer
}

// node owns raft's RawNode: only run touches the first group of fields.
type node struct {
	raw     *raft.RawNode
	storage *raft.MemoryStorage
	wal     *wal.Log
	state   *raftpb.HardState // last appended
	waiting map[uint64]chan result
	led     bool

	// set at construction
	log       *slog.Logger
	db        *mvcc.DB
	proposals chan proposal
	committed chan mvcc.Applied // from the committer to run
	wantSync  chan struct{}     // from run to the committer
	leading   chan struct{}     // closed when this member leads and has applied its term's first entry
	done      chan struct{}     // closed when run has ended

	term atomic.Uint64
	full atomic.Bool // the disk is: writes are refused

	mu     sync.Mutex
	failed error // guarded by mu
}

func newNode(db *mvcc.DB, log *wal.Log, c wal.Content, logger *slog.Logger) (*node, error) {
	n := &node{
		storage: raft.NewMemoryStorage(), wal: log, waiting: map[uint64]chan result{}, log: logger, db: db,
		proposals: make(chan proposal, maxBatch), committed: make(chan mvcc.Applied, 1), wantSync: make(chan struct{}, 1),
		leading: make(chan struct{}), done: make(chan struct{}),
	}
	applied := db.Applied()
	if err := n.restore(c, applied); err != nil {
		return nil, err
	}
	var err error
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID: c.MemberID, ElectionTick: 10, HeartbeatTick: 1, Storage: n.storage, Applied: applied.Index,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256, PreVote: true, CheckQuorum: true, Logger: raftLogger{logger},
	})
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	// A lone member needs no clock to know that it is the leader.
	return n, n.raw.Campaign()
}

// restore gives raft what the disk holds. The log must reach back to what the
// applied state reflects, or the state would have a gap.
func (n *node) restore(c wal.Content, applied mvcc.Applied) error {
	if c.Snapshot.Index > applied.Index {
		return fmt.Errorf("%w: the log begins after entry %d, the applied state ends at %d: state.db was lost or is older than the log; restore a snapshot with `edged snapshot restore`",
			ErrCorrupt, c.Snapshot.Index, applied.Index)
	}
	last := c.Snapshot.Index
	if k := len(c.Entries); k > 0 {
		last = c.Entries[k-1].GetIndex()
	}
	if last < applied.Index {
		return fmt.Errorf("%w: the log ends at entry %d, the applied state reflects entry %d; restore a snapshot with `edged snapshot restore`", ErrCorrupt, last, applied.Index)
	}
	conf := &raftpb.ConfState{Voters: []uint64{c.MemberID}}
	if raw := n.db.ConfState(); raw != nil {
		conf = new(raftpb.ConfState)
		if err := proto.Unmarshal(raw, conf); err != nil {
			return fmt.Errorf("%w: the configuration in state.db does not decode: %w", ErrCorrupt, err)
		}
	}
	snap := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(c.Snapshot.Index), Term: proto.Uint64(c.Snapshot.Term), ConfState: conf}}
	if err := n.storage.ApplySnapshot(snap); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		return fmt.Errorf("restore raft's snapshot: %w", err)
	}
	if err := n.storage.Append(c.Entries); err != nil {
		return fmt.Errorf("restore raft's entries: %w", err)
	}
	n.state = &raftpb.HardState{}
	if c.State != nil {
		n.state = proto.Clone(c.State).(*raftpb.HardState)
	}
	// Commit is not synced by itself: what was applied was committed.
	if n.state.GetCommit() < applied.Index {
		n.state.Commit = proto.Uint64(applied.Index)
	}
	if err := n.storage.SetHardState(n.state); err != nil {
		return fmt.Errorf("restore raft's hard state: %w", err)
	}
	n.term.Store(n.state.GetTerm())
	return nil
}

func (n *node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// propose hands data to the node and waits until it is applied.
func (n *node) propose(ctx context.Context, id uint64, data []byte) (proto.Message, error) {
	if n.full.Load() {
		return nil, ErrNoSpace
	}
	p := proposal{id, data, make(chan result, 1)}
	select {
	case n.proposals <- p:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-n.done:
		return nil, n.stopped()
	}
	select {
	case r := <-p.done:
		return r.resp, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-n.done:
		// The answer may have come just before the end.
		select {
		case r := <-p.done:
			return r.resp, r.err
		default:
			return nil, n.stopped()
		}
	}
}

func (n *node) stopped() error {
	if err := n.failure(); err != nil {
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return ErrStopped
}

// run is the goroutine that owns the RawNode. It wakes for proposals only: a
// lone member has nobody to send heartbeats to.
func (n *node) run(ctx context.Context) {
	defer close(n.done)
	for {
		if err := n.process(ctx); err != nil {
			if ctx.Err() == nil {
				n.mu.Lock()
				n.failed = err
				n.mu.Unlock()
				n.log.Error("the store stopped: its disk failed", "err", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case p := <-n.proposals:
			n.take(p)
		case a := <-n.committed:
			n.truncate(a)
		}
	}
}

// take gives raft p and every proposal that waits behind it: they will share
// one sync.
func (n *node) take(p proposal) {
	for i := 0; ; i++ {
		if err := n.raw.Propose(p.data); err != nil {
			p.done <- result{err: fmt.Errorf("propose: %w", err)}
		} else {
			n.waiting[p.id] = p.done
		}
		if i == maxBatch {
			return
		}
		select {
		case p = <-n.proposals:
		default:
			return
		}
	}
}

// process carries out what raft wants until it wants nothing more.
func (n *node) process(ctx context.Context) error {
	for n.raw.HasReady() {
		rd := n.raw.Ready()
		if err := n.persist(ctx, rd); err != nil {
			return err
		}
		for _, e := range rd.CommittedEntries {
			if err := n.apply(e); err != nil {
				return err
			}
		}
		n.raw.Advance(rd)
		n.watchLeadership()
	}
	if n.db.Pending() > commitBytes {
		select {
		case n.wantSync <- struct{}{}:
		default:
		}
	}
	return nil
}

// persist appends entries, and term and vote when they changed. The commit
// index rides along: after a crash raft finds it again.
func (n *node) persist(ctx context.Context, rd raft.Ready) error {
	var state *raftpb.HardState
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		if hs.GetTerm() != n.state.GetTerm() || hs.GetVote() != n.state.GetVote() {
			state = hs
		}
		n.state = hs
		n.term.Store(hs.GetTerm())
		if err := n.storage.SetHardState(hs); err != nil {
			return fmt.Errorf("keep raft's hard state: %w", err)
		}
	}
	if len(rd.Entries) == 0 && state == nil {
		return nil
	}
	for {
		err := n.wal.Append(state, rd.Entries)
		if err == nil {
			break
		}
		if !errors.Is(err, wal.ErrNoSpace) {
			return err
		}
		if err := n.waitForSpace(ctx, err); err != nil {
			return err
		}
	}
	if n.full.Swap(false) {
		n.log.Info("the disk has room again: writes are accepted")
	}
	if err := n.storage.Append(rd.Entries); err != nil {
		return fmt.Errorf("keep raft's entries: %w", err)
	}
	return nil
}

// waitForSpace refuses writes while the disk is full, those that wait included:
// their entries go to disk later or never, which their proposers cannot know.
func (n *node) waitForSpace(ctx context.Context, cause error) error {
	if !n.full.Swap(true) {
		n.log.Error("the disk is full: writes are refused until there is room", "err", cause)
	}
	for id, done := range n.waiting {
		done <- result{err: ErrNoSpace}
		delete(n.waiting, id)
	}
	t := time.NewTimer(retryFull)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-n.proposals:
			p.done <- result{err: ErrNoSpace}
		case <-t.C:
			return nil
		}
	}
}

func (n *node) apply(e *raftpb.Entry) error {
	a := mvcc.Applied{Index: e.GetIndex(), Term: e.GetTerm()}
	if e.GetType() != raftpb.EntryNormal {
		return fmt.Errorf("entry %d is of type %v, which this program does not understand: use a newer edged", e.GetIndex(), e.GetType())
	}
	if len(e.GetData()) == 0 {
		n.db.Advance(a, nil)
		return nil
	}
	req := new(pb.InternalRaftRequest)
	if err := proto.Unmarshal(e.GetData(), req); err != nil {
		return fmt.Errorf("%w: entry %d does not decode: %w", ErrCorrupt, e.GetIndex(), err)
	}
	resp, err := n.db.Apply(a, req)
	if done, ok := n.waiting[req.GetHeader().GetID()]; ok {
		delete(n.waiting, req.GetHeader().GetID())
		done <- result{resp, err}
	}
	return nil
}

// watchLeadership notices the moment from which this member may decide for
// the cluster: it leads, and has applied an entry of its own term.
func (n *node) watchLeadership() {
	if n.led || n.raw.BasicStatus().RaftState != raft.StateLeader || n.db.Applied().Term != n.term.Load() {
		return
	}
	n.led = true
	close(n.leading)
}

// commitLazily writes the applied state to bbolt when there is much of it.
func (n *node) commitLazily(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wantSync:
		}
		applied := n.db.Applied()
		if err := n.db.Commit(); err != nil {
			n.log.Error("the applied state was not written; the log still holds it", "err", err)
			if n.db.Pending() > maxPendingBytes {
				n.full.Store(true)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryFull):
			}
			continue
		}
		n.full.Store(false)
		select {
		case n.committed <- applied:
		case <-ctx.Done():
			return
		}
	}
}

// truncate drops the part of the log that bbolt now holds.
func (n *node) truncate(a mvcc.Applied) {
	if err := n.storage.Compact(a.Index); err != nil && !errors.Is(err, raft.ErrCompacted) {
		n.log.Error("raft's log in memory was not shortened", "err", err)
		return
	}
	if err := n.wal.Compact(wal.Snapshot{Index: a.Index, Term: a.Term}); err != nil {
		n.log.Error("the log on disk was not shortened", "err", err)
	}
}

func (n *node) close() error { return n.wal.Close() }

// raftLogger passes raft's warnings on; the rest is of no use to an operator.
type raftLogger struct{ log *slog.Logger }

func (l raftLogger) Debug(...any)          {}
func (l raftLogger) Debugf(string, ...any) {}
func (l raftLogger) Info(...any)           {}
func (l raftLogger) Infof(string, ...any)  {}
func (l raftLogger) Warning(v ...any)      { l.log.Warn("raft: " + fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any) {
	l.log.Warn("raft: " + fmt.Sprintf(f, v...))
}
func (l raftLogger) Error(v ...any)            { l.log.Error("raft: " + fmt.Sprint(v...)) }
func (l raftLogger) Errorf(f string, v ...any) { l.log.Error("raft: " + fmt.Sprintf(f, v...)) }
func (l raftLogger) Fatal(v ...any)            { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
func (l raftLogger) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
