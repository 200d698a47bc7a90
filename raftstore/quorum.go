package raftstore

import (
	"slices"
	"time"
)

// elections is how many of them bring no leader before nobody waits for one any more:
// one may end in a draw.
const elections = 2

// missLeader is called with each tick. What raft did not take yet did not and will not
// take place: who waits for that is told, and who waits for what it took is told that
// this is not known. Time that this member itself stood still does not count.
func (n *node) missLeader() {
	if n.core.Leader() != 0 {
		return
	}
	if n.without == 0 {
		n.lost = time.Now().Add(-n.pace()) // at some time since the last tick
	}
	n.without++
	// By chance an election begins after up to twice electionTicks.
	election := 2 * n.cfg.electionTicks
	if n.without%election == 0 {
		n.greet()
	}
	// Who could elect one asks this member for its vote, or answers it, well before; not
	// where devices start that lost their power together.
	early := n.view().before != 0 && n.without >= n.cfg.electionTicks*3/2 && !n.mayElect()
	if !n.cfg.refuse || n.without < elections*election && !early || n.alone.Swap(true) {
		return
	}
	n.log.Warn("most of the members that vote are not reached: writes are refused")
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, w := range n.waiting {
		err := ErrTimeoutLeaderLost
		if w.taken == 0 {
			err = ErrNoLeader
		}
		w.done <- result{err: err}
		delete(n.waiting, id)
	}
}

// mayElect reports whether so many voters were heard of, since there was a leader, that
// they could elect one. A member without a vote hears of nobody then, and cannot tell.
func (n *node) mayElect() bool {
	members := n.core.Members()
	if members == nil || n.cfg.heard == nil {
		return true
	}
	voters := members.Voters()
	if !slices.Contains(voters, n.cfg.self) {
		return true
	}
	there := 1
	for _, id := range voters {
		if id != n.cfg.self && n.cfg.heard(id).After(n.lost) {
			there++
		}
	}
	return 2*there > len(voters)
}

// findLeader is called after each turn.
func (n *node) findLeader() {
	if n.core.Leader() != 0 {
		if n.without = 0; n.alone.Swap(false) {
			n.log.Info("there is a leader again: writes are taken")
		}
	}
}

// greet has a learner connect to the others, as a voter that misses its leader does by
// asking for votes: nobody may know where it is now, and one that was removed while it
// was away is told so.
func (n *node) greet() {
	members := n.core.Members()
	if members == nil || n.cfg.greet == nil {
		return
	}
	if self := members.Member(n.cfg.self); self != nil && !self.Learner {
		return
	}
	for _, m := range members.Members {
		if m.ID != n.cfg.self {
			n.cfg.greet(m.ID)
		}
	}
}

// leaveAgain ends a member that knows from its own state that it was removed.
func (n *node) leaveAgain() {
	if m := n.core.Members(); m != nil && m.WasRemoved(n.cfg.self) {
		n.log.Warn("this member was removed from the cluster: it stops")
		n.fail(ErrRemoved)
	}
}
