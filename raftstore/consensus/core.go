package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
	"edged/raftstore/wal"
)

const (
	// maxMessageBytes bounds the entries in a message: small enough that a
	// heartbeat does not wait long behind one on a slow link.
	maxMessageBytes = 256 << 10
	// maxInflightBytes bounds what the leader sends a member ahead of its
	// answers, and so what that member must hold.
	maxInflightBytes = 4 << 20
	// maxUncommittedBytes bounds the leader's memory when its followers do not
	// answer; beyond it proposals are dropped and their proposers time out.
	maxUncommittedBytes = 32 << 20
)

// Outside is what a Core tells. Calls come from within Process and Turn, one at a time
// but from whatever goroutine, and must not call back.
type Outside interface {
	// Send sends messages to other members. A MsgSnap has no data: the state is
	// read and streamed by who sends it.
	Send([]*raftpb.Message)
	// Applied tells the outcome of an entry that is committed and on disk.
	Applied(req *pb.InternalRaftRequest, resp proto.Message, err error)
	// Changed tells the outcome of a change of the membership, and the
	// membership after it.
	Changed(request uint64, m *Membership, err error)
	// MayRead tells that reads asked for with this context may be answered when
	// index is applied.
	MayRead(context []byte, index uint64)
}

// State is the applied state: mvcc.DB.
type State interface {
	Apply(mvcc.Applied, *pb.InternalRaftRequest) (proto.Message, error)
	Advance(a mvcc.Applied, conf []byte)
	Applied() mvcc.Applied
	ConfState() []byte
	Restore(path string) error
	Commit() error
}

// Config is what a Core is made of.
type Config struct {
	State   State
	Log     *wal.Log
	Content wal.Content
	Outside Outside
	Logger  *slog.Logger
	// ElectionTicks is how long a leader may be silent, HeartbeatTicks how often
	// it is heard; 0 is one tick.
	ElectionTicks, HeartbeatTicks int
	// Together calls both functions and returns when both have: in any order, or at the
	// same time, which is the default.
	Together func(a, b func())
}

// Core is one member.
type Core struct {
	cfg     Config
	id      uint64
	raw     *raft.RawNode
	storage *storage
	state   *raftpb.HardState // last appended
	ready   *raft.Ready       // accepted, but the disk was full
	members *Membership       // nil until a joining member got its first snapshot
	// changing is the term in which this leader took a change of the membership that
	// it has not applied, 0 for none.
	changing uint64
	// silent is for how many ticks no leader was heard of.
	silent int
	// received is the file of the snapshot that was stepped last, "" if it was
	// installed.
	received string
}

// storage is raft's view of the log. A snapshot is of the applied state as it
// is when one is sent.
type storage struct {
	*raft.MemoryStorage
	core *Core
}

// Snapshot is part of raft.Storage.
func (s *storage) Snapshot() (*raftpb.Snapshot, error) {
	a := s.core.cfg.State.Applied()
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(a.Index), Term: proto.Uint64(a.Term), ConfState: s.core.members.ConfState(),
	}}, nil
}

// New makes a member from what its disk holds. The state's membership says who
// the others are; without one it waits for a snapshot.
func New(cfg Config) (*Core, error) {
	c := &Core{cfg: cfg, id: cfg.Content.MemberID}
	if c.cfg.Together == nil {
		c.cfg.Together = together
	}
	c.storage = &storage{raft.NewMemoryStorage(), c}
	if err := c.restore(); err != nil {
		return nil, err
	}
	var err error
	c.raw, err = raft.NewRawNode(&raft.Config{
		ID: c.id, ElectionTick: cfg.ElectionTicks, HeartbeatTick: max(cfg.HeartbeatTicks, 1), Storage: c.storage, Applied: cfg.State.Applied().Index,
		MaxSizePerMsg: maxMessageBytes, MaxCommittedSizePerReady: 4 << 20, MaxInflightMsgs: 256, MaxInflightBytes: maxInflightBytes,
		MaxUncommittedEntriesSize: maxUncommittedBytes,
		PreVote:                   true, CheckQuorum: true, StepDownOnRemoval: true, Logger: raftLogger{cfg.Logger},
	})
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	return c, c.reign()
}

