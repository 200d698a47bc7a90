package raftstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
	"edged/raftstore/peer"
)

// Members that applied the same log hold the same state. Flash that lies, or a
// fault of ours, can make them differ; they are compared by hashes of the keys'
// history, as etcd's members are, and where they differ the CORRUPT alarm is
// raised. All of it is off unless Config asks for it: a hash reads everything
// that is stored.

// hashBytes is the length of an answer to callHashKV: cluster, newest revision,
// revision, compacted revision, hash.
const hashBytes = 4*8 + 4

// hashHere answers another member's question for a hash.
func (s *Store) hashHere(at int64) ([]byte, error) {
	h, err := s.db.HashKV(at)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, hashBytes)
	for _, n := range []uint64{s.cluster.Load(), uint64(h.Current), uint64(h.Revision), uint64(h.Compacted)} {
		out = binary.BigEndian.AppendUint64(out, n)
	}
	return binary.BigEndian.AppendUint32(out, h.Hash), nil
}

// memberHash is a member's hash, or why there is none.
type memberHash struct {
	id  uint64
	err error
	mvcc.KVHash
}

// decodeHash refuses the answer of another cluster's member: one that founds a
// cluster anew may find the old one's at the same addresses.
func (s *Store) decodeHash(id uint64, body []byte) (memberHash, error) {
	if len(body) != hashBytes {
		return memberHash{}, fmt.Errorf("a hash of %d bytes", len(body))
	}
	number := func(i int) uint64 { return binary.BigEndian.Uint64(body[8*i:]) }
	if c := number(0); c != s.cluster.Load() {
		return memberHash{}, fmt.Errorf("cluster ID mismatch: it belongs to %x", c)
	}
	return memberHash{id: id, KVHash: mvcc.KVHash{
		Current: int64(number(1)), Revision: int64(number(2)), Compacted: int64(number(3)), Hash: binary.BigEndian.Uint32(body[32:]),
	}}, nil
}

// hashes asks the other members for their hash up to a revision.
func (s *Store) hashes(ctx context.Context, at int64) []memberHash {
	var out []memberHash
	for _, e := range s.node.view().members.Members {
		if e.ID == s.member {
			continue
		}
		call, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
		body, err := s.peers.Call(call, e.ID, callHashKV, binary.BigEndian.AppendUint64(nil, uint64(at)))
		cancel()
		h := memberHash{id: e.ID, err: err}
		if err == nil {
			if h, err = s.decodeHash(e.ID, body); err != nil {
				h = memberHash{id: e.ID, err: err}
			}
		}
		if err != nil {
			s.log.Warn("failed hash kv request", "member", fmt.Sprintf("%x", e.ID), "revision", at, "error", err.Error())
		}
		out = append(out, h)
	}
	return out
}

// checkStart compares what this member comes up with with the others, before it
// takes part: who differs must not vote with what it holds. Members that do not
// answer prove nothing.
func (s *Store) checkStart(ctx context.Context, m *consensus.Membership) error {
	self := fmt.Sprintf("%x", s.member)
	s.log.Info("starting initial corruption check", "local-member-id", self, "timeout", s.cfg.RequestTimeout.String())
	own, err := s.db.HashKV(0)
	if err != nil {
		return fmt.Errorf("%s failed to fetch hash: %w", self, err)
	}
	differ := false
	for _, e := range m.Members {
		if e.ID == s.member {
			continue
		}
		h, err := s.askHash(ctx, e, own.Revision)
		fields := []any{"local-member-id", self, "local-member-revision", own.Revision, "local-member-compact-revision", own.Compacted,
			"local-member-hash", own.Hash, "remote-peer-id", fmt.Sprintf("%x", e.ID), "remote-peer-endpoints", e.PeerURLs}
		switch {
		case err != nil:
			s.log.Warn("cannot fetch hash from remote peer", append(fields, "error", err.Error())...)
		case h.Hash == own.Hash:
		case h.Compacted != own.Compacted:
			s.log.Warn("found different compact revision values from remote peer", append(fields, "remote-peer-compact-revision", h.Compacted)...)
		default:
			differ = true
			s.log.Warn("found different hash values from remote peer", append(fields, "remote-peer-hash", h.Hash)...)
		}
	}
	if differ {
		return fmt.Errorf("%w: %s found data inconsistency with peers: empty its store and let it join again", ErrCorrupt, self)
	}
	s.log.Info("initial corruption checking passed; no corruption", "local-member-id", self)
	return nil
}

// askHash asks a member over a connection of its own: there are no links yet.
func (s *Store) askHash(ctx context.Context, e consensus.Member, at int64) (memberHash, error) {
	last := errors.New("it has no address")
	for _, u := range e.PeerURLs {
		body, err := peer.Ask(ctx, s.cfg.Network.Dial, u, callHashKV, binary.BigEndian.AppendUint64(nil, uint64(at)))
		if err != nil {
			last = err
			continue
		}
		return s.decodeHash(e.ID, body)
	}
	return memberHash{}, last
}

