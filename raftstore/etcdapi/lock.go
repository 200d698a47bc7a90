package etcdapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"edged/raftstore"
	"edged/raftstore/etcdapi/electionpb"
	"edged/raftstore/etcdapi/lockpb"
)

// Errors in clientv3/concurrency's words: the services are that package's,
// carried out here.
var (
	errSessionExpired   = errors.New("mutex: session is expired")
	errElectionNoLeader = errors.New("election: no leader")
	errNotElected       = errors.New("election: not leader")
	errMissingLeader    = errors.New(`"leader" field must be provided`)
)

const (
	// sessionTTL is that of the lease of who does not bring one.
	sessionTTL = 60
	// giveUp bounds removing a key whose owner does not wait any more.
	giveUp = 5 * time.Second
)

// queue is the keys below a name, whose order of creation is the order of turns.
type queue struct {
	*Server
	prefix []byte
}

func (s *Server) queue(name []byte) queue {
	return queue{s, append(bytes.Clone(name), '/')}
}

func (s *Server) lease(ctx context.Context, id int64) (int64, error) {
	if id != 0 {
		return id, nil
	}
	resp, err := s.store.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: sessionTTL})
	return resp.GetID(), err
}

// enter takes a place in the queue, or finds the one that the lease has. It
// returns the place's key and its creation.
func (q queue) enter(ctx context.Context, lease int64, value []byte) (key []byte, resp *pb.TxnResponse, created int64, err error) {
	key = fmt.Appendf(bytes.Clone(q.prefix), "%x", lease)
	resp, err = q.store.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_CreateRevision{}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
	})
	if err != nil {
		return nil, nil, 0, err
	}
	created = resp.Header.Revision
	if !resp.Succeeded {
		created = resp.Responses[0].GetResponseRange().Kvs[0].CreateRevision
	}
	return key, resp, created, nil
}

// first is the key whose turn it is, or nil.
func (q queue) first(ctx context.Context) (*mvccpb.KeyValue, *pb.ResponseHeader, error) {
	resp, err := q.store.Range(ctx, &pb.RangeRequest{
		Key: q.prefix, RangeEnd: prefixEnd(q.prefix), Limit: 1,
		SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_CREATE,
	})
	if err != nil || len(resp.Kvs) == 0 {
		return nil, resp.GetHeader(), err
	}
	return resp.Kvs[0], resp.Header, nil
}

func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// wait returns when no key is left that was created before.
func (q queue) wait(ctx context.Context, before int64) error {
	for {
		resp, err := q.store.Range(ctx, &pb.RangeRequest{
			Key: q.prefix, RangeEnd: prefixEnd(q.prefix), Limit: 1, MaxCreateRevision: before - 1,
			SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_CREATE,
		})
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		if err := q.waitDeleted(ctx, resp.Kvs[0].Key, resp.Header.Revision+1); err != nil {
			return err
		}
	}
}

func (q queue) waitDeleted(ctx context.Context, key []byte, from int64) error {
	w, err := q.store.Watch(ctx, raftstore.WatchOptions{Key: key, StartRevision: from})
	if err != nil {
		return err
	}
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range b.Events {
			if e.Type == mvccpb.Event_DELETE {
				return nil
			}
		}
	}
}

// leave gives up a place although the caller may be gone.
func (q queue) leave(ctx context.Context, key []byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUp)
	defer cancel()
	if _, err := q.store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}); err != nil {
		q.log.Warn("a place in a queue stays until its lease ends", "key", string(key), "err", err)
	}
}

type lockService struct {
	lockpb.UnimplementedLockServer
	*Server
}

func (s lockService) Lock(ctx context.Context, req *lockpb.LockRequest) (*lockpb.LockResponse, error) {
	lease, err := s.lease(ctx, req.Lease)
	if err != nil {
		return nil, err
	}
	q := s.queue(req.Name)
	key, _, created, err := q.enter(ctx, lease, nil)
	if err != nil {
		return nil, err
	}
	if err := q.wait(ctx, created); err != nil {
		q.leave(ctx, key)
		return nil, err
	}
	// The lease may have ended while others had their turn.
	resp, err := s.store.Range(ctx, &pb.RangeRequest{Key: key})
	if err != nil {
		q.leave(ctx, key)
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, errSessionExpired
	}
	return &lockpb.LockResponse{Header: resp.Header, Key: key}, nil
}

