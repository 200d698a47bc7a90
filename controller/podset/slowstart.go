package podset

import "sync"

const (
	// Burst is how many Pods an owner makes or deletes in one round, as
	// upstream.
	Burst = 500
	// maxBatch bounds the calls that run side by side. The store commits what
	// arrives together with one sync, so more would gain nothing.
	maxBatch = 32
)

// SlowStart calls fn count times, in batches of 1, 2, 4 ..., and stops after a
// batch with an error: what cannot succeed is not tried 500 times. It returns
// how many calls succeeded and the first error.
func SlowStart(count int, fn func() error) (done int, err error) {
	for batch := 1; count > 0; batch = min(2*batch, maxBatch) {
		n := min(batch, count)
		ok, err := Each(n, func(int) error { return fn() })
		done += ok
		if err != nil {
			return done, err
		}
		count -= n
	}
	return done, nil
}

// Each calls fn with 0..n-1, at most maxBatch at a time, and returns how many
// calls succeeded and one of the errors.
func Each(n int, fn func(i int) error) (done int, err error) {
	if n == 1 {
		if err := fn(0); err != nil {
			return 0, err
		}
		return 1, nil
	}
	var (
		mu    sync.Mutex
		group sync.WaitGroup
		slots = make(chan struct{}, maxBatch)
	)
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			e := fn(i)
			mu.Lock()
			defer mu.Unlock()
			if e == nil {
				done++
			} else if err == nil {
				err = e
			}
		})
	}
	group.Wait()
	return done, err
}
