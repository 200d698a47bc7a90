package raftstore

// elections is how many of them bring no leader before nobody waits for one any more:
// one may end in a draw.
const elections = 2

// missLeader is called with each tick. What raft did not take yet did not and will not
// take place: who waits for that is told. Time that this member itself stood still
// does not count.
func (n *node) missLeader() {
	if n.core.Leader() != 0 {
		return
	}
	n.without++
	// By chance an election begins after up to twice electionTicks.
	election := 2 * n.cfg.electionTicks
	if n.without%election == 0 {
		n.greet()
	}
	if !n.cfg.refuse || n.without < elections*election || n.alone.Swap(true) {
		return
	}
	n.log.Warn("most of the members that vote are not reached: writes are refused")
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, w := range n.waiting {
		if w.taken == 0 {
			w.done <- result{err: ErrNoLeader}
			delete(n.waiting, id)
		}
	}
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