// reign makes the only voter the leader: nobody else can be, so there is nothing
// to wait for. raft refuses while changes of the membership are committed and
// not applied.
func (c *Core) reign() error {
	if c.members == nil || c.raw.BasicStatus().RaftState == raft.StateLeader {
		return nil
	}
	if v := c.members.Voters(); len(v) != 1 || v[0] != c.id {
		return nil
	}
	if err := c.raw.Campaign(); err != nil {
		return fmt.Errorf("take the lead: %w", err)
	}
	return nil
}

// Bootstrap makes a new cluster's first state: every founder has the same one,
// as if a snapshot of it at entry 1 had been installed. Cut short, it may be
// done again.
// empty says that the log holds no entries; those that it holds stay.
func Bootstrap(state State, log *wal.Log, m *Membership, empty bool) error {
	data, err := m.Encode()
	if err != nil {
		return err
	}
	birth := wal.Snapshot{Index: 1, Term: 1}
	if !empty {
		// The state was lost; the log reaches back to the birth.
		state.Advance(mvcc.Applied(birth), data)
		return nil
	}
	if err := log.Intend(birth); err != nil {
		return err
	}
	state.Advance(mvcc.Applied(birth), data)
	if err := state.Commit(); err != nil {
		return err
	}
	return log.Reset(birth)
}

// restore gives raft what the disk holds. The log must reach back to what the
// applied state reflects, or the state would have a gap.
func (c *Core) restore() error {
	content, applied := c.cfg.Content, c.cfg.State.Applied()
	if content.Intent.Index != 0 && applied == mvcc.Applied(content.Intent) {
		// Cut between the second and the third step of installing a snapshot.
		if err := c.cfg.Log.Reset(content.Intent); err != nil {
			return err
		}
		content.Snapshot, content.Entries = content.Intent, nil
	}
	if content.Snapshot.Index > applied.Index {
		return fmt.Errorf("%w: the log begins after entry %d, the applied state ends at %d: state.db was lost or is older than the log; restore a snapshot with `edged snapshot restore`",
			wal.ErrCorrupt, content.Snapshot.Index, applied.Index)
	}
	last := content.Snapshot.Index
	if k := len(content.Entries); k > 0 {
		last = content.Entries[k-1].GetIndex()
	}
	if last < applied.Index {
		return fmt.Errorf("%w: the log ends at entry %d, the applied state reflects entry %d; restore a snapshot with `edged snapshot restore`", wal.ErrCorrupt, last, applied.Index)
	}
	conf := &raftpb.ConfState{}
	if raw := c.cfg.State.ConfState(); len(raw) > 0 {
		var err error
		if c.members, err = DecodeMembership(raw); err != nil {
			return fmt.Errorf("%w: %w", wal.ErrCorrupt, err)
		}
		conf = c.members.ConfState()
	}
	snap := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(content.Snapshot.Index), Term: proto.Uint64(content.Snapshot.Term), ConfState: conf}}
	if err := c.storage.ApplySnapshot(snap); err != nil {
		return fmt.Errorf("restore raft's snapshot: %w", err)
	}
	if err := c.storage.Append(content.Entries); err != nil {
		return fmt.Errorf("restore raft's entries: %w", err)
	}
	c.state = &raftpb.HardState{}
	if content.State != nil {
		c.state = proto.CloneOf(content.State)
	}
	// Commit is not synced by itself: what was applied was committed.
	if c.state.GetCommit() < applied.Index {
		c.state.Commit = proto.Uint64(applied.Index)
	}
	if c.state.GetCommit() > last {
		c.state.Commit = proto.Uint64(last)
	}
	if c.state.GetTerm() < applied.Term {
		c.state.Term, c.state.Vote = proto.Uint64(applied.Term), nil
	}
	if err := c.storage.SetHardState(c.state); err != nil {
		return fmt.Errorf("restore raft's hard state: %w", err)
	}
	return nil
}

// Tick tells that a tick's time has passed.
func (c *Core) Tick() {
	c.silent++
	c.raw.Tick()
}

// NeedsTicks reports whether time matters to this member: a lone one has nobody
// to hear from, one that waits for its first snapshot nothing to decide.
func (c *Core) NeedsTicks() bool {
	return c.members != nil && len(c.members.Members) > 1
}

