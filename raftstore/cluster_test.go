package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// wire is a network of pipes between members, by URL.
type wire struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	cut       map[string]bool // URLs that nobody reaches and that reach nobody
	conns     map[net.Conn][2]string
}

func newWire() *wire {
	return &wire{listeners: map[string]*pipeListener{}, cut: map[string]bool{}, conns: map[net.Conn][2]string{}}
}

type pipeListener struct {
	w      *wire
	url    string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: l.url} }

func (w *wire) listen(url string) *Network {
	l := &pipeListener{w: w, url: url, conns: make(chan net.Conn), closed: make(chan struct{})}
	w.mu.Lock()
	w.listeners[url] = l
	w.mu.Unlock()
	return &Network{Listener: l, Dial: func(ctx context.Context, to string) (net.Conn, error) { return w.dial(ctx, url, to) }}
}

func (w *wire) dial(ctx context.Context, from, to string) (net.Conn, error) {
	w.mu.Lock()
	l, blocked := w.listeners[to], w.cut[from] || w.cut[to]
	w.mu.Unlock()
	if l == nil || blocked {
		return nil, fmt.Errorf("no route to %s", to)
	}
	a, b := net.Pipe()
	w.mu.Lock()
	w.conns[a], w.conns[b] = [2]string{from, to}, [2]string{from, to}
	w.mu.Unlock()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	return nil, fmt.Errorf("%s does not answer", to)
}

// move gives a member another address: what was connected is cut, and nobody is
// where it was.
func (w *wire) move(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners[to] = w.listeners[from]
	delete(w.listeners, from)
	for c, ends := range w.conns {
		if ends[0] == from || ends[1] == from {
			c.Close()
			delete(w.conns, c)
		}
	}
}

// isolate cuts a member off, or connects it again.
func (w *wire) isolate(url string, off bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[url] = off
	for c, ends := range w.conns {
		if off && (ends[0] == url || ends[1] == url) {
			c.Close()
			delete(w.conns, c)
		}
	}
}

type testMember struct {
	*Store
	cfg Config
}

// testCluster is members in one process.
type testCluster struct {
	t       *testing.T
	wire    *wire
	members map[string]*testMember
}

func memberURL(name string) string { return "http://" + name + ":2380" }

// config is a member's; ticks are short, so that elections take a moment.
func (c *testCluster) config(name string, founders ...string) Config {
	cfg := Config{
		Dir: filepath.Join(c.t.TempDir(), name), Name: name, PeerURLs: []string{memberURL(name)}, ClientURLs: []string{"http://" + name + ":2379"},
		Tick: 20 * time.Millisecond, ElectionTicks: 15, Logger: slog.New(slog.DiscardHandler),
	}
	if os.Getenv("RAFTSTORE_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("at", name)
	}
	for _, f := range founders {
		cfg.InitialCluster = append(cfg.InitialCluster, InitialMember{f, []string{memberURL(f)}})
	}
	return cfg
}

func newCluster(t *testing.T, change func(*Config), names ...string) *testCluster {
	t.Helper()
	c := &testCluster{t: t, wire: newWire(), members: map[string]*testMember{}}
	var starting sync.WaitGroup
	var mu sync.Mutex
	for _, n := range names {
		cfg := c.config(n, names...)
		if change != nil {
			change(&cfg)
		}
		starting.Go(func() {
			m := c.open(cfg)
			mu.Lock()
			defer mu.Unlock()
			c.members[n] = m
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return c
}

func (c *testCluster) open(cfg Config) *testMember {
	network := c.wire.listen(cfg.PeerURLs[0])
	if cfg.Network != nil {
		network.Answer, network.Silence = cfg.Network.Answer, cfg.Network.Silence
	}
	cfg.Network = network
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, cfg)
	if err != nil {
		c.t.Errorf("%s: %v", cfg.Name, err)
		return nil
	}
	c.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			c.t.Errorf("close %s: %v", cfg.Name, err)
		}
	})
	return &testMember{s, cfg}
}

// start opens and names a member that is not among the founders, or again.
func (c *testCluster) start(cfg Config) *testMember {
	c.t.Helper()
	m := c.open(cfg)
	if m == nil {
		c.t.FailNow()
	}
	c.members[cfg.Name] = m
	return m
}

func (c *testCluster) stop(name string) Config {
	c.t.Helper()
	m := c.members[name]
	if err := m.Close(); err != nil {
		c.t.Fatal(err)
	}
	delete(c.members, name)
	return m.cfg
}