// every calls check each time while this member leads; 0 is never.
func (s *Store) every(ctx context.Context, d time.Duration, check func(context.Context)) {
	if d <= 0 || s.peers == nil {
		return
	}
	s.RunWhileLeader(ctx, func(ctx context.Context) {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				check(ctx)
			}
		}
	})
}

// checkNow compares all that the members hold, as etcd's leader does: none may be
// ahead of it, and those that have compacted as far must have the same.
func (s *Store) checkNow(ctx context.Context) {
	before, err := s.db.HashKV(0)
	if err != nil {
		s.log.Warn("failed to check hash KV", "error", err.Error())
		return
	}
	others := s.hashes(ctx, before.Revision)
	if err := s.node.mayRead(ctx); err != nil {
		s.log.Warn("failed to check hash KV", "error", err.Error())
		return
	}
	after, err := s.db.HashKV(0)
	if err != nil {
		s.log.Warn("failed to check hash KV", "error", err.Error())
		return
	}
	if id, why := suspect(s.member, before, after, others); why != "" {
		s.log.Error(why, "member", fmt.Sprintf("%x", id), "revision", before.Revision, "hash", before.Hash)
		s.alarmCorrupt(ctx, id)
	}
	s.log.Info("finished peer corruption check", "number-of-peers-checked", answers(others))
}

func answers(all []memberHash) (n int) {
	for _, h := range all {
		if h.err == nil {
			n++
		}
	}
	return n
}

// suspect finds the first member that cannot be right.
func suspect(self uint64, before, after mvcc.KVHash, others []memberHash) (id uint64, why string) {
	if after.Hash != before.Hash && after.Revision == before.Revision && after.Compacted == before.Compacted {
		return self, "found hash mismatch"
	}
	for _, h := range others {
		switch {
		case h.err != nil:
		case h.Current > after.Current:
			return h.id, "revision from follower must be less than or equal to leader's"
		case h.Compacted > after.Compacted:
			return h.id, "compact revision from follower must be less than or equal to leader's"
		case h.Compacted == before.Compacted && h.Hash != before.Hash:
			return h.id, "same compact revision then hashes must match"
		}
	}
	return 0, ""
}

func (s *Store) alarmCorrupt(ctx context.Context, id uint64) {
	req := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: pb.AlarmType_CORRUPT}
	if _, err := s.Alarm(ctx, req); err != nil && ctx.Err() == nil {
		s.log.Warn("the alarm was not raised", "err", err)
	}
}

// compactions compares the hashes that members took of what they compacted:
// compactions are entries of the log, so all took them of the same.
type compactions struct {
	s       *Store
	checked int64 // up to this revision all were the same
}

// check goes from the newest compaction back until one was compared with
// everybody.
func (c *compactions) check(ctx context.Context) {
	all := slices.DeleteFunc(c.s.db.CompactionHashes(), func(h mvcc.KVHash) bool { return h.Revision <= c.checked })
	slices.SortFunc(all, func(a, b mvcc.KVHash) int { return cmp.Compare(b.Revision, a.Revision) })
	c.s.log.Info("starting compact hash check", "local-member-id", fmt.Sprintf("%x", c.s.member), "timeout", c.s.cfg.RequestTimeout.String())
	n := 0
	for _, own := range all {
		n++
		others := c.s.hashes(ctx, own.Revision)
		if ctx.Err() != nil {
			return
		}
		corrupt, whole := judge(c.s.member, own, others)
		for _, id := range corrupt {
			c.s.log.Error("Detected compaction hash mismatch", "member", fmt.Sprintf("%x", id), "revision", own.Revision, "compact-revision", own.Compacted, "leader-hash", own.Hash)
			c.s.alarmCorrupt(ctx, id)
		}
		if len(corrupt) == 0 && whole {
			c.checked = own.Revision
			c.s.log.Info("successfully checked hash on whole cluster", "number-of-peers-checked", len(others), "revision", own.Revision)
		}
		if whole || len(corrupt) > 0 {
			break
		}
	}
	c.s.log.Info("finished compaction hash check", "number-of-hashes-checked", n)
}

// judge says who is corrupt: those that differ from a majority, or, as member 0,
// nobody knows who. whole says that everybody was compared.
func judge(self uint64, own mvcc.KVHash, others []memberHash) (corrupt []uint64, whole bool) {
	by := map[uint32][]uint64{own.Hash: {self}}
	whole = true
	for _, h := range others {
		if h.err != nil || h.Compacted != own.Compacted {
			whole = false
			continue
		}
		by[h.Hash] = append(by[h.Hash], h.id)
	}
	if len(by) == 1 {
		return nil, whole
	}
	quorum := (len(others)+1)/2 + 1
	right := false
	for _, ids := range by {
		if len(ids) >= quorum {
			right = true
		} else {
			corrupt = append(corrupt, ids...)
		}
	}
	if !right {
		return []uint64{0}, whole
	}
	slices.Sort(corrupt)
	return corrupt, whole
}
