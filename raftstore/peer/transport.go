package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const (
	maxConnections = 256
	maxCalls       = 64
	helloTimeout   = 5 * time.Second
	// snapshotStall is how long a snapshot may make no progress: an SD card
	// stalls for seconds.
	snapshotStall = 60 * time.Second
	snapshotChunk = 64 << 10
)

// Handler takes what other members send. Its methods are called from the
// connections' goroutines.
type Handler interface {
	// Receive takes a message. It may wait, and the sender waits with it: after
	// patience it reports false, and is asked again.
	Receive(ctx context.Context, m *raftpb.Message, patience time.Duration) bool
	// Call answers a call; from is 0 for who is not a member.
	Call(ctx context.Context, from uint64, method byte, body []byte) ([]byte, error)
	// Snapshot takes a snapshot that m announces and r holds; it must read all
	// of r.
	Snapshot(ctx context.Context, m *raftpb.Message, r io.Reader) error
	// Unreachable tells that messages to a member may be lost.
	Unreachable(id uint64)
	// Known tells whether id is a member, and whether it was one.
	Known(id uint64) (member, removed bool)
	// Said tells where a member says that it is, and whether it still does. It
	// may take its time.
	Said(id uint64, urls []string, still func() bool)
	// Removed tells that another member says that this one was removed.
	Removed(by uint64)
}

// Config is what a Transport is made of.
type Config struct {
	Self, Cluster uint64
	// URLs are this member's own, told to the others; SetURLs replaces them.
	URLs []string
	// Hints are where some of the members may be found when they are not where
	// they were.
	Hints    []string
	Listener net.Listener
	Dial     func(ctx context.Context, url string) (net.Conn, error)
	Handler  Handler
	Logger   *slog.Logger
}

// Transport is a member's end of all connections.
type Transport struct {
	cfg     Config
	handler Handler
	log     *slog.Logger
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup
	calls   chan struct{} // a token per call being answered
	born    time.Time
	// lateHeartbeats counts those that found no room.
	lateHeartbeats atomic.Uint64
	ackEvery       atomic.Int64 // nanoseconds, 0 for ackInterval

	mu sync.Mutex
	// guarded by mu
	urls      []string // this member's own, told to the others
	cluster   uint64
	links     map[uint64]*link
	conns     map[net.Conn]struct{}
	waiting   map[uint64]chan call
	lastCall  uint64
	receiving bool // a snapshot
}

// New starts accepting connections.
func New(cfg Config) *Transport {
	t := &Transport{
		cfg: cfg, handler: cfg.Handler, log: cfg.Logger, cluster: cfg.Cluster, urls: cfg.URLs, born: time.Now(), calls: make(chan struct{}, maxCalls),
		links: map[uint64]*link{}, conns: map[net.Conn]struct{}{}, waiting: map[uint64]chan call{},
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.running.Go(t.accept)
	return t
}

// Close ends all connections, after what is queued was sent if that is quick.
func (t *Transport) Close() error {
	t.stop()
	err := t.cfg.Listener.Close()
	t.mu.Lock()
	links := make([]*link, 0, len(t.links))
	for _, l := range t.links {
		links = append(links, l)
	}
	t.mu.Unlock()
	for _, l := range links {
		<-l.done
	}
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	t.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Set says who the other members are and where. Links to others end.
func (t *Transport) Set(members map[uint64][]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return
	}
	for id, l := range t.links {
		if _, ok := members[id]; !ok {
			l.stop()
			delete(t.links, id)
		}
	}
	for id, urls := range members {
		l := t.links[id]
		if l == nil {
			l = &link{t: t, id: id, done: make(chan struct{}), wake: make(chan struct{}, 1), since: time.Now()}
			var ctx context.Context
			ctx, l.stop = context.WithCancel(t.ctx)
			t.links[id] = l
			t.running.Go(func() { l.run(ctx) })
		}
		l.mu.Lock()
		l.urls = urls
		l.mu.Unlock()
	}
}

// Found says where a member may be, beside what the membership and the member
// itself say. It replaces what was found before.
func (t *Transport) Found(id uint64, urls []string) {
	if l := t.link(id); l != nil {
		l.mu.Lock()
		l.found = urls
		l.mu.Unlock()
	}
}

// SetCluster says which cluster this is, once that is known.
func (t *Transport) SetCluster(id uint64) {
	t.mu.Lock()
	t.cluster = id
	t.mu.Unlock()
}

// SetURLs says where this member is from now on. It connects to the others anew,
// so that they hear of it at once.
func (t *Transport) SetURLs(urls []string) {
	t.mu.Lock()
	t.urls = urls
	links := slices.Collect(maps.Values(t.links))
	t.mu.Unlock()
	for _, l := range links {
		l.reconnect()
	}
}

func (t *Transport) link(id uint64) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.links[id]
}