// kill leaves of a member what a power cut would, and stops it.
func (c *testCluster) kill(name string) Config {
	c.t.Helper()
	m := c.members[name]
	c.wire.isolate(memberURL(name), true)
	dir := copyDir(c.t, m.cfg.Dir)
	cfg := c.stop(name)
	c.wire.isolate(memberURL(name), false)
	cfg.Dir = dir
	return cfg
}

func (c *testCluster) names() []string {
	var out []string
	for n := range c.members {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (c *testCluster) leader() string {
	c.t.Helper()
	var name string
	eventually(c.t, "a leader", func() bool {
		for n, m := range c.members {
			if m.node.view().decides {
				name = n
				return true
			}
		}
		return false
	})
	return name
}

func (c *testCluster) follower() string {
	c.t.Helper()
	leader := c.leader()
	for _, n := range c.names() {
		if n != leader {
			return n
		}
	}
	c.t.Fatal("no follower")
	return ""
}

// same waits until all members have applied the same, and checks that it is.
func (c *testCluster) same() {
	c.t.Helper()
	eventually(c.t, "equal states", func() bool {
		want := ""
		for _, n := range c.names() {
			h, err := c.members[n].HashKV(0)
			if err != nil {
				c.t.Fatal(err)
			}
			rev, _ := c.members[n].Revision()
			got := fmt.Sprint(h.Hash, rev)
			if want == "" {
				want = got
			} else if got != want {
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s: no %s", what)
		}
	}
}

func get(t *testing.T, s *Store, key string) string {
	t.Helper()
	resp, err := s.Range(context.Background(), &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestEveryMemberServes(t *testing.T) {
	for _, names := range [][]string{{"a", "b", "c"}, {"a", "b", "c", "d", "e"}} {
		t.Run(fmt.Sprint(len(names)), func(t *testing.T) {
			c := newCluster(t, nil, names...)
			for i, writer := range names {
				put(t, c.members[writer].Store, "k", fmt.Sprint(i))
				for _, reader := range names {
					if got := get(t, c.members[reader].Store, "k"); got != fmt.Sprint(i) {
						t.Errorf("%s wrote %d, a linearizable read at %s gives %q", writer, i, reader, got)
					}
				}
			}
			list, err := c.members["b"].MemberList(context.Background(), &pb.MemberListRequest{Linearizable: true})
			if err != nil || len(list.Members) != len(names) || list.Header.ClusterId == 0 {
				t.Errorf("%v, %v", list, err)
			}
			eventually(t, "names of all members", func() bool {
				for _, m := range c.members["a"].node.view().members.Members {
					if m.Name == "" || len(m.ClientURLs) != 1 {
						return false
					}
				}
				return true
			})
			c.same()
		})
	}
}

func TestConcurrentWritersThroughAllMembers(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	var wg sync.WaitGroup
	for _, n := range c.names() {
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					key := fmt.Sprintf("%s/%d/%d", n, w, i)
					if _, err := c.members[n].Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: make([]byte, 300)}); err != nil {
						t.Errorf("%s: %v", key, err)
						return
					}
					if r, err := c.members[n].Range(context.Background(), &pb.RangeRequest{Key: []byte(key)}); err != nil || len(r.Kvs) != 1 {
						t.Errorf("%s: read after write: %v, %v", key, r, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	c.same()
	if rev, _ := c.members["a"].Revision(); rev != 1+3*8*50 {
		t.Errorf("revision %d", rev)
	}
}

// TestLeaderLost: a leader that is cut off is replaced, cannot acknowledge
// anything, and follows when it is back.
func TestLeaderLost(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.RequestTimeout = 2 * time.Second }, "a", "b", "c")
	put(t, c.members["a"].Store, "k", "before")
	old := c.leader()
	lost := c.members[old].LeaderLost()
	c.wire.isolate(memberURL(old), true)
	alone := make(chan error, 1)
	go func() {
		_, err := c.members[old].Put(context.Background(), &pb.PutRequest{Key: []byte("k"), Value: []byte("lost")})
		alone <- err
	}()
	var next string
	eventually(t, "another leader", func() bool {
		for n, m := range c.members {
			if n != old && m.node.view().decides {
				next = n
				return true
			}
		}
		return false
	})
	put(t, c.members[next].Store, "k", "after")
	if err := <-alone; err == nil {
		t.Error("a leader without a quorum acknowledged a write")
	}
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		t.Error("LeaderLost did not tell")
	}
	if _, err := c.members[old].Range(context.Background(), &pb.RangeRequest{Key: []byte("k")}); err == nil {
		t.Error("a member without a quorum served a linearizable read")
	}
	if r, err := c.members[old].Range(context.Background(), &pb.RangeRequest{Key: []byte("k"), Serializable: true}); err != nil || string(r.Kvs[0].Value) != "before" {
		t.Errorf("serializable read: %v, %v", r, err)
	}
	c.wire.isolate(memberURL(old), false)
	eventually(t, "the old leader to follow", func() bool {
		r, err := c.members[old].Range(context.Background(), &pb.RangeRequest{Key: []byte("k")})
		return err == nil && string(r.Kvs[0].Value) == "after"
	})
	c.same()
}

func TestRestartsAndCuts(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	for round := range 6 {
		name := []string{c.leader(), c.follower()}[round%2]
		var cfg Config
		if round < 3 {
			cfg = c.stop(name)
		} else {
			cfg = c.kill(name)
		}
		other := c.members[c.leader()].Store
		for i := range 20 {
			put(t, other, fmt.Sprintf("r%d/%d", round, i), "v")
		}
		c.start(cfg)
	}
	c.same()
	if n := c.members["a"].Status().Revision; n != 1+6*20 {
		t.Errorf("revision %d", n)
	}
}

// TestSnapshotCatchesUp: a member that is further behind than the log reaches
// takes the whole state over, and keeps it across cuts.
func TestSnapshotCatchesUp(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.CommitEntries, cfg.CatchUpEntries = 40, 10 }, "a", "b", "c")
	name := c.follower()
	l, err := c.members[name].LeaseGrant(context.Background(), &pb.LeaseGrantRequest{TTL: 1000, ID: 7})
	if err != nil || l.ID != 7 {
		t.Fatal(err)
	}
	cfg := c.stop(name)
	leader := c.members[c.leader()]
	for i := range 400 {
		put(t, leader.Store, fmt.Sprintf("k%03d", i%100), fmt.Sprintf("%d %s", i, make([]byte, 1000)))
	}
	if _, err := leader.Put(context.Background(), &pb.PutRequest{Key: []byte("leased"), Lease: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := leader.Compact(context.Background(), &pb.CompactionRequest{Revision: 300}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a shorter log", func() bool {
		var left uint64
		if err := leader.node.do(context.Background(), coreEntries(&left)); err != nil {
			t.Fatal(err)
		}
		return left < 100
	})
	m := c.start(cfg)
	w, err := m.Watch(context.Background(), WatchOptions{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 390})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := w.Next(context.Background()); err != nil || b.Events[0].Kv.ModRevision != 390 {
		t.Errorf("history after a snapshot: %v, %v", b, err)
	}
	c.same()
	cfg = c.kill(name)
	put(t, c.members[c.leader()].Store, "after", "cut")
	m = c.start(cfg)
	c.same()
	if got := get(t, m.Store, "after"); got != "cut" {
		t.Errorf("after the cut: %q", got)
	}
	if ttl, err := m.LeaseTimeToLive(context.Background(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true}); err != nil || ttl.TTL < 900 || len(ttl.Keys) != 1 {
		t.Errorf("%v, %v", ttl, err)
	}
	if left, err := filepath.Glob(filepath.Join(m.cfg.Dir, "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMembersComeAndGo: a lone member becomes three and five, members go, one
// while it is down, and the last one is alone and silent again.
func TestMembersComeAndGo(t *testing.T) {
	c := newCluster(t, nil, "a")
	ctx := context.Background()
	a := c.members["a"].Store
	for i := range 100 {
		put(t, a, fmt.Sprint(i), "v")
	}
	join := func(name string, learner bool) *testMember {
		t.Helper()
		resp, err := c.members[c.leader()].MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{memberURL(name)}, IsLearner: learner})
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.members[c.leader()].MemberList(ctx, &pb.MemberListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for what, members := range map[string][]*pb.Member{"its answer": resp.Members, "the list after it": list.Members} {
			if !slices.ContainsFunc(members, func(m *pb.Member) bool { return m.ID == resp.Member.ID }) {
				t.Errorf("%s was added, and %s lacks it", name, what)
			}
		}
		cfg := c.config(name, append(c.names(), name)...)
		cfg.Join = true
		m := c.start(cfg)
		if m.MemberID() != resp.Member.ID || m.ClusterID() != a.ClusterID() {
			t.Errorf("%s is %x of %x, want %x of %x", name, m.MemberID(), m.ClusterID(), resp.Member.ID, a.ClusterID())
		}
		return m
	}
	b := join("b", true)
	if !b.IsLearner() {
		t.Error("b should be a learner")
	}
	// Within the second it would get the same id, too, which is looked at first.
	if _, err := a.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{memberURL("b")}}); !errors.Is(err, ErrPeerURLExists) && !errors.Is(err, ErrMemberExists) {
		t.Errorf("the same URL again: %v", err)
	}
	if _, err := b.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 99}); !errors.Is(err, ErrMemberNotFound) {
		t.Errorf("promote nobody: %v", err)
	}
	if _, err := b.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: a.MemberID()}); !errors.Is(err, ErrMemberNotLearner) {
		t.Errorf("promote a voter: %v", err)
	}
	eventually(t, "b to catch up and be promoted", func() bool {
		_, err := b.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: b.MemberID()})
		if err != nil && !errors.Is(err, ErrLearnerNotReady) {
			t.Fatal(err)
		}
		return err == nil
	})
	if b.IsLearner() {
		t.Error("b still is a learner")
	}
	join("c", false)
	put(t, c.members["c"].Store, "three", "v")
	c.same()

	// One that is down when it is removed finds out when it comes back.
	cfg := c.stop("c")
	var id uint64
	for _, m := range a.node.view().members.Members {
		if m.Name == "c" {
			id = m.ID
		}
	}
	if _, err := b.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id}); !errors.Is(err, ErrMemberNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	cfg.Network = c.wire.listen(cfg.PeerURLs[0])
	octx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if s, err := Open(octx, cfg); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed member started: %v, %v", s, err)
	}

	// The leader removes itself: it stops and says why, the other goes on.
	leader, other := c.leader(), c.follower()
	gone := c.members[leader]
	if _, err := gone.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: gone.MemberID()}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("a removed member did not stop")
	}
	if !errors.Is(gone.Err(), ErrRemoved) {
		t.Errorf("it stopped for: %v", gone.Err())
	}
	delete(c.members, leader)
	last := c.members[other].Store
	put(t, last, "alone", "again")
	if _, err := last.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: last.MemberID()}); !errors.Is(err, ErrNotEnoughStarted) {
		t.Errorf("the last member removed: %v", err)
	}
	eventually(t, "the last member to need no clock", func() bool {
		needs := true
		if err := last.node.do(ctx, coreTicks(&needs)); err != nil {
			t.Fatal(err)
		}
		return !needs
	})
	join("d", false)
	join("e", false)
	c.same()
}