// Step takes a message of another member. Messages may be lost: an error says
// only that this one was not taken.
func (c *Core) Step(m *raftpb.Message) (err error) {
	if m.GetTo() != c.id || raft.IsLocalMsg(m.GetType()) {
		return fmt.Errorf("message of type %v for %x is not for %x", m.GetType(), m.GetTo(), c.id)
	}
	if m.GetType() == raftpb.MsgSnap && c.received == "" {
		return errors.New("a snapshot without its file")
	}
	if m.GetType() == raftpb.MsgProp {
		if !c.Leading() || m.GetTerm() != 0 && m.GetTerm() != c.Term() { // 0: of an older edged
			return fmt.Errorf("%w: it is for the leader of term %d", ErrDropped, m.GetTerm())
		}
		if changesMembers(m.GetEntries()) {
			if c.changePends() {
				return ErrChanging
			}
			defer func() { c.tookChange(err) }()
		}
		m.Term = nil // raft takes one with a term for another member's
	}
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		c.silent = 0
	}
	return c.raw.Step(m)
}

// Install takes a snapshot whose state is at path, a verified and synced file
// in the folder of the state, and processes it. It reports whether the file was
// taken; otherwise it is the caller's to remove.
func (c *Core) Install(m *raftpb.Message, path string) (taken bool, err error) {
	c.received = path
	if c.Step(m) == nil {
		err = c.Process()
	}
	taken = c.received == ""
	if errors.Is(err, wal.ErrNoSpace) {
		return true, err // still wanted
	}
	c.received = ""
	return taken, err
}

// ErrDropped says that a proposal was not taken, and is in no log.
var ErrDropped = raft.ErrProposalDropped

// ErrChanging says so of a change of the membership that may be taken when the one
// before it is applied.
var ErrChanging = fmt.Errorf("%w: the membership is being changed", ErrDropped)

// changePends reports whether raft would put an empty entry in a change's place, and
// leave its proposer to wait in vain: it takes one at a time, and as a new leader none
// before it has applied what the others left.
func (c *Core) changePends() bool {
	if !c.Decides() {
		return true
	}
	last, err := c.storage.LastIndex()
	return c.changing == c.Term() && (err != nil || c.raw.HasReady() || c.cfg.State.Applied().Index < last)
}

// tookChange notes that raft took a change, unless err says otherwise.
func (c *Core) tookChange(err error) {
	if err == nil {
		c.changing = c.Term()
	}
}

// Propose proposes an entry, or fails with ErrDropped. What was not applied when
// an entry of a later term is never will be: only the leader of the term in which
// it was proposed takes it, and a later leader's first entry comes after all that
// is left of the earlier ones'. It may then be proposed again.
func (c *Core) Propose(data []byte) error {
	if to := c.Leader(); to != 0 && to != c.id {
		return c.forward(to, &raftpb.Entry{Data: data})
	}
	return c.raw.Propose(data)
}

// ProposeChange proposes a change of the membership, as Propose does.
func (c *Core) ProposeChange(cc *raftpb.ConfChange) error {
	to := c.Leader()
	if to == c.id && c.changePends() {
		return ErrChanging
	}
	if to == 0 || to == c.id {
		err := c.raw.ProposeConfChange(cc)
		c.tookChange(err)
		return err
	}
	data, err := proto.Marshal(cc)
	if err != nil {
		return err
	}
	typ := raftpb.EntryConfChange
	return c.forward(to, &raftpb.Entry{Type: &typ, Data: data})
}

// forward sends a proposal to the leader. raft's own forwarding names no term, so
// that a message that is late could reach a later leader, and be taken twice.
func (c *Core) forward(to uint64, e *raftpb.Entry) error {
	typ := raftpb.MsgProp
	c.cfg.Outside.Send([]*raftpb.Message{{Type: &typ, To: proto.Uint64(to), From: proto.Uint64(c.id), Term: proto.Uint64(c.Term()), Entries: []*raftpb.Entry{e}}})
	return nil
}

// ReadIndex asks from which index on reads that arrived before are current.
// The question may be lost.
func (c *Core) ReadIndex(context []byte) { c.raw.ReadIndex(context) }

// TransferLeader hands leadership to another voter, if this member has it.
func (c *Core) TransferLeader(to uint64) { c.raw.TransferLeader(to) }

// ReportUnreachable tells that messages to a member were lost.
func (c *Core) ReportUnreachable(id uint64) { c.raw.ReportUnreachable(id) }

// ReportSnapshot tells whether a snapshot reached its member.
func (c *Core) ReportSnapshot(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	c.raw.ReportSnapshot(id, status)
}

// Process carries out what raft wants until it wants nothing more. After
// wal.ErrNoSpace nothing is lost: call it again when there is room.
func (c *Core) Process() error {
	for c.More() {
		if err := c.Turn(); err != nil {
			return err
		}
	}
	return nil
}

