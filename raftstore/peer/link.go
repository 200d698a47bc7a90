package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const (
	maxUrgent    = 512
	maxBulk      = 4096
	maxBulkBytes = 8 << 20
	// ackInterval is how often what arrives is acknowledged, if no other was set: a
	// member whose disk hangs is heard of by that alone, and each costs a packet.
	ackInterval   = 2 * time.Second
	ackTimeout    = 3 * time.Second
	dialTimeout   = 2 * time.Second
	writeTimeout  = 5 * time.Second
	firstBackoff  = 50 * time.Millisecond
	maxBackoff    = time.Second
	flushBytes    = 64 << 10
	inboundSilent = 5 * time.Minute
	// hintAfter is how long a member is looked for where it should be alone, and
	// hintAgain how seldom hints are tried then.
	hintAfter = 2 * time.Second
	hintAgain = 10 * time.Second
)

// item is what waits to be sent: a message of raft or an encoded payload.
type item struct {
	kind    byte
	msg     *raftpb.Message
	payload []byte
}

// link sends to one other member.
type link struct {
	t    *Transport
	id   uint64
	stop context.CancelFunc
	done chan struct{}
	wake chan struct{} // one token: there is something to send
	// heard is when something of the member arrived last, since the transport's
	// start; 0 for never.
	heard   atomic.Int64
	traffic traffic
	hinted  time.Time // when hints were tried last; owned by run

	mu sync.Mutex
	// guarded by mu
	urls      []string // as the membership says
	learned   []string // as the member itself said last
	found     []string // as others say
	urgent    []item
	bulk      []item
	bulkBytes int
	connected bool
	since     time.Time // of connected
	conn      net.Conn  // of connected, nil without
}

func urgent(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp:
		return len(m.GetEntries()) == 0
	case raftpb.MsgProp, raftpb.MsgSnap:
		return false
	}
	return true
}

// put queues an item, or reports that there is no room.
func (l *link) put(it item) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if it.msg == nil || urgent(it.msg) {
		if len(l.urgent) >= maxUrgent {
			return false
		}
		l.urgent = append(l.urgent, it)
	} else {
		size := proto.Size(it.msg)
		if len(l.bulk) >= maxBulk || l.bulkBytes+size > maxBulkBytes && len(l.bulk) > 0 {
			return false
		}
		l.bulk = append(l.bulk, it)
		l.bulkBytes += size
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns what is to be sent next: everything urgent, else one of the
// others.
func (l *link) take() []item {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.urgent) > 0 {
		out := l.urgent
		l.urgent = nil
		return out
	}
	if len(l.bulk) == 0 {
		return nil
	}
	out := l.bulk[:1:1]
	l.bulkBytes -= proto.Size(out[0].msg)
	if l.bulk = l.bulk[1:]; len(l.bulk) == 0 {
		l.bulk, l.bulkBytes = nil, 0
	}
	return out
}

// forget drops what is queued: it is stale when the member can be reached again.
func (l *link) forget() {
	l.mu.Lock()
	l.urgent, l.bulk, l.bulkBytes = nil, nil, 0
	l.mu.Unlock()
}

func (l *link) addresses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.urls)
	for _, u := range slices.Concat(l.learned, l.found) {
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// withHints adds the hints to a member's addresses now and then, when it has not
// been reached there for a while: a hint may lead nowhere, which takes its time.
func (l *link) withHints(urls []string, since time.Time) []string {
	if now := time.Now(); len(l.t.cfg.Hints) > 0 && now.Sub(since) > hintAfter && now.Sub(l.hinted) > hintAgain {
		l.hinted = now
		for _, u := range l.t.cfg.Hints {
			if !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	return urls
}

// learn takes up where the member itself said it is. If that is news, what is
// connected to where it was is of no use.
func (l *link) learn(urls []string) {
	l.mu.Lock()
	moved := l.learned != nil && !slices.Equal(l.learned, urls)
	l.learned = urls
	l.mu.Unlock()
	if moved {
		l.reconnect()
	}
}

// says reports whether the member said urls last.
func (l *link) says(urls []string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Equal(l.learned, urls)
}

// reconnect ends the connection, if there is one; the next is made at once.
func (l *link) reconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
}

// hear notes that something of the member arrived: also an ack, which it sends
// while its disk hangs.
func (l *link) hear() { l.heard.Store(int64(time.Since(l.t.born))) }

// setConnected notes the connection, nil for none.
func (l *link) setConnected(conn net.Conn) {
	l.mu.Lock()
	l.conn, l.connected, l.since = conn, conn != nil, time.Now()
	l.mu.Unlock()
}

// run is the link's goroutine: it connects when there is something to send.
func (l *link) run(ctx context.Context) {
	defer close(l.done)
	backoff, told, since := firstBackoff, false, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		conn, err := l.t.connect(ctx, purposeStream, l.id, l.withHints(l.addresses(), since))
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if !told {
				told = true
				l.t.log.Warn("a member cannot be reached", "member", fmt.Sprintf("%x", l.id), "err", err)
			}
			l.forget()
			l.t.handler.Unreachable(l.id)
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff):
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		if told {
			l.t.log.Info("a member can be reached again", "member", fmt.Sprintf("%x", l.id))
		}
		backoff, told = firstBackoff, false
		l.setConnected(conn)
		l.serve(ctx, conn)
		l.setConnected(nil)
		l.traffic.lost.Add(1)
		since = time.Now()
		l.forget()
		if ctx.Err() == nil {
			l.t.handler.Unreachable(l.id)
		}
	}
}

