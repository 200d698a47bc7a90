package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/consensus"
	"edged/raftstore/peer"
)

// A disk gets full in two steps. First something fails for lack of room: the log
// goes on in what it has set aside, or gives some of that to the state's file, and
// the member is low. It takes part as before, the NOSPACE alarm is raised, and with
// it writes are refused everywhere while reads, deletions and compactions go on. If
// all that was set aside is used up, too, the member is full: nothing can be written
// to its log, and it answers reads only.
//
// Both end by themselves when there is room: an alarm that was raised for the disk is
// disarmed by who raised it.

const (
	// reserveSegments is what the log sets aside: enough for the entries that are on
	// their way when the alarm is raised, and for deletions after it.
	reserveSegments = 2
	// enoughBytes is what must be free beside the reserve before a member is low no
	// more: a commit of the state and some log.
	enoughBytes = 8 << 20
	// retryRoom is how often a member that is low looks for room.
	retryRoom = time.Second
)

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// lackRoom notes that the disk had no room for something.
func (n *node) lackRoom(err error) {
	if n.low.Swap(true) {
		return
	}
	n.log.Error("the disk is full: what was set aside is used, writes are refused until there is room", "err", err)
	select {
	case n.short <- struct{}{}:
	default:
	}
}

// look is called when raft's wishes were carried out: a log that uses its reserve is
// kept short.
func (n *node) look() {
	if !n.wal.Low() {
		return
	}
	n.lackRoom(nil)
	if seq := n.wal.Segment(); seq != n.rolled {
		n.rolled = seq
		n.wish()
	}
}

// wish has the committer write the applied state.
func (n *node) wish() {
	select {
	case n.wantSync <- struct{}{}:
	default:
	}
}

// stall is called while nothing can be written: who waits is answered, and this
// member does not lead for those who ask.
func (n *node) stall() {
	n.letGo(ErrTimeout)
	if v := n.view(); v.alone(n.cfg.self) {
		return
	}
	n.hung()
	for _, r := range append(n.current, n.next) {
		for _, w := range r.waiting {
			w.done <- result{err: ErrTimeout}
		}
		r.waiting = nil
	}
	if n.asked != nil {
		for _, w := range n.asked.waiting {
			w.done <- result{err: ErrTimeout}
		}
		n.asked = nil
	}
}

// makeRoom has the log give back what it keeps, for the state's file.
func (n *node) makeRoom(ctx context.Context) (gave bool) {
	var err error
	if do := n.do(ctx, func(*consensus.Core) { gave, err = n.wal.Yield() }); do != nil {
		return false
	}
	if err != nil {
		n.log.Warn("the log gave no room back", "err", err)
	}
	return gave
}

// findRoom tries to be low no more. dir is on the disk in question.
func (s *Store) findRoom() {
	room, err := s.cfg.files.Room(s.cfg.Dir)
	if err != nil {
		s.log.Warn("how much room the disk has is not known", "err", err)
		room = math.MaxInt64 // setting some aside will tell
	}
	if room < enoughBytes {
		return
	}
	if err := s.node.do(s.ctx, func(*consensus.Core) { err = s.node.wal.Reserve() }); err != nil {
		return
	}
	if err != nil {
		s.log.Warn("no room is set aside for the log", "err", err)
		return
	}
	s.node.low.Store(false)
	s.node.wish() // what did not fit
	s.log.Info("the disk has room again: writes are accepted")
}

// keepRoom raises the alarm while this member is low and disarms it when it is not.
func (s *Store) keepRoom() {
	select {
	case <-s.ctx.Done():
		return
	case <-s.node.done:
		return
	case <-s.ready: // the log was applied as far as it tells of alarms
	}
	mine := false
	for {
		// One of an earlier life. With a quota it may be for that: who reached the
		// quota decides when to go on.
		mine = mine || s.cfg.Quota <= 0 && s.alarmed()
		if !mine && !s.node.low.Load() {
			select {
			case <-s.ctx.Done():
				return
			case <-s.node.done:
				return
			case <-s.node.short:
			}
		}
		if s.node.low.Load() {
			s.findRoom()
		}
		mine = s.tellRoom(mine)
		s.excuse()
		select {
		case <-s.ctx.Done():
			return
		case <-s.node.done:
			return
		case <-time.After(retryRoom):
		}
	}
}

// tellRoom makes the alarm say what is. mine is whether it was raised for the disk,
// before and now.
func (s *Store) tellRoom(mine bool) bool {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.RequestTimeout)
	defer cancel()
	want, have := s.node.low.Load() && s.needed(ctx), s.alarmed()
	switch {
	case want && !have:
		s.forQuota.Store(false)
		return s.setAlarm(ctx, pb.AlarmRequest_ACTIVATE) || mine
	case want:
		return mine
	case !mine || !have || s.forQuota.Load():
		return false
	}
	return !s.setAlarm(ctx, pb.AlarmRequest_DEACTIVATE)
}

