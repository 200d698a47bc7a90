package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// errOver says that nobody reads any more what is sent.
var errOver = errors.New("the stream is over")

// stream is a call or a stream. It is the context of its handler as well.
type stream struct {
	c    *conn
	id   uint32
	m    *method
	kind string          // the content type
	ctx  context.Context // of what the client said; never ends
	wake chan struct{}   // of a stream: more was received
	// begun says that the handler runs; of the reader.
	begun bool

	// guarded by c.mu; in and header are the handler's once it runs, if unary
	in        []byte // received and not taken
	recvEnded bool   // nothing more will be
	room      int    // that the client has left to send
	owed      int    // bytes received and not given back
	send      int64  // window
	over      bool   // nothing more is to be sent
	greeted   bool   // headers were
	header    metadata.MD
	trailer   metadata.MD

	deadline time.Time // zero for none; of the connection's alarm

	ends sync.Mutex
	// guarded by ends
	err   error
	done  chan struct{}
	after map[int]func() // called at the end
	next  int
}

var closedDone = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Deadline is part of context.Context.
func (st *stream) Deadline() (time.Time, bool) { return st.deadline, !st.deadline.IsZero() }

// Done is part of context.Context.
func (st *stream) Done() <-chan struct{} {
	st.ends.Lock()
	defer st.ends.Unlock()
	if st.done == nil {
		st.done = make(chan struct{})
	}
	return st.done
}

// Err is part of context.Context.
func (st *stream) Err() error {
	st.ends.Lock()
	defer st.ends.Unlock()
	return st.err
}

// Value is part of context.Context.
func (st *stream) Value(key any) any {
	if key == (streamKey{}) {
		return st
	}
	return st.ctx.Value(key)
}

type streamKey struct{}

// Part is a message that SendMsg keeps until there is more to send than a write
// takes, or another message, or Flush: a handler that has many sends them so. It
// encodes itself.
type Part interface {
	AppendTo(b []byte) ([]byte, error)
}

// Flush sends the parts that were kept on the stream whose handler was given ctx. It
// does nothing for streams of another server.
func Flush(ctx context.Context) {
	if st, ok := ctx.Value(streamKey{}).(*stream); ok {
		st.c.mu.Lock()
		defer st.c.mu.Unlock()
		st.c.flush()
	}
}

// AfterFunc is what package context looks for in a parent that is not its own:
// without it each child would cost a goroutine.
func (st *stream) AfterFunc(f func()) (stop func() bool) {
	st.ends.Lock()
	defer st.ends.Unlock()
	if st.err != nil {
		go f()
		return func() bool { return false }
	}
	if st.after == nil {
		st.after = map[int]func(){}
	}
	id := st.next
	st.next++
	st.after[id] = f
	return func() bool {
		st.ends.Lock()
		defer st.ends.Unlock()
		_, there := st.after[id]
		delete(st.after, id)
		return there
	}
}

// cancel ends the context, and with it a wait for the client. c.mu is not held.
func (st *stream) cancel(err error) {
	st.end(err)
	st.c.mu.Lock()
	st.c.changed.Broadcast()
	st.c.mu.Unlock()
}

// end ends the context.
func (st *stream) end(err error) {
	st.ends.Lock()
	if st.err != nil {
		st.ends.Unlock()
		return
	}
	st.err = err
	if st.done == nil {
		st.done = closedDone
	} else {
		close(st.done)
	}
	after := st.after
	st.after = nil
	st.ends.Unlock()
	for _, f := range after {
		go f()
	}
}

// serve runs the handler.
func (st *stream) serve() {
	defer st.c.srv.running.Done()
	if st.m.unary != nil {
		reply, err := st.m.unary.Handler(st.m.impl, st, st.decode, st.c.srv.cfg.Unary)
		if err == nil {
			err = st.reply(reply)
		}
		if err != nil {
			st.refuse(statusOf(err))
		}
	} else {
		st.refuse(statusOf(st.stream()))
	}
	st.c.mu.Lock()
	st.c.handlers--
	st.c.mu.Unlock()
	st.end(context.Canceled)
}

func (st *stream) stream() error {
	srv := st.c.srv
	ss := &serverStream{st}
	if srv.cfg.Stream == nil {
		return st.m.stream.Handler(st.m.impl, ss)
	}
	return srv.cfg.Stream(st.m.impl, ss, st.m.info, st.m.stream.Handler)
}

// statusOf is the status that a handler's error means.
func statusOf(err error) *status.Status {
	if s, ok := status.FromError(err); ok {
		return s
	}
	return status.FromContextError(err)
}

// refuse ends the stream with a status.
func (st *stream) refuse(s *status.Status) {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish(st, s, st.trailer)
	if st.begun {
		c.flush()
	} else {
		c.writeLater() // this is the reader
	}
}

