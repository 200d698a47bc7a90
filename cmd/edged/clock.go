package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"edged/cluster/clock"
	"edged/cluster/identity"
	"edged/raftstore"
)

// testClock names the file of a clock of its own for this device, for tests: on a
// machine that is several devices nobody may set the clock (clock.Simulated).
const testClock = "EDGED_TEST_CLOCK"

// openClock has this device's time go on from where it was known last.
func (d *device) openClock() error {
	cfg := clock.Config{
		Source: clock.System{}, DataDir: d.cfg.dataDir, Floor: identity.BuildTime, Mode: clock.Mode(d.cfg.setClock), Interval: func() time.Duration { return d.pace().askTime }, Logger: d.log,
	}
	if path := os.Getenv(testClock); path != "" {
		simulated, err := clock.Simulate(path)
		if err != nil {
			return fmt.Errorf("%s: %w", testClock, err)
		}
		cfg.Source = simulated
	}
	d.clock = clock.Open(cfg)
	d.onClose(func() error {
		if err := d.clock.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("note the time for the next start: %w", err)
		}
		return nil
	})
	return nil
}

// clockPeers are the members of the store.
type clockPeers struct{ *raftstore.Store }

// Leader is part of clock.Peers.
func (p clockPeers) Leader() (id uint64, self bool) {
	id = p.Store.Leader()
	return id, id != 0 && id == p.MemberID()
}

var _ clock.Peers = clockPeers{}
