package main

import (
	"context"
	goruntime "runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"time"
)

const (
	// busyHeadroom is how far the heap of a store may grow between two collections
	// while these follow each other. By gcPercent alone a store of a few megabytes
	// collects a dozen times a second under load, for a third of its time.
	busyHeadroom = 24 << 20
	// busyWithin is how soon one collection follows another under load.
	busyWithin = 2 * time.Second
	// quietFor is after how long without one the load is over: then what it took
	// is given back.
	quietFor = 5 * time.Second
)

// pacer lets the heap grow while the store is busy, and gives memory back when it
// is not any more. It is woken by collections, so that an idle process stays so.
type pacer struct {
	collected chan struct{}
	percent   int // what is set
	base      int
}

// sentinel is garbage from its birth: its end is a collection's.
type sentinel struct{ *pacer }

func newPacer(base int) *pacer {
	p := &pacer{collected: make(chan struct{}, 1), percent: base, base: base}
	p.arm()
	return p
}

func (p *pacer) arm() {
	goruntime.AddCleanup(&sentinel{p}, func(p *pacer) {
		p.arm()
		select {
		case p.collected <- struct{}{}:
		default:
		}
	}, p)
}

// run ends with ctx. release gives memory back.
func (p *pacer) run(ctx context.Context, release func(context.Context) error, failed func(error)) {
	quiet := time.NewTimer(quietFor)
	quiet.Stop()
	defer quiet.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.collected:
			now := time.Now()
			if now.Sub(last) < busyWithin {
				p.set(busyPercent(p.base))
				quiet.Reset(quietFor)
			}
			last = now
		case <-quiet.C:
			// The collection that this makes is too late after the last one to be
			// taken for load.
			p.set(p.base)
			if err := release(ctx); err != nil {
				failed(err)
			}
		}
	}
}

// set changes the percentage unless that makes no difference: it stops the world.
func (p *pacer) set(percent int) {
	if d := percent - p.percent; percent == p.base && d != 0 || d > p.percent/4 || -d > p.percent/4 {
		p.percent = percent
		debug.SetGCPercent(percent)
	}
}

// busyPercent is what busyHeadroom is of everything that a collection's goal is
// reckoned from, base at least.
func busyPercent(base int) int {
	s := []gometrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	gometrics.Read(s)
	live := uint64(1 << 20)
	for _, m := range s {
		if m.Value.Kind() == gometrics.KindUint64 {
			live += m.Value.Uint64()
		}
	}
	return max(base, int(busyHeadroom*100/live))
}
