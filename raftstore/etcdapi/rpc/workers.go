package rpc

import (
	"sync"
	"time"
)

// idleFor is how long a worker that has nothing to do stays.
const idleFor = 2 * time.Second

// workers are goroutines that answer calls and stay for the next one: what their
// stacks have grown to need not grow again.
type workers struct {
	mu   sync.Mutex
	idle []chan *stream // the last to come is the first to go
	// least is the smallest number of idle ones since the last look: so many were
	// of no use.
	least   int
	looking *time.Timer // nil while none is idle
	closed  bool
}

func (w *workers) do(st *stream) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.mu.Unlock()
		go w.run(st)
		return
	}
	next := w.idle[n-1]
	w.idle = w.idle[:n-1]
	w.least = min(w.least, n-1)
	w.mu.Unlock()
	next <- st
}

func (w *workers) run(st *stream) {
	next := make(chan *stream, 1)
	for st != nil {
		st.serve()
		if !w.wait(next) {
			return
		}
		st = <-next
	}
}

// wait lists a worker as idle.
func (w *workers) wait(next chan *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.idle = append(w.idle, next)
	if w.looking == nil {
		w.least = 0
		w.looking = time.AfterFunc(idleFor, w.look)
	}
	return true
}

// look ends the workers that were idle all the time since it looked last.
func (w *workers) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	n := min(w.least, len(w.idle))
	for _, next := range w.idle[:n] {
		close(next)
	}
	w.idle = append([]chan *stream(nil), w.idle[n:]...)
	w.least = len(w.idle)
	if w.least > 0 {
		w.looking.Reset(idleFor)
	} else {
		w.looking = nil
	}
}

// close ends the idle ones; no handler runs any more.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.looking != nil {
		w.looking.Stop()
	}
	for _, next := range w.idle {
		close(next)
	}
	w.idle = nil
}
