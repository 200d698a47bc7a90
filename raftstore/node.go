package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
	"edged/raftstore/wal"
)

const (
	// maxBatch bounds the proposals that share one sync. A longer queue than
	// this gains nothing more per proposal.
	maxBatch = 1024
	// maxInbox bounds the messages that wait while the disk is busy; a sender
	// beyond it waits too.
	maxInbox = 256
	// maxLater bounds the changes of the membership that wait for one another; who
	// proposed those beyond it runs out of time and asks again.
	maxLater = 64
	// commitBytes is when the applied state goes to bbolt: seldom enough that
	// a page is written once for many entries, often enough that replay after a
	// crash takes well under a second.
	commitBytes = 4 << 20
	// maxPendingBytes bounds memory while bbolt cannot be written.
	maxPendingBytes = 16 << 20
	// catchUpBytes bounds the part of the log that is kept for members that are
	// behind; one that is further behind gets the state.
	catchUpBytes = 4 << 20
	// retryFull is how often a full disk is tried again.
	retryFull = time.Second
	// retryReadTicks is after how many ticks a lost question for the read index
	// is asked again.
	retryReadTicks = 5
	// busyFor is how long after the last event a leader is heard as usual, whatever
	// its pace.
	busyFor = 5 * time.Second
)

// result is the outcome of a request.
type result struct {
	resp proto.Message
	err  error
}

// waiter is who waits for the outcome of an entry. Its channel is buffered: the
// node never waits for a proposer.
type waiter struct {
	done  chan result
	until time.Time // its patience ends, looked at with each tick: a lone member's has no end
	term  uint64
	// owned by the node's goroutine
	proposal proposal
	taken    uint64 // the term in which raft took the proposal; 0 for not yet
}

type proposal struct {
	data   []byte
	change *raftpb.ConfChange // if not data
}

var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// unsure is the term of proposals of which this member cannot tell whether they
// were applied: the state that it took over from the leader may hold them.
const unsure = math.MaxUint64

// view is what others than the node's goroutine may know of it. It is replaced,
// never changed; changed is closed when it is.
type view struct {
	leader, term uint64
	before       uint64 // who led before this leader, 0 for nobody known
	// decides: this member leads, and has applied all that was committed before.
	decides bool
	members *consensus.Membership // nil until known
	changed chan struct{}
}

func (v *view) alone(self uint64) bool {
	return v.members != nil && len(v.members.Members) == 1 && v.members.Members[0].ID == self
}

// received is a snapshot of another member, on disk at path.
type received struct {
	msg  *raftpb.Message
	path string
	done chan error
}

// report is what became of messages to a member.
type report struct {
	to       uint64
	snapshot bool
	ok       bool
}

type readers struct {
	id      uint64
	index   uint64 // 0 until known
	waiting []*waiter
	age     int // in ticks
}

