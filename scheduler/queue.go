package scheduler

import (
	"container/heap"
	"sync"
	"time"
)

// How long a Pod that did not fit waits after something changed, as upstream:
// doubling, so that a Pod that never fits costs little.
const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
)

type place int

const (
	nowhere place = iota
	inActive
	inBackoff
	inUnschedulable
	inFlight
)

// waiting is a Pod without a node. Its fields are guarded by the queue.
type waiting struct {
	info     *podInfo
	since    time.Time // first added: the older first
	attempts int
	until    time.Time // end of its backoff
	helps    cause     // what would bring it back
	seen     cause     // what happened while it was in flight
	place    place
	index    int
}

// queue holds the Pods that wait. It never blocks.
type queue struct {
	wake chan struct{} // cap 1: look again

	mu      sync.Mutex
	items   map[string]*waiting
	active  byPriority
	backoff byTime
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), items: map[string]*waiting{}}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// add takes a new Pod in, or a newer state of one. changed says that the Pod
// itself changed in a way that may make it fit.
func (q *queue) add(p *podInfo, now time.Time, changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.items[p.key]
	if w == nil {
		w = &waiting{info: p, since: now}
		q.items[p.key] = w
		q.activate(w)
		return
	}
	if w.info.pod.UID != p.pod.UID {
		w.attempts, w.since, changed = 0, now, true
	}
	w.info = p
	switch {
	case w.place == inActive:
		heap.Fix(&q.active, w.index)
	case !changed:
	case w.place == inFlight:
		w.seen = anything
	default:
		q.activate(w)
	}
}

// remove drops a Pod that has a node or is gone.
func (q *queue) remove(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.items[key]; w != nil {
		q.takeOut(w)
		w.place = nowhere
		delete(q.items, key)
	}
}

// takeOut and activate are called with mu held.
func (q *queue) takeOut(w *waiting) {
	switch w.place {
	case inActive:
		heap.Remove(&q.active, w.index)
	case inBackoff:
		heap.Remove(&q.backoff, w.index)
	}
}

func (q *queue) activate(w *waiting) {
	q.takeOut(w)
	w.place = inActive
	heap.Push(&q.active, w)
	q.signal()
}

// pop takes the Pod that is next. Without one, wait is when a backoff ends,
// zero if none does.
func (q *queue) pop(now time.Time) (w *waiting, info *podInfo, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.backoff) > 0 && !q.backoff[0].until.After(now) {
		q.activate(q.backoff[0])
	}
	if len(q.active) > 0 {
		w := heap.Pop(&q.active).(*waiting)
		w.place, w.seen = inFlight, 0
		w.attempts++
		return w, w.info, 0
	}
	if len(q.backoff) > 0 {
		return nil, nil, q.backoff[0].until.Sub(now)
	}
	return nil, nil, 0
}

// park puts a Pod that did not fit where it waits for what helps. If that
// happened while it was in flight it waits for the end of its backoff only.
func (q *queue) park(w *waiting, helps cause, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.place != inFlight {
		return // removed meanwhile
	}
	w.until = now.Add(backoffOf(w.attempts))
	w.helps = helps
	if w.seen&helps != 0 {
		q.delay(w)
		return
	}
	w.place = inUnschedulable
}

// await puts a Pod where it waits for what it was decided to need, without a backoff:
// that was no failure.
func (q *queue) await(w *waiting, helps cause) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.place != inFlight {
		return // removed meanwhile
	}
	w.attempts, w.until, w.helps = 0, time.Time{}, helps
	if w.seen&helps != 0 {
		q.activate(w)
		return
	}
	w.place = inUnschedulable
}

// retry puts a Pod back whose attempt failed for no reason of its own.
func (q *queue) retry(w *waiting, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.place == inFlight {
		w.until = now.Add(backoffOf(w.attempts))
		q.delay(w)
	}
}

// delay is called with mu held.
func (q *queue) delay(w *waiting) {
	w.place = inBackoff
	heap.Push(&q.backoff, w)
	q.signal()
}

func backoffOf(attempts int) time.Duration {
	if attempts > 4 {
		return maxBackoff
	}
	return min(firstBackoff<<(attempts-1), maxBackoff)
}

// happened brings back the Pods that a change may help.
func (q *queue) happened(c cause, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.items {
		switch {
		case w.place == inFlight:
			w.seen |= c
		case w.place != inUnschedulable || w.helps&c == 0:
		case w.until.After(now):
			q.delay(w)
		default:
			q.activate(w)
		}
	}
}

// byPriority is a heap: higher priority first, then who waits longer.
type byPriority []*waiting

func (h byPriority) Len() int { return len(h) }
func (h byPriority) Less(i, j int) bool {
	if a, b := h[i].info.priority, h[j].info.priority; a != b {
		return a > b
	}
	return h[i].since.Before(h[j].since)
}
func (h byPriority) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *byPriority) Push(x any)   { w := x.(*waiting); w.index = len(*h); *h = append(*h, w) }
func (h *byPriority) Pop() any     { return popLast((*[]*waiting)(h)) }

// byTime is a heap: the first to end its backoff first.
type byTime []*waiting

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h byTime) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *byTime) Push(x any)        { w := x.(*waiting); w.index = len(*h); *h = append(*h, w) }
func (h *byTime) Pop() any          { return popLast((*[]*waiting)(h)) }

func popLast(h *[]*waiting) any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}
