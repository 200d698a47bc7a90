package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/consensus"
	"edged/raftstore/peer"
	"edged/raftstore/vfs"
)

// What members ask each other.
const (
	callMembers = 2 + iota // 0 and 1 are answers
	callLeaseRenew
	callLeaseTTL
	callPromote
	callMayAdd
	callMayRemove
	callHashKV
	callRoom
	callAsk
	callSilence
)

// healthyAfter is how long a member must have been connected to count for a
// change of the membership; etcd's.
const healthyAfter = 5 * time.Second

// helpAfter is how long a member that moved has to tell the cluster itself.
const helpAfter = time.Second

// readyPercent is how much of the leader's log a learner must have to get a
// vote; etcd's.
const readyPercent = 90

// ClusterID names the cluster, 0 until a joining member knows.
func (s *Store) ClusterID() uint64 { return s.cluster.Load() }

// MemberID names this member.
func (s *Store) MemberID() uint64 { return s.member }

// Leader is the member that leads, 0 for none.
func (s *Store) Leader() uint64 { return s.node.view().leader }

// Members is how many members there are, as far as this one knows.
func (s *Store) Members() int {
	if m := s.node.view().members; m != nil {
		return len(m.Members)
	}
	return 0
}

// LeaderLost returns a channel that is closed when the leader known now is no
// more; it is closed already if there is none.
func (s *Store) LeaderLost() <-chan struct{} {
	lost := make(chan struct{})
	v := s.node.view()
	if v.leader == 0 {
		close(lost)
		return lost
	}
	go func() {
		defer close(lost)
		for now := v; now.leader == v.leader; now = s.node.view() {
			select {
			case <-now.changed:
			case <-s.node.done:
				return
			}
		}
	}()
	return lost
}

// IsLearner reports whether this member has no vote.
func (s *Store) IsLearner() bool {
	m := s.node.view().members
	if m == nil {
		return true
	}
	self := m.Member(s.member)
	return self != nil && self.Learner
}

// meet makes the transport know the members.
func (s *Store) meet(m *consensus.Membership) {
	if m == nil {
		return
	}
	s.cluster.Store(m.Cluster)
	if s.peers == nil {
		return
	}
	others := map[uint64][]string{}
	for _, e := range m.Members {
		if e.ID != s.member {
			others[e.ID] = e.PeerURLs
		}
	}
	s.peers.SetCluster(m.Cluster)
	s.peers.Set(others)
	if e := m.Member(s.member); e != nil && !slices.Equal(e.PeerURLs, slices.Sorted(slices.Values(*s.urls.Load()))) {
		s.lookAgain() // another's word, from before the last move
	}
}

// FoundAt tells the store where a member may be reached if it is not where the
// membership says: all may have moved, and none can tell the others. What answers
// there has to be that member.
func (s *Store) FoundAt(member uint64, urls []string) {
	if s.peers != nil {
		s.peers.Found(member, urls)
	}
}

func (s *Store) send(msgs []*raftpb.Message) {
	if s.peers != nil {
		s.peers.Send(msgs)
	}
}

// reaches reports whether messages reach a member, as far as this one's kernel knows.
func (s *Store) reaches(id uint64) bool {
	if s.peers == nil {
		return false
	}
	_, ok := s.peers.Connected(id)
	return ok
}

// sendSnapshot streams the applied state as it is now, which is not older than
// what m announces.
func (s *Store) sendSnapshot(ctx context.Context, m *raftpb.Message) error {
	if s.peers == nil {
		return errors.New("this member has no network")
	}
	snap, err := s.db.Snapshot()
	if err != nil {
		return err
	}
	members, err := consensus.DecodeMembership(snap.Conf)
	if err == nil {
		m = proto.CloneOf(m)
		m.Snapshot.Metadata = &raftpb.SnapshotMetadata{Index: proto.Uint64(snap.Applied.Index), Term: proto.Uint64(snap.Applied.Term), ConfState: members.ConfState()}
		err = s.peers.SendSnapshot(ctx, m, snap)
	}
	return errors.Join(err, snap.Close())
}

