package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// recorder takes what arrives.
type recorder struct {
	mu          sync.Mutex
	got         []*raftpb.Message
	unreachable int
	removedBy   uint64
	snapshot    []byte
	snapshotErr error
	hold        chan struct{} // if set, a snapshot is read when it is closed
	gone        map[uint64]bool
	full        atomic.Bool // it takes no message
}

func (r *recorder) Receive(ctx context.Context, m *raftpb.Message, patience time.Duration) bool {
	if r.full.Load() {
		select {
		case <-ctx.Done():
		case <-time.After(patience):
		}
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, m)
	return true
}

func (r *recorder) Call(_ context.Context, from uint64, method byte, body []byte) ([]byte, error) {
	if method == 9 {
		return nil, errors.New("no such thing")
	}
	return fmt.Appendf(nil, "%d:%d:%s", from, method, body), nil
}

func (r *recorder) Snapshot(_ context.Context, _ *raftpb.Message, in io.Reader) error {
	if r.hold != nil {
		<-r.hold
	}
	data, err := io.ReadAll(in)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snapshot, r.snapshotErr = data, err
	return err
}

func (r *recorder) Unreachable(uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unreachable++
}

func (r *recorder) Known(id uint64) (member, removed bool) { return !r.gone[id], r.gone[id] }

func (r *recorder) Said(uint64, []string, func() bool) {}

func (r *recorder) Removed(by uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removedBy = by
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

// pipes listens and dials by net.Pipe.
type pipes struct {
	mu    sync.Mutex
	at    map[string]chan net.Conn
	dials atomic.Int32
	// wrap, if set, changes dialled connections.
	wrap func(net.Conn) net.Conn
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l pipeListener) Close() error   { close(l.closed); return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) listen(url string) net.Listener {
	l := pipeListener{make(chan net.Conn), make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[url] = l.conns
	return l
}

func (p *pipes) dial(ctx context.Context, url string) (net.Conn, error) {
	p.dials.Add(1)
	p.mu.Lock()
	conns := p.at[url]
	p.mu.Unlock()
	if conns == nil {
		return nil, errors.New("nobody there")
	}
	a, b := net.Pipe()
	select {
	case conns <- b:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.wrap != nil {
		return p.wrap(a), nil
	}
	return a, nil
}

func pair(t *testing.T, change func(*Config)) (a, b *Transport, ra, rb *recorder, p *pipes) {
	t.Helper()
	p = &pipes{at: map[string]chan net.Conn{}}
	make := func(self, other uint64) (*Transport, *recorder) {
		r := &recorder{gone: map[uint64]bool{}}
		cfg := Config{Self: self, Cluster: 5, Listener: p.listen(fmt.Sprint(self)), Dial: p.dial, Handler: r, Logger: slog.New(slog.DiscardHandler)}
		if change != nil {
			change(&cfg)
		}
		tr := New(cfg)
		t.Cleanup(func() {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		})
		tr.Set(map[uint64][]string{other: {fmt.Sprint(other)}})
		return tr, r
	}
	a, ra = make(1, 2)
	b, rb = make(2, 1)
	return a, b, ra, rb, p
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s: no %s", what)
		}
	}
}

func message(typ raftpb.MessageType, index uint64, data int) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Index: proto.Uint64(index)}
	if data > 0 {
		m.Entries = []*raftpb.Entry{{Data: make([]byte, data)}}
	}
	return m
}

