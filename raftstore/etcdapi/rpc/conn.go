package rpc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// frameBytes is what we take in a frame, and windowBytes what a client may send
	// ahead: the protocol's defaults.
	frameBytes  = 16 << 10
	windowBytes = 1<<16 - 1
	// giveBack is how much of a window is given back at a time.
	giveBack = 16 << 10
	// maxHeaderBytes bounds a request's headers.
	maxHeaderBytes = 64 << 10
	// maxOut is how much may wait to be written before senders wait, and the reader.
	maxOut = 64 << 10
	// keepOut is how large a buffer stays from one write to the next.
	keepOut = 16 << 10
	// firstFrames is how long a client may take to say what it speaks.
	firstFrames = 10 * time.Second
	// lastWords is how long a client may take to read why it is let go.
	lastWords = time.Second
	// ackLater is how long the answer to a ping may wait for that of a call, to leave in
	// the same write. grpc's client pings with each call, to measure the line.
	ackLater = 5 * time.Millisecond
	// maxStrikes is how many pings may come too early.
	maxStrikes = 2
	// pingWithoutStreams is how long a client that asks nothing must wait between
	// pings: gRPC's default, since it need not ping at all.
	pingWithoutStreams = 2 * time.Hour
)

// conn is a connection.
type conn struct {
	srv *Server
	nc  net.Conn
	ctx context.Context // who is on the other side; never ends

	// owned by the reader, the goroutine in serve
	in       *bufio.Reader
	fr       *http2.Framer
	dec      *hpack.Decoder
	fields   []hpack.HeaderField // of the header block at hand
	listed   int                 // bytes of them
	block    int                 // bytes of that block
	blockID  uint32              // whose it is
	blockEnd bool                // and whether the stream ends with it
	lastID   uint32
	same     request // what the last request had in common with the one before
	window   int     // that the client has left, but for owed
	owed     int     // bytes received and not given back
	lastPing time.Time
	strikes  int

	lastRead atomic.Int64 // Unix nanoseconds
	answered atomic.Bool  // since the last ping

	mu sync.Mutex
	// changed tells of windows that grew, of room in out, of ends.
	changed sync.Cond
	// guarded by mu
	out, spare []byte // to be written; and to be used after it
	writing    bool   // a goroutine is, and takes along what comes
	streams    map[uint32]*stream
	handlers   int
	send       int64 // window
	initial    int64 // send window of a new stream
	maxFrame   int
	enc        *hpack.Encoder
	encoded    bytes.Buffer
	err        error
	quiet      *time.Timer // keepalive
	alarm      *time.Timer // for the earliest deadline, nil for none
	alarmAt    time.Time   // when it goes off; zero for not at all
	late       *time.Timer // writes what waits for an answer that does not come
	waits      bool        // late is set
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		srv: s, nc: nc, window: windowBytes, streams: map[uint32]*stream{}, send: windowBytes, initial: windowBytes, maxFrame: frameBytes,
		ctx: peer.NewContext(context.Background(), &peer.Peer{Addr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr()}),
	}
	c.changed.L = &c.mu
	c.in = bufio.NewReaderSize(nc, 8<<10)
	c.fr = http2.NewFramer(io.Discard, c.in)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(frameBytes)
	c.dec = hpack.NewDecoder(4096, c.field)
	c.dec.SetMaxStringLength(maxHeaderBytes)
	c.enc = hpack.NewEncoder(&c.encoded)
	return c
}

// field takes a field of the header block at hand.
func (c *conn) field(f hpack.HeaderField) {
	if http2.VerboseLogs { // GODEBUG=http2debug=1, as x/net's own reader of headers heeds it
		log.Printf("http2: decoded hpack field %+v", f)
	}
	if c.listed += len(f.Name) + len(f.Value) + 32; c.listed <= maxHeaderBytes {
		c.fields = append(c.fields, f)
	}
}

// serve reads until the connection ends.
func (c *conn) serve() {
	err := c.greet()
	for err == nil {
		var f http2.Frame
		f, err = c.fr.ReadFrame()
		c.lastRead.Store(time.Now().UnixNano())
		var se http2.StreamError
		switch {
		case err == nil:
			err = c.take(f)
		case errors.As(err, &se):
			c.reset(se.StreamID, se.Code)
			err = nil
		}
		if err == nil {
			err = c.throttle()
		}
	}
	c.end(err)
}

