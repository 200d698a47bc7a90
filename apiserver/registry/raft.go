package registry

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore"
)

// FromRaft makes a Store of this device's replica.
func FromRaft(s *raftstore.Store) Store { return raftStore{s} }

type raftStore struct{ *raftstore.Store }

func (s raftStore) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.Store.Range(ctx, req)
	return resp, compacted(err)
}

func (s raftStore) Watch(ctx context.Context, req WatchRequest) (Watcher, error) {
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
