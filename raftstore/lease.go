package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
)

// minLeaseTTL is what a grant of less is raised to, in seconds: etcd's bound
// for its default election timeout.
const minLeaseTTL = 2

// lessor decides on the leader when leases end. Deadlines are in memory and on
// the monotonic clock: a clock that jumps ends no lease, and a new leader gives
// every lease its full time again, so none ends early.
type lessor struct {
	db      *mvcc.DB
	propose func(context.Context, *pb.InternalRaftRequest) (proto.Message, error)
	wake    chan struct{}

	mu        sync.Mutex
	deadlines map[int64]time.Time // guarded by mu
}

func newLessor(db *mvcc.DB, propose func(context.Context, *pb.InternalRaftRequest) (proto.Message, error)) *lessor {
	return &lessor{db: db, propose: propose, wake: make(chan struct{}, 1), deadlines: map[int64]time.Time{}}
}

// renew gives the lease its time again, from now.
func (l *lessor) renew(id, seconds int64) {
	l.mu.Lock()
	l.deadlines[id] = time.Now().Add(time.Duration(min(seconds, 1<<33)) * time.Second)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lessor) forget(id int64) {
	l.mu.Lock()
	delete(l.deadlines, id)
	l.mu.Unlock()
}

func (l *lessor) remaining(id int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.deadlines[id])
}

// run revokes leases when their time is over. It sleeps until the next one
// ends; without leases it sleeps.
func (l *lessor) run(ctx context.Context) {
	for _, le := range l.db.Leases() {
		l.renew(le.ID, le.Seconds)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		next := l.expire(ctx)
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// expire revokes what is over and returns the time until the next end, 0 for
// none.
func (l *lessor) expire(ctx context.Context) (next time.Duration) {
	var over []int64
	l.mu.Lock()
	for id, d := range l.deadlines {
		left := time.Until(d)
		if left <= 0 {
			over = append(over, id)
		} else if next == 0 || left < next {
			next = left
		}
	}
	l.mu.Unlock()
	for _, id := range over {
		_, err := l.propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
		if err == nil || err == ErrLeaseNotFound {
			l.forget(id)
		} else if ctx.Err() == nil {
			next = time.Second // a full disk: try again
		}
	}
	return next
}

// LeaseGrant makes a lease, with an id of its own choice if req.ID is 0.
func (s *Store) LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if req.TTL > maxLeaseTTL {
		return nil, ErrLeaseTTLTooLong
	}
	req = &pb.LeaseGrantRequest{TTL: max(req.TTL, minLeaseTTL), ID: req.ID}
	for req.ID == 0 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, err
		}
		req.ID = int64(binary.BigEndian.Uint64(b[:]) >> 1)
	}
	resp, err := propose[*pb.LeaseGrantResponse](ctx, s, &pb.InternalRaftRequest{LeaseGrant: req})
	if err != nil {
		return nil, err
	}
	s.lessor.renew(resp.ID, resp.TTL)
	return resp, nil
}

// LeaseRevoke ends a lease and deletes its keys.
func (s *Store) LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	resp, err := propose[*pb.LeaseRevokeResponse](ctx, s, &pb.InternalRaftRequest{LeaseRevoke: req})
	if err == nil {
		s.lessor.forget(req.ID)
	}
	return resp, err
}

// LeaseRenew gives a lease its full time again and returns its TTL in seconds.
func (s *Store) LeaseRenew(_ context.Context, id int64) (ttl int64, err error) {
	l, ok := s.db.Lease(id, false)
	if !ok {
		return 0, ErrLeaseNotFound
	}
	s.lessor.renew(id, l.TTL)
	return l.TTL, nil
}

// LeaseTimeToLive tells how long a lease has left.
func (s *Store) LeaseTimeToLive(_ context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	rev, _ := s.db.Revision()
	resp := &pb.LeaseTimeToLiveResponse{Header: &pb.ResponseHeader{Revision: rev}, ID: req.ID, TTL: -1}
	s.header(resp.Header)
	if l, ok := s.db.Lease(req.ID, req.Keys); ok {
		resp.GrantedTTL, resp.TTL, resp.Keys = l.TTL, int64(s.lessor.remaining(req.ID)/time.Second), l.Keys
	}
	return resp, nil
}

// LeaseLeases lists all leases.
func (s *Store) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	rev, _ := s.db.Revision()
	resp := &pb.LeaseLeasesResponse{Header: &pb.ResponseHeader{Revision: rev}}
	s.header(resp.Header)
	for _, l := range s.db.Leases() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: l.ID})
	}
	return resp, nil
}