func (s *Store) discard(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("a leftover of a snapshot stays", "file", path, "err", err)
	}
}

// peers takes what other members send.
type peers struct{ s *Store }

// Receive is part of peer.Handler.
func (p *peers) Receive(ctx context.Context, m *raftpb.Message, patience time.Duration) bool {
	select {
	case p.s.node.inbox <- m:
		return true
	default: // the disk is busy
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case p.s.node.inbox <- m:
	case <-p.s.node.ctx.Done():
	case <-ctx.Done():
	case <-t.C:
		return false
	}
	return true
}

// Unreachable is part of peer.Handler.
func (p *peers) Unreachable(id uint64) { p.s.node.tell(report{to: id}) }

// Known is part of peer.Handler.
func (p *peers) Known(id uint64) (member, removed bool) {
	m := p.s.node.view().members
	if m == nil {
		return false, false
	}
	return m.Member(id) != nil, m.WasRemoved(id)
}

// Said is part of peer.Handler: a member that is elsewhere than the others know
// may reach this one only, and so has no leader to tell.
func (p *peers) Said(id uint64, urls []string, still func() bool) {
	urls = slices.Sorted(slices.Values(urls))
	for try := 0; try < 10 && p.s.follows(); try++ {
		select {
		case <-p.s.ctx.Done():
			return
		case <-time.After(helpAfter): // it may do so itself
		}
		m := p.s.node.view().members
		if m == nil || m.Member(id) == nil || !still() || slices.Equal(m.Member(id).PeerURLs, urls) {
			return
		}
		if _, err := p.s.MemberUpdate(p.s.ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls}); err != nil {
			p.s.log.Debug("where a member is was not written down", "member", fmt.Sprintf("%x", id), "err", err)
		}
	}
}

// Removed is part of peer.Handler.
func (p *peers) Removed(by uint64) {
	p.s.log.Warn("another member says that this one was removed from the cluster: it stops", "member", fmt.Sprintf("%x", by))
	p.s.node.fail(ErrRemoved)
}

// Snapshot is part of peer.Handler: the state goes to a file, and that to the
// node.
func (p *peers) Snapshot(ctx context.Context, m *raftpb.Message, r io.Reader) error {
	defer p.s.counters.save.Since(time.Now())
	path := filepath.Join(p.s.cfg.Dir, fmt.Sprintf("snapshot-%016x.tmp", m.GetSnapshot().GetMetadata().GetIndex()))
	if err := p.s.receiveFile(vfs.OS{}, path, r); err != nil {
		p.s.discard(path)
		return err
	}
	in := received{m, path, make(chan error, 1)}
	select {
	case p.s.node.snapshots <- in:
		return <-in.done
	case <-p.s.node.ctx.Done():
		p.s.discard(path)
		return ErrStopped
	case <-ctx.Done():
		p.s.discard(path)
		return ctx.Err()
	}
}

