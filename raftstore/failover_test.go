package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/vfs"
)

// TestWritesOutliveTheLeader: with leaders cut off one after the other, every
// write through any member is acknowledged, and took place once.
func TestWritesOutliveTheLeader(t *testing.T) {
	// Nobody is refused either: no change takes two elections.
	c := newCluster(t, func(cfg *Config) { cfg.RequestTimeout, cfg.RefuseWithoutLeader = 30*time.Second, true }, "a", "b", "c")
	var writers sync.WaitGroup
	var stop atomic.Bool
	written := make([]int, 6)
	for w := range written {
		m := c.members[c.names()[w%3]]
		writers.Go(func() {
			for ; !stop.Load(); written[w]++ {
				key := []byte(fmt.Sprintf("%d/%d", w, written[w]))
				if _, err := m.Put(context.Background(), &pb.PutRequest{Key: key}); err != nil {
					t.Errorf("%s: %v", key, err)
					return
				}
			}
		})
	}
	for range 5 {
		old := c.leader()
		c.wire.isolate(memberURL(old), true)
		eventually(t, "another leader", func() bool {
			for n, m := range c.members {
				if n != old && m.node.view().decides {
					return true
				}
			}
			return false
		})
		c.wire.isolate(memberURL(old), false)
		eventually(t, "one leader", func() bool {
			leader := c.members[old].Leader()
			return leader != 0 && leader != c.members[old].MemberID()
		})
	}
	stop.Store(true)
	writers.Wait()
	c.same()
	for w, n := range written {
		t.Logf("%d writes through %s", n, c.names()[w%3])
		for i := range n {
			key := fmt.Sprintf("%d/%d", w, i)
			resp, err := c.members["a"].Range(context.Background(), &pb.RangeRequest{Key: []byte(key), Serializable: true})
			if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].Version != 1 {
				t.Fatalf("%s is %v, %v", key, resp.GetKvs(), err)
			}
		}
	}
}

// stalling is a file system whose disk can hang.
type stalling struct {
	vfs.FS
	stall sync.RWMutex
}

func (s *stalling) Open(op, path string, create bool) (vfs.File, error) {
	f, err := s.FS.Open(op, path, create)
	return stallingFile{f, s}, err
}

type stallingFile struct {
	vfs.File
	s *stalling
}

func (f stallingFile) Sync(op string, dataOnly bool) error {
	f.s.stall.RLock()
	defer f.s.stall.RUnlock()
	return f.File.Sync(op, dataOnly)
}

// TestDiskHangs: a member whose disk hangs is heard of all the time; if it led, it
// stops leading and another does.
func TestDiskHangs(t *testing.T) {
	disks := map[string]*stalling{"a": {FS: vfs.OS{}}, "b": {FS: vfs.OS{}}, "c": {FS: vfs.OS{}}}
	c := newCluster(t, func(cfg *Config) { cfg.files = disks[cfg.Name] }, "a", "b", "c")
	led := c.leader()
	leading := make(chan bool, 16)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		c.members[led].RunWhileLeader(ctx, func(ctx context.Context) {
			leading <- true
			<-ctx.Done()
			leading <- false
		})
	})
	defer running.Wait()
	defer cancel()
	<-leading
	disks[led].stall.Lock()
	abandoned := make(chan error, 1)
	go func() {
		_, err := c.members[led].Put(ctx, &pb.PutRequest{Key: []byte("through the hung one")})
		abandoned <- err
	}()
	if <-leading {
		t.Fatal("it leads twice")
	}
	old := c.members[led]
	delete(c.members, led)
	now := c.members[c.leader()]
	put(t, now.Store, "through another", "v")
	// For several times what a leader may be silent, it is heard of.
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if last, _, ok := now.Heard(led); !ok || time.Since(last) > 4*time.Second {
			t.Fatalf("the one whose disk hangs was heard of %v ago", time.Since(last))
		}
	}
	disks[led].stall.Unlock()
	if err := <-abandoned; err != nil {
		t.Errorf("the write through the hung one: %v", err)
	}
	c.members[led] = old
	c.same()
}