// TestPlannedStopCostsNoElection: the leader hands over before it goes.
func TestPlannedStopCostsNoElection(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.ElectionTicks = 100 }, "a", "b", "c")
	leader := c.leader()
	put(t, c.members[leader].Store, "k", "1")
	c.same()
	c.stop(leader)
	began := time.Now()
	put(t, c.members[c.leader()].Store, "k", "2")
	if took := time.Since(began); took > time.Second {
		t.Errorf("the first write after a planned stop took %v; an election takes 2 s", took)
	}
}

// TestPlannedStopPassesOverTheDead: the leader does not hand over to a member that was
// killed less than an election's time ago, and so counts as active.
func TestPlannedStopPassesOverTheDead(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.ElectionTicks = 100 }, "a", "b", "c", "d", "e")
	leader := c.leader()
	put(t, c.members[leader].Store, "k", "1")
	c.same()
	dead := ""
	for name, m := range c.members {
		if name != leader && (dead == "" || m.MemberID() < c.members[dead].MemberID()) {
			dead = name // raft's first choice of equals
		}
	}
	c.stop(dead)
	m := c.members[leader].Store
	c.stop(leader)
	if to := m.node.view().leader; to == m.MemberID() {
		t.Error("the leader stopped as such")
	}
}

func TestMoveLeader(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	ctx := context.Background()
	leader, follower := c.leader(), c.follower()
	to := c.members[follower].MemberID()
	if _, err := c.members[follower].MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("moved by a follower: %v", err)
	}
	if _, err := c.members[leader].MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1}); !errors.Is(err, ErrBadTransferee) {
		t.Errorf("moved to nobody: %v", err)
	}
	if _, err := c.members[leader].MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to}); err != nil {
		t.Fatal(err)
	}
	if got := c.members[leader].Leader(); got != to {
		t.Errorf("the leader is %x, want %x", got, to)
	}
}