// receiveFile writes r to a file that is on disk when it returns.
func (s *Store) receiveFile(fsys vfs.FS, path string, r io.Reader) (err error) {
	f, err := fsys.Open("snapshot.receive", path, true)
	if err != nil {
		return fmt.Errorf("receive a snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := r.Read(buf)
		if n > 0 {
			if err := f.WriteAt("snapshot.receive", buf[:n], at); err != nil {
				return fmt.Errorf("receive a snapshot: %w", err)
			}
			at += int64(n)
		}
		if errors.Is(err, io.EOF) {
			defer s.counters.saveSync.Since(time.Now())
			return f.Sync("snapshot.receive", false)
		}
		if err != nil {
			return fmt.Errorf("receive a snapshot: %w", err)
		}
	}
}

// Call is part of peer.Handler.
func (p *peers) Call(ctx context.Context, from uint64, method byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.s.cfg.RequestTimeout)
	defer cancel()
	if method == callMembers {
		m := p.s.node.view().members
		if m == nil {
			return nil, ErrNoLeader
		}
		return m.Encode()
	}
	if answer := p.s.cfg.Network.Answer; method == callAsk && answer != nil {
		return answer(from, body)
	}
	if method == callSilence {
		return nil, p.s.toldSilence(body)
	}
	if len(body) != 8 {
		return nil, fmt.Errorf("call %d with %d bytes", method, len(body))
	}
	id := binary.BigEndian.Uint64(body)
	switch method {
	case callLeaseRenew:
		ttl, err := p.s.lessor.renewHere(int64(id))
		return binary.BigEndian.AppendUint64(nil, uint64(ttl)), err
	case callLeaseTTL:
		left, err := p.s.lessor.remainingHere(int64(id))
		return binary.BigEndian.AppendUint64(nil, uint64(left)), err
	case callPromote:
		return nil, p.s.promoteHere(ctx, id)
	case callMayAdd:
		return nil, p.s.mayAddHere()
	case callMayRemove:
		return nil, p.s.mayRemoveHere(id)
	case callHashKV:
		return p.s.hashHere(int64(id))
	case callRoom:
		return p.s.roomHere(), nil
	}
	return nil, fmt.Errorf("call %d is not known: use a newer edged", method)
}

// Ask has another member's [Network.Answer] answer. A member of an older version
// answers that it does not know the call.
func (s *Store) Ask(ctx context.Context, member uint64, body []byte) ([]byte, error) {
	if s.peers == nil {
		return nil, errors.New("this member has no network")
	}
	return s.peers.Call(ctx, member, callAsk, body)
}

// askLeader has the leader, this member or another, do what here does. It asks
// again while leaders change.
func (s *Store) askLeader(ctx context.Context, method byte, id uint64, here func() (uint64, error)) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	for {
		v := s.node.view()
		var out uint64
		err := ErrNoLeader
		if v.decides {
			out, err = here()
		} else if v.leader != 0 && v.leader != s.member && s.peers != nil {
			var body []byte
			call, done := context.WithTimeout(ctx, s.cfg.RequestTimeout/3)
			body, err = s.peers.Call(call, v.leader, method, binary.BigEndian.AppendUint64(nil, id))
			done()
			var answer peer.CallError
			switch {
			case err == nil && len(body) == 8:
				out = binary.BigEndian.Uint64(body)
			case errors.As(err, &answer):
				err = sentinel(err)
			case err != nil:
				err = ErrNoLeader // lost on the way
			}
		}
		if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrNotLeader) {
			return out, err
		}
		select {
		case <-ctx.Done():
			return 0, s.timedOut(ctx)
		case <-s.node.done:
			return 0, s.node.stopped()
		case <-v.changed:
		case <-time.After(s.cfg.Tick):
		}
	}
}