// More reports whether raft wants something.
func (c *Core) More() bool { return c.ready != nil || c.raw.HasReady() }

// Turn carries out what raft wants now, after which it may want more. What is proposed
// between two turns is written while what the first one wrote is applied. Errors are
// those of Process.
func (c *Core) Turn() error {
	if !c.More() {
		return nil
	}
	if c.ready == nil {
		rd := c.raw.Ready()
		c.ready = &rd
		if c.Leading() && !changesMembers(rd.CommittedEntries) {
			// The leader's own disk is one of the quorum's: its followers
			// write while it does (raft thesis 10.2.1).
			c.cfg.Outside.Send(rd.Messages)
			rd.Messages = nil
		}
	}
	if err := c.persistAndApply(c.ready); err != nil {
		return err
	}
	rd := *c.ready
	c.ready = nil
	if len(rd.Messages) > 0 {
		c.cfg.Outside.Send(rd.Messages)
	}
	if err := c.applyAll(rd.CommittedEntries); err != nil {
		return err
	}
	for _, r := range rd.ReadStates {
		c.cfg.Outside.MayRead(r.RequestCtx, r.Index)
	}
	c.raw.Advance(rd)
	if c.raw.HasReady() {
		return nil
	}
	return c.reign()
}

// persistAndApply makes rd durable, and meanwhile applies the committed entries that
// are already. It leaves the others.
func (c *Core) persistAndApply(rd *raft.Ready) error {
	n := 0
	if len(rd.Entries) > 0 && raft.IsEmptySnap(rd.Snapshot) && !changesMembers(rd.CommittedEntries) {
		first := rd.Entries[0].GetIndex() // those before are on disk
		n = sort.Search(len(rd.CommittedEntries), func(i int) bool { return rd.CommittedEntries[i].GetIndex() >= first })
	}
	if n == 0 {
		return c.persist(rd)
	}
	early := rd.CommittedEntries[:n]
	rd.CommittedEntries = rd.CommittedEntries[n:] // once, also if there is no room now
	var persisted, applied error
	c.cfg.Together(func() { persisted = c.persist(rd) }, func() { applied = c.applyAll(early) })
	if applied != nil {
		return applied
	}
	return persisted
}

// together is Config.Together.
func together(a, b func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		b()
	}()
	a()
	<-done
}

func (c *Core) applyAll(entries []*raftpb.Entry) error {
	for _, e := range entries {
		if err := c.apply(e); err != nil {
			return err
		}
	}
	return nil
}

// changesMembers reports whether a change of the membership takes effect with
// these entries.
func changesMembers(committed []*raftpb.Entry) bool {
	return slices.ContainsFunc(committed, func(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal })
}

// persist appends entries, and term and vote when they changed. The commit
// index rides along, and is noted when nothing else is to be written: a device
// that comes up alone knows by it what was decided. Before a change of
// the membership takes effect, anywhere, its commitment is on disk: a member that
// came back with the membership before it could elect itself by those voters
// while the new ones elect another.
func (c *Core) persist(rd *raft.Ready) error {
	var state *raftpb.HardState
	hs := rd.HardState
	if raft.IsEmptyHardState(hs) {
		hs = c.state
	}
	known := hs.GetTerm() == c.state.GetTerm() && hs.GetVote() == c.state.GetVote()
	if !known || changesMembers(rd.CommittedEntries) || len(rd.Entries) > 0 && hs.GetCommit() > c.state.GetCommit() {
		state = hs
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := c.install(rd.Snapshot, state); err != nil {
			return err
		}
		state = nil
	}
	switch {
	case len(rd.Entries) > 0 || state != nil:
		if err := c.cfg.Log.Append(state, rd.Entries); err != nil {
			return err
		}
	case hs.GetCommit() > c.state.GetCommit() && c.NeedsTicks():
		// A lone member decides by itself what its log holds.
		if err := c.cfg.Log.Note(hs); err != nil {
			return err
		}
	}
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		c.state = hs
		if err := c.storage.SetHardState(hs); err != nil {
			return fmt.Errorf("keep raft's hard state: %w", err)
		}
	}
	if err := c.storage.Append(rd.Entries); err != nil {
		return fmt.Errorf("keep raft's entries: %w", err)
	}
	return nil
}