// Send queues messages; it never waits.
func (t *Transport) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		l := t.link(m.GetTo())
		if l == nil {
			continue
		}
		if l.put(item{kind: kindMessage, msg: m}) {
			continue
		}
		l.traffic.failures.Add(1)
		if m.GetType() == raftpb.MsgHeartbeat {
			t.lateHeartbeats.Add(1)
		}
		if m.GetType() == raftpb.MsgApp {
			// From another goroutine: the caller is who takes it.
			t.running.Go(func() { t.handler.Unreachable(m.GetTo()) })
		}
	}
}

// LateHeartbeats counts heartbeats that were not sent for want of room.
func (t *Transport) LateHeartbeats() uint64 { return t.lateHeartbeats.Load() }

// Age is how long this member has been there.
func (t *Transport) Age() time.Duration { return time.Since(t.born) }

// Connected tells since when there has been a connection to a member, or that
// there is none.
func (t *Transport) Connected(id uint64) (since time.Time, ok bool) {
	l := t.link(id)
	if l == nil {
		return time.Time{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, l.connected
}

// Heard tells when something of a member arrived last, zero for never.
func (t *Transport) Heard(id uint64) time.Time {
	l := t.link(id)
	if l == nil || l.heard.Load() == 0 {
		return time.Time{}
	}
	return t.born.Add(time.Duration(l.heard.Load()))
}

// CallError is the text of an error that the other member answered.
type CallError string

func (e CallError) Error() string { return string(e) }

// Call asks a member.
func (t *Transport) Call(ctx context.Context, to uint64, method byte, body []byte) ([]byte, error) {
	l := t.link(to)
	if l == nil {
		return nil, fmt.Errorf("call %x: not a member", to)
	}
	answer := make(chan call, 1)
	t.mu.Lock()
	t.lastCall++
	id := t.lastCall
	t.waiting[id] = answer
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.waiting, id)
		t.mu.Unlock()
	}()
	if !l.put(item{kind: kindCall, payload: call{id, method, body}.encode()}) {
		return nil, fmt.Errorf("call %x: its queue is full", to)
	}
	select {
	case c := <-answer:
		if c.method != answered {
			return nil, CallError(c.body)
		}
		return c.body, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("call %x: %w", to, ctx.Err())
	case <-t.ctx.Done():
		return nil, fmt.Errorf("call %x: %w", to, net.ErrClosed)
	}
}

// Ask makes one call over a connection of its own, from outside of a cluster. It
// takes 5 s at most: who is asked may have a port and not listen to it yet.
func Ask(ctx context.Context, dial func(context.Context, string) (net.Conn, error), url string, method byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := dial(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := greet(conn, hello{purpose: purposeCall}); err != nil {
		return nil, err
	}
	if _, err := conn.Write(frame(nil, kindCall, call{1, method, body}.encode())); err != nil {
		return nil, err
	}
	kind, payload, err := readFrame(conn, nil, maxFrameBytes)
	if err != nil {
		return nil, err
	}
	c, err := decodeCall(payload)
	if err != nil || kind != kindReply {
		return nil, errors.Join(err, fmt.Errorf("%w: kind %d for an answer", ErrFrame, kind))
	}
	if c.method != answered {
		return nil, CallError(c.body)
	}
	return c.body, nil
}

// connect dials a member's addresses in turn.
func (t *Transport) connect(ctx context.Context, purpose byte, id uint64, urls []string) (net.Conn, error) {
	var first error
	for _, u := range urls {
		conn, err := t.dial(ctx, purpose, id, u)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err // where it should be
		}
	}
	if first == nil {
		first = errors.New("it has no address")
	}
	return nil, first
}

