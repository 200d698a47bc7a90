package registry

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apimachinery/pkg/runtime"
)

// leaseReuse is for how long objects with a TTL share a lease: a lease is an
// entry in the log, so that one per event would double what events write. An
// object may live this much longer than its TTL.
const leaseReuse = 5 * time.Minute

// leaser hands out leases for objects that vanish.
type leaser struct {
	mu   sync.Mutex
	last map[int64]sharedLease // by TTL in seconds
}

type sharedLease struct {
	id      int64
	renewAt time.Time
}

func (l *leaser) get(ctx context.Context, store Store, ttlSeconds int64, now time.Time) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.last[ttlSeconds]; ok && now.Before(s.renewAt) {
		return s.id, nil
	}
	resp, err := store.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttlSeconds + int64(leaseReuse.Seconds())})
	if err != nil {
		return 0, storeError(err)
	}
	if l.last == nil {
		l.last = make(map[int64]sharedLease)
	}
	l.last[ttlSeconds] = sharedLease{id: resp.ID, renewAt: now.Add(leaseReuse)}
	return resp.ID, nil
}

// lease is the lease under which obj is written; 0: it stays.
func (r *Registry) lease(c *call, obj runtime.Object) (int64, error) {
	if c.kind.TTL == nil {
		return 0, nil
	}
	ttl := c.kind.TTL(obj)
	if ttl <= 0 {
		return 0, nil
	}
	return r.leases.get(c.ctx, r.store, ttl, time.Now())
}