// excuse disarms, where Config.Spare allows it, alarms of members that are gone or do
// not answer: they hold nobody up, and raise them again if they come back so.
func (s *Store) excuse() {
	v := s.node.view()
	if !s.cfg.Spare || !v.decides || s.peers == nil {
		return
	}
	for _, a := range s.db.Alarms(pb.AlarmType_NOSPACE) {
		if a.MemberID == s.member {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.RequestTimeout)
		if v.members.Member(a.MemberID) == nil || !s.answers(ctx, a.MemberID) {
			s.log.Info("a member that does not answer had a full disk: it holds nobody up", "member", fmt.Sprintf("%x", a.MemberID))
			s.setAlarmOf(ctx, a.MemberID, pb.AlarmRequest_DEACTIVATE)
		}
		cancel()
	}
}

// answers reports whether a member answers at all.
func (s *Store) answers(ctx context.Context, id uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout/2)
	defer cancel()
	_, err := s.peers.Call(ctx, id, callRoom, make([]byte, 8))
	var refused peer.CallError
	return err == nil || errors.As(err, &refused)
}

// applied is told of each entry that was. When an alarm refused one, keepRoom looks
// whether it still stands for something.
func (s *Store) applied(req *pb.InternalRaftRequest, resp proto.Message, err error) {
	if err != nil && errors.Is(err, ErrNoSpace) {
		select {
		case s.node.short <- struct{}{}:
		default:
		}
	}
	s.lessor.applied(req, resp, err)
}

func (s *Store) setAlarm(ctx context.Context, action pb.AlarmRequest_AlarmAction) bool {
	return s.setAlarmOf(ctx, s.member, action)
}

func (s *Store) setAlarmOf(ctx context.Context, member uint64, action pb.AlarmRequest_AlarmAction) bool {
	_, err := s.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: member, Alarm: pb.AlarmType_NOSPACE})
	if err != nil && s.ctx.Err() == nil {
		s.log.Warn("the alarm for a full disk was neither raised nor disarmed; tried again", "action", action.String(), "err", err)
	}
	return err == nil
}

// alarmed reports whether this member's NOSPACE alarm is raised.
func (s *Store) alarmed() bool {
	for _, a := range s.db.Alarms(pb.AlarmType_NOSPACE) {
		if a.MemberID == s.member {
			return true
		}
	}
	return false
}

// needed reports whether writes cannot go on without this member, which lacks room.
// If they can and Config.Spare allows it, a leader hands over to a voter that has.
func (s *Store) needed(ctx context.Context) bool {
	v := s.node.view()
	if !s.cfg.Spare || v.members == nil || s.peers == nil {
		return true
	}
	voters, votes := v.members.Voters(), false
	var roomy []uint64
	for _, id := range voters {
		if id == s.member {
			votes = true
			continue
		}
		call, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout/3)
		body, err := s.peers.Call(call, id, callRoom, make([]byte, 8))
		cancel()
		if err == nil && len(body) == 8 && binary.BigEndian.Uint64(body) == 1 {
			roomy = append(roomy, id)
		}
	}
	if votes && len(roomy) < len(voters)/2+1 {
		return true
	}
	if len(roomy) > 0 && v.leader == s.member {
		s.log.Info("another member is to lead: this one's disk is full", "to", fmt.Sprintf("%x", roomy[0]))
		if err := s.node.do(ctx, func(c *consensus.Core) { c.TransferLeader(roomy[0]) }); err != nil {
			s.log.Warn("the lead was not handed over", "err", err)
		}
	}
	return false
}

// roomHere answers another member that is low.
func (s *Store) roomHere() []byte {
	has := uint64(1)
	if s.node.low.Load() || s.node.full.Load() {
		has = 0
	}
	return binary.BigEndian.AppendUint64(nil, has)
}

// refusesForRoom reports whether writes are refused before the alarm is raised.
func (s *Store) refusesForRoom() bool {
	return s.node.low.Load() && (!s.cfg.Spare || s.Members() <= 1)
}

// fullHere adds to the alarms of all that of this member, if it can tell nobody.
func (s *Store) fullHere(all []*pb.AlarmMember) []*pb.AlarmMember {
	if s.node.full.Load() && !s.alarmed() {
		all = append(all, &pb.AlarmMember{MemberID: s.member, Alarm: pb.AlarmType_NOSPACE})
	}
	return all
}
