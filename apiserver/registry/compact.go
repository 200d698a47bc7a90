package registry

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// CompactionInterval is upstream's: history reaches back between one and two
// of it.
const CompactionInterval = 5 * time.Minute

// littleHistory is how many revisions a store that nobody writes to may keep for longer
// than that: about 1 MB. Nobody reads them (a list's continue token ends by time), and
// forgetting them at once would be the only thing that an idle card is written for.
const littleHistory = 1000

// Compacter is the part of the store that RunCompaction drives.
type Compacter interface {
	ReadIndex(ctx context.Context) (int64, error)
	Revision() (current, compacted int64)
	Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error)
}

// RunCompaction forgets history that is older than interval, until ctx ends.
// One device, the leader, runs it. A store that nobody writes to is left alone,
// so that an idle cluster writes nothing: what is due waits for the next write unless
// it is much.
func (r *Registry) RunCompaction(ctx context.Context, s Compacter, interval time.Duration) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	var before int64 // the revision one interval ago
	for {
		now, err := s.ReadIndex(ctx)
		if err == nil {
			err = r.compactIfDue(ctx, s, before, now, interval)
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

// compactIfDue returns within about interval.
func (r *Registry) compactIfDue(ctx context.Context, s Compacter, before, now int64, interval time.Duration) error {
	_, compacted := s.Revision()
	if before <= compacted || before >= now {
		return nil
	}
	if before-compacted < littleHistory {
		idle, cancel := context.WithTimeout(ctx, interval)
		defer cancel()
		if r.cache.WaitFor(idle, now+1) != nil {
			return nil // nobody wrote: the next interval decides anew
		}
	}
	_, err := s.Compact(ctx, &pb.CompactionRequest{Revision: before})
	return err
}
