package engine

import "testing"

// TestWeight: the ends of both scales meet, and one CPU is what the kubelet
// makes of it.
func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 102: 4, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("%d shares: weight %d, not %d", shares, got, want)
		}
	}
}