// TestLeasesSurviveTheLeader: granted and renewed through any member, ended by
// whoever leads, and never early.
func TestLeasesSurviveTheLeader(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	ctx := context.Background()
	follower := c.members[c.follower()]
	l, err := follower.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := follower.Put(ctx, &pb.PutRequest{Key: []byte("leased"), Lease: l.ID}); err != nil {
		t.Fatal(err)
	}
	if ttl, err := follower.LeaseRenew(ctx, l.ID); err != nil || ttl != 3 {
		t.Errorf("%d, %v", ttl, err)
	}
	if _, err := follower.LeaseRenew(ctx, 12345); !errors.Is(err, ErrLeaseNotFound) {
		t.Errorf("renewed nothing: %v", err)
	}
	c.stop(c.leader())
	var any *testMember
	for _, m := range c.members {
		any = m
	}
	c.leader()
	began := time.Now()
	if ttl, err := any.LeaseRenew(ctx, l.ID); err != nil || ttl != 3 {
		t.Errorf("under another leader: %d, %v", ttl, err)
	}
	left, err := any.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID})
	if err != nil || left.GrantedTTL != 3 || left.TTL > 3 {
		t.Errorf("%v, %v", left, err)
	}
	w, err := any.Watch(ctx, WatchOptions{Key: []byte("leased")})
	if err != nil {
		t.Fatal(err)
	}
	tctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	b, err := w.Next(tctx)
	if err != nil || b.Events[0].Type != mvccpb.Event_DELETE {
		t.Fatalf("the lease did not end: %v, %v", b, err)
	}
	if took := time.Since(began); took < 2900*time.Millisecond {
		t.Errorf("the lease of 3 s ended %v after it was renewed", took)
	}
}

