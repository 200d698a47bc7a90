package histogram

import (
	"testing"
	"time"
)

func TestBucketsHoldWhatIsAtMostTheirBound(t *testing.T) {
	h := Doubling(time.Millisecond, 3)
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 4 * time.Millisecond, time.Second} {
		h.Observe(d)
	}
	s := h.Snapshot()
	if s.Count != 5 || s.Sum != 1006*time.Millisecond+1 {
		t.Errorf("%d observations of %v in all, want 5 of 1.006000001s", s.Count, s.Sum)
	}
	for bound, want := range map[time.Duration]uint64{time.Millisecond: 2, 2 * time.Millisecond: 3, 4 * time.Millisecond: 4} {
		if got := s.Buckets[bound]; got != want {
			t.Errorf("up to %v: %d, want %d", bound, got, want)
		}
	}
}
