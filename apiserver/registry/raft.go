package registry

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore"
)

// FromRaft makes a Store of this device's replica.
func FromRaft(s *raftstore.Store) Store { return &raftStore{Store: s, born: time.Now()} }

// leaderWait is how long a read waits for a leader before it is answered from
// this device's own replica: longer than an election.
const leaderWait = 2 * time.Second

type raftStore struct {
	*raftstore.Store
	born time.Time
	// leaderless is since when reads found no leader, as the time since born, which
	// nobody sets; 0 if there was one.
	leaderless atomic.Int64
}

// ReadIndex implements Store. While there is no leader only the first reads wait
// for one.
func (s *raftStore) ReadIndex(ctx context.Context) (int64, error) {
	if s.Leader() != 0 {
		s.leaderless.Store(0)
		revision, err := s.Store.ReadIndex(ctx)
		if err == nil || ctx.Err() != nil || s.Leader() != 0 {
			return revision, err
		}
	}
	now := time.Since(s.born)
	s.leaderless.CompareAndSwap(0, int64(now))
	left := leaderWait - (now - time.Duration(s.leaderless.Load()))
	if left <= 0 {
		return 0, ErrNoQuorum
	}
	wait, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	revision, err := s.Store.ReadIndex(wait)
	if err != nil && ctx.Err() == nil {
		return 0, ErrNoQuorum
	}
	return revision, err
}

// txnWait is how long a write may take before its caller has to look again what
// became of it: longer than an SD card stalls, and than an election.
const txnWait = 30 * time.Second

// Txn implements Store. No caller waits for ever, whatever its context.
func (s *raftStore) Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	resp, err := s.Store.Txn(ctx, req)
	if errors.Is(err, raftstore.ErrNoLeader) {
		err = ErrNoQuorum
	}
	return resp, err
}

func (s *raftStore) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.Store.Range(ctx, req)
	return resp, compacted(err)
}

func (s *raftStore) Watch(ctx context.Context, req WatchRequest) (Watcher, error) {
	w, err := s.Store.Watch(ctx, raftstore.WatchOptions{Key: req.Key, RangeEnd: req.End, StartRevision: req.Start, PrevKV: req.PrevKV})
	if err != nil {
		return nil, err
	}
	return raftWatcher(func(ctx context.Context) (int64, []*mvccpb.Event, error) {
		b, err := w.Next(ctx)
		return b.Revision, b.Events, err
	}), nil
}

// raftWatcher is the store's watcher, which needs no Close.
type raftWatcher func(ctx context.Context) (int64, []*mvccpb.Event, error)

func (w raftWatcher) Next(ctx context.Context) (Batch, error) {
	revision, events, err := w(ctx)
	return Batch{Revision: revision, Events: events}, compacted(err)
}

func (raftWatcher) Close() {}

func compacted(err error) error {
	if errors.Is(err, raftstore.ErrCompacted) {
		return ErrCompacted
	}
	return err
}