// install replaces the state by the received one; see the package comment.
func (c *Core) install(snap *raftpb.Snapshot, state *raftpb.HardState) error {
	place := wal.Snapshot{Index: snap.GetMetadata().GetIndex(), Term: snap.GetMetadata().GetTerm()}
	if state != nil {
		if err := c.cfg.Log.Append(state, nil); err != nil {
			return err
		}
	}
	if c.received != "" {
		if err := c.cfg.Log.Intend(place); err != nil {
			return err
		}
		if err := c.cfg.State.Restore(c.received); err != nil {
			return fmt.Errorf("install the snapshot at entry %d: %w", place.Index, err)
		}
		c.received = ""
	}
	if a := c.cfg.State.Applied(); a != mvcc.Applied(place) {
		return fmt.Errorf("%w: the snapshot at entry %d holds the state at %d", wal.ErrCorrupt, place.Index, a.Index)
	}
	if err := c.cfg.Log.Reset(place); err != nil {
		return err
	}
	members, err := DecodeMembership(c.cfg.State.ConfState())
	if err != nil {
		return fmt.Errorf("%w: the snapshot at entry %d: %w", wal.ErrCorrupt, place.Index, err)
	}
	c.members = members
	if err := c.storage.ApplySnapshot(snap); err != nil {
		return fmt.Errorf("keep raft's snapshot: %w", err)
	}
	c.cfg.Logger.Info("took the state over from the leader", "index", place.Index)
	c.cfg.Outside.Changed(0, members, nil)
	return nil
}

func (c *Core) apply(e *raftpb.Entry) error {
	a := mvcc.Applied{Index: e.GetIndex(), Term: e.GetTerm()}
	if e.GetType() == raftpb.EntryConfChange {
		return c.change(a, e.GetData())
	}
	if e.GetType() != raftpb.EntryNormal {
		return fmt.Errorf("entry %d is of type %v, which this program does not understand: use a newer edged", e.GetIndex(), e.GetType())
	}
	if len(e.GetData()) == 0 {
		c.cfg.State.Advance(a, nil)
		return nil
	}
	req := new(pb.InternalRaftRequest)
	if err := proto.Unmarshal(e.GetData(), req); err != nil {
		return fmt.Errorf("%w: entry %d does not decode: %w", wal.ErrCorrupt, e.GetIndex(), err)
	}
	if set := req.GetClusterMemberAttrSet(); set != nil {
		return c.describe(a, req)
	}
	resp, err := c.cfg.State.Apply(a, req)
	c.cfg.Outside.Applied(req, resp, err)
	return nil
}

// change applies a change of the membership, or refuses it as every member
// will.
func (c *Core) change(a mvcc.Applied, data []byte) error {
	c.changing = 0
	cc := new(raftpb.ConfChange)
	if err := proto.Unmarshal(data, cc); err != nil {
		return fmt.Errorf("%w: entry %d does not decode: %w", wal.ErrCorrupt, a.Index, err)
	}
	next, err := c.members.Apply(cc)
	if err != nil {
		c.cfg.State.Advance(a, nil)
		c.cfg.Outside.Changed(cc.GetId(), c.members, err)
		return nil
	}
	c.raw.ApplyConfChange(cc)
	if err := c.keep(a, next); err != nil {
		return err
	}
	c.cfg.Outside.Changed(cc.GetId(), next, nil)
	return nil
}

func (c *Core) keep(a mvcc.Applied, m *Membership) error {
	data, err := m.Encode()
	if err != nil {
		return err
	}
	c.members = m
	c.cfg.State.Advance(a, data)
	return nil
}

// describe applies a member's name and client URLs.
func (c *Core) describe(a mvcc.Applied, req *pb.InternalRaftRequest) error {
	set := req.GetClusterMemberAttrSet()
	next := c.members.Describe(set.GetMember_ID(), set.GetMemberAttributes().GetName(), set.GetMemberAttributes().GetClientUrls())
	if next == nil {
		c.cfg.State.Advance(a, nil)
	} else if err := c.keep(a, next); err != nil {
		return err
	} else {
		c.cfg.Outside.Changed(0, next, nil)
	}
	c.cfg.Outside.Applied(req, nil, nil)
	return nil
}

// Members is the membership as applied, or nil.
func (c *Core) Members() *Membership { return c.members }

// ID is the member's.
func (c *Core) ID() uint64 { return c.id }

