package etcdapi

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// leaders ends streams whose clients insist on a leader when there has been none
// for a while, as etcd does: three election timeouts.
type leaders struct {
	mu     sync.Mutex
	nextID int
	ends   map[int]context.CancelCauseFunc // guarded by mu
}

func (l *leaders) follow(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	id := l.nextID
	l.nextID++
	l.ends[id] = cancel
	l.mu.Unlock()
	return ctx, func() {
		l.mu.Lock()
		delete(l.ends, id)
		l.mu.Unlock()
		cancel(nil)
	}
}

func (l *leaders) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, cancel := range l.ends {
		cancel(rpctypes.ErrGRPCNoLeader)
	}
	clear(l.ends)
}

// watchLeaders sleeps while there is a leader.
func (s *Server) watchLeaders(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.store.Done():
			return
		case <-s.store.LeaderLost():
		}
		for misses := 0; s.store.Leader() == 0; misses++ {
			if misses == 3 {
				s.leaders.end()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(s.cfg.ElectionTimeout):
			}
		}
	}
}