func TestMessagesAndCalls(t *testing.T) {
	a, b, _, rb, _ := pair(t, nil)
	const n = 2000
	go func() {
		for i := range n {
			// A queue that is full drops: raft would send again.
			want := rb.count
			a.Send([]*raftpb.Message{message(raftpb.MsgApp, uint64(i), 3000)})
			for i-want() > 100 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	eventually(t, "all messages", func() bool { return rb.count() == n })
	for i, m := range rb.got {
		if m.GetIndex() != uint64(i) || len(m.GetEntries()[0].GetData()) != 3000 {
			t.Fatalf("message %d is %v", i, m.GetIndex())
		}
	}
	if a.Heard(2).IsZero() && b.Heard(1).IsZero() {
		t.Error("neither has heard of the other")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if got, err := a.Call(ctx, 2, 7, []byte("hello")); err != nil || string(got) != "1:7:hello" {
		t.Errorf("%q, %v", got, err)
	}
	var told CallError
	if _, err := b.Call(ctx, 1, 9, nil); !errors.As(err, &told) || told != "no such thing" {
		t.Errorf("%v", err)
	}
	if _, err := a.Call(ctx, 3, 1, nil); err == nil {
		t.Error("called who is not a member")
	}
}

// TestFullMemberIsHeard: a member that takes no message any more, since its disk
// hangs, says all the time that it is there.
func TestFullMemberIsHeard(t *testing.T) {
	a, b, _, rb, _ := pair(t, nil)
	a.SetAcks(10 * time.Millisecond)
	b.SetAcks(10 * time.Millisecond)
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 0)})
	eventually(t, "the first message", func() bool { return rb.count() == 1 })
	rb.full.Store(true)
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 2, 0)})
	for range 3 {
		last := a.Heard(2)
		eventually(t, "a sign of life", func() bool { return a.Heard(2).After(last) })
	}
	rb.full.Store(false)
	eventually(t, "the second message", func() bool { return rb.count() >= 2 })
}

// TestUrgentOvertakes: a heartbeat does not wait for what is queued before it.
func TestUrgentOvertakes(t *testing.T) {
	l := &link{wake: make(chan struct{}, 1)}
	for i := range uint64(50) {
		l.put(item{kind: kindMessage, msg: message(raftpb.MsgApp, i, 1000)})
	}
	l.put(item{kind: kindMessage, msg: message(raftpb.MsgHeartbeat, 99, 0)})
	if first := l.take(); first[0].msg.GetType() != raftpb.MsgHeartbeat {
		t.Errorf("%v goes first", first[0].msg.GetType())
	}
	for i := range uint64(50) {
		if next := l.take(); len(next) != 1 || next[0].msg.GetIndex() != i {
			t.Fatalf("after %d: %v", i, next)
		}
	}
	if l.take() != nil || l.bulkBytes != 0 {
		t.Errorf("%d bytes left in an empty queue", l.bulkBytes)
	}
}

func TestQueuesAreBounded(t *testing.T) {
	l := &link{wake: make(chan struct{}, 1)}
	accepted := 0
	for range 100 {
		if l.put(item{kind: kindMessage, msg: message(raftpb.MsgApp, 1, 1<<20)}) {
			accepted++
		}
	}
	if accepted < 7 || accepted > 8 {
		t.Errorf("%d MiB queued", accepted)
	}
	accepted = 0
	for range 2 * maxUrgent {
		if l.put(item{kind: kindMessage, msg: message(raftpb.MsgHeartbeat, 1, 0)}) {
			accepted++
		}
	}
	if accepted != maxUrgent {
		t.Errorf("%d heartbeats queued", accepted)
	}
}

// deaf is a connection whose other side is gone without a word.
type deaf struct {
	net.Conn
	off *atomic.Bool
}

func (d deaf) Write(b []byte) (int, error) {
	if d.off.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

func TestDeadConnectionIsReplaced(t *testing.T) {
	var dead atomic.Bool
	a, _, ra, rb, p := pair(t, nil)
	p.mu.Lock()
	first := true
	p.wrap = func(c net.Conn) net.Conn {
		if !first {
			return c
		}
		first = false
		return deaf{c, &dead}
	}
	p.mu.Unlock()
	send := func(i uint64) { a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, i, 0)}) }
	send(1)
	eventually(t, "the first message", func() bool { return rb.count() == 1 })
	dead.Store(true)
	began := time.Now()
	eventually(t, "a message over another connection", func() bool {
		send(2)
		time.Sleep(20 * time.Millisecond)
		return rb.count() > 1
	})
	if took := time.Since(began); took > 3*ackTimeout {
		t.Errorf("a dead connection was replaced after %v", took)
	}
	ra.mu.Lock()
	defer ra.mu.Unlock()
	if ra.unreachable == 0 {
		t.Error("the loss was not told")
	}
}

