package objcache

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Store is what the cache reads.
type Store interface {
	Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error)
	Watch(ctx context.Context, req WatchRequest) (Watcher, error)
}

// WatchRequest asks for the events of the keys in [Key, End) from revision
// Start on.
type WatchRequest struct {
	Key, End []byte
	Start    int64
	PrevKV   bool
}

// Watcher yields events in revision order.
type Watcher interface {
	// Next waits for the next batch. It returns ErrCompacted when Start, or a
	// revision the watcher still had to read, was compacted.
	Next(ctx context.Context) (Batch, error)
	Close()
}

// Batch holds all events of the revisions it covers: a revision is never
// split over two batches.
type Batch struct {
	// Revision is the newest revision that the batch covers.
	Revision int64
	Events   []*mvccpb.Event
}

// ErrCompacted says that the history asked for is gone.
var ErrCompacted = errors.New("required revision has been compacted")
