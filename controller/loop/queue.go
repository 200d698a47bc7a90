package loop

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// firstBackoff is upstream's; a lost race is over by then.
	firstBackoff = 5 * time.Millisecond
	// maxBackoff is shorter than upstream's 1000 s: a device that came back
	// from an island must not wait a quarter of an hour for its controllers.
	maxBackoff = 5 * time.Minute
	// defaultWorkers bounds the writes that one controller has under way. The
	// store commits them together, so a few are worth more than one.
	defaultWorkers = 4
)

// Config is what NewQueue needs.
type Config struct {
	// Name of the controller, for the log.
	Name string
	// Workers is how many keys may be worked on at once; 4 if zero.
	Workers int
	// Reconcile brings the world of one key into order. A positive again runs
	// it once more after that time.
	Reconcile func(ctx context.Context, key string) (again time.Duration, err error)
	Logger    *slog.Logger
}

// Queue holds keys until they are worked on.
type Queue struct {
	cfg  Config
	wake chan struct{} // cap 1: a look at the state is due

	mu    sync.Mutex
	items map[string]*item
	ready []*item // in order of arrival
	later delayed // by due time
	busy  int
}

// item is a key that is ready, delayed, running or failing.
type item struct {
	key      string
	ready    bool // in Queue.ready
	running  bool
	again    bool      // added while running
	due      time.Time // in Queue.later if not zero
	index    int       // in Queue.later
	failures int
}

// NewQueue returns a queue that works once Run is called.
func NewQueue(cfg Config) *Queue {
	if cfg.Workers == 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Queue{cfg: cfg, wake: make(chan struct{}, 1), items: map[string]*item{}}
}

// Add makes the key due now.
func (q *Queue) Add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.push(q.item(key))
}

// AddAfter makes the key due in d, or earlier if it already was to be.
func (q *Queue) AddAfter(key string, d time.Duration) {
	if d <= 0 {
		q.Add(key)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.item(key)
	if !it.ready {
		q.delay(it, time.Now().Add(d))
	}
}

// Len is the number of keys that are waiting, running or failing.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func (q *Queue) item(key string) *item {
	it := q.items[key]
	if it == nil {
		it = &item{key: key}
		q.items[key] = it
	}
	return it
}

// push and delay are called with mu held.
func (q *Queue) push(it *item) {
	if it.ready {
		return
	}
	if !it.due.IsZero() {
		heap.Remove(&q.later, it.index)
		it.due = time.Time{}
	}
	if it.running {
		it.again = true
		return
	}
	it.ready = true
	q.ready = append(q.ready, it)
	q.signal()
}

func (q *Queue) delay(it *item, due time.Time) {
	switch {
	case it.due.IsZero():
		it.due = due
		heap.Push(&q.later, it)
	case due.Before(it.due):
		it.due = due
		heap.Fix(&q.later, it.index)
	default:
		return
	}
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Run works on keys until ctx ends and returns when nothing runs any more.
func (q *Queue) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		for it := q.next(timer); it != nil; it = q.next(timer) {
			workers.Go(func() { q.work(ctx, it) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// next takes a key to work on, or sets the timer for when one is due.
func (q *Queue) next(timer *time.Timer) *item {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(q.later) > 0 && !q.later[0].due.After(now) {
		q.push(q.later[0])
	}
	if len(q.later) > 0 {
		timer.Reset(q.later[0].due.Sub(now))
	} else {
		timer.Stop()
	}
	if len(q.ready) == 0 || q.busy == q.cfg.Workers {
		return nil
	}
	it := q.ready[0]
	q.ready[0] = nil
	if q.ready = q.ready[1:]; len(q.ready) == 0 {
		q.ready = nil
	}
	it.ready, it.running = false, true
	q.busy++
	return it
}

func (q *Queue) work(ctx context.Context, it *item) {
	again, err := q.cfg.Reconcile(ctx, it.key)
	if err != nil && ctx.Err() == nil {
		level := slog.LevelWarn
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
			level = slog.LevelDebug // the cache will show what changed
		}
		q.cfg.Logger.Log(ctx, level, "reconciling failed", "controller", q.cfg.Name, "key", it.key, "err", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.signal()
	q.busy--
	it.running = false
	if err != nil {
		it.failures++
		q.delay(it, time.Now().Add(Backoff(it.failures)))
	} else {
		it.failures = 0
		if again > 0 {
			q.delay(it, time.Now().Add(again))
		}
	}
	if it.again {
		it.again = false
		q.push(it)
	}
	if !it.ready && it.due.IsZero() {
		delete(q.items, it.key)
	}
}

// Backoff is the time to wait after that many failures in a row.
func Backoff(failures int) time.Duration {
	if failures > 16 { // 5 ms × 2^16 = 327 s
		return maxBackoff
	}
	return min(firstBackoff<<(failures-1), maxBackoff)
}

// delayed is a heap of items by due time.
type delayed []*item

func (d delayed) Len() int           { return len(d) }
func (d delayed) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d delayed) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *delayed) Push(x any) {
	it := x.(*item)
	it.index = len(*d)
	*d = append(*d, it)
}

func (d *delayed) Pop() any {
	last := len(*d) - 1
	it := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return it
}
