package raftstore

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
)

// readsOnly reports whether a transaction can be carried out without the log.
func readsOnly(req *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			if r := op.GetRequestTxn(); r != nil && readsOnly(r) {
				continue
			}
			if op.GetRequestRange() == nil {
				return false
			}
		}
	}
	return true
}

// serializable reports whether a transaction that only reads is content with
// what this member knows.
func serializable(req *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			if r := op.GetRequestRange(); r == nil || !r.Serializable {
				return false
			}
		}
	}
	return true
}

func (s *Store) readTxn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	if !serializable(req) {
		if _, err := s.ReadIndex(ctx); err != nil {
			return nil, err
		}
	}
	resp, err := s.db.ReadTxn(callerOf(ctx), req)
	if err != nil {
		return nil, err
	}
	s.header(resp.Header)
	return resp, nil
}

// checkQuota refuses what would make the state larger than it may be, and raises
// the alarm that makes every member refuse it.
func (s *Store) checkQuota(ctx context.Context, req *pb.InternalRaftRequest) error {
	refuse := s.refusesForRoom()
	if s.cfg.Quota <= 0 && !refuse {
		return nil
	}
	var grows proto.Message
	switch {
	case req.Put != nil:
		grows = req.Put
	case req.Txn != nil:
		grows = req.Txn
	case req.LeaseGrant != nil:
		grows = req.LeaseGrant
	}
	cost := int64(0)
	if grows != nil {
		cost = int64(mvcc.Cost(grows))
	}
	switch {
	case cost == 0:
		return nil
	case refuse:
		return ErrNoSpace
	}
	if size, _ := s.db.Size(); size+cost <= s.cfg.Quota {
		return nil
	}
	s.forQuota.Store(true)
	if len(s.db.Alarms(pb.AlarmType_NOSPACE)) == 0 {
		s.log.Error("the state has reached its quota: writes are refused until it is smaller and the alarm is disarmed", "quota_bytes", s.cfg.Quota)
	}
	if _, err := s.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: s.member, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		s.log.Warn("the alarm was not raised", "err", err)
	}
	return ErrNoSpace
}

// Alarm lists, raises and disarms alarms.
func (s *Store) Alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if req.Action == pb.AlarmRequest_GET && s.node.full.Load() {
		// Nothing can be written here: what this member knows must do.
		rev, _ := s.Revision()
		return &pb.AlarmResponse{Header: s.Header(rev), Alarms: s.fullHere(s.db.Alarms(req.Alarm))}, nil
	}
	return propose[*pb.AlarmResponse](ctx, s, &pb.InternalRaftRequest{Alarm: req})
}

// Alarms are those that this member knows of.
func (s *Store) Alarms() []*pb.AlarmMember { return s.fullHere(s.db.Alarms(pb.AlarmType_NONE)) }

// Downgrade is the operator's wish to go back to an older version.
func (s *Store) Downgrade() mvcc.Downgrade { return s.db.Downgrade() }

// Defragment gives back what deleted rows took in this member's file.
func (s *Store) Defragment() error { return s.db.Defragment() }

// Hash is a hash of all that this member stores.
func (s *Store) Hash() (hash uint32, revision int64, err error) { return s.db.Hash() }

// HashKV is a hash of the keys' history up to a revision, 0 for the newest.
func (s *Store) HashKV(at int64) (mvcc.KVHash, error) { return s.db.HashKV(at) }

// Snapshot is a copy of the state in the form of etcd's file. It must be closed.
func (s *Store) Snapshot() (*mvcc.Snapshot, error) { return s.db.Snapshot() }

// MaxRequestBytes is the bound on requests.
func (s *Store) MaxRequestBytes() int { return s.cfg.MaxRequestBytes }

// Quota is the bound on the state, 0 for none.
func (s *Store) Quota() int64 { return s.cfg.Quota }

// Header is that of a response at a revision.
func (s *Store) Header(revision int64) *pb.ResponseHeader {
	h := &pb.ResponseHeader{Revision: revision}
	s.header(h)
	return h
}

// Counts are what happened since the start, and how many keys there are.
func (s *Store) Counts() mvcc.Counts { return s.db.Counts() }

// ReleaseMemory gives back what a load left behind: pages of the state's file that
// reading has mapped, and what waits for that file, in memory and in the log, when it
// is more than a little. It is for a store that rests.
func (s *Store) ReleaseMemory(ctx context.Context) error {
	err := s.node.rest(ctx)
	return errors.Join(err, s.db.ReleasePages())
}
