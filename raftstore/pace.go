package raftstore

import (
	"context"
	"time"

	"edged/raftstore/consensus"
)

// Pace is how much the members talk while nothing happens.
type Pace struct {
	// Tick is Config.Tick from now on: heartbeats, elections and how long a leader may
	// be silent are in ticks. A leader for which it is longer than Config.Tick is
	// heard as often as by that while something happens.
	Tick time.Duration
	// Ack is how often a member that does nothing else acknowledges what arrives; 0
	// is every 2 s.
	Ack time.Duration
}

// SetPace changes the pace. It is to be the same on all members. While it is not, one
// that waits for less than the leader's heartbeat asks in vain for an election, which
// the others that hear the leader refuse, and connects again and again.
func (s *Store) SetPace(ctx context.Context, p Pace) error {
	err := s.node.do(ctx, func(*consensus.Core) {
		s.node.tickTime.Store(int64(p.Tick))
	})
	if err == nil && s.peers != nil {
		s.peers.SetAcks(p.Ack)
	}
	return err
}

// election is how long a leader may be silent at least.
func (s *Store) election() time.Duration {
	return time.Duration(s.cfg.ElectionTicks) * s.node.pace()
}

// heartbeat is how often the leader is heard.
func (s *Store) heartbeat() time.Duration {
	return time.Duration(max(s.cfg.HeartbeatTicks, 1)) * s.node.pace()
}

// pace is how long a tick is now.
func (n *node) pace() time.Duration { return time.Duration(n.tickTime.Load()) }

// wantTicks is how often to tick, 0 for not at all. A leader whose pace is slow is
// heard more often while something happens: what was lost on its way to a member is
// sent again when that has answered a heartbeat.
func (n *node) wantTicks(full bool) time.Duration {
	pace := n.pace()
	switch {
	case full || !n.core.NeedsTicks():
		return 0
	case pace > n.cfg.tick && n.core.Leading() && time.Since(n.busy) < busyFor:
		return n.cfg.tick
	}
	return pace
}
