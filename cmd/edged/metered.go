package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/controller/node"
	"edged/raftstore"
)

// meteredPrefix is where the members that are metered are kept, by id. One is
// enough for all to be quiet: what a device sends depends on the others, and a
// heartbeat that one waits for in vain is an election.
const meteredPrefix = "/edged/metered/"

// pace is how much the devices of a cluster talk while nothing happens.
type pace struct {
	raftstore.Pace
	// election is how long a leader may be silent at least: twice that, by chance.
	election time.Duration
	// grace is how long a device may be silent and still count as there.
	grace time.Duration
	// askTime is how often a device compares its clock with the leader's.
	askTime time.Duration
}

var (
	// A heartbeat goes to each device every 500 ms: a leader of three sends less
	// than 100 MB a day, and one of two may be lost. Without any for 1 to 2 s, by
	// chance of the election's draw, a device holds an election.
	usual = pace{raftstore.Pace{Tick: tick}, electionTime, node.Grace, 10 * time.Minute}
	// metered has a heartbeat every 10 s and elections after 20 to 40 s: a leader of
	// three sends less than 5 MB a day, and what is lost is noticed within a minute. A
	// device whose disk hangs is heard of every 30 s.
	metered = pace{raftstore.Pace{Tick: 20 * tick, Ack: 30 * time.Second}, 20 * electionTime, 35 * time.Second, time.Hour}
)

// pace is the one that the devices have now.
func (d *device) pace() pace {
	if d.quiet.Load() {
		return metered
	}
	return usual
}

func (d *device) grace() time.Duration { return d.pace().grace }

// followPace has this device be quiet while any member is metered, until ctx ends.
func (d *device) followPace(ctx context.Context) error {
	end := []byte(strings.TrimSuffix(meteredPrefix, "/") + "0")
	for ctx.Err() == nil {
		// The watch first: what comes between it and the read is seen twice.
		now, _ := d.store.Revision()
		w, err := d.store.Watch(ctx, raftstore.WatchOptions{Key: []byte(meteredPrefix), RangeEnd: end, StartRevision: now + 1})
		if err == nil {
			err = d.setPace(ctx)
		}
		if err == nil {
			_, err = w.Next(ctx)
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, raftstore.ErrStopped):
			return nil
		case err != nil && !errors.Is(err, raftstore.ErrCompacted):
			return fmt.Errorf("follow whether a device is metered: %w", err)
		}
	}
	return nil
}

func (d *device) setPace(ctx context.Context) error {
	there, err := d.store.Range(ctx, &pb.RangeRequest{
		Key: []byte(meteredPrefix), RangeEnd: []byte(strings.TrimSuffix(meteredPrefix, "/") + "0"), Serializable: true, CountOnly: true,
	})
	if err != nil {
		return err
	}
	quiet := there.Count > 0
	if d.quiet.Swap(quiet) != quiet {
		d.log.Info("the pace of the cluster changed", "metered", quiet, "noticed within", 2*d.pace().election)
	}
	return d.store.SetPace(ctx, d.pace().Pace)
}