func (s lockService) Unlock(ctx context.Context, req *lockpb.UnlockRequest) (*lockpb.UnlockResponse, error) {
	resp, err := s.store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: req.Key})
	if err != nil {
		return nil, err
	}
	return &lockpb.UnlockResponse{Header: resp.Header}, nil
}

type electionService struct {
	electionpb.UnimplementedElectionServer
	*Server
}

func (s electionService) Campaign(ctx context.Context, req *electionpb.CampaignRequest) (*electionpb.CampaignResponse, error) {
	lease, err := s.lease(ctx, req.Lease)
	if err != nil {
		return nil, err
	}
	q := s.queue(req.Name)
	key, resp, created, err := q.enter(ctx, lease, req.Value)
	if err != nil {
		return nil, err
	}
	leader := &electionpb.LeaderKey{Name: req.Name, Key: key, Rev: created, Lease: lease}
	if !resp.Succeeded && !bytes.Equal(resp.Responses[0].GetResponseRange().Kvs[0].Value, req.Value) {
		if _, err := s.proclaim(ctx, leader, req.Value); err != nil {
			q.leave(ctx, key)
			return nil, err
		}
	}
	if err := q.wait(ctx, created); err != nil {
		if ctx.Err() != nil {
			q.leave(ctx, key)
		}
		return nil, err
	}
	return &electionpb.CampaignResponse{Header: resp.Header, Leader: leader}, nil
}

// stillLeads is true in a transaction while the key of a leader is the one that
// was elected.
func stillLeads(l *electionpb.LeaderKey) []*pb.Compare {
	return []*pb.Compare{{Key: l.Key, Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: l.Rev}}}
}

func (s electionService) proclaim(ctx context.Context, l *electionpb.LeaderKey, value []byte) (*pb.ResponseHeader, error) {
	resp, err := s.store.Txn(ctx, &pb.TxnRequest{
		Compare: stillLeads(l),
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: l.Key, Value: value, Lease: l.Lease}}}},
	})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, errNotElected
	}
	return resp.Header, nil
}

func (s electionService) Proclaim(ctx context.Context, req *electionpb.ProclaimRequest) (*electionpb.ProclaimResponse, error) {
	if req.Leader == nil {
		return nil, errMissingLeader
	}
	h, err := s.proclaim(ctx, req.Leader, req.Value)
	if err != nil {
		return nil, err
	}
	return &electionpb.ProclaimResponse{Header: h}, nil
}

func (s electionService) Resign(ctx context.Context, req *electionpb.ResignRequest) (*electionpb.ResignResponse, error) {
	if req.Leader == nil {
		return nil, errMissingLeader
	}
	resp, err := s.store.Txn(ctx, &pb.TxnRequest{
		Compare: stillLeads(req.Leader),
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: req.Leader.Key}}}},
	})
	if err != nil {
		return nil, err
	}
	return &electionpb.ResignResponse{Header: resp.Header}, nil
}

func (s electionService) Leader(ctx context.Context, req *electionpb.LeaderRequest) (*electionpb.LeaderResponse, error) {
	kv, h, err := s.queue(req.Name).first(ctx)
	if err != nil {
		return nil, err
	}
	if kv == nil {
		return nil, errElectionNoLeader
	}
	return &electionpb.LeaderResponse{Header: h, Kv: kv}, nil
}

// Observe tells who leads now, and each change of that or of what it proclaims.
func (s electionService) Observe(req *electionpb.LeaderRequest, stream grpc.ServerStreamingServer[electionpb.LeaderResponse]) error {
	ctx, err := s.identify(stream.Context())
	if err != nil {
		return err
	}
	q := s.queue(req.Name)
	var told int64
	for {
		kv, h, err := q.first(ctx)
		if err != nil {
			return err
		}
		if kv != nil && kv.ModRevision != told {
			told = kv.ModRevision
			if err := stream.Send(&electionpb.LeaderResponse{Header: h, Kv: kv}); err != nil {
				return err
			}
		}
		w, err := s.store.Watch(ctx, raftstore.WatchOptions{Key: q.prefix, RangeEnd: prefixEnd(q.prefix), StartRevision: h.Revision + 1})
		if err != nil {
			return err
		}
		if _, err := w.Next(ctx); err != nil && !errors.Is(err, raftstore.ErrCompacted) {
			return err
		}
	}
}
