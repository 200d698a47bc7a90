package raftstore

import "time"

// take gives raft a proposal, if somebody still waits for it. One that is lost on
// its way to a leader that stays is answered by its time running out.
func (n *node) take(id uint64) {
	n.mu.Lock()
	w := n.waiting[id]
	n.mu.Unlock()
	if w == nil {
		return
	}
	n.busy = time.Now()
	var err error
	if w.proposal.change != nil {
		err = n.core.ProposeChange(w.proposal.change)
	} else {
		err = n.core.Propose(w.proposal.data)
	}
	if err != nil {
		n.untaken = append(n.untaken, id)
		return
	}
	w.taken = n.core.Term()
}

// takeAgain gives raft what it did not take, and once an entry of a new term was
// applied what is lost of the terms before; see consensus.Core.Propose.
func (n *node) takeAgain() {
	again := n.untaken
	n.untaken = nil
	if term := n.db.Applied().Term; term != n.applied {
		n.applied = term
		n.mu.Lock()
		for id, w := range n.waiting {
			if w.taken != 0 && w.taken < term {
				again = append(again, id)
			}
		}
		n.mu.Unlock()
	}
	for _, id := range again {
		n.take(id)
	}
	later := n.later
	n.later = nil
	for _, m := range later {
		n.step(m)
	}
}
