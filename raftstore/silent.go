package raftstore

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"edged/raftstore/consensus"
)

// silentHeartbeats is how many heartbeats a member leaves unanswered until its leader
// calls it silent. A member whose disk hangs does, too, and one that is busy: it says
// what may be, not what is.
const silentHeartbeats = 3

// Silence is what a leader tells all members when it changed.
type Silence struct {
	// Silent are those of which the leader hears nothing now. That they are most of
	// the members is never told: then it is the leader who is cut off.
	Silent []string
	// Back says that this member was among them, and is not any more.
	Back bool
}

// silences counts with the ticks that there are anyway for how long nothing arrived of
// each other member. It is owned by the node's goroutine. Ticks do not pass while this
// member itself stands still.
type silences struct {
	of     map[uint64]*silentFor
	told   []uint64
	led    bool
	misses bool
}

type silentFor struct {
	heard time.Time
	ticks int
}

// listen is called with each tick. Devices talk with their leader only: a new one has
// heard of nobody before it led but of the old leader.
func (n *node) listen() {
	members := n.core.Members()
	if n.cfg.silence == nil || members == nil {
		return
	}
	s, leads, before := &n.silences, n.core.Leading(), n.view().before
	var silent []uint64
	for _, m := range members.Members {
		if m.ID == n.cfg.self {
			continue
		}
		f := s.of[m.ID]
		if f == nil {
			f = &silentFor{}
			s.of[m.ID] = f
		}
		at := n.cfg.heard(m.ID)
		if f.ticks++; !at.Equal(f.heard) || leads && !s.led && m.ID != before {
			*f = silentFor{heard: at}
		}
		if f.ticks >= silentHeartbeats*max(n.cfg.heartbeatTicks, 1) {
			silent = append(silent, m.ID)
		}
	}
	for id := range s.of {
		if members.Member(id) == nil {
			delete(s.of, id)
		}
	}
	s.led = leads
	if misses := leads && len(silent) > 0; misses != s.misses {
		s.misses = misses
		n.cfg.misses(misses)
	}
	if !leads {
		if len(s.told) > 0 {
			s.told = nil
			n.cfg.silence(members, nil, nil, false)
		}
		return
	}
	if count := len(members.Members); slices.Equal(silent, s.told) || 2*len(silent) >= count && count > 2 {
		return
	}
	back := slices.DeleteFunc(slices.Clone(s.told), func(id uint64) bool { return slices.Contains(silent, id) })
	s.told = silent
	n.cfg.silence(members, silent, back, true)
}

// tellSilence is called by the node's goroutine. tell is whether the others are told.
func (s *Store) tellSilence(members *consensus.Membership, silent, back []uint64, tell bool) {
	body := binary.BigEndian.AppendUint64(nil, uint64(len(silent)))
	for _, id := range slices.Concat(silent, back) {
		body = binary.BigEndian.AppendUint64(body, id)
	}
	for _, m := range members.Members {
		if tell && m.ID != s.member && !slices.Contains(silent, m.ID) {
			s.peers.Tell(m.ID, callSilence, body)
		}
	}
	s.hearSilence(silent, false)
}

// toldSilence takes what a leader told.
func (s *Store) toldSilence(body []byte) error {
	var ids []uint64
	for b := body; len(b) >= 8; b = b[8:] {
		ids = append(ids, binary.BigEndian.Uint64(b))
	}
	if len(body)%8 != 0 || len(ids) == 0 || ids[0] > uint64(len(ids)-1) {
		return fmt.Errorf("who is silent, in %d bytes", len(body))
	}
	silent, back := ids[1:1+ids[0]], ids[1+ids[0]:]
	s.hearSilence(silent, slices.Contains(back, s.member))
	return nil
}

func (s *Store) hearSilence(silent []uint64, back bool) {
	hear, members := s.cfg.Network.Silence, s.node.view().members
	if hear == nil || members == nil {
		return
	}
	out := Silence{Back: back}
	for _, id := range silent {
		if m := members.Member(id); m != nil && m.Name != "" {
			out.Silent = append(out.Silent, m.Name)
		}
	}
	hear(out)
}