// watch is the acks' side of a connection.
type watch struct {
	conn  net.Conn
	every time.Duration // an ack is due
	heard func()        // told of each

	mu      sync.Mutex
	lastAck time.Time // guarded by mu
	waiting bool      // guarded by mu: something was sent that the other side must ack
}

// sent starts the wait for an ack if the other side must send one.
func (w *watch) sent() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting || time.Since(w.lastAck) < w.every {
		return nil
	}
	w.waiting = true
	return w.conn.SetReadDeadline(time.Now().Add(ackTimeout))
}

// run reads acks until the connection ends, and ends it.
func (w *watch) run() {
	defer w.conn.Close()
	for {
		kind, _, err := readFrame(w.conn, nil, 0)
		if err != nil || kind != kindAck {
			return
		}
		w.heard()
		w.mu.Lock()
		w.lastAck, w.waiting = time.Now(), false
		err = w.conn.SetReadDeadline(time.Time{})
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// serve sends until the connection breaks or ctx ends.
func (l *link) serve(ctx context.Context, conn net.Conn) {
	w := &watch{conn: conn, every: l.t.acks(), heard: l.hear}
	var acks sync.WaitGroup
	ended := make(chan struct{})
	acks.Go(func() { defer close(ended); w.run() })
	defer acks.Wait()
	defer conn.Close()
	out := bufio.NewWriterSize(conn, 16<<10)
	var buf []byte
	for {
		items := l.take()
		if items == nil {
			if err := l.flush(conn, out, w); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				l.last(conn, out, w)
				return
			case <-ended:
				return
			case <-l.wake:
			}
			continue
		}
		for _, it := range items {
			var err error
			buf, err = appendFrame(buf[:0], it.kind, func(b []byte) ([]byte, error) {
				if it.msg == nil {
					return append(b, it.payload...), nil
				}
				return proto.MarshalOptions{}.MarshalAppend(b, it.msg)
			})
			if err != nil {
				l.t.log.Error("a message to a member was dropped", "member", fmt.Sprintf("%x", l.id), "err", err)
				continue
			}
			if err := errors.Join(conn.SetWriteDeadline(time.Now().Add(writeTimeout)), write(out, buf)); err != nil {
				return
			}
		}
		if cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

func write(out *bufio.Writer, b []byte) error {
	_, err := out.Write(b)
	return err
}

func (l *link) flush(conn net.Conn, out *bufio.Writer, w *watch) error {
	if out.Buffered() == 0 {
		return nil
	}
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return w.sent()
}

// last sends what is queued when the transport closes: a leader that goes tells
// who follows.
func (l *link) last(conn net.Conn, out *bufio.Writer, w *watch) {
	if err := conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return
	}
	for items := l.take(); items != nil; items = l.take() {
		for _, it := range items {
			b, err := appendFrame(nil, it.kind, func(b []byte) ([]byte, error) {
				if it.msg == nil {
					return append(b, it.payload...), nil
				}
				return proto.MarshalOptions{}.MarshalAppend(b, it.msg)
			})
			if err != nil || write(out, b) != nil {
				return
			}
		}
	}
	if out.Flush() == nil {
		_ = w.sent()
	}
}