func (t *Transport) dial(ctx context.Context, purpose byte, id uint64, url string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := t.cfg.Dial(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", url, err)
	}
	conn = t.count(conn, id)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	t.mu.Lock()
	h := hello{purpose, t.cluster, t.cfg.Self, id, t.urls}
	t.mu.Unlock()
	err = errors.Join(conn.SetDeadline(time.Now().Add(dialTimeout)))
	if err == nil {
		err = greet(conn, h)
	}
	if errors.Is(err, errRemoved) {
		t.handler.Removed(id)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("greet %s: %w", url, err), conn.Close())
	}
	return conn, nil
}

var errRemoved = fmt.Errorf("%w: this member was removed from the cluster", ErrRefused)

// greet says hello and waits for the welcome.
func greet(conn net.Conn, h hello) error {
	if _, err := conn.Write(frame(nil, kindHello, h.encode())); err != nil {
		return err
	}
	kind, payload, err := readFrame(conn, nil, maxHelloBytes)
	if err != nil {
		return err
	}
	if kind != kindWelcome || len(payload) != 1 {
		return fmt.Errorf("%w: not a welcome", ErrFrame)
	}
	switch payload[0] {
	case welcomed:
		return nil
	case refusedVersion:
		return errVersion
	case refusedCluster:
		return fmt.Errorf("%w: it belongs to another cluster", ErrRefused)
	case refusedRemoved:
		return errRemoved
	case refusedMember:
		return fmt.Errorf("%w: another member is at this address", ErrRefused)
	case refusedBusy:
		return fmt.Errorf("%w: it is busy", ErrRefused)
	}
	return fmt.Errorf("%w: reason %d", ErrRefused, payload[0])
}

func (t *Transport) accept() {
	for {
		conn, err := t.cfg.Listener.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			t.log.Warn("a connection of a member was not accepted", "err", err)
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(firstBackoff):
			}
			continue
		}
		t.mu.Lock()
		full := len(t.conns) >= maxConnections
		if !full {
			t.conns[conn] = struct{}{}
		}
		t.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		t.running.Go(func() {
			t.serve(conn)
			conn.Close()
			t.mu.Lock()
			delete(t.conns, conn)
			t.mu.Unlock()
		})
	}
}

// serve reads an incoming connection until it ends.
func (t *Transport) serve(conn net.Conn) {
	if conn.SetDeadline(time.Now().Add(helloTimeout)) != nil {
		return
	}
	kind, payload, err := readFrame(conn, nil, maxHelloBytes)
	if err != nil || kind != kindHello {
		return
	}
	h, err := decodeHello(payload)
	reason := byte(refusedVersion)
	if err == nil {
		reason = t.judge(h)
	} else if !errors.Is(err, errVersion) {
		return
	}
	if _, err := conn.Write(frame(nil, kindWelcome, []byte{reason})); err != nil || reason != welcomed {
		return
	}
	if l := t.link(h.from); l != nil && len(h.urls) > 0 {
		said := slices.Concat(h.urls, seenAt(conn, h.urls))
		l.learn(said)
		t.running.Go(func() { t.handler.Said(h.from, h.urls, func() bool { return l.says(said) }) })
	}
	conn = t.count(conn, h.from)
	switch h.purpose {
	case purposeStream:
		if conn.SetDeadline(time.Time{}) == nil {
			t.stream(conn, h.from)
		}
	case purposeSnapshot:
		t.snapshot(conn, h.from)
	case purposeCall:
		t.single(conn)
	}
}

// seenAt is where a member that says that it is at urls seems to be, if it is
// elsewhere: it may not know itself, as behind a router.
func seenAt(conn net.Conn, urls []string) []string {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	u, err := url.Parse(urls[0])
	if err != nil || u.Port() == "" {
		return nil
	}
	u.Host = net.JoinHostPort(remote.AddrPort().Addr().Unmap().String(), u.Port())
	if slices.Contains(urls, u.String()) {
		return nil
	}
	return []string{u.String()}
}

// judge decides whether a connection is welcome.
func (t *Transport) judge(h hello) byte {
	if h.purpose == purposeCall {
		return welcomed
	}
	t.mu.Lock()
	cluster := t.cluster
	t.mu.Unlock()
	member, removed := t.handler.Known(h.from)
	switch {
	case removed:
		return refusedRemoved
	case h.to != t.cfg.Self:
		return refusedMember
	case cluster != 0 && h.cluster != cluster:
		return refusedCluster
	}
	// One that this member does not know yet may be newer than its membership.
	_ = member
	return welcomed
}

