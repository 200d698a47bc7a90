package peer

import (
	"maps"
	"slices"
	"time"
)

// SetAcks says how often what arrives is acknowledged, the same on all members; 0 is
// every 2 s. Connections are made anew.
func (t *Transport) SetAcks(every time.Duration) {
	if t.ackEvery.Swap(int64(every)) == int64(every) {
		return
	}
	t.mu.Lock()
	links := slices.Collect(maps.Values(t.links))
	t.mu.Unlock()
	for _, l := range links {
		l.reconnect()
	}
}

func (t *Transport) acks() time.Duration {
	if every := t.ackEvery.Load(); every > 0 {
		return time.Duration(every)
	}
	return ackInterval
}
