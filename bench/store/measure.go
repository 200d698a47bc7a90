package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// member is a running server.
type member struct {
	cmd      *exec.Cmd
	endpoint string
	ended    chan struct{} // closed when it runs no more
}

func start(binary []string, dir, name string, port int, cluster string) (*member, error) {
	m := &member{endpoint: fmt.Sprintf("http://127.0.0.1:%d", port)}
	peer := fmt.Sprintf("http://127.0.0.1:%d", port+1)
	if cluster == "" {
		cluster = name + "=" + peer
	}
	args := append(slices.Clone(binary[1:]), "--name="+name, "--data-dir="+filepath.Join(dir, name),
		"--listen-client-urls="+m.endpoint, "--advertise-client-urls="+m.endpoint,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster="+cluster, "--log-level=error")
	m.cmd = exec.Command(binary[0], args...)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	m.ended = make(chan struct{})
	go func() {
		defer close(m.ended)
		_ = m.cmd.Wait()
	}()
	return m, nil
}

func (m *member) stop(sig syscall.Signal) {
	_ = m.cmd.Process.Signal(sig)
	<-m.ended
}

// rss is resident memory in MB.
func (m *member) rss() float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				return 0
			}
			return kb / 1024
		}
	}
	return 0
}

// cpu is how long the server has computed, in all of its threads.
func (m *member) cpu() time.Duration {
	var total time.Duration
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		if ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64); err == nil {
			total += time.Duration(ns)
		}
	}
	return total
}

func client(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// ready waits until a put is acknowledged and returns how long it took. It fails if m,
// which may be nil, has ended.
func ready(ctx context.Context, m *member, c *clientv3.Client, since time.Time) (time.Duration, error) {
	var ended <-chan struct{}
	if m != nil {
		ended = m.ended
	}
	for {
		pctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		_, err := c.Put(pctx, "ready", "")
		cancel()
		if err == nil {
			return time.Since(since), nil
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), err)
		case <-ended:
			return 0, fmt.Errorf("the server of %s has ended: %w", m.endpoint, err)
		case <-time.After(time.Millisecond):
		}
	}
}

const clientsPerConnection = 50

// loaded is what a load came to.
type loaded struct {
	calls int64
	rate  float64 // calls a second
	// server and client are the CPU for a call, in microseconds: where both together
	// are what the machine has, they are the bound, and nothing else.
	server, client float64
}

