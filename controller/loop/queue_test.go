package loop_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edged/controller/loop"
)

// log is what a queue's Reconcile did, and when.
type log struct {
	mu    sync.Mutex
	start time.Time
	runs  []string
	at    []time.Duration
}

func (l *log) add(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs = append(l.runs, key)
	l.at = append(l.at, time.Since(l.start))
	return len(l.runs)
}

// seen returns what add recorded.
func (l *log) seen() ([]string, []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.runs), slices.Clone(l.at)
}

// run runs a queue in a bubble of virtual time.
func run(t *testing.T, fn func(l *log, key string) (time.Duration, error), test func(q *loop.Queue, l *log)) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{start: time.Now()}
		q := loop.NewQueue(loop.Config{Name: "test", Reconcile: func(_ context.Context, key string) (time.Duration, error) { return fn(l, key) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- q.Run(ctx) }()
		test(q, l)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestKeyIsHeldOnce(t *testing.T) {
	run(t, func(l *log, key string) (time.Duration, error) { l.add(key); time.Sleep(time.Second); return 0, nil },
		func(q *loop.Queue, l *log) {
			for range 10 {
				q.Add("a")
			}
			synctest.Wait()
			q.Add("a") // while it runs: once more afterwards
			q.Add("a")
			time.Sleep(time.Minute)
			_, at := l.seen()
			if !slices.Equal(at, []time.Duration{0, time.Second}) {
				t.Errorf("ran at %v, want 0 and 1s", at)
			}
			if q.Len() != 0 {
				t.Errorf("%d keys are held at rest", q.Len())
			}
		})
}

func TestBackoffDoublesAndEnds(t *testing.T) {
	failing := errors.New("no")
	run(t, func(l *log, key string) (time.Duration, error) {
		if l.add(key) < 4 {
			return 0, failing
		}
		return 0, nil
	}, func(q *loop.Queue, l *log) {
		q.Add("a")
		time.Sleep(time.Minute)
		want := []time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond, 35 * time.Millisecond}
		_, at := l.seen()
		if !slices.Equal(at, want) {
			t.Errorf("ran at %v, want %v", at, want)
		}
	})
	if got := loop.Backoff(1000); got != 5*time.Minute {
		t.Errorf("Backoff(1000) = %v", got)
	}
}

func TestEarlierTimeWins(t *testing.T) {
	run(t, func(l *log, key string) (time.Duration, error) { l.add(key); return 0, nil },
		func(q *loop.Queue, l *log) {
			q.AddAfter("a", time.Hour)
			q.AddAfter("a", time.Minute)
			q.AddAfter("a", 2*time.Minute)
			time.Sleep(3 * time.Hour)
			_, at := l.seen()
			if !slices.Equal(at, []time.Duration{time.Minute}) {
				t.Errorf("ran at %v, want once at 1m", at)
			}
		})
}

func TestWorkersAreBounded(t *testing.T) {
	var mu sync.Mutex
	busy, most := 0, 0
	run(t, func(l *log, key string) (time.Duration, error) {
		mu.Lock()
		busy++
		most = max(most, busy)
		mu.Unlock()
		time.Sleep(time.Second)
		mu.Lock()
		busy--
		mu.Unlock()
		l.add(key)
		return 0, nil
	}, func(q *loop.Queue, l *log) {
		for i := range 12 {
			q.Add(string(rune('a' + i)))
		}
		time.Sleep(time.Minute)
		runs, at := l.seen()
		if len(runs) != 12 || most != 4 || at[11] != 3*time.Second {
			t.Errorf("%d runs, %d at once, last after %v", len(runs), most, at[11])
		}
	})
}

// TestDueWhileRunning: a key whose time comes while it is worked on runs once
// more, and holds up nobody.
func TestDueWhileRunning(t *testing.T) {
	run(t, func(l *log, key string) (time.Duration, error) { l.add(key); time.Sleep(time.Second); return 0, nil },
		func(q *loop.Queue, l *log) {
			q.Add("a")
			synctest.Wait()
			q.AddAfter("a", 100*time.Millisecond)
			time.Sleep(200 * time.Millisecond)
			q.Add("b")
			time.Sleep(3 * time.Second)
			synctest.Wait()
			runs, at := l.seen()
			if !slices.Equal(runs, []string{"a", "b", "a"}) || at[1] != 200*time.Millisecond || at[2] != time.Second {
				t.Errorf("ran %v at %v", runs, at)
			}
			if n := q.Len(); n != 0 {
				t.Errorf("%d keys are left", n)
			}
		})
}