// timedOut is what a request whose time is over is answered.
func (s *Store) timedOut(ctx context.Context) error {
	if s.Leader() == 0 {
		return ErrNoLeader
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return ErrTimeout
}

func protoMember(e consensus.Member) *pb.Member {
	return &pb.Member{ID: e.ID, Name: e.Name, PeerURLs: e.PeerURLs, ClientURLs: e.ClientURLs, IsLearner: e.Learner}
}

func protoMembers(m *consensus.Membership) []*pb.Member {
	if m == nil {
		return nil
	}
	out := make([]*pb.Member, len(m.Members))
	for i, e := range m.Members {
		out[i] = protoMember(e)
	}
	return out
}

// Heard tells when something arrived last of the member that is called name,
// zero for never, and whether that member led before the one that leads now. ok is
// false if nobody is called so. Unlike Peers it waits for nothing.
func (s *Store) Heard(name string) (last time.Time, led, ok bool) {
	v := s.node.view()
	if v.members == nil || name == "" {
		return time.Time{}, false, false
	}
	for _, e := range v.members.Members {
		switch {
		case e.Name != name:
		case e.ID == s.member || s.peers == nil:
			return time.Now(), false, true
		default:
			return s.peers.Heard(e.ID), e.ID == v.before, true
		}
	}
	return time.Time{}, false, false
}

// PeerStatus is what a member knows of another, or of itself.
type PeerStatus struct {
	ID       uint64
	Name     string
	PeerURLs []string
	Learner  bool
	// LastHeard is when something of it arrived last, on the monotonic clock;
	// zero for never. The leader hears from everybody, the others from the
	// leader.
	LastHeard time.Time
	// Prefer says that it is to vote if it can: a witness is there for that.
	Prefer bool
	// Match is how much of the log it is known to have; 0 on who does not lead.
	Match uint64
}

// Peers tells how the members are, by id.
func (s *Store) Peers(ctx context.Context) ([]PeerStatus, error) {
	v := s.node.view()
	if v.members == nil {
		return nil, ErrNoLeader
	}
	var progress map[uint64]consensus.Progress
	if err := s.node.do(ctx, func(c *consensus.Core) {
		if c.Leading() {
			progress = c.Progress()
		}
	}); err != nil {
		return nil, err
	}
	out := make([]PeerStatus, len(v.members.Members))
	for i, e := range v.members.Members {
		out[i] = PeerStatus{ID: e.ID, Name: e.Name, PeerURLs: e.PeerURLs, Learner: e.Learner, Match: progress[e.ID].Match}
		if e.ID == s.member {
			out[i].LastHeard = time.Now()
		} else if s.peers != nil {
			out[i].LastHeard = s.peers.Heard(e.ID)
		}
	}
	return out, nil
}

func (s *Store) memberHeader() *pb.ResponseHeader {
	h := &pb.ResponseHeader{}
	s.header(h)
	return h
}

// MemberList lists the members.
func (s *Store) MemberList(ctx context.Context, req *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if req.Linearizable {
		if err := s.node.mayRead(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.MemberListResponse{Header: s.memberHeader(), Members: protoMembers(s.node.view().members)}, nil
}

// MemberAdd adds a member at its peer URLs; it gets an id, and a name when it
// has started.
func (s *Store) MemberAdd(ctx context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := peerURLs(req.PeerURLs)
	if err != nil {
		return nil, err
	}
	if err := s.mayAdd(ctx, req.IsLearner); err != nil {
		return nil, err
	}
	e := consensus.Member{ID: consensus.MemberID(urls, s.cfg.Token, time.Now().Unix()), PeerURLs: urls, Learner: req.IsLearner}
	typ := raftpb.ConfChangeAddNode
	if req.IsLearner {
		typ = raftpb.ConfChangeAddLearnerNode
	}
	if err := s.change(ctx, typ, consensus.Change{Member: e, MaxLearners: s.cfg.MaxLearners}); err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: s.memberHeader(), Member: protoMember(e), Members: protoMembers(s.node.view().members)}, nil
}

// MemberRemove removes a member, which then stops.
func (s *Store) MemberRemove(ctx context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := s.mayRemove(ctx, req.ID); err != nil {
		return nil, err
	}
	if req.ID == s.member && s.node.view().leader == s.member {
		// Whoever leads next can tell the others; no election is needed.
		s.handOver()
	}
	if err := s.change(ctx, raftpb.ConfChangeRemoveNode, consensus.Change{Member: consensus.Member{ID: req.ID}}); err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: s.memberHeader(), Members: protoMembers(s.node.view().members)}, nil
}

// MemberUpdate changes where a member is reached.
func (s *Store) MemberUpdate(ctx context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	urls, err := peerURLs(req.PeerURLs)
	if v := s.node.view(); err != nil && v.members != nil && v.members.Member(req.ID) == nil {
		err = ErrMemberNotFound // which is what etcd looks at first
	}
	if err != nil {
		return nil, err
	}
	if err := s.change(ctx, raftpb.ConfChangeUpdateNode, consensus.Change{Member: consensus.Member{ID: req.ID, PeerURLs: urls}}); err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: s.memberHeader(), Members: protoMembers(s.node.view().members)}, nil
}