// node owns the Core: only who holds turn touches the first group of fields. That is run,
// which lets go of it while it waits for something to do, and for one proposal its proposer:
// see alone.go.
type node struct {
	turn   sync.Mutex
	wanted atomic.Bool   // run waits for turn
	roused chan struct{} // holds one: a proposer left something to run

	core      *consensus.Core
	wal       *wal.Log
	pins      map[uint64]uint64 // the index of the snapshot on its way to a member
	asked     *readers          // whose index was asked for
	next      *readers          // who came after that
	current   []*readers        // who wait for an index to be applied
	lastRead  uint64
	untaken   []uint64          // proposals that raft did not take: once more later
	later     []*raftpb.Message // changes of the membership by others, while one is under way
	applied   uint64            // the term of the newest applied entry
	committed mvcc.Applied      // what bbolt holds
	ticking   *time.Ticker
	removed   bool
	rolled    uint64          // the log's segment that was seen last, while low
	reign     context.Context // ends when this member stops leading: snapshots are sent in it
	abdicate  context.CancelFunc
	silences  silences
	without   int       // ticks since there was a leader
	lost      time.Time // when there was not any more, or just before

	// set at construction
	cfg       nodeConfig
	log       *slog.Logger
	db        *mvcc.DB
	proposals chan uint64 // by the ids of their waiters
	reads     chan *waiter
	inbox     chan *raftpb.Message
	snapshots chan received
	reports   chan report
	control   chan func(*consensus.Core)
	durable   chan mvcc.Applied // from the committer to run
	wantSync  chan struct{}     // from run to the committer
	short     chan struct{}     // holds one: low was set
	replayed  chan struct{}     // closed when what the log knows to be decided is applied
	done      chan struct{}     // closed when run has ended
	sending   sync.WaitGroup    // of snapshots
	ctx       context.Context
	stop      context.CancelFunc
	slots     chan struct{} // a token per snapshot being sent

	commit   atomic.Uint64
	full     atomic.Bool // the disk is: writes are refused
	alone    atomic.Bool // there is no leader and none to be expected; see quorum.go
	low      atomic.Bool // it lacks room that is set aside for then; see room.go
	seen     atomic.Pointer[view]
	tickTime atomic.Int64  // nanoseconds
	busy     time.Time     // something happened last; owned by run
	every    time.Duration // of ticking, 0 while it stands still; owned by run
	hang     *time.Timer   // runs while run is at the disk
	heir     atomic.Uint64 // who is to lead if that takes too long, 0 for nobody
	seeing   sync.Mutex    // held while seen is replaced

	mu sync.Mutex
	// guarded by mu
	waiting map[uint64]*waiter
	failed  error
}

// nodeConfig is what a node is told by its store.
type nodeConfig struct {
	self           uint64
	tick           time.Duration
	electionTicks  int
	heartbeatTicks int
	requestTimeout time.Duration
	commitEntries  uint64
	catchUp        uint64
	members        func(*consensus.Membership)                         // told of each change
	applied        func(*pb.InternalRaftRequest, proto.Message, error) // told of each entry
	send           func([]*raftpb.Message)
	connected      func(id uint64) bool
	sendSnapshot   func(context.Context, *raftpb.Message) error
	discard        func(path string)
	counters       *counters
	refuse         bool            // Config.RefuseWithoutLeader
	greet          func(id uint64) // connects to a member; nil without a network
	// heard tells when something of a member arrived last, nil without a network; silence
	// is told of those of which nothing does, and of those of which it does again. nil
	// tells nobody.
	heard   func(id uint64) time.Time
	silence func(members *consensus.Membership, silent, back []uint64, tell bool)
	misses  func(bool) // of Network, never nil if silence is not
}

func newNode(cfg nodeConfig, db *mvcc.DB, log *wal.Log, c wal.Content, logger *slog.Logger) (*node, error) {
	n := &node{
		cfg: cfg, wal: log, log: logger, db: db, pins: map[uint64]uint64{}, waiting: map[uint64]*waiter{}, next: &readers{}, committed: db.Applied(),
		silences:  silences{of: map[uint64]*silentFor{}},
		proposals: make(chan uint64, maxBatch), reads: make(chan *waiter, maxBatch), inbox: make(chan *raftpb.Message, maxInbox),
		snapshots: make(chan received), reports: make(chan report, 64), control: make(chan func(*consensus.Core)),
		roused: make(chan struct{}, 1), durable: make(chan mvcc.Applied, 1), wantSync: make(chan struct{}, 1), short: make(chan struct{}, 1), replayed: make(chan struct{}), done: make(chan struct{}), slots: make(chan struct{}, 2),
	}
	n.seen.Store(&view{changed: make(chan struct{})})
	n.tickTime.Store(int64(cfg.tick))
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.reign, n.abdicate = context.WithCancel(n.ctx)
	var err error
	n.core, err = consensus.New(consensus.Config{State: measuredState{recordingState{db}, cfg.counters}, Log: log, Content: c, Outside: n, Logger: logger, ElectionTicks: cfg.electionTicks, HeartbeatTicks: cfg.heartbeatTicks})
	if err != nil {
		return nil, err
	}
	n.applied = db.Applied().Term
	n.hang = time.AfterFunc(time.Hour, n.hung)
	n.hang.Stop()
	n.publish()
	return n, nil
}