// stream takes messages and calls of a member.
func (t *Transport) stream(conn net.Conn, from uint64) {
	in := bufio.NewReaderSize(conn, 16<<10)
	buf := make([]byte, readBuffer)
	var acked time.Time
	for {
		if conn.SetReadDeadline(time.Now().Add(inboundSilent)) != nil {
			return
		}
		kind, payload, err := readFrame(in, buf, maxFrameBytes)
		if errors.Is(err, ErrFrame) {
			t.log.Warn("a connection of a member was dropped", "member", fmt.Sprintf("%x", from), "err", err)
		}
		if err != nil {
			return
		}
		if l := t.link(from); l != nil {
			l.hear()
		}
		ack := func() error {
			now := time.Now()
			if now.Sub(acked) < t.acks() {
				return nil
			}
			acked = now
			if err := conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
				return err
			}
			_, err := conn.Write(frame(nil, kindAck, nil))
			return err
		}
		if ack() != nil {
			return
		}
		if err := t.dispatch(from, kind, payload, ack); err != nil {
			t.log.Warn("a connection of a member was dropped", "member", fmt.Sprintf("%x", from), "err", err)
			return
		}
	}
}

// dispatch hands over what arrived. While it waits, ack tells the sender that this
// member is there: a disk that hangs under load holds up everything else.
func (t *Transport) dispatch(from uint64, kind byte, payload []byte, ack func() error) error {
	switch kind {
	case kindMessage:
		m := new(raftpb.Message)
		if err := proto.Unmarshal(payload, m); err != nil {
			return fmt.Errorf("%w: %w", ErrFrame, err)
		}
		if m.GetFrom() != from && m.GetType() != raftpb.MsgProp && m.GetType() != raftpb.MsgReadIndex || m.GetType() == raftpb.MsgSnap {
			return fmt.Errorf("%w: message of type %v in the name of %x", ErrFrame, m.GetType(), m.GetFrom())
		}
		for !t.handler.Receive(t.ctx, m, t.acks()) && t.ctx.Err() == nil {
			if err := ack(); err != nil {
				return err
			}
		}
	case kindCall:
		c, err := decodeCall(payload)
		if err != nil {
			return err
		}
		t.answer(from, c)
	case kindReply:
		c, err := decodeCall(payload)
		if err != nil {
			return err
		}
		t.mu.Lock()
		waiting := t.waiting[c.id]
		delete(t.waiting, c.id)
		t.mu.Unlock()
		if waiting != nil {
			waiting <- c
		}
	default:
		return fmt.Errorf("%w: kind %d on a stream", ErrFrame, kind)
	}
	return nil
}

// answer answers a call over the link to its caller; with too many under way it
// does not, and the caller's time runs out.
func (t *Transport) answer(from uint64, c call) {
	select {
	case t.calls <- struct{}{}:
	default:
		return
	}
	t.running.Go(func() {
		defer func() { <-t.calls }()
		reply := t.handle(from, c)
		if l := t.link(from); l != nil {
			l.put(item{kind: kindReply, payload: reply.encode()})
		}
	})
}

func (t *Transport) handle(from uint64, c call) call {
	body, err := t.handler.Call(t.ctx, from, c.method, c.body)
	if err != nil {
		return call{c.id, failed, []byte(err.Error())}
	}
	return call{c.id, answered, body}
}

// single answers one call of who is not a member.
func (t *Transport) single(conn net.Conn) {
	kind, payload, err := readFrame(conn, nil, maxHelloBytes)
	if err != nil || kind != kindCall {
		return
	}
	c, err := decodeCall(payload)
	if err != nil {
		return
	}
	if _, err := conn.Write(frame(nil, kindReply, t.handle(0, c).encode())); err != nil {
		t.log.Debug("an answer was not sent", "err", err)
	}
}

