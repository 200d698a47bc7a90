package raftstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// ClusterID names the cluster: that of a lone member follows from the member's.
func (s *Store) ClusterID() uint64 {
	h := sha256.Sum256(binary.BigEndian.AppendUint64(nil, s.member))
	return binary.BigEndian.Uint64(h[:])
}

// MemberID names this member.
func (s *Store) MemberID() uint64 { return s.member }

// Leader is the member that leads, 0 for none.
func (s *Store) Leader() uint64 { return s.member }

// LeaderLost returns a channel that is closed when the present leader is gone.
func (s *Store) LeaderLost() <-chan struct{} { return s.node.done }

// IsLearner reports whether this member has no vote.
func (s *Store) IsLearner() bool { return false }

func (s *Store) memberHeader() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: s.ClusterID(), MemberId: s.member, RaftTerm: s.node.term.Load()}
}

func (s *Store) members() []*pb.Member {
	return []*pb.Member{{ID: s.member, Name: s.cfg.Name, PeerURLs: slices.Clone(s.cfg.PeerURLs), ClientURLs: slices.Clone(s.cfg.ClientURLs)}}
}

// MemberList lists the members.
func (s *Store) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{Header: s.memberHeader(), Members: s.members()}, nil
}

// MemberAdd adds a member.
func (s *Store) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, ErrUnhealthy
}

// MemberRemove removes a member.
func (s *Store) MemberRemove(context.Context, *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, ErrMemberNotFound
}

// MemberUpdate changes where a member is reached.
func (s *Store) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, ErrMemberNotFound
}

// MemberPromote gives a member a vote.
func (s *Store) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, ErrMemberNotFound
}

// MoveLeader makes another member the leader.
func (s *Store) MoveLeader(_ context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if req.TargetID != s.member {
		return nil, ErrBadTransferee
	}
	return &pb.MoveLeaderResponse{}, nil
}