func TestRunWhileLeaderFollowsTheLead(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var mu sync.Mutex
	at := map[string]bool{}
	for n, m := range c.members {
		running.Go(func() {
			m.RunWhileLeader(ctx, func(ctx context.Context) {
				mu.Lock()
				at[n] = true
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				delete(at, n)
				mu.Unlock()
			})
		})
	}
	only := func(name string) {
		t.Helper()
		eventually(t, "the work at "+name+" alone", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(at) == 1 && at[name]
		})
	}
	leader, follower := c.leader(), c.follower()
	only(leader)
	if _, err := c.members[leader].MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: c.members[follower].MemberID()}); err != nil {
		t.Fatal(err)
	}
	only(follower)
	cancel()
	running.Wait()
}

// TestAsk: members answer each other's questions of any length, and one that has no
// answers says so.
func TestAsk(t *testing.T) {
	ids := make(chan uint64, 1)
	c := newCluster(t, func(cfg *Config) {
		if cfg.Name == "a" {
			cfg.Network = &Network{Answer: func(from uint64, body []byte) ([]byte, error) {
				ids <- from
				return append([]byte("so "), body...), nil
			}}
		}
	}, "a", "b", "c")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, body := range []string{"", "what", "12345678"} {
		got, err := c.members["b"].Ask(ctx, c.members["a"].MemberID(), []byte(body))
		if err != nil || string(got) != "so "+body {
			t.Errorf("%q: %q, %v", body, got, err)
			continue
		}
		if from := <-ids; from != c.members["b"].MemberID() {
			t.Errorf("asked by %x", from)
		}
	}
	if _, err := c.members["a"].Ask(ctx, c.members["b"].MemberID(), []byte("what")); err == nil {
		t.Error("a member without answers answered")
	}
}

// TestAddressChanges: a member that comes back elsewhere is found again.
func TestAddressChanges(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.FollowAddress = true }, "a", "b", "c")
	name := c.follower()
	cfg := c.stop(name)
	cfg.PeerURLs = []string{"http://elsewhere:2380"}
	m := c.start(cfg)
	eventually(t, "the new address in the membership", func() bool {
		e := c.members[c.leader()].node.view().members.Member(m.MemberID())
		return slices.Equal(e.PeerURLs, cfg.PeerURLs)
	})
	put(t, m.Store, "moved", "v")
	c.same()
}