// SendSnapshot streams a state to a member and returns when that has taken it.
func (t *Transport) SendSnapshot(ctx context.Context, m *raftpb.Message, state io.WriterTo) error {
	l := t.link(m.GetTo())
	if l == nil {
		return fmt.Errorf("send a snapshot to %x: not a member", m.GetTo())
	}
	conn, err := t.connect(ctx, purposeSnapshot, m.GetTo(), l.addresses())
	if err != nil {
		return fmt.Errorf("send a snapshot to %x: %w", m.GetTo(), err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	w := &chunks{conn: conn}
	payload, err := proto.Marshal(m)
	if err == nil {
		err = w.write(kindSnapshot, payload)
	}
	if err == nil {
		_, err = state.WriteTo(w)
	}
	if err == nil {
		err = w.end()
	}
	if err != nil {
		return fmt.Errorf("send a snapshot to %x: %w", m.GetTo(), err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(snapshotStall)); err != nil {
		return err
	}
	kind, payload, err := readFrame(conn, nil, maxHelloBytes)
	if err != nil {
		return fmt.Errorf("wait for %x to take a snapshot: %w", m.GetTo(), err)
	}
	if kind != kindReply || len(payload) > 0 {
		return fmt.Errorf("%x did not take a snapshot: %s", m.GetTo(), payload)
	}
	return nil
}

// chunks makes frames of what is written to it.
type chunks struct {
	conn  net.Conn
	buf   []byte
	data  []byte
	total uint64
}

func (w *chunks) write(kind byte, payload []byte) error {
	w.buf = frame(w.buf[:0], kind, payload)
	if err := w.conn.SetWriteDeadline(time.Now().Add(snapshotStall)); err != nil {
		return err
	}
	_, err := w.conn.Write(w.buf)
	return err
}

func (w *chunks) Write(p []byte) (int, error) {
	for at := 0; at < len(p); {
		n := min(snapshotChunk-len(w.data), len(p)-at)
		w.data = append(w.data, p[at:at+n]...)
		at += n
		if len(w.data) == snapshotChunk {
			if err := w.flush(); err != nil {
				return at, err
			}
		}
	}
	return len(p), nil
}

func (w *chunks) flush() error {
	if len(w.data) == 0 {
		return nil
	}
	w.total += uint64(len(w.data))
	err := w.write(kindData, w.data)
	w.data = w.data[:0]
	return err
}

func (w *chunks) end() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.write(kindEnd, binary.LittleEndian.AppendUint64(nil, w.total))
}

// snapshot takes a snapshot, one at a time.
func (t *Transport) snapshot(conn net.Conn, from uint64) {
	t.mu.Lock()
	busy := t.receiving
	t.receiving = true
	t.mu.Unlock()
	if busy {
		return
	}
	answer, ok := t.takeSnapshot(conn, from)
	t.mu.Lock()
	t.receiving = false
	t.mu.Unlock()
	if ok && conn.SetWriteDeadline(time.Now().Add(writeTimeout)) == nil {
		if _, err := conn.Write(frame(nil, kindReply, answer)); err != nil {
			t.log.Debug("an answer was not sent", "err", err)
		}
	}
}

// takeSnapshot returns what to answer: nothing, or why it was not taken.
func (t *Transport) takeSnapshot(conn net.Conn, from uint64) (answer []byte, ok bool) {
	r := &unchunk{conn: conn, buf: make([]byte, snapshotChunk)}
	kind, payload, err := readFrame(conn, nil, maxHelloBytes)
	if err != nil || kind != kindSnapshot {
		return nil, false
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(payload, m); err != nil || m.GetType() != raftpb.MsgSnap || m.GetFrom() != from || m.GetTo() != t.cfg.Self {
		t.log.Warn("a snapshot was refused: it is not announced as one", "member", fmt.Sprintf("%x", from))
		return nil, false
	}
	if err := t.handler.Snapshot(t.ctx, m, r); err != nil {
		t.log.Warn("a snapshot was not taken", "member", fmt.Sprintf("%x", from), "err", err)
		return []byte(err.Error()), true
	}
	return nil, true
}

// unchunk reads what chunks wrote; io.EOF comes only after its end.
type unchunk struct {
	conn  net.Conn
	buf   []byte
	rest  []byte
	total uint64
	ended bool
}

func (r *unchunk) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if err := r.conn.SetReadDeadline(time.Now().Add(snapshotStall)); err != nil {
			return 0, err
		}
		kind, payload, err := readFrame(r.conn, r.buf, snapshotChunk)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		switch {
		case kind == kindData:
			r.rest = payload
			r.total += uint64(len(payload))
		case kind == kindEnd && len(payload) == 8 && binary.LittleEndian.Uint64(payload) == r.total:
			r.ended = true
		default:
			return 0, fmt.Errorf("%w: kind %d in a snapshot", ErrFrame, kind)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