// load runs f from n clients for d. On a busy machine a server may answer some calls
// that it took too long; those are told and not counted.
func load(ctx context.Context, m *member, n int, d time.Duration, f func(ctx context.Context, c *clientv3.Client, i int) error) (loaded, error) {
	conns := make([]*clientv3.Client, (n+clientsPerConnection-1)/clientsPerConnection)
	for i := range conns {
		var err error
		if conns[i], err = client(m.endpoint); err != nil {
			return loaded{}, err
		}
		defer conns[i].Close()
		if _, err := conns[i].Get(ctx, "ready"); err != nil {
			return loaded{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var done, late atomic.Int64
	var failed atomic.Value
	var all sync.WaitGroup
	begin, server, own := time.Now(), m.cpu(), ownCPU()
	for i := range n {
		all.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				switch err := f(ctx, conns[i%len(conns)], i*1_000_000+k); {
				case err == nil:
					done.Add(1)
				case ctx.Err() != nil:
				case errors.Is(err, rpctypes.ErrTimeout):
					late.Add(1)
				default:
					failed.Store(err)
					return
				}
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	server, own = m.cpu()-server, ownCPU()-own
	if err, ok := failed.Load().(error); ok {
		return loaded{}, err
	}
	if n := late.Load(); n > 0 {
		fmt.Fprintf(os.Stderr, "bench/store: %s: %d of %d calls took the server too long\n", m.endpoint, n, n+done.Load())
	}
	calls := done.Load()
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(max(calls, 1)) }
	return loaded{calls, float64(calls) / took.Seconds(), each(server), each(own)}, nil
}

// ownCPU is how long this process has computed.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func key(i int) string { return fmt.Sprintf("%08d", i%100_000) }

// server is one of the two that are compared, on a disk of its own.
type server struct {
	name   string
	binary []string
	disk   *disk
	port   int
	m      *member // alone in its cluster
	client *clientv3.Client
}

// group is a group of rows.
type group struct {
	name string
	load bool // the servers take several turns
	run  func(*bench, context.Context, *server) error
}

// groups are in the order of the table.
var groups = []group{
	{"empty", false, (*bench).empty}, {"puts", true, (*bench).puts}, {"noise", true, (*bench).noise}, {"after", false, (*bench).after},
	{"reads", true, (*bench).reads}, {"watches", true, (*bench).watches}, {"slow", true, (*bench).slow},
	{"sizes", false, (*bench).sizes}, {"failover", false, (*bench).failover},
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

func (s *server) open(ctx context.Context) error {
	var err error
	if s.m, err = start(s.binary, s.disk.mount, "m", s.port, ""); err != nil {
		return err
	}
	if s.client, err = client(s.m.endpoint); err != nil {
		return err
	}
	_, err = ready(ctx, s.m, s.client, time.Now())
	return err
}

func (s *server) close() error {
	if s.m != nil {
		s.m.stop(syscall.SIGKILL)
	}
	if s.client != nil {
		s.client.Close()
	}
	return s.disk.close()
}

func (b *bench) add(s *server, what, unit string, more bool, budget, value float64) {
	b.table.add(s.name, what, unit, more, budget, value)
}

// addLoad adds the rows of a load.
func (b *bench) addLoad(s *server, what string, budget float64, l loaded) {
	b.add(s, what, "1/s", true, budget, l.rate)
	b.add(s, what+", the server's CPU for one", "us", false, 0, l.server)
	b.add(s, what+", the clients' CPU for one", "us", false, 0, l.client)
}

// settled is how long after a load memory is looked at again.
const settled = 10 * time.Second

func (b *bench) empty(ctx context.Context, s *server) error {
	m, err := start(s.binary, s.disk.mount, "empty", 14379, "")
	if err != nil {
		return err
	}
	defer func() { m.stop(syscall.SIGKILL) }()
	c, err := client(m.endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := ready(ctx, m, c, time.Now()); err != nil {
		return err
	}
	b.add(s, "resident, empty, just started", "MB", false, 0, m.rss())
	time.Sleep(settled)
	if _, err := c.Get(ctx, "ready"); err != nil {
		return err
	}
	b.add(s, "resident, empty, after 10 s", "MB", false, 0.5, m.rss())
	return nil
}

func (b *bench) puts(ctx context.Context, s *server) error {
	value := strings.Repeat("v", 256)
	put := func(ctx context.Context, c *clientv3.Client, i int) error {
		_, err := c.Put(ctx, key(i), value)
		return err
	}
	for _, n := range []int{1, 1000} {
		bytes, flushes, err := s.disk.counts()
		if err != nil {
			return err
		}
		l, err := load(ctx, s.m, n, b.seconds, put)
		if err != nil {
			return err
		}
		syscall.Sync()
		bytes2, flushes2, err := s.disk.counts()
		if err != nil {
			return err
		}
		what := map[int]string{1: "puts of 256 B, 1 client", 1000: "puts of 256 B, 1000 clients"}[n]
		b.addLoad(s, what, 1.5, l)
		b.add(s, what+", bytes to the block layer", "B", false, map[int]float64{1: 0.65, 1000: 0.5}[n], (bytes2-bytes)/float64(l.calls))
		b.add(s, what+", flushes", "", false, 0, (flushes2-flushes)/float64(l.calls))
	}
	return nil
}

// noise measures the bytes of values that nothing can shorten.
func (b *bench) noise(ctx context.Context, s *server) error {
	before, _, err := s.disk.counts()
	if err != nil {
		return err
	}
	l, err := load(ctx, s.m, 1000, b.seconds, func(ctx context.Context, c *clientv3.Client, i int) error {
		value := make([]byte, 256)
		for at := 0; at < len(value); at += 8 {
			binary.LittleEndian.PutUint64(value[at:], rand.Uint64())
		}
		_, err := c.Put(ctx, key(i), string(value))
		return err
	})
	if err != nil {
		return err
	}
	syscall.Sync()
	after, _, err := s.disk.counts()
	b.add(s, "puts of noise, 1000 clients, bytes to the block layer", "B", false, 0, (after-before)/float64(l.calls))
	return err
}

// after measures the memory that the loads before have left.
func (b *bench) after(ctx context.Context, s *server) error {
	time.Sleep(settled)
	if _, err := s.client.Get(ctx, "ready"); err != nil {
		return err
	}
	b.add(s, "resident, 10 s after the puts", "MB", false, 0, s.m.rss())
	return nil
}

func (b *bench) reads(ctx context.Context, s *server) error {
	run := func(what string, f func(ctx context.Context, c *clientv3.Client, i int) error) error {
		l, err := load(ctx, s.m, 100, b.seconds, f)
		if err != nil {
			return err
		}
		b.addLoad(s, what+", 100 clients", 0, l)
		return nil
	}
	for _, r := range []struct {
		what string
		opts []clientv3.OpOption
	}{{"linearizable", nil}, {"serializable", []clientv3.OpOption{clientv3.WithSerializable()}}} {
		if err := run(r.what+" reads", func(ctx context.Context, c *clientv3.Client, i int) error {
			_, err := c.Get(ctx, key(i), r.opts...)
			return err
		}); err != nil {
			return err
		}
	}
	return run("transactions with a compare", func(ctx context.Context, c *clientv3.Client, i int) error {
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Version(key(i)), ">", 0)).Then(clientv3.OpGet(key(i)), clientv3.OpPut(key(i), "x")).Else(clientv3.OpPut(key(i), "y")).Commit()
		return err
	})
}

func (b *bench) watches(ctx context.Context, s *server) error {
	const watchers = 100
	wctx, cancel := context.WithTimeout(ctx, b.seconds)
	defer cancel()
	var events, answers atomic.Int64
	var all sync.WaitGroup
	for range watchers {
		ch := s.client.Watch(wctx, "fan", clientv3.WithCreatedNotify())
		<-ch
		all.Go(func() {
			for r := range ch {
				events.Add(int64(len(r.Events)))
				answers.Add(1)
			}
		})
	}
	begin := time.Now()
	l, err := load(wctx, s.m, 10, b.seconds, func(ctx context.Context, c *clientv3.Client, _ int) error {
		_, err := c.Put(ctx, "fan", "x")
		return err
	})
	all.Wait()
	n := float64(max(events.Load(), 1))
	each := func(perCall float64) float64 { return perCall * float64(l.calls) / n }
	b.add(s, "events to 100 watchers", "1/s", true, 0, n/time.Since(begin).Seconds())
	b.add(s, "events to 100 watchers, received for each made", "", true, 0, n/float64(watchers*max(l.calls, 1)))
	b.add(s, "events to 100 watchers, in an answer", "", false, 0, n/float64(max(answers.Load(), 1)))
	b.add(s, "events to 100 watchers, the server's CPU for one", "us", false, 0, each(l.server))
	b.add(s, "events to 100 watchers, the clients' CPU for one", "us", false, 0, each(l.client))
	return err
}

// sizes measures memory and the start of stores with keys of 1 KB.
func (b *bench) sizes(ctx context.Context, s *server) error {
	m, err := start(s.binary, s.disk.mount, "sizes", 15379, "")
	if err != nil {
		return err
	}
	defer func() { m.stop(syscall.SIGKILL) }()
	value := strings.Repeat("v", 1024)
	c, err := client(m.endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := ready(ctx, m, c, time.Now()); err != nil {
		return err
	}
	made := 0
	for _, n := range []int{10_000, 100_000} {
		var all sync.WaitGroup
		var failed atomic.Value
		for w := range 100 {
			all.Go(func() {
				for i := made + w; i < n; i += 100 {
					if _, err := c.Put(ctx, fmt.Sprintf("size%08d", i), value); err != nil {
						failed.Store(err)
						return
					}
				}
			})
		}
		all.Wait()
		if err, ok := failed.Load().(error); ok {
			return err
		}
		made = n
		b.add(s, fmt.Sprintf("resident, %d keys of 1 KB", n), "MB", false, 0, m.rss())
	}
	m.stop(syscall.SIGTERM)
	begin := time.Now()
	if m, err = start(s.binary, s.disk.mount, "sizes", 15379, ""); err != nil {
		return err
	}
	took, err := ready(ctx, m, c, begin)
	b.add(s, "exec to the first put with 100 MB", "ms", false, 0, float64(took.Milliseconds()))
	b.add(s, "resident, 100 MB, just started", "MB", false, 0, m.rss())
	return err
}

// failover kills the leader of three members again and again.
func (b *bench) failover(ctx context.Context, s *server) error {
	ports := []int{16379, 16389, 16399}
	var parts, endpoints []string
	for i, p := range ports {
		parts = append(parts, fmt.Sprintf("n%d=http://127.0.0.1:%d", i, p+1))
		endpoints = append(endpoints, fmt.Sprintf("http://127.0.0.1:%d", p))
	}
	members := make([]*member, len(ports))
	for i, p := range ports {
		m, err := start(s.binary, s.disk.mount, fmt.Sprintf("n%d", i), p, strings.Join(parts, ","))
		if err != nil {
			return err
		}
		members[i] = m
	}
	defer func() {
		for _, m := range members {
			m.stop(syscall.SIGKILL)
		}
	}()
	var took []time.Duration
	for range b.kills {
		lead, err := leader(ctx, endpoints)
		if err != nil {
			return err
		}
		members[lead].stop(syscall.SIGKILL)
		begin := time.Now()
		rest := slices.Delete(slices.Clone(endpoints), lead, lead+1)
		c, err := client(rest...)
		if err != nil {
			return err
		}
		d, err := ready(ctx, nil, c, begin)
		c.Close()
		if err != nil {
			return err
		}
		took = append(took, d)
		if members[lead], err = start(s.binary, s.disk.mount, fmt.Sprintf("n%d", lead), ports[lead], strings.Join(parts, ",")); err != nil {
			return err
		}
	}
	slices.Sort(took)
	if len(took) > 0 {
		b.add(s, "leader killed to the next put, p50", "ms", false, 0, float64(took[len(took)/2].Milliseconds()))
		b.add(s, "leader killed to the next put, worst", "ms", false, 0, float64(took[len(took)-1].Milliseconds()))
	}
	return nil
}

// leader waits until all members agree on one.
func leader(ctx context.Context, endpoints []string) (int, error) {
	for ctx.Err() == nil {
		ids, leaders := make([]uint64, len(endpoints)), map[uint64]bool{}
		for i, e := range endpoints {
			c, err := client(e)
			if err != nil {
				return 0, err
			}
			sctx, cancel := context.WithTimeout(ctx, time.Second)
			st, err := c.Status(sctx, e)
			cancel()
			c.Close()
			if err != nil {
				leaders[0] = true
				continue
			}
			ids[i] = st.Header.MemberId
			leaders[st.Leader] = true
		}
		for i, id := range ids {
			if len(leaders) == 1 && leaders[id] && id != 0 {
				return i, nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, ctx.Err()
}