func (n *node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

func (n *node) view() *view { return n.seen.Load() }

// wait registers who waits for the outcome of entry id.
func (n *node) wait(id uint64, p proposal) *waiter {
	w := n.newWaiter()
	w.proposal = p
	n.mu.Lock()
	n.waiting[id] = w
	n.mu.Unlock()
	return w
}

func (n *node) newWaiter() *waiter {
	return &waiter{done: make(chan result, 1), until: time.Now().Add(n.cfg.requestTimeout), term: n.view().term}
}

// answer gives the outcome of entry id to who waits for it.
func (n *node) answer(id uint64, r result) {
	n.mu.Lock()
	w := n.waiting[id]
	delete(n.waiting, id)
	n.mu.Unlock()
	if w != nil {
		w.done <- r
	}
}

// propose hands a proposal to the node and waits until it is applied.
func (n *node) propose(ctx context.Context, id uint64, p proposal) (proto.Message, error) {
	if n.full.Load() {
		return nil, ErrNoSpace
	}
	if n.alone.Load() {
		return nil, ErrNoLeader
	}
	w := n.wait(id, p)
	defer func() {
		n.mu.Lock()
		delete(n.waiting, id)
		n.mu.Unlock()
	}()
	if n.proposeAlone(id) {
		return n.outcome(ctx, w)
	}
	select {
	case n.proposals <- id:
	case r := <-w.done:
		return r.resp, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-n.done:
		return nil, n.stopped()
	}
	return n.outcome(ctx, w)
}

func (n *node) outcome(ctx context.Context, w *waiter) (proto.Message, error) {
	select {
	case r := <-w.done:
		return r.resp, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-n.done:
		// The answer may have come just before the end.
		select {
		case r := <-w.done:
			return r.resp, r.err
		default:
			return nil, n.stopped()
		}
	}
}

// mayRead returns when reads of this member show everything that was
// acknowledged, by any member, before the call.
func (n *node) mayRead(ctx context.Context) error {
	if v := n.view(); v.decides && v.alone(n.cfg.self) {
		select {
		case <-n.done:
			return n.stopped()
		default:
			return nil
		}
	}
	w := n.newWaiter()
	select {
	case n.reads <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		return n.stopped()
	}
	_, err := n.outcome(ctx, w)
	if err != nil {
		n.cfg.counters.readsFailed.Add(1)
	}
	return err
}

func (n *node) stopped() error {
	if err := n.failure(); err != nil {
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return ErrStopped
}

// fail ends the node for a reason of its own.
func (n *node) fail(err error) {
	n.mu.Lock()
	if n.failed == nil {
		n.failed = err
	}
	n.mu.Unlock()
	n.stop()
}

// run is the goroutine that owns the Core. A lone member's wakes for requests
// only: it has nobody to send heartbeats to.
func (n *node) run() {
	n.turn.Lock() // and it is not given back at the end
	defer close(n.done)
	defer n.sending.Wait()
	defer n.stop()
	n.ticking = time.NewTicker(n.pace())
	defer n.ticking.Stop()
	n.ticking.Stop()
	replaying := true
	replayed := func() {
		if replaying {
			replaying = false
			close(n.replayed)
			n.leaveAgain()
		}
	}
	defer replayed()
	for {
		more, full, err := n.process()
		if !more {
			replayed()
		}
		if err != nil {
			if n.ctx.Err() == nil {
				n.log.Error("the store stopped: its disk failed", "err", err)
				n.fail(err)
			}
			return
		}
		if want := n.wantTicks(full); want != n.every {
			if n.every = want; want > 0 {
				n.ticking.Reset(want)
			} else {
				n.ticking.Stop()
			}
		}
		if !n.feed(more, full) {
			return
		}
	}
}

// feed waits for something to do, unless the Core has more to do, and feeds it to that
// with everything that waits behind it: it will share one sync.
func (n *node) feed(more, full bool) bool {
	proposals, inbox, snapshots := n.proposals, n.inbox, n.snapshots
	if !full && n.core.Leader() == 0 {
		proposals = nil // they wait for a leader
	}
	var retry <-chan time.Time
	var atOnce <-chan struct{}
	if more {
		atOnce = closed
	}
	if full {
		inbox, snapshots = nil, nil
		t := time.NewTimer(retryFull)
		defer t.Stop()
		retry = t.C
	}
	n.turn.Unlock()
	select {
	case <-n.ctx.Done():
		n.resume()
		return false
	case <-retry:
		n.resume()
	case <-atOnce:
		n.resume()
	case <-n.roused:
		n.resume()
	case id := <-proposals:
		n.resume()
		if full {
			n.answer(id, result{err: ErrNoSpace}) // raft never saw it
		} else {
			n.take(id)
		}
	case m := <-inbox:
		n.resume()
		n.step(m)
	case w := <-n.reads:
		n.resume()
		n.busy = time.Now()
		n.next.waiting = append(n.next.waiting, w)
	case <-n.ticking.C:
		n.resume()
		n.tick()
	case r := <-snapshots:
		n.resume()
		n.install(r)
	case r := <-n.reports:
		n.resume()
		n.report(r)
	case f := <-n.control:
		n.resume()
		f(n.core)
	case a := <-n.durable:
		n.resume()
		n.truncate(a)
	}
	if !full {
		n.drain()
	}
	n.ask()
	return true
}

// drain feeds what else waits.
func (n *node) drain() {
	for range maxBatch {
		proposals := n.proposals
		if n.core.Leader() == 0 {
			proposals = nil
		}
		select {
		case m := <-n.inbox:
			n.step(m)
		case id := <-proposals:
			n.take(id)
		case w := <-n.reads:
			n.next.waiting = append(n.next.waiting, w)
		default:
			return
		}
	}
}

func (n *node) step(m *raftpb.Message) {
	if t := m.GetType(); t != raftpb.MsgHeartbeat && t != raftpb.MsgHeartbeatResp {
		n.busy = time.Now()
	}
	err := n.core.Step(m)
	if errors.Is(err, consensus.ErrChanging) && len(n.later) < maxLater {
		n.later = append(n.later, m)
	} else if err != nil {
		n.log.Debug("a message was dropped", "type", m.GetType(), "err", err)
	}
}

// tick passes time to raft, and to those who wait.
func (n *node) tick() {
	n.core.Tick()
	n.listen()
	n.missLeader()
	term := n.view().term
	n.mu.Lock()
	for id, w := range n.waiting {
		if n.expire(w, term) {
			delete(n.waiting, id)
		}
	}
	n.mu.Unlock()
	all := append([]*readers{n.next}, n.current...)
	if n.asked != nil {
		all = append(all, n.asked)
		n.asked.age++
	}
	for _, r := range all {
		kept := r.waiting[:0]
		for _, w := range r.waiting {
			if !n.expire(w, term) {
				kept = append(kept, w)
			}
		}
		r.waiting = kept
	}
}

// expire answers who has waited too long.
func (n *node) expire(w *waiter, term uint64) bool {
	if time.Now().Before(w.until) {
		return false
	}
	err := ErrTimeout
	if term != w.term {
		err = ErrTimeoutLeaderLost
	}
	w.done <- result{err: err}
	return true
}

// letGo answers everybody who waits for an entry that raft may have: theirs go to
// disk later or never, and other members may have them already.
func (n *node) letGo(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, w := range n.waiting {
		w.done <- result{err: err}
		delete(n.waiting, id)
	}
}

// ask asks raft for the read index on behalf of all who came since it was asked
// last.
func (n *node) ask() {
	if n.asked != nil && (len(n.asked.waiting) == 0 || n.asked.age >= retryReadTicks) {
		// Lost, or of no use any more: those who still wait go first.
		n.cfg.counters.readsSlow.Add(1)
		n.next.waiting = append(n.asked.waiting, n.next.waiting...)
		n.asked = nil
	}
	if n.asked != nil || len(n.next.waiting) == 0 || n.core.Leader() == 0 {
		return
	}
	n.lastRead++
	n.asked, n.next = n.next, &readers{}
	n.asked.id, n.asked.age = n.lastRead, 0
	ctx := binary.BigEndian.AppendUint64(nil, n.cfg.self)
	n.core.ReadIndex(binary.BigEndian.AppendUint64(ctx, n.lastRead))
}

// MayRead is part of consensus.Outside.
func (n *node) MayRead(ctx []byte, index uint64) {
	if len(ctx) != 16 || binary.BigEndian.Uint64(ctx) != n.cfg.self || n.asked == nil || binary.BigEndian.Uint64(ctx[8:]) != n.asked.id {
		return
	}
	n.asked.index = index
	n.current = append(n.current, n.asked)
	n.asked = nil
}

// release answers those whose index is applied.
func (n *node) release() {
	if len(n.current) == 0 {
		return
	}
	applied := n.db.Applied().Index
	kept := n.current[:0]
	for _, r := range n.current {
		if r.index > applied {
			kept = append(kept, r)
			continue
		}
		for _, w := range r.waiting {
			w.done <- result{}
		}
	}
	n.current = kept
	n.ask()
}

// process carries out what raft wants now. more says that it wants more, full that the
// disk is.
func (n *node) process() (more, full bool, err error) {
	before := n.core.Leader()
	if n.core.NeedsTicks() { // nobody replaces a lone member, and a timer costs it two wake-ups
		n.heir.Store(n.core.Heir(n.cfg.connected))
		n.hang.Reset(time.Duration(n.cfg.electionTicks) * n.pace())
	}
	err = n.core.Turn()
	n.hang.Stop()
	if errors.Is(err, wal.ErrNoSpace) {
		n.lackRoom(err)
		if !n.full.Swap(true) {
			n.log.Error("what was set aside for a full disk is used up: this member answers reads only", "err", err)
		}
		n.stall()
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	if n.full.Load() && n.db.Pending() <= maxPendingBytes && n.full.Swap(false) {
		n.log.Info("the log can be written again")
	}
	n.look()
	n.findLeader()
	if leader := n.core.Leader(); leader != before && leader != 0 && n.asked != nil {
		n.asked.age = retryReadTicks // the old leader may have got the question
	}
	n.publish() // first: who is answered sees what he was answered
	n.release()
	n.commit.Store(n.core.Commit())
	n.takeAgain()
	if n.db.Pending() > commitBytes || n.core.LogEntries(n.committed.Index) > n.cfg.commitEntries {
		n.wish()
	}
	return n.core.More(), false, nil
}

// publish replaces the view if it is no longer true.
func (n *node) publish() {
	n.seeing.Lock()
	defer n.seeing.Unlock()
	old := n.view()
	leader, term, decides, members := n.core.Leader(), n.core.Term(), n.core.Decides(), n.core.Members()
	if old.leader == leader && old.term == term && old.decides == decides && old.members == members {
		return
	}
	if leader != old.leader && leader != 0 {
		n.cfg.counters.leaderChanges.Add(1)
	}
	if leader != old.leader && members != nil && len(members.Members) > 1 {
		n.log.Info("the leader changed", "leader", fmt.Sprintf("%x", leader), "term", term)
	}
	if old.leader == n.cfg.self && leader != n.cfg.self {
		n.abdicate()
		n.reign, n.abdicate = context.WithCancel(n.ctx)
	}
	last := old.before
	if old.leader != 0 && old.leader != leader {
		last = old.leader
	}
	n.seen.Store(&view{leader, term, last, decides, members, make(chan struct{})})
	close(old.changed)
}

// Send is part of consensus.Outside.
func (n *node) Send(msgs []*raftpb.Message) {
	plain := msgs[:0:len(msgs)]
	for _, m := range msgs {
		if m.GetType() != raftpb.MsgSnap {
			plain = append(plain, m)
			continue
		}
		n.pins[m.GetTo()] = m.GetSnapshot().GetMetadata().GetIndex()
		reign := n.reign
		n.sending.Go(func() { n.stream(reign, m) })
	}
	if len(plain) > 0 {
		n.cfg.send(plain)
	}
}

// stream sends a snapshot from a goroutine of its own.
func (n *node) stream(reign context.Context, m *raftpb.Message) {
	err := context.Canceled
	select {
	case n.slots <- struct{}{}:
		err = n.cfg.sendSnapshot(reign, m)
		<-n.slots
	case <-reign.Done():
	}
	if err != nil && reign.Err() == nil {
		n.log.Warn("a member did not take the state over", "member", fmt.Sprintf("%x", m.GetTo()), "err", err)
	}
	n.tell(report{to: m.GetTo(), snapshot: true, ok: err == nil})
}

// tell hands a report to the node, unless that has ended.
func (n *node) tell(r report) {
	select {
	case n.reports <- r:
	case <-n.ctx.Done():
	}
}

func (n *node) report(r report) {
	n.busy = time.Now()
	if !r.snapshot {
		n.core.ReportUnreachable(r.to)
		return
	}
	delete(n.pins, r.to)
	n.core.ReportSnapshot(r.to, r.ok)
}

// install takes a received snapshot.
func (n *node) install(r received) {
	taken, err := n.core.Install(r.msg, r.path)
	if !taken {
		n.cfg.discard(r.path)
	}
	if err != nil && !errors.Is(err, wal.ErrNoSpace) {
		n.log.Error("the store stopped: a snapshot was not installed", "err", err)
		n.fail(err)
	}
	if taken {
		n.committed = n.db.Applied()
		n.mu.Lock()
		for _, w := range n.waiting {
			if w.taken != 0 {
				w.taken = unsure
			}
		}
		n.mu.Unlock()
	}
	r.done <- err
}

// Applied is part of consensus.Outside.
func (n *node) Applied(req *pb.InternalRaftRequest, resp proto.Message, err error) {
	n.cfg.applied(req, resp, err)
	n.answer(req.GetHeader().GetID(), result{resp, err})
}

// Changed is part of consensus.Outside.
func (n *node) Changed(request uint64, m *consensus.Membership, err error) {
	if err == nil {
		n.cfg.members(m)
		for id := range n.pins {
			if m.Member(id) == nil {
				delete(n.pins, id)
			}
		}
		if m.Member(n.cfg.self) == nil && !n.removed {
			n.removed = true
			n.leave()
		}
	}
	if request != 0 {
		if n.core != nil { // not while the log is read at the start
			n.publish()
		}
		n.answer(request, result{err: err})
	}
}

// leave ends a member that was removed, a little later: the others should hear
// that it knows, and who asked for it should get an answer.
func (n *node) leave() {
	n.log.Warn("this member was removed from the cluster: it stops")
	n.sending.Go(func() {
		t := time.NewTimer(2 * n.pace() * time.Duration(n.cfg.electionTicks))
		defer t.Stop()
		select {
		case <-t.C:
			n.fail(ErrRemoved)
		case <-n.ctx.Done():
		}
	})
}

// do has f called by the node's goroutine.
func (n *node) do(ctx context.Context, f func(*consensus.Core)) error {
	done := make(chan struct{})
	select {
	case n.control <- func(c *consensus.Core) { f(c); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		return n.stopped()
	}
}
