package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// minLeaseTTL is what a grant of less is raised to, in seconds: etcd's bound
// for its default election timeout.
const minLeaseTTL = 2

// lessor decides on the leader when leases end. Deadlines are in memory and on
// the monotonic clock: a clock that jumps ends no lease, and a new leader gives
// every lease its time again, and the time of an election on top, so none ends
// early.
type lessor struct {
	s    *Store
	wake chan struct{}

	mu sync.Mutex
	// guarded by mu
	leading   bool
	deadlines map[int64]time.Time
}

func newLessor(s *Store) *lessor {
	return &lessor{s: s, wake: make(chan struct{}, 1), deadlines: map[int64]time.Time{}}
}

// applied sees every entry that is applied: the leader must know leases that
// were granted through other members.
func (l *lessor) applied(req *pb.InternalRaftRequest, _ proto.Message, err error) {
	if err != nil {
		return
	}
	if g := req.GetLeaseGrant(); g != nil {
		l.s.counters.granted.Add(1)
		l.s.counters.ttl.Observe(seconds(g.TTL))
		l.set(g.ID, seconds(g.TTL))
	} else if r := req.GetLeaseRevoke(); r != nil {
		l.s.counters.revoked.Add(1)
		l.mu.Lock()
		delete(l.deadlines, r.ID)
		l.mu.Unlock()
	}
}

func seconds(n int64) time.Duration { return time.Duration(min(n, maxLeaseTTL)) * time.Second }

// set gives a lease its time, from now.
func (l *lessor) set(id int64, left time.Duration) {
	l.mu.Lock()
	if l.leading {
		l.deadlines[id] = time.Now().Add(left)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// renewHere gives a lease its time again, on the leader.
func (l *lessor) renewHere(id int64) (ttl int64, err error) {
	le, ok := l.s.db.Lease(id, false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leading {
		return 0, ErrNotLeader
	}
	deadline, known := l.deadlines[id]
	if !ok || !known || !deadline.After(time.Now()) {
		return 0, ErrLeaseNotFound // or over, and about to be revoked
	}
	// Later than before: whoever sleeps until the old deadline finds out.
	l.deadlines[id] = time.Now().Add(seconds(le.TTL))
	l.s.counters.renewed.Add(1)
	return le.TTL, nil
}

// remainingHere is how long a lease has left, on the leader.
func (l *lessor) remainingHere(id int64) (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leading {
		return 0, ErrNotLeader
	}
	deadline, ok := l.deadlines[id]
	if !ok {
		return 0, ErrLeaseNotFound
	}
	return max(time.Until(deadline), 0), nil
}

// run revokes leases when their time is over, while this member leads. It
// sleeps until the next one ends; without leases it sleeps.
func (l *lessor) run(ctx context.Context) {
	l.lead(true)
	defer l.lead(false)
	timer := time.NewTimer(0)
	defer timer.Stop()
	checkpoint := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		next := l.expire(ctx)
		if every := l.s.cfg.LeaseCheckpoint; every > 0 && next > 0 {
			if time.Since(checkpoint) >= every {
				checkpoint = time.Now()
				l.checkpoint(ctx)
			}
			next = min(next, time.Until(checkpoint.Add(every)))
		}
		timer.Stop()
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// lead begins and ends a time of leadership.
func (l *lessor) lead(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leading = on
	clear(l.deadlines)
	if !on {
		return
	}
	extra := time.Duration(0)
	if !l.s.node.view().alone(l.s.member) {
		extra = l.s.election()
	}
	now := time.Now()
	for _, le := range l.s.db.Leases() {
		l.deadlines[le.ID] = now.Add(seconds(le.Seconds) + extra)
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
	slices.Sort(over)
	for _, id := range over {
		_, err := l.s.propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
		switch {
		case err == nil: // forgotten when it was applied
			l.s.counters.expired.Add(1)
		case errors.Is(err, ErrLeaseNotFound):
			l.mu.Lock()
			delete(l.deadlines, id)
			l.mu.Unlock()
		case ctx.Err() == nil:
			next = time.Second // a full disk: try again
		}
	}
	return next
}

// checkpoint writes down how long leases have left.
func (l *lessor) checkpoint(ctx context.Context) {
	req := &pb.LeaseCheckpointRequest{}
	l.mu.Lock()
	for id, d := range l.deadlines {
		if left := int64(time.Until(d) / time.Second); left > 0 {
			req.Checkpoints = append(req.Checkpoints, &pb.LeaseCheckpoint{ID: id, Remaining_TTL: left})
		}
	}
	l.mu.Unlock()
	if len(req.Checkpoints) == 0 {
		return
	}
	if _, err := l.s.propose(ctx, &pb.InternalRaftRequest{LeaseCheckpoint: req}); err != nil && ctx.Err() == nil {
		l.s.log.Warn("how long leases have left was not written down", "err", err)
	}
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
	return propose[*pb.LeaseGrantResponse](ctx, s, &pb.InternalRaftRequest{LeaseGrant: req})
}

// LeaseRevoke ends a lease and deletes its keys.
func (s *Store) LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return propose[*pb.LeaseRevokeResponse](ctx, s, &pb.InternalRaftRequest{LeaseRevoke: req})
}

// LeaseRenew gives a lease its full time again and returns its TTL in seconds.
func (s *Store) LeaseRenew(ctx context.Context, id int64) (ttl int64, err error) {
	out, err := s.askLeader(ctx, callLeaseRenew, uint64(id), func() (uint64, error) {
		ttl, err := s.lessor.renewHere(id)
		return uint64(ttl), err
	})
	return int64(out), err
}

// LeaseTimeToLive tells how long a lease has left.
func (s *Store) LeaseTimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	left, err := s.askLeader(ctx, callLeaseTTL, uint64(req.ID), func() (uint64, error) {
		left, err := s.lessor.remainingHere(req.ID)
		return uint64(left), err
	})
	if err != nil && !errors.Is(err, ErrLeaseNotFound) {
		return nil, err
	}
	gone := err != nil
	if err := s.node.mayRead(ctx); err != nil {
		return nil, err
	}
	rev, _ := s.db.Revision()
	resp := &pb.LeaseTimeToLiveResponse{Header: &pb.ResponseHeader{Revision: rev}, ID: req.ID, TTL: -1}
	s.header(resp.Header)
	if l, ok := s.db.Lease(req.ID, req.Keys); ok && !gone {
		resp.GrantedTTL, resp.TTL, resp.Keys = l.TTL, int64(time.Duration(left)/time.Second), l.Keys
	}
	return resp, nil
}

// LeaseLeases lists all leases.
func (s *Store) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if err := s.node.mayRead(ctx); err != nil {
		return nil, err
	}
	rev, _ := s.db.Revision()
	resp := &pb.LeaseLeasesResponse{Header: &pb.ResponseHeader{Revision: rev}}
	s.header(resp.Header)
	for _, l := range s.db.Leases() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: l.ID})
	}
	return resp, nil
}
