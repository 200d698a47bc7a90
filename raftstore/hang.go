package raftstore

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// hung is called when the disk of a member takes longer than a leader may be
// silent: the others, which hear nothing of it, are about to elect another, and
// what only a leader does must end here. It bids one of them to stand at once:
// their own patience is up to twice as long, by chance.
func (n *node) hung() {
	n.seeing.Lock()
	defer n.seeing.Unlock()
	old := n.view()
	if old.leader != n.cfg.self || old.alone(n.cfg.self) {
		return
	}
	n.log.Warn("the disk does not answer: this member leads no more")
	now := *old
	now.leader, now.before, now.decides, now.changed = 0, n.cfg.self, false, make(chan struct{})
	n.seen.Store(&now)
	close(old.changed)
	if heir := n.heir.Load(); heir != 0 {
		typ := raftpb.MsgTimeoutNow
		n.cfg.send([]*raftpb.Message{{Type: &typ, From: proto.Uint64(n.cfg.self), To: proto.Uint64(heir), Term: proto.Uint64(old.term)}})
	}
}