// MemberPromote gives a learner a vote once it has caught up.
func (s *Store) MemberPromote(ctx context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if _, err := s.askLeader(ctx, callPromote, req.ID, func() (uint64, error) { return 0, s.promoteHere(ctx, req.ID) }); err != nil {
		return nil, err
	}
	// The answer should show it.
	if err := s.node.mayRead(ctx); err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: s.memberHeader(), Members: protoMembers(s.node.view().members)}, nil
}

// promoteHere is MemberPromote on the leader.
func (s *Store) promoteHere(ctx context.Context, id uint64) error {
	v := s.node.view()
	if !v.decides {
		return ErrNotLeader
	}
	e := v.members.Member(id)
	switch {
	case e == nil:
		return ErrMemberNotFound
	case !e.Learner:
		return ErrMemberNotLearner
	}
	var progress map[uint64]consensus.Progress
	if err := s.node.do(ctx, func(c *consensus.Core) { progress = c.Progress() }); err != nil {
		return err
	}
	if progress[id].Match*100 < progress[s.member].Match*readyPercent || progress[id].Match == 0 {
		return ErrLearnerNotReady
	}
	if s.cfg.StrictReconfig {
		if started, voters := s.started(1, 1, 0); started < voters/2+1 {
			return ErrNotEnoughStarted
		}
	}
	if err := s.change(ctx, raftpb.ConfChangeAddNode, consensus.Change{Member: consensus.Member{ID: id}, Promote: true}); err != nil {
		return err
	}
	s.counters.promotions.Add(1)
	return nil
}

// change proposes a change of the membership and waits for its outcome.
func (s *Store) change(ctx context.Context, typ raftpb.ConfChangeType, c consensus.Change) error {
	id := s.nextID.Add(1)
	cc, err := c.ConfChange(typ, id)
	if err != nil {
		return err
	}
	_, err = s.node.propose(ctx, id, proposal{change: cc})
	return err
}

func peerURLs(urls []string) ([]string, error) {
	if len(urls) == 0 {
		return nil, ErrMemberBadURLs
	}
	for _, u := range urls {
		p, err := url.Parse(u)
		if err != nil || p.Host == "" || p.Path != "" || p.Scheme != "http" && p.Scheme != "https" {
			return nil, ErrMemberBadURLs
		}
	}
	return slices.Sorted(slices.Values(urls)), nil
}

// started counts voters, and those of them that have told their name, beginning
// from the given numbers and without one member.
func (s *Store) started(started, voters int, without uint64) (int, int) {
	for _, e := range s.node.view().members.Members {
		if e.Learner || e.ID == without {
			continue
		}
		voters++
		if e.Name != "" {
			started++
		}
	}
	return started, voters
}

// connected counts the voters that are connected to this member, which has been
// there for a while itself: only the leader keeps connections, so that those of a
// new leader are new.
func (s *Store) connected() (connected, voters int) {
	for _, e := range s.node.view().members.Members {
		if e.Learner {
			continue
		}
		voters++
		if e.ID == s.member {
			connected++
		} else if s.peers != nil {
			if _, ok := s.peers.Connected(e.ID); ok && s.peers.Age() >= healthyAfter {
				connected++
			}
		}
	}
	return connected, voters
}

// mayAdd refuses to add a member that could cost the quorum, by etcd's rules.
func (s *Store) mayAdd(ctx context.Context, learner bool) error {
	if !s.cfg.StrictReconfig || s.node.view().members == nil {
		return nil
	}
	if !learner {
		started, voters := s.started(0, 1, 0)
		if (started != 1 || voters != 2) && started < voters/2+1 {
			return ErrNotEnoughStarted
		}
	}
	return s.leaderSays(ctx, callMayAdd, 0, s.mayAddHere)
}