// decode decodes the message of a call.
func (st *stream) decode(v any) error {
	n, _, _ := st.c.srv.message(st.in) // was looked at before
	err := st.c.srv.unmarshal(st.in[5:5+n], v)
	st.c.mu.Lock()
	in := st.in
	st.in = nil
	st.c.mu.Unlock()
	giveBuffer(in)
	return err
}

func (s *Server) unmarshal(p []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %T is no message", v)
	}
	if err := proto.Unmarshal(p, m); err != nil {
		return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
	}
	return nil
}

// marshal encodes a message after its prefix.
func (s *Server) marshal(b []byte, v any) ([]byte, error) {
	b = append(b, 0, 0, 0, 0, 0)
	var err error
	switch m := v.(type) {
	case proto.Message:
		b, err = (proto.MarshalOptions{}).MarshalAppend(b, m)
	case Part:
		b, err = m.AppendTo(b)
	default:
		err = fmt.Errorf("%T is no message", v)
	}
	if err != nil {
		return b, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	if uint64(len(b)-5) > math.MaxInt32 {
		return b, status.Errorf(codes.ResourceExhausted, "grpc: trying to send message larger than max (%d vs. %d)", len(b)-5, math.MaxInt32)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return b, nil
}

// reply answers a call.
func (st *stream) reply(v any) error {
	c := st.c
	b, err := c.srv.marshal(takeBuffer(), v)
	if err != nil {
		return err
	}
	c.mu.Lock()
	err = c.message(st, b)
	if err == nil {
		c.finish(st, nil, st.trailer)
	}
	c.flush()
	c.mu.Unlock()
	giveBuffer(b)
	if errors.Is(err, errOver) {
		return nil
	}
	return err
}

// serverStream is what a stream's handler sees.
type serverStream struct{ st *stream }

// Context is part of grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.st }

// SetHeader is part of grpc.ServerStream.
func (s *serverStream) SetHeader(md metadata.MD) error {
	s.st.c.mu.Lock()
	defer s.st.c.mu.Unlock()
	if s.st.greeted || s.st.over {
		return status.Error(codes.Internal, "transport: the stream is done or WriteHeader was already called")
	}
	s.st.header = metadata.Join(s.st.header, md)
	return nil
}

// SendHeader is part of grpc.ServerStream.
func (s *serverStream) SendHeader(md metadata.MD) error {
	if err := s.SetHeader(md); err != nil {
		return err
	}
	s.st.c.mu.Lock()
	defer s.st.c.mu.Unlock()
	s.st.c.headersOnce(s.st)
	s.st.c.flush()
	return nil
}

// SetTrailer is part of grpc.ServerStream.
func (s *serverStream) SetTrailer(md metadata.MD) {
	s.st.c.mu.Lock()
	defer s.st.c.mu.Unlock()
	s.st.trailer = metadata.Join(s.st.trailer, md)
}

// SendMsg is part of grpc.ServerStream.
func (s *serverStream) SendMsg(m any) error {
	st := s.st
	b, err := st.c.srv.marshal(takeBuffer(), m)
	if err != nil {
		return err
	}
	st.c.mu.Lock()
	err = st.c.message(st, b)
	if _, part := m.(Part); !part {
		st.c.flush()
	}
	st.c.mu.Unlock()
	giveBuffer(b)
	if errors.Is(err, errOver) {
		if err = st.Err(); err == nil {
			return status.Error(codes.Unavailable, "transport is closing")
		}
	}
	if err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

// RecvMsg is part of grpc.ServerStream.
func (s *serverStream) RecvMsg(m any) error {
	st := s.st
	for {
		p, err := st.receive()
		if err != nil {
			return err
		}
		if p != nil {
			err := st.c.srv.unmarshal(p[5:], m)
			giveBuffer(p)
			return err
		}
		select {
		case <-st.wake:
		case <-st.Done():
			return status.FromContextError(st.Err()).Err()
		}
	}
}

// receive takes a message with its prefix, nil if there is none yet. What it takes,
// or waits for, gives the client its window back.
func (st *stream) receive() (p []byte, err error) {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	n, whole, err := c.srv.message(st.in)
	if err != nil {
		return nil, err
	}
	if whole {
		p = append(takeBuffer(), st.in[:5+n]...)
		st.in = append(st.in[:0], st.in[5+n:]...)
	}
	if st.owed > 0 && !st.recvEnded && !st.over && (!whole || st.owed >= giveBack) {
		st.room += st.owed
		c.out = appendFrame(c.out, http2.FrameWindowUpdate, 0, st.id, binary.BigEndian.AppendUint32(nil, uint32(st.owed)))
		st.owed = 0
		c.flush()
	}
	if whole || !st.recvEnded {
		return p, nil
	}
	if len(st.in) > 0 {
		return nil, status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	}
	return nil, io.EOF
}

var _ grpc.ServerStream = (*serverStream)(nil)
