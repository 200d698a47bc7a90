package raftstore

// elections is how many of them bring no leader before nobody waits for one any more:
// one may end in a draw.
const elections = 2

// missLeader is called with each tick. What raft did not take yet did not and will not
// take place: who waits for that is told. Time that this member itself stood still
// does not count.
func (n *node) missLeader() {
	if !n.cfg.refuse || n.core.Leader() != 0 {
		return
	}
	// By chance an election begins after up to twice electionTicks.
	if n.without++; n.without < elections*2*n.cfg.electionTicks || n.alone.Swap(true) {
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
