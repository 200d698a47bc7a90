package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/consensus"
)

// TestRefusedWithoutLeader: a member that reaches nobody refuses writes at once when it
// knows, also those that wait, and takes them when it reaches most again; one that is
// not told to lets them wait.
func TestRefusedWithoutLeader(t *testing.T) {
	c := newCluster(t, func(cfg *Config) {
		cfg.RequestTimeout = time.Hour
		cfg.RefuseWithoutLeader = cfg.Name != "c"
	}, "a", "b", "c")
	put := func(ctx context.Context, name string) error {
		_, err := c.members[name].Put(ctx, &pb.PutRequest{Key: []byte("k")})
		return err
	}
	// c does not lead, so that what it is given is not taken.
	for c.leader() == "c" {
		if _, err := c.members["c"].MoveLeader(t.Context(), &pb.MoveLeaderRequest{TargetID: c.members["a"].MemberID()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another leader", func() bool { return c.leader() != "c" })
	}
	lost := c.leader()
	other := map[string]string{"a": "b", "b": "a"}[lost]
	for _, n := range c.names() {
		c.wire.isolate(memberURL(n), true)
	}
	waiting := make(chan error, 1)
	eventually(t, "without a leader", func() bool { return c.members[other].Leader() == 0 && c.members["c"].Leader() == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { waiting <- put(ctx, other) }()
	patient := make(chan error, 1)
	go func() { patient <- put(ctx, "c") }()
	if err := <-waiting; !errors.Is(err, ErrNoLeader) {
		t.Errorf("one that waited: %v", err)
	}
	for range 1000 { // each would wait for an hour
		if err := put(ctx, other); !errors.Is(err, ErrNoLeader) {
			t.Fatalf("one that came later: %v", err)
		}
	}
	for _, n := range c.names() {
		c.wire.isolate(memberURL(n), false)
	}
	if err := <-patient; err != nil {
		t.Errorf("one that was to wait: %v", err)
	}
	eventually(t, "written to again", func() bool { return put(ctx, other) == nil })
	c.same()
}

// TestRefusedAsSoonAsNobodyCouldBeElected: a member that hears of too few voters does
// not wait for elections that nobody can win, neither do those that it took writes of.
func TestRefusedAsSoonAsNobodyCouldBeElected(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.RequestTimeout, cfg.RefuseWithoutLeader = time.Hour, true }, "a", "b", "c")
	led := c.leader()
	for _, n := range c.names() {
		c.wire.isolate(memberURL(n), true)
	}
	taken := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		_, err := c.members[led].Put(ctx, &pb.PutRequest{Key: []byte("k")})
		taken <- err
	}()
	for _, name := range c.names() {
		n := c.members[name].node
		for !n.alone.Load() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		waited := 0
		if err := n.do(ctx, func(*consensus.Core) { waited = n.without }); err != nil {
			t.Fatal(err)
		}
		// The members notice at about the same time, one after the other is looked at.
		if last := elections * 2 * n.cfg.electionTicks; waited >= last {
			t.Errorf("%s waited for %d ticks without a leader, as long as it would (%d) if others could be elected", name, waited, last)
		}
	}
	if err := <-taken; !errors.Is(err, ErrTimeoutLeaderLost) {
		t.Errorf("one that the leader took: %v", err)
	}
	for _, n := range c.names() {
		c.wire.isolate(memberURL(n), false)
	}
	eventually(t, "written to again", func() bool {
		_, err := c.members[led].Put(ctx, &pb.PutRequest{Key: []byte("k2")})
		return err == nil
	})
	c.same()
}