func TestRefusals(t *testing.T) {
	a, b, ra, rb, _ := pair(t, func(c *Config) {
		if c.Self == 2 {
			c.Cluster = 6
		}
	})
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 0)})
	eventually(t, "a refusal of the other cluster", func() bool {
		ra.mu.Lock()
		defer ra.mu.Unlock()
		return ra.unreachable > 0
	})
	if rb.count() != 0 {
		t.Error("a message of another cluster arrived")
	}
	b.SetCluster(5)
	rb.gone[1] = true
	eventually(t, "the news that it was removed", func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 0)})
		ra.mu.Lock()
		defer ra.mu.Unlock()
		return ra.removedBy == 2
	})
}

type slowState struct {
	size, written int
	progress      atomic.Int64
}

func (s *slowState) WriteTo(w io.Writer) (int64, error) {
	chunk := bytes.Repeat([]byte("state..."), 512)
	for s.written < s.size {
		n, err := w.Write(chunk)
		s.written += n
		s.progress.Store(int64(s.written))
		if err != nil {
			return int64(s.written), err
		}
	}
	return int64(s.written), nil
}

// TestSnapshotFollowsItsReceiver: what is not read is not sent, and one that
// breaks off is told to both sides.
func TestSnapshotFollowsItsReceiver(t *testing.T) {
	a, _, _, rb, _ := pair(t, nil)
	rb.hold = make(chan struct{})
	m := &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: proto.Uint64(1), To: proto.Uint64(2)}
	s := &slowState{size: 5 << 20}
	done := make(chan error, 1)
	go func() { done <- a.SendSnapshot(context.Background(), m, s) }()
	eventually(t, "the first part", func() bool { return s.progress.Load() > 0 })
	// Messages go on meanwhile.
	for i := range uint64(200) {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, i, 0)})
	}
	eventually(t, "messages beside a snapshot", func() bool { return rb.count() > 0 })
	if got := s.progress.Load(); got > 4*snapshotChunk {
		t.Errorf("%d bytes were sent to a receiver that reads nothing", got)
	}
	close(rb.hold)
	if err := <-done; err != nil || len(rb.snapshot) != 5<<20 || !bytes.HasPrefix(rb.snapshot, []byte("state...")) {
		t.Errorf("%d bytes arrived, %v", len(rb.snapshot), err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	s = &slowState{size: 1 << 40}
	go func() { done <- a.SendSnapshot(ctx, m, s) }()
	eventually(t, "the second snapshot's first part", func() bool { return s.progress.Load() > 0 })
	cancel()
	if err := <-done; err == nil {
		t.Error("a snapshot that broke off was sent")
	}
	eventually(t, "the receiver's error", func() bool {
		rb.mu.Lock()
		defer rb.mu.Unlock()
		return rb.snapshotErr != nil
	})
}

// FuzzConnection: whatever arrives on a connection, it is taken or dropped.
func FuzzConnection(f *testing.F) {
	welcome := func(purpose byte) []byte {
		return frame(nil, kindHello, hello{purpose: purpose, cluster: 5, from: 1, to: 2, urls: []string{"http://a"}}.encode())
	}
	msg, err := proto.Marshal(message(raftpb.MsgApp, 3, 10))
	if err != nil {
		f.Fatal(err)
	}
	snap, err := proto.Marshal(&raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: proto.Uint64(1), To: proto.Uint64(2)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame(welcome(purposeStream), kindMessage, msg))
	f.Add(frame(welcome(purposeStream), kindCall, call{1, 2, []byte("x")}.encode()))
	f.Add(frame(welcome(purposeCall), kindCall, call{1, 2, []byte("x")}.encode()))
	f.Add(frame(frame(frame(welcome(purposeSnapshot), kindSnapshot, snap), kindData, []byte("abc")), kindEnd, []byte{3, 0, 0, 0, 0, 0, 0, 0}))
	f.Add([]byte{255, 255, 255, 255, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &pipes{at: map[string]chan net.Conn{}}
		r := &recorder{}
		tr := New(Config{Self: 2, Cluster: 5, Listener: p.listen("2"), Dial: p.dial, Handler: r, Logger: slog.New(slog.DiscardHandler)})
		conn, err := p.dial(context.Background(), "2")
		if err != nil {
			t.Fatal(err)
		}
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(data) // the other side may have dropped it
		conn.Close()
		reading.Wait()
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