// greet reads the client's preface and its settings, and sends ours.
func (c *conn) greet() error {
	if err := c.nc.SetReadDeadline(time.Now().Add(firstFrames)); err != nil {
		return err
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.in, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	settings := []byte{0, byte(http2.SettingMaxHeaderListSize), 0, 1, 0, 0} // maxHeaderBytes
	if n := c.srv.cfg.MaxStreams; n != math.MaxUint32 {
		settings = append(settings, 0, byte(http2.SettingMaxConcurrentStreams), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	c.control(http2.FrameSettings, 0, 0, settings)
	f, err := c.fr.ReadFrame()
	if err != nil {
		return err
	}
	sf, ok := f.(*http2.SettingsFrame)
	if !ok || sf.IsAck() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.lastRead.Store(time.Now().UnixNano())
	c.mu.Lock()
	c.quiet = time.AfterFunc(c.srv.cfg.KeepaliveInterval, c.ping)
	c.mu.Unlock()
	if err := c.settings(sf); err != nil {
		return err
	}
	return c.nc.SetReadDeadline(time.Time{})
}

// take takes a frame.
func (c *conn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.HeadersFrame:
		c.fields, c.listed, c.block = c.fields[:0], 0, 0
		c.blockID, c.blockEnd = f.StreamID, f.StreamEnded()
		return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.RSTStreamFrame:
		return c.given(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		return c.pinged(f)
	case *http2.WindowUpdateFrame:
		return c.grow(f)
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // priorities, a client that goes away, and what is yet to be invented
}

// fragment takes a part of a header block.
func (c *conn) fragment(p []byte, last bool) error {
	if c.block += len(p); c.block > maxHeaderBytes {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if _, err := c.dec.Write(p); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	if !last {
		return nil
	}
	if err := c.dec.Close(); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	return c.headers(c.blockID, c.blockEnd)
}

// headers takes the headers of a request, or a client's trailers, which mean
// nothing.
func (c *conn) headers(id uint32, ended bool) error {
	if id%2 != 1 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if id <= c.lastID {
		if st := c.stream(id); st != nil && ended {
			c.received(st, nil, 0, true)
		}
		return nil
	}
	c.lastID = id
	if c.listed > maxHeaderBytes {
		c.reset(id, http2.ErrCodeFrameSize)
		return nil
	}
	path, timeout := c.recognize()
	switch r := &c.same; {
	case r.reset != 0:
		c.reset(id, r.reset)
		return nil
	case r.refusal != nil:
		c.refuse(id, ended, r.refusal)
		return nil
	}
	st := &stream{c: c, id: id, ctx: c.same.ctx, kind: c.same.kind, m: c.srv.methods[path], room: windowBytes, recvEnded: ended}
	if st.m == nil {
		c.refuse(id, ended, &refusal{http: 200, kind: c.same.kind, status: c.srv.unknown(path)})
		return nil
	}
	if timeout != "" {
		d, err := decodeTimeout(timeout)
		if err != nil {
			c.refuse(id, ended, &refusal{http: 400, kind: c.same.kind, status: status.Newf(codes.Internal, "malformed grpc-timeout: %v", err)})
			return nil
		}
		if d <= 0 {
			c.refuse(id, ended, &refusal{http: 200, kind: c.same.kind, status: status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())})
			return nil
		}
		st.deadline = time.Now().Add(d)
	}
	c.mu.Lock()
	full := c.handlers >= int(min(uint64(c.srv.cfg.MaxStreams), math.MaxInt32))
	if !full {
		st.send = c.initial
		c.streams[id] = st
		c.handlers++
		c.alert(st.deadline)
	}
	c.mu.Unlock()
	if full {
		st.cancel(context.Canceled)
		c.reset(id, http2.ErrCodeRefusedStream)
		return nil
	}
	if st.m.unary == nil {
		st.wake = make(chan struct{}, 1)
		c.begin(st)
	} else if ended {
		c.received(st, nil, 0, true)
	}
	return nil
}

func (c *conn) begin(st *stream) {
	st.begun = true
	if !c.srv.begin(st) {
		c.forget(st)
		st.cancel(context.Canceled)
	}
}

// forget drops a stream whose handler does not run.
func (c *conn) forget(st *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, st.id)
	c.handlers--
	st.over = true
}

func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// data takes a part of a message.
func (c *conn) data(f *http2.DataFrame) error {
	n := int(f.Length) // with its padding
	if c.window -= n; c.window < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if c.owed += n; c.owed >= giveBack {
		c.window += c.owed
		c.giveWindow(0, c.owed)
		c.owed = 0
	}
	if f.StreamID > c.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if st := c.stream(f.StreamID); st != nil {
		c.received(st, f.Data(), n, f.StreamEnded())
	}
	return nil
}

// received gives a stream a part of a message, n bytes of its window.
func (c *conn) received(st *stream, p []byte, n int, ended bool) {
	c.mu.Lock()
	if st.recvEnded && n > 0 {
		c.mu.Unlock()
		c.reset(st.id, http2.ErrCodeStreamClosed)
		return
	}
	if st.room -= n; st.room < 0 {
		c.mu.Unlock()
		c.reset(st.id, http2.ErrCodeFlowControl)
		return
	}
	st.recvEnded = st.recvEnded || ended
	if st.m.unary != nil && st.begun {
		c.mu.Unlock() // more than a message: nobody will read it
		return
	}
	if st.in == nil && len(p) > 0 {
		st.in = takeBuffer()
	}
	st.in = append(st.in, p...)
	if st.m.unary == nil {
		st.owed += n
		c.mu.Unlock()
		select {
		case st.wake <- struct{}{}:
		default:
		}
		return
	}
	if st.owed += n; st.owed >= giveBack && !st.recvEnded {
		st.room += st.owed
		c.giveWindowLocked(st.id, st.owed)
		st.owed = 0
	}
	c.mu.Unlock()
	_, whole, err := c.srv.message(st.in)
	if err == nil && !whole {
		if !st.recvEnded {
			return
		}
		err = status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
		if len(st.in) == 0 {
			err = status.Error(codes.Unknown, io.EOF.Error())
		}
	}
	if err != nil {
		st.refuse(status.Convert(err))
		c.forget(st)
		st.cancel(context.Canceled)
		return
	}
	c.begin(st)
}

// message finds the first message in what was received.
func (s *Server) message(in []byte) (n int, whole bool, err error) {
	if len(in) < 5 {
		return 0, false, nil
	}
	if in[0] != 0 {
		return 0, false, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	size := uint64(in[1])<<24 | uint64(in[2])<<16 | uint64(in[3])<<8 | uint64(in[4])
	if size > uint64(s.cfg.MaxRecvBytes) {
		return 0, false, status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", size, s.cfg.MaxRecvBytes)
	}
	return int(size), uint64(len(in)-5) >= size, nil
}

// given takes that a client gave a stream up.
func (c *conn) given(f *http2.RSTStreamFrame) error {
	if f.StreamID > c.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.drop(f.StreamID)
	return nil
}

// drop ends a stream without a word.
func (c *conn) drop(id uint32) {
	c.mu.Lock()
	st := c.streams[id]
	if st != nil {
		st.over = true
		delete(c.streams, id)
		if !st.begun {
			c.handlers--
		}
	}
	c.mu.Unlock()
	if st != nil {
		st.cancel(context.Canceled)
	}
}

// reset ends a stream for a fault of its client.
func (c *conn) reset(id uint32, code http2.ErrCode) {
	c.drop(id)
	c.control(http2.FrameRSTStream, 0, id, []byte{byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code)})
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	err := f.ForeachSetting(c.setting)
	c.changed.Broadcast()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.control(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	return nil
}

// setting takes one; mu is held.
func (c *conn) setting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return err
	}
	switch s.ID {
	case http2.SettingHeaderTableSize:
		c.enc.SetMaxDynamicTableSizeLimit(s.Val)
	case http2.SettingInitialWindowSize:
		grown := int64(s.Val) - c.initial
		c.initial = int64(s.Val)
		for _, st := range c.streams {
			st.send += grown
		}
	case http2.SettingMaxFrameSize:
		c.maxFrame = int(min(s.Val, maxOut))
	}
	return nil
}

// grow takes more of a window.
func (c *conn) grow(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.send += int64(f.Increment); c.send > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if st := c.streams[f.StreamID]; st != nil {
		if st.send += int64(f.Increment); st.send > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	}
	c.changed.Broadcast()
	return nil
}

// pinged answers a ping, unless they come too often.
func (c *conn) pinged(f *http2.PingFrame) error {
	if f.IsAck() {
		return nil
	}
	c.acknowledge(f.Data[:])
	now := time.Now()
	last := c.lastPing
	c.lastPing = now
	if c.answered.Swap(false) {
		c.strikes = 0
		return nil
	}
	c.mu.Lock()
	wait := c.srv.cfg.KeepaliveMinTime
	if len(c.streams) == 0 {
		wait = pingWithoutStreams
	}
	c.mu.Unlock()
	if last.Add(wait).After(now) {
		c.strikes++
	}
	if c.strikes > maxStrikes {
		return goAway{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	return nil
}

// ping asks a client that has been silent whether it is still there.
func (c *conn) ping() {
	silent := time.Since(time.Unix(0, c.lastRead.Load()))
	if left := c.srv.cfg.KeepaliveInterval - silent; left > 0 {
		c.again(left, c.ping)
		return
	}
	asked := time.Now().UnixNano()
	c.control(http2.FramePing, 0, 0, make([]byte, 8))
	c.again(c.srv.cfg.KeepaliveTimeout, func() {
		if c.lastRead.Load() < asked {
			c.nc.Close()
			return
		}
		c.ping()
	})
}

// again calls f later, unless the connection ends before.
func (c *conn) again(d time.Duration, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.quiet = time.AfterFunc(d, f)
	}
}

// alert sees to it that a stream ends at its deadline; mu is held. One timer serves
// all: clients say the same with each call, and most are answered long before, so
// that it is hardly ever set.
func (c *conn) alert(at time.Time) {
	if at.IsZero() || c.err != nil || !c.alarmAt.IsZero() && !at.Before(c.alarmAt) {
		return
	}
	c.alarmAt = at
	if d := time.Until(at); c.alarm == nil {
		c.alarm = time.AfterFunc(d, c.expire)
	} else {
		c.alarm.Reset(d)
	}
}

// expire ends the streams whose deadline has come.
func (c *conn) expire() {
	var late []*stream
	c.mu.Lock()
	c.alarmAt = time.Time{}
	now := time.Now()
	var next time.Time
	for _, st := range c.streams {
		switch {
		case st.deadline.IsZero() || st.Err() != nil:
		case !st.deadline.After(now):
			late = append(late, st)
		case next.IsZero() || st.deadline.Before(next):
			next = st.deadline
		}
	}
	c.alert(next)
	c.mu.Unlock()
	for _, st := range late {
		st.cancel(context.DeadlineExceeded)
	}
}

// goAway is why a connection is ended, for its client.
type goAway struct {
	code http2.ErrCode
	text string
}

func (g goAway) Error() string { return fmt.Sprintf("%v: %s", g.code, g.text) }

// end ends the connection and all that is asked on it.
func (c *conn) end(err error) {
	var away goAway
	var code http2.ConnectionError
	switch {
	case errors.As(err, &away):
	case errors.As(err, &code):
		away = goAway{code: http2.ErrCode(code)}
	case errors.Is(err, http2.ErrFrameTooLarge):
		away = goAway{code: http2.ErrCodeFrameSize}
	}
	if away.code != 0 {
		c.say(away)
	}
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	for _, t := range []*time.Timer{c.quiet, c.alarm, c.late} {
		if t != nil {
			t.Stop()
		}
	}
	streams := c.streams
	c.streams = map[uint32]*stream{}
	for _, st := range streams {
		st.over = true
	}
	c.out = nil
	c.changed.Broadcast()
	c.mu.Unlock()
	c.nc.Close()
	for _, st := range streams {
		st.cancel(context.Canceled)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing { // not for long: the connection is closed
		c.changed.Wait()
	}
}

// say tells a client why its connection ends, if it still reads.
func (c *conn) say(away goAway) {
	if c.nc.SetWriteDeadline(time.Now().Add(lastWords)) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing && c.err == nil {
		c.changed.Wait()
	}
	if c.err != nil {
		return
	}
	payload := binary.BigEndian.AppendUint32(nil, c.lastID)
	payload = binary.BigEndian.AppendUint32(payload, uint32(away.code))
	c.out = appendFrame(c.out, http2.FrameGoAway, 0, 0, append(payload, away.text...))
	c.writing = true
	c.write()
}
