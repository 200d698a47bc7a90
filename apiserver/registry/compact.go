package registry

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// CompactionInterval is upstream's: history reaches back between one and two
// of it.
const CompactionInterval = 5 * time.Minute

// Compacter is the part of the store that RunCompaction drives.
type Compacter interface {
	ReadIndex(ctx context.Context) (int64, error)
	Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error)
}

// RunCompaction forgets history that is older than interval, until ctx ends.
// One device, the leader, runs it. A store that nobody writes to is left alone,
// so that an idle cluster writes nothing.
func (r *Registry) RunCompaction(ctx context.Context, s Compacter, interval time.Duration) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	var before, compacted int64 // the revision one interval ago; the last compacted
	for {
		now, err := s.ReadIndex(ctx)
		if err == nil && before > compacted && before < now {
			if _, err = s.Compact(ctx, &pb.CompactionRequest{Revision: before}); err == nil {
				compacted = before
			}
		}
		if err != nil && ctx.Err() == nil {
			r.logger.Warn("history could not be compacted, trying again later", "rev", before, "err", err)
		}
		before = max(before, now)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
