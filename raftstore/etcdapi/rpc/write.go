package rpc

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// buffers hold messages while they are received, or being encoded.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func takeBuffer() []byte { return (*buffers.Get().(*[]byte))[:0] }

func giveBuffer(b []byte) {
	if cap(b) > 0 && cap(b) <= keepOut {
		buffers.Put(&b)
	}
}

func appendFrame(b []byte, t http2.FrameType, flags http2.Flags, id uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
	return append(b, payload...)
}

// control sends a frame from the reader, which never waits for the client to read:
// another goroutine writes.
func (c *conn) control(t http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.controlLocked(t, flags, id, payload)
}

func (c *conn) controlLocked(t http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	if c.err != nil {
		return
	}
	c.out = appendFrame(c.out, t, flags, id, payload)
	c.writeLater()
}

// acknowledge answers a ping: with the answer of a call, if there is one to come soon.
func (c *conn) acknowledge(data []byte) {
	soon := c.in.Buffered() > 0 // the call that came with the ping
	c.mu.Lock()
	defer c.mu.Unlock()
	if !soon && c.handlers == 0 {
		c.controlLocked(http2.FramePing, http2.FlagPingAck, 0, data)
		return
	}
	if c.err != nil {
		return
	}
	c.out = appendFrame(c.out, http2.FramePing, http2.FlagPingAck, 0, data)
	switch {
	case c.waits || c.writing:
	case c.late == nil:
		c.waits = true
		c.late = time.AfterFunc(ackLater, c.writeLate)
	default:
		c.waits = true
		c.late.Reset(ackLater)
	}
}

// writeLate writes what has waited for long enough.
func (c *conn) writeLate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = false
	if !c.writing && len(c.out) > 0 && c.err == nil {
		c.writing = true
		c.write()
	}
}

// writeLater has a goroutine write what is in out; mu is held.
func (c *conn) writeLater() {
	if !c.writing && len(c.out) > 0 {
		c.writing = true
		go func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.write()
		}()
	}
}

func (c *conn) giveWindow(id uint32, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveWindowLocked(id, n)
}

func (c *conn) giveWindowLocked(id uint32, n int) {
	c.controlLocked(http2.FrameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// throttle has the reader wait while the client does not read what it is sent.
func (c *conn) throttle() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) > maxOut && c.err == nil {
		c.changed.Wait()
	}
	return c.err
}

// flush writes what is in out, unless somebody does already; mu is held, but not
// meanwhile. While others are being answered it lets those go first that are about
// to be done: their answers leave in the same write.
func (c *conn) flush() {
	if c.writing || len(c.out) == 0 {
		return
	}
	c.writing = true
	if c.handlers > 1 {
		c.mu.Unlock()
		goruntime.Gosched()
		c.mu.Lock()
	}
	c.write()
}

// write writes until out is empty; mu is held, but not meanwhile, and writing set.
func (c *conn) write() {
	for len(c.out) > 0 && c.err == nil {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.nc.Write(b)
		c.mu.Lock()
		if cap(b) <= keepOut {
			c.spare = b[:0]
		}
		if err != nil && c.err == nil {
			c.err = fmt.Errorf("answer a client: %w", err)
			c.nc.Close() // its reader ends the rest
		}
		c.changed.Broadcast()
	}
	c.writing = false
	c.changed.Broadcast()
}

// fieldsFrame encodes fields and adds them to out; mu is held.
func (c *conn) fieldsFrame(id uint32, end bool, fields ...[]hpack.HeaderField) {
	c.encoded.Reset()
	for _, fs := range fields {
		for _, f := range fs {
			if err := c.enc.WriteField(f); err != nil {
				return // a buffer takes everything
			}
		}
	}
	block := c.encoded.Bytes()
	t, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		part := block[:min(len(block), c.maxFrame)]
		if block = block[len(part):]; len(block) == 0 {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.out = appendFrame(c.out, t, flags, id, part)
		if len(block) == 0 {
			return
		}
		t, flags = http2.FrameContinuation, 0
	}
}

var ok200 = hpack.HeaderField{Name: ":status", Value: "200"}

// headersOnce sends a stream's headers unless they are sent; mu is held.
func (c *conn) headersOnce(st *stream) {
	if !st.greeted {
		st.greeted = true
		c.fieldsFrame(st.id, false, []hpack.HeaderField{ok200, {Name: "content-type", Value: st.kind}}, fieldsOf(st.header))
	}
}

// message sends a message with its prefix; mu is held, but not while it waits for
// the client.
func (c *conn) message(st *stream, p []byte) error {
	for len(p) > 0 {
		n := int(min(int64(len(p)), c.send, st.send, int64(c.maxFrame)))
		switch {
		case c.err != nil || st.over:
			return errOver
		case st.Err() != nil:
			return st.Err()
		case n <= 0 || len(c.out) > maxOut:
			if len(c.out) > 0 && !c.writing {
				c.flush()
				continue
			}
			c.changed.Wait()
			continue
		}
		c.headersOnce(st)
		c.out = appendFrame(c.out, http2.FrameData, 0, st.id, p[:n])
		c.send -= int64(n)
		st.send -= int64(n)
		p = p[n:]
		c.answered.Store(true) // clients measure the line by pings between frames
	}
	return nil
}

// finish ends a stream with its status; mu is held.
func (c *conn) finish(st *stream, s *status.Status, trailer metadata.MD) {
	if st.over || c.err != nil {
		return
	}
	var fields []hpack.HeaderField
	if !st.greeted {
		st.greeted = true
		fields = append(fields, ok200, hpack.HeaderField{Name: "content-type", Value: st.kind})
		fields = append(fields, fieldsOf(st.header)...)
	}
	c.fieldsFrame(st.id, true, fields, statusFields(s), fieldsOf(trailer))
	if !st.recvEnded {
		c.out = appendFrame(c.out, http2.FrameRSTStream, 0, st.id, make([]byte, 4)) // no error
	}
	c.answered.Store(true)
	st.over = true
	delete(c.streams, st.id)
}

// refuse answers a request that has no stream.
func (c *conn) refuse(id uint32, ended bool, r *refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.fieldsFrame(id, true, []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(r.http)}, {Name: "content-type", Value: r.kind}}, statusFields(r.status))
	if !ended {
		c.out = appendFrame(c.out, http2.FrameRSTStream, 0, id, make([]byte, 4))
	}
	c.writeLater()
}

var done = []hpack.HeaderField{{Name: "grpc-status", Value: "0"}}

func statusFields(s *status.Status) []hpack.HeaderField {
	if s.Code() == codes.OK {
		return done
	}
	fields := []hpack.HeaderField{{Name: "grpc-status", Value: strconv.Itoa(int(s.Code()))}, {Name: "grpc-message", Value: percent(s.Message())}}
	if p := s.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			fields = append(fields, hpack.HeaderField{Name: "grpc-status-details-bin", Value: base64.RawStdEncoding.EncodeToString(b)})
		}
	}
	return fields
}

// percent encodes a message as gRPC wants it.
func percent(s string) string {
	plain := func(b byte) bool { return b >= ' ' && b <= '~' && b != '%' }
	all := true
	for i := range len(s) {
		all = all && plain(s[i])
	}
	if all {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}
