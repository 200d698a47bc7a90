package raftstore

// resume takes turn again after run has waited for something to do.
func (n *node) resume() {
	n.wanted.Store(true)
	n.turn.Lock()
	n.wanted.Store(false)
}

// proposeAlone has the proposer itself do what run would, if this member is alone and run
// has nothing to do: to wake another goroutine, and to be woken by it, takes as long as a
// good part of a sync. It reports whether the proposal was taken; those that come
// meanwhile wait for run, and share a sync.
func (n *node) proposeAlone(id uint64) bool {
	if !n.lone() || n.wanted.Load() || len(n.proposals) > 0 || !n.turn.TryLock() {
		return false
	}
	defer n.turn.Unlock()
	if !n.lone() || n.full.Load() || n.ctx.Err() != nil {
		return false
	}
	n.take(id)
	for {
		more, full, err := n.process()
		if err != nil || full || n.wantTicks(full) != n.every {
			// Once more is no harm: it fails again, and run knows what to do about it.
			select {
			case n.roused <- struct{}{}:
			default:
			}
			return true
		}
		if !more {
			return true
		}
	}
}

// lone says that this member decides by itself.
func (n *node) lone() bool {
	v := n.view()
	return v.decides && v.alone(n.cfg.self)
}