// TestHungLeaderNamesAnother: others whose patience has no end lead when the one
// that led hangs.
func TestHungLeaderNamesAnother(t *testing.T) {
	disks := map[string]*stalling{"a": {FS: vfs.OS{}}, "b": {FS: vfs.OS{}}, "c": {FS: vfs.OS{}}}
	c := newCluster(t, func(cfg *Config) { cfg.files = disks[cfg.Name] }, "a", "b", "c")
	led := c.leader()
	hung := c.members[led]
	delete(c.members, led)
	for _, m := range c.members {
		if err := m.SetPace(t.Context(), Pace{Tick: time.Hour}); err != nil {
			t.Fatal(err)
		}
		put(t, m.Store, "k", "v") // and its ticks are by that pace
	}
	disks[led].stall.Lock()
	abandoned := make(chan error, 1)
	go func() {
		_, err := hung.Put(context.Background(), &pb.PutRequest{Key: []byte("through the hung one")})
		abandoned <- err
	}()
	now := c.members[c.leader()]
	put(t, now.Store, "through another", "v")
	disks[led].stall.Unlock()
	if err := <-abandoned; err != nil {
		t.Errorf("the write through the hung one: %v", err)
	}
	for _, m := range c.members {
		if err := m.SetPace(t.Context(), Pace{Tick: m.cfg.Tick}); err != nil {
			t.Error(err)
		}
	}
	c.members[led] = hung
	c.same()
}

// TestJoinPastTheSilent: one that joins is not held up by others that do not answer
// yet, as when they join too; nor, when nobody answers, for good.
func TestJoinPastTheSilent(t *testing.T) {
	c := newCluster(t, nil, "a")
	for _, name := range []string{"b", "c"} {
		if _, err := c.members["a"].MemberAdd(t.Context(), &pb.MemberAddRequest{PeerURLs: []string{memberURL(name)}, IsLearner: true}); err != nil {
			t.Fatal(err)
		}
	}
	c.wire.listen(memberURL("b")) // and nobody accepts
	alone := c.config("c", "b", "c")
	alone.Join, alone.Network = true, c.wire.listen(memberURL("c"))
	if _, err := Open(t.Context(), alone); !errors.Is(err, ErrNotLetIn) {
		t.Errorf("with nobody that answers: %v", err)
	}
	cfg := c.config("c", "b", "a", "c")
	cfg.Join = true
	c.start(cfg)
	c.same()
}

// TestChangesAtOnce: members that are added in one moment, through any member, are
// all added, each once and without anybody running out of time.
func TestChangesAtOnce(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.RequestTimeout = time.Hour }, "a", "b", "c")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var adding sync.WaitGroup
	for i := range 12 {
		via := c.members[c.names()[i%3]]
		adding.Go(func() {
			if _, err := via.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{memberURL(fmt.Sprint(i))}, IsLearner: true}); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	adding.Wait()
	for _, m := range c.members {
		eventually(t, "fifteen members", func() bool { return m.Members() == 15 })
	}
}

// TestLearnerAlone: a learner that hears nothing of its leader says that there is none,
// until it does.
func TestLearnerAlone(t *testing.T) {
	c := newCluster(t, nil, "a")
	a := c.members["a"]
	if _, err := a.MemberAdd(t.Context(), &pb.MemberAddRequest{PeerURLs: []string{memberURL("b")}, IsLearner: true}); err != nil {
		t.Fatal(err)
	}
	cfg := c.config("b", "a", "b")
	cfg.Join = true
	b := c.start(cfg)
	c.wire.isolate(memberURL("a"), true)
	eventually(t, "no leader", func() bool { return b.Leader() == 0 })
	c.wire.isolate(memberURL("a"), false)
	eventually(t, "a leader again", func() bool { return b.Leader() == a.MemberID() })
	put(t, b.Store, "through the learner", "v")
	c.same()
}

// TestAllMove: every member gets another address at once. One of them is where a
// name leads; the others say to it where they are, and are found.
func TestAllMove(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.Hints, cfg.FollowAddress = []string{"http://a.elsewhere:2380"}, true }, "a", "b", "c")
	put(t, c.members["a"].Store, "k", "before")
	moved := func(name string) string { return "http://" + name + ".elsewhere:2380" }
	for _, n := range c.names() {
		c.wire.move(memberURL(n), moved(n))
	}
	for _, n := range c.names() {
		c.members[n].Move([]string{moved(n)})
	}
	eventually(t, "the new addresses in the membership", func() bool {
		for _, m := range c.members {
			for _, e := range m.node.view().members.Members {
				if !slices.Equal(e.PeerURLs, []string{moved(e.Name)}) {
					return false
				}
			}
		}
		return true
	})
	for _, n := range c.names() {
		put(t, c.members[n].Store, "k", n)
	}
	c.same()
}