// Leader is the id of the leader as far as known, 0 for none. Raft lets those that
// vote give a silent one up; a learner does so after the most that it bears of them.
func (c *Core) Leader() uint64 {
	lead := c.raw.BasicStatus().Lead
	if c.silent > 2*c.cfg.ElectionTicks && lead != c.id && c.members != nil {
		if e := c.members.Member(c.id); e != nil && e.Learner {
			return 0
		}
	}
	return lead
}

// Term is raft's.
func (c *Core) Term() uint64 { return c.raw.BasicStatus().GetTerm() }

// Commit is the newest index known to be committed.
func (c *Core) Commit() uint64 { return c.raw.BasicStatus().GetCommit() }

// Leading reports whether this member is the leader. Whether it is still the
// only one, a quorum must say.
func (c *Core) Leading() bool { return c.raw.BasicStatus().RaftState == raft.StateLeader }

// Decides reports whether this member leads and has applied an entry of its
// own term, and with it everything committed before.
func (c *Core) Decides() bool {
	return c.Leading() && c.cfg.State.Applied().Term == c.Term()
}

// Progress is what the leader knows of a member.
type Progress struct {
	Match   uint64
	Learner bool
	// Snapshot says that a snapshot is on its way to it.
	Snapshot bool
}

// Progress returns what the leader knows of the members, itself included.
func (c *Core) Progress() map[uint64]Progress {
	out := map[uint64]Progress{}
	c.raw.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		out[id] = Progress{Match: pr.Match, Learner: typ == raft.ProgressTypeLearner, Snapshot: pr.State == tracker.StateSnapshot}
	})
	return out
}

// Heir is the voter that is best to lead after this member, if that leads: the one known
// to have most of the log, of those that connected reports, or else of those heard of
// within an election's time, or else of all. 0 is nobody.
func (c *Core) Heir(connected func(id uint64) bool) (heir uint64) {
	if !c.Leading() {
		return 0
	}
	var match uint64
	best := -1
	c.raw.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id == c.id || typ == raft.ProgressTypeLearner {
			return
		}
		alive := 0
		if pr.RecentActive {
			alive = 1
			if connected(id) {
				alive = 2
			}
		}
		if alive > best || alive == best && pr.Match > match {
			heir, match, best = id, pr.Match, alive
		}
	})
	return heir
}

// Truncate drops the part of the log up to durable, which the state on disk
// reflects, but for what members that are a little behind may still need: keep
// entries, and at most keepBytes of them. The entries after pin stay, whatever
// their number: a snapshot of that index is on its way.
func (c *Core) Truncate(durable mvcc.Applied, keep uint64, keepBytes int, pin uint64) error {
	to, err := c.truncateTo(durable.Index, keep, keepBytes)
	if err != nil {
		return err
	}
	if pin != 0 && pin < to {
		to = pin
	}
	term, err := c.storage.Term(to)
	if errors.Is(err, raft.ErrCompacted) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("shorten the log: %w", err)
	}
	if err := c.storage.Compact(to); err != nil {
		if errors.Is(err, raft.ErrCompacted) {
			return nil
		}
		return fmt.Errorf("shorten raft's log in memory: %w", err)
	}
	return c.cfg.Log.Compact(wal.Snapshot{Index: to, Term: term})
}

func (c *Core) truncateTo(durable, keep uint64, keepBytes int) (uint64, error) {
	first, err := c.storage.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("shorten the log: %w", err)
	}
	if keep == 0 || durable < first || !c.NeedsTicks() {
		return durable, nil
	}
	low := first
	if durable > keep && durable-keep > low {
		low = durable - keep
	}
	entries, err := c.storage.Entries(low, durable+1, uint64(1)<<62)
	if err != nil {
		return 0, fmt.Errorf("shorten the log: %w", err)
	}
	size := 0
	for i := len(entries) - 1; i >= 0; i-- {
		if size += len(entries[i].GetData()) + 64; size > keepBytes {
			return entries[i].GetIndex(), nil
		}
	}
	return low - 1, nil
}

// LogEntries reports how many entries the log holds after index.
func (c *Core) LogEntries(after uint64) uint64 {
	last, err := c.storage.LastIndex()
	if err != nil || last < after {
		return 0
	}
	return last - after
}

// Kept is how many entries the log holds.
func (c *Core) Kept() uint64 {
	first, err := c.storage.FirstIndex()
	if err != nil {
		return 0
	}
	return c.LogEntries(first - 1)
}

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
