package raftstore

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

// TestSilence: of a member that is cut off, the leader too, the others are told; when
// it is back they are told that, and so is it. A leader that is cut off says nothing
// any more.
func TestSilence(t *testing.T) {
	var mu sync.Mutex
	last, back := map[string][]string{}, map[string]int{}
	c := newCluster(t, func(cfg *Config) {
		cfg.Network = &Network{Silence: func(s Silence) {
			mu.Lock()
			defer mu.Unlock()
			last[cfg.Name] = s.Silent
			if s.Back {
				back[cfg.Name]++
			}
		}}
		cfg.HeartbeatTicks = 5
	}, "a", "b", "c")
	told := func(by, silent []string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v told of %v", by, silent), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !slices.ContainsFunc(by, func(n string) bool { return !slices.Equal(last[n], silent) })
		})
	}
	for _, which := range []func() string{c.follower, c.leader, c.leader} {
		lost := which()
		others := slices.DeleteFunc(c.names(), func(n string) bool { return n == lost })
		told(c.names(), nil)
		mu.Lock()
		before := back[lost]
		mu.Unlock()
		c.wire.isolate(memberURL(lost), true)
		told(others, []string{lost})
		eventually(t, lost+" without a leader", func() bool { return c.members[lost].Leader() == 0 })
		told([]string{lost}, nil)
		c.wire.isolate(memberURL(lost), false)
		told(c.names(), nil)
		eventually(t, lost+" told that it is back", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return back[lost] > before
		})
	}
}
