package imageshare

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestTurns: one device at a time, who has the blob is told, one that failed comes
// first for a while, one that is lost does not keep the others.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Value
		lost.Store("")
		c := newClaims(func(device string) bool { return device != lost.Load() })
		turn := func(device string) <-chan func() {
			got := make(chan func(), 1)
			go func() {
				if _, release, err := c.acquire(t.Context(), "b", device); err == nil {
					got <- release
				}
			}()
			synctest.Wait()
			return got
		}
		waits := func(got <-chan func(), who string) {
			t.Helper()
			synctest.Wait()
			if len(got) > 0 {
				t.Errorf("%s has its turn", who)
			}
		}
		a := <-turn("a")
		b := turn("b")
		waits(b, "b")
		// a fails: for half a minute it may come back first.
		a()
		waits(b, "b")
		a = <-turn("a")
		c.settle("b", "a", true)
		a()
		releaseB := <-b
		// b's connection broke and it asks again; its old one ends afterwards.
		again := <-turn("b")
		releaseB()
		third := turn("c")
		waits(third, "c")
		// b is lost with its turn.
		lost.Store("b")
		time.Sleep(2 * lookAgain)
		releaseC := <-third
		again()
		c.settle("b", "c", true)
		releaseC()
		holders, release, err := c.acquire(t.Context(), "b", "d")
		if err != nil || !slices.Equal(holders, []string{"a", "c"}) {
			t.Errorf("holders %v, %v, want a and c", holders, err)
		}
		release() // failed, and does not come back
		began := time.Now()
		if _, release, err = c.acquire(t.Context(), "b", "e"); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited < keepTurn || waited > keepTurn+2*lookAgain {
			t.Errorf("waited %v for a device that failed", waited)
		}
		release()
	})
}

// TestClaimBounds: a device that gives turns forgets old blobs and refuses when it
// has too many, and a caller that leaves is not waited for.
func TestClaimBounds(t *testing.T) {
	c := newClaims(func(string) bool { return true })
	for i := range maxClaims + 10 {
		_, release, err := c.acquire(t.Context(), string(rune('a'+i)), "a")
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	if n := len(c.blobs); n > maxClaims {
		t.Errorf("%d blobs are known", n)
	}
	if _, _, err := c.acquire(t.Context(), "x", "a"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.acquire(ctx, "x", "b"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: %v", err)
	}
}