// leaderSays asks the leader, which is connected to everybody; without one, what
// this member knows has to do.
func (s *Store) leaderSays(ctx context.Context, method byte, id uint64, here func() error) error {
	if s.Leader() == 0 {
		return here()
	}
	_, err := s.askLeader(ctx, method, id, func() (uint64, error) { return 0, here() })
	return err
}

// mayAddHere counts the new member as one that does not answer.
func (s *Store) mayAddHere() error {
	if connected, voters := s.connected(); voters > 1 && connected < (voters+1)/2+1 {
		return ErrUnhealthy
	}
	return nil
}

// mayRemove refuses to remove a member that is needed for the quorum, by etcd's
// rules.
func (s *Store) mayRemove(ctx context.Context, id uint64) error {
	m := s.node.view().members
	if !s.cfg.StrictReconfig || m == nil {
		return nil
	}
	e := m.Member(id)
	if e == nil || e.Learner {
		return nil
	}
	started, voters := s.started(0, 0, id)
	if voters == 0 || started < voters/2+1 {
		return ErrNotEnoughStarted
	}
	return s.leaderSays(ctx, callMayRemove, id, func() error { return s.mayRemoveHere(id) })
}

func (s *Store) mayRemoveHere(id uint64) error {
	if id != s.member && s.peers != nil {
		if _, ok := s.peers.Connected(id); !ok {
			return nil // it is not part of the quorum now
		}
	}
	if connected, voters := s.connected(); connected-1 < 1+(voters-1)/2 {
		return ErrUnhealthy
	}
	return nil
}

// describe tells the cluster this member's name and URLs if they changed.
func (s *Store) describe(ctx context.Context) error {
	self := s.node.view().members.Member(s.member)
	if self == nil {
		return nil
	}
	if self.Name != s.cfg.Name || !slices.Equal(self.ClientURLs, s.cfg.ClientURLs) {
		req := &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
			Member_ID: s.member, MemberAttributes: &membershippb.Attributes{Name: s.cfg.Name, ClientUrls: s.cfg.ClientURLs},
		}}
		if _, err := s.propose(ctx, req); err != nil {
			return err
		}
	}
	urls := *s.urls.Load()
	if s.follows() && len(urls) > 0 && !slices.Equal(self.PeerURLs, slices.Sorted(slices.Values(urls))) {
		_, err := s.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: s.member, PeerURLs: urls})
		return err
	}
	return nil
}

// MoveLeader makes another voter the leader; only the leader can.
func (s *Store) MoveLeader(ctx context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	v := s.node.view()
	if v.leader != s.member {
		return nil, ErrNotLeader
	}
	e := v.members.Member(req.TargetID)
	if e == nil || e.Learner {
		return nil, ErrBadTransferee
	}
	if req.TargetID != s.member {
		if err := s.transfer(ctx, req.TargetID); err != nil {
			return nil, err
		}
	}
	return &pb.MoveLeaderResponse{}, nil // as etcd, without a header
}

// transfer hands leadership to a voter and waits until it has it.
func (s *Store) transfer(ctx context.Context, to uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.election())
	defer cancel()
	if err := s.node.do(ctx, func(c *consensus.Core) { c.TransferLeader(to) }); err != nil {
		return err
	}
	for {
		v := s.node.view()
		if v.leader == to {
			return nil
		}
		select {
		case <-v.changed:
		case <-s.node.done:
			return s.node.stopped()
		case <-ctx.Done():
			return ErrTimeout
		}
	}
}

// handOver hands leadership, if this member has it, to the voter that has most
// of the log.
func (s *Store) handOver() {
	v := s.node.view()
	if v.leader != s.member || v.alone(s.member) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.election())
	defer cancel()
	var to uint64
	err := s.node.do(ctx, func(c *consensus.Core) { to = c.Heir(s.reaches) })
	if err != nil || to == 0 {
		return
	}
	if err := s.transfer(ctx, to); err != nil {
		s.log.Warn("leadership was not handed over: the others will hold an election", "to", fmt.Sprintf("%x", to), "err", err)
	}
}
