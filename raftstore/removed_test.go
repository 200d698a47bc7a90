package raftstore

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestLearnerRemoved: a learner that is removed stops and says why, as it runs, when it
// is started again, and when it was away: nobody asks it for anything then.
func TestLearnerRemoved(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	add := func(name string) Config {
		t.Helper()
		if _, err := c.members["a"].MemberAdd(t.Context(), &pb.MemberAddRequest{PeerURLs: []string{memberURL(name)}, IsLearner: true}); err != nil {
			t.Fatal(err)
		}
		cfg := c.config(name, "a", "b", "c", name)
		cfg.Join = true
		c.start(cfg)
		return cfg
	}
	remove := func(name string) {
		t.Helper()
		id := c.members[name].MemberID()
		delete(c.members, name)
		if _, err := c.members["a"].MemberRemove(t.Context(), &pb.MemberRemoveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	ends := func(m *testMember) {
		t.Helper()
		select {
		case <-m.Done():
		case <-time.After(30 * time.Second):
			t.Fatal("a removed learner did not stop")
		}
		if !errors.Is(m.Err(), ErrRemoved) {
			t.Errorf("it stopped for: %v", m.Err())
		}
	}
	add("d")
	d := c.members["d"]
	remove("d")
	ends(d)
	cfg := d.cfg
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Network = c.wire.listen(cfg.PeerURLs[0])
	// One that does not know that it was removed waits for a leader that never tells it.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if s, err := Open(ctx, cfg); !errors.Is(err, ErrRemoved) {
		t.Errorf("it started again: %v, %v", s, err)
	}

	add("e")
	e := c.members["e"]
	cfg = c.stop("e")
	c.members["e"] = e
	remove("e")
	cfg.Network = c.wire.listen(cfg.PeerURLs[0])
	s, err := Open(ctx, cfg)
	if err == nil {
		ends(&testMember{s, cfg})
		err = errors.Join(s.Err(), s.Close())
	}
	if !errors.Is(err, ErrRemoved) {
		t.Errorf("it was away: %v", err)
	}
}
