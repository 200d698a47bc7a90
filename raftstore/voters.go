package raftstore

import (
	"cmp"
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"edged/raftstore/consensus"
)

// DefaultVoters is how many members vote at most.
const DefaultVoters = 5

// Change is one step towards the wanted set of voters; of its ids at most one is
// not zero.
type Change struct {
	// Promote gives a learner a vote.
	Promote uint64
	// Demote makes a learner of a voter that has been silent for long: it has all
	// the state when it is back, and may vote again when there is room.
	Demote uint64
}

// NextChange chooses the next change of a cluster whose leader is leader: an odd
// number of voters up to target, three while there are fewer than five members,
// one of two; a learner votes once it has most of the log, and a voter that has
// been silent for longer than grace makes room for a learner that has not.
// Of several, those to prefer come first. heard tells how long ago something of a
// member arrived.
func NextChange(members []PeerStatus, leader uint64, target int, grace time.Duration, heard func(PeerStatus) time.Duration) Change {
	const catchUp = 1000 // entries that a new voter may lack
	var head uint64
	var voters, silent, ready []PeerStatus
	for _, m := range members {
		head = max(head, m.Match)
		if m.Learner {
			continue
		}
		voters = append(voters, m)
		if m.ID != leader && heard(m) > grace {
			silent = append(silent, m)
		}
	}
	for _, m := range members {
		if m.Learner && m.Name != "" && heard(m) < alive && m.Match > 0 && m.Match+catchUp > head {
			ready = append(ready, m)
		}
	}
	slices.SortFunc(ready, func(a, b PeerStatus) int {
		if a.Prefer != b.Prefer {
			return map[bool]int{true: -1, false: 1}[a.Prefer]
		}
		return cmp.Or(cmp.Compare(b.Match, a.Match), cmp.Compare(a.ID, b.ID))
	})
	want := wantedVoters(len(members), target)
	switch {
	case len(voters) < want && len(ready) > 0 && (len(ready)+len(voters) >= want || len(voters)%2 == 0):
		// One promotion after the other leads through an even number, which
		// tolerates no loss less than the odd one before.
		return Change{Promote: ready[0].ID}
	case len(silent) > 0 && len(ready) > 0 && len(voters)-len(silent) > len(voters)/2:
		// The dead one goes first: were there one voter more, a majority would
		// be one more as well.
		return Change{Demote: silent[0].ID}
	}
	return Change{}
}

// Rebalance makes the next change that NextChange chooses, if this member leads;
// changed says that there was one. prefer are members that should vote if they can.
func (s *Store) Rebalance(ctx context.Context, target int, grace time.Duration, prefer ...uint64) (c Change, changed bool, err error) {
	members, err := s.Peers(ctx)
	if err != nil {
		return Change{}, false, err
	}
	for i := range members {
		members[i].Prefer = slices.Contains(prefer, members[i].ID)
	}
	since := time.Now()
	if v := s.node.view(); v.leader != s.member {
		return Change{}, false, nil
	}
	c = NextChange(members, s.member, target, grace, func(m PeerStatus) time.Duration { return since.Sub(m.LastHeard) - s.heartbeat() })
	switch {
	case c.Promote != 0:
		_, err = s.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: c.Promote})
	case c.Demote != 0:
		err = s.change(ctx, raftpb.ConfChangeAddLearnerNode, consensus.Change{Member: consensus.Member{ID: c.Demote}, Demote: true})
	default:
		return c, false, nil
	}
	return c, err == nil, err
}

// alive is how recently something must have arrived of a member to be counted
// on.
const alive = 5 * time.Second

// wantedVoters is the number of voters of a cluster of n members.
func wantedVoters(n, target int) int {
	if n >= 5 {
		n = min(n, max(target, 1))
	} else {
		n = min(n, 3, max(target, 1))
	}
	if n%2 == 0 {
		n--
	}
	return n
}
