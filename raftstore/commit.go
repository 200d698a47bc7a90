package raftstore

import (
	"context"
	"time"

	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
)

// commitLazily writes the applied state to bbolt when there is much of it.
func (n *node) commitLazily() {
	ctx := n.ctx
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wantSync:
		}
		applied := n.db.Applied()
		if err := n.db.Commit(); err != nil {
			if noRoom(err) {
				n.lackRoom(err)
				if n.makeRoom(ctx) {
					n.wish()
					continue
				}
			}
			if !failing {
				n.log.Error("the applied state is not written; the log still holds it", "err", err)
			}
			failing = true
			if n.db.Pending() > maxPendingBytes {
				n.full.Store(true)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryFull):
			}
			continue
		}
		if failing {
			failing = false
			n.log.Info("the applied state is written again")
		}
		n.full.Store(false)
		select {
		case n.durable <- applied:
		case <-ctx.Done():
			return
		}
	}
}

// restBytes is how much may wait for bbolt in a store that rests: less is not worth the
// pages of a commit.
const restBytes = 256 << 10

// rest writes to bbolt what waits for it, and drops what was kept for that.
func (n *node) rest(ctx context.Context) error {
	applied := n.db.Applied()
	if n.db.Pending() < restBytes || n.low.Load() {
		return nil
	}
	if err := n.db.Commit(); err != nil {
		return err
	}
	return n.do(ctx, func(*consensus.Core) { n.truncate(applied) })
}

// truncate drops the part of the log that bbolt now holds and nobody needs.
func (n *node) truncate(a mvcc.Applied) {
	if a.Index < n.committed.Index {
		return // a later commit was faster
	}
	n.committed = a
	var pin uint64
	for _, index := range n.pins {
		if pin == 0 || index < pin {
			pin = index
		}
	}
	catchUp := n.cfg.catchUp
	if n.low.Load() {
		catchUp = 0
	}
	if err := n.core.Truncate(a, catchUp, catchUpBytes, pin); err != nil {
		n.log.Error("the log was not shortened", "err", err)
	}
}
