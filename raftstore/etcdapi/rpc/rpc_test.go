package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"edged/raftstore/etcdapi/rpc"
)

// service is what the tests call; each test sets what it needs.
type service struct {
	call   func(context.Context, []byte) ([]byte, error)
	stream func(grpc.ServerStream) error
}

var desc = grpc.ServiceDesc{
	ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		out, err := srv.(*service).call(ctx, in.Value)
		if err != nil {
			return nil, err
		}
		return wrapperspb.Bytes(out), nil
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
		return srv.(*service).stream(s)
	}}},
}

// serve serves s until the test ends, and returns where.
func serve(t testing.TB, s *service, cfg rpc.Config) string {
	if cfg.MaxRecvBytes == 0 {
		cfg.MaxRecvBytes = 4 << 20
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = math.MaxUint32
	}
	if cfg.KeepaliveInterval == 0 {
		cfg.KeepaliveMinTime, cfg.KeepaliveInterval, cfg.KeepaliveTimeout = time.Minute, time.Hour, time.Minute
	}
	srv := rpc.New(cfg)
	srv.RegisterService(&desc, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { srv.ServeConn(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		srv.Close()
		all.Wait()
	})
	return l.Addr().String()
}

func dial(t testing.TB, addr string) *grpc.ClientConn {
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const path = "/test.Echo/Call"

func call(ctx context.Context, c *grpc.ClientConn, data []byte, opts ...grpc.CallOption) ([]byte, error) {
	out := new(wrapperspb.BytesValue)
	err := c.Invoke(ctx, path, wrapperspb.Bytes(data), out, opts...)
	return out.Value, err
}

func echo(_ context.Context, in []byte) ([]byte, error) { return in, nil }

func TestCallsOfAllSizesAtOnce(t *testing.T) {
	addr := serve(t, &service{call: echo}, rpc.Config{})
	c := dial(t, addr)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			for _, n := range []int{0, 1, 300, 16 << 10, 70 << 10, 3 << 20 >> (i % 6)} {
				in := bytes.Repeat([]byte{byte(i)}, n)
				if out, err := call(t.Context(), c, in); err != nil || !bytes.Equal(in, out) {
					t.Errorf("%d bytes: %d came back, %v", n, len(out), err)
				}
			}
		})
	}
	all.Wait()
}

func TestStatuses(t *testing.T) {
	detailed, err := status.New(codes.FailedPrecondition, "50 % of\nnothing: ä").WithDetails(wrapperspb.String("detail"))
	if err != nil {
		t.Fatal(err)
	}
	fail := detailed.Err()
	addr := serve(t, &service{call: func(context.Context, []byte) ([]byte, error) { return nil, fail }}, rpc.Config{MaxRecvBytes: 1000})
	c := dial(t, addr)
	_, err = call(t.Context(), c, nil)
	if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != detailed.Message() || len(s.Details()) != 1 {
		t.Errorf("%v", err)
	}
	_, err = call(t.Context(), c, make([]byte, 1001))
	if s := status.Convert(err); s.Code() != codes.ResourceExhausted || s.Message() != "grpc: received message larger than max (1004 vs. 1000)" {
		t.Errorf("%v", err)
	}
	for path, want := range map[string]string{
		"/test.Echo/Nothing": "unknown method Nothing for service test.Echo", "/test.Nothing/Call": "unknown service test.Nothing", "/x": `malformed method name: "/x"`,
	} {
		err := c.Invoke(t.Context(), path, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if s := status.Convert(err); s.Code() != codes.Unimplemented || s.Message() != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	fail = errors.New("plain")
	if _, err = call(t.Context(), c, nil); status.Code(err) != codes.Unknown {
		t.Errorf("%v", err)
	}
}

// TestHandlersHearThatNobodyWaits: by its client's word, by its deadline, and by
// the end of its connection.
func TestHandlersHearThatNobodyWaits(t *testing.T) {
	ended := make(chan error, 1)
	begun := make(chan context.Context, 1)
	wait := func(ctx context.Context, _ []byte) ([]byte, error) {
		begun <- ctx
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		<-child.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	addr := serve(t, &service{call: wait}, rpc.Config{})
	c := dial(t, addr)

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if _, err := call(ctx, c, nil); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	if err := <-ended; err != context.Canceled {
		t.Errorf("given up: %v", err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := call(ctx, c, nil); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	if d, ok := (<-begun).Deadline(); !ok || time.Until(d) > time.Minute {
		t.Errorf("a deadline of %v, %v", d, ok)
	}
	if err := <-ended; err == nil {
		t.Error("too late: no error")
	}

	go func() { <-begun; c.Close() }()
	if _, err := call(t.Context(), c, nil); err == nil {
		t.Error("no error without a connection")
	}
	if err := <-ended; err != context.Canceled {
		t.Errorf("connection closed: %v", err)
	}
}

func TestMetadata(t *testing.T) {
	got := make(chan metadata.MD, 1)
	s := &service{
		call: func(ctx context.Context, in []byte) ([]byte, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			got <- md
			return in, nil
		},
		stream: func(ss grpc.ServerStream) error {
			ss.SetTrailer(metadata.Pairs("last", "word"))
			if err := ss.SendHeader(metadata.Pairs("first", "word", "b-bin", "\x00\xff")); err != nil {
				return err
			}
			return status.Error(codes.Aborted, "enough")
		},
	}
	c := dial(t, serve(t, s, rpc.Config{}))
	for _, token := range []string{"one", "one", "two", strings.Repeat("long", 5000)} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "token", token, "key-bin", "\x00\x01\xfe")
		if _, err := call(ctx, c, nil); err != nil {
			t.Fatal(err)
		}
		md := <-got
		if v := md["token"]; len(v) != 1 || v[0] != token || md["key-bin"][0] != "\x00\x01\xfe" || len(md[":authority"]) != 1 {
			t.Errorf("%d bytes of token: %v", len(token), md)
		}
	}
	st, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	header, err := st.Header()
	if err != nil || header["first"][0] != "word" || header["b-bin"][0] != "\x00\xff" {
		t.Errorf("%v, %v", header, err)
	}
	if err := st.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.Aborted || st.Trailer()["last"][0] != "word" {
		t.Errorf("%v, %v", err, st.Trailer())
	}
}

// TestStreamsWaitForTheirReader: what a client does not read is not held, on either
// side, and the other streams go on.
func TestStreamsWaitForTheirReader(t *testing.T) {
	const messages, size = 40, 50 << 10
	var sent atomic.Int64
	s := &service{call: echo, stream: func(ss grpc.ServerStream) error {
		var total int
		for {
			in := new(wrapperspb.BytesValue)
			err := ss.RecvMsg(in)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			total += len(in.Value)
		}
		for range messages {
			if err := ss.SendMsg(wrapperspb.Bytes(make([]byte, size))); err != nil {
				return err
			}
			sent.Add(1)
		}
		return status.Errorf(codes.OutOfRange, "%d", total)
	}}
	c := dial(t, serve(t, s, rpc.Config{}))
	st, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	for range messages {
		if err := st.SendMsg(wrapperspb.Bytes(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // through the same connection
		if _, err := call(t.Context(), c, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if n := sent.Load(); n > messages/2 {
		t.Errorf("%d of %d messages were sent, and none is read", n, messages)
	}
	for range messages {
		out := new(wrapperspb.BytesValue)
		if err := st.RecvMsg(out); err != nil || len(out.Value) != size {
			t.Fatalf("%d bytes, %v", len(out.Value), err)
		}
	}
	if err := st.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.OutOfRange || status.Convert(err).Message() != "2048000" {
		t.Errorf("%v", err)
	}
}

// rude is a client that says what it likes.
type rude struct {
	t  *testing.T
	nc net.Conn
	fr *http2.Framer
}

func beRude(t *testing.T, addr string) *rude {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := &rude{t, nc, http2.NewFramer(nc, nc)}
	r.do(io.WriteString(nc, http2.ClientPreface))
	r.must(r.fr.WriteSettings())
	return r
}

func (r *rude) must(err error) {
	if err != nil {
		r.t.Helper()
		r.t.Fatal(err)
	}
}

func (r *rude) do(_ int, err error) { r.must(err) }

func (r *rude) headers(id uint32, end bool, fields ...string) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		r.must(e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	block := b.Bytes()
	half := len(block) / 2
	r.must(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:half], EndStream: end}))
	r.must(r.fr.WriteContinuation(id, true, block[half:]))
}

// until reads frames until one of this type.
func (r *rude) until(want http2.FrameType) http2.Frame {
	r.t.Helper()
	for {
		f, err := r.fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("no %v: %v", want, err)
		}
		if f.Header().Type == want {
			return f
		}
	}
}

func (r *rude) status(f http2.Frame) map[string]string {
	out := map[string]string{}
	d := hpack.NewDecoder(4096, func(f hpack.HeaderField) { out[f.Name] = f.Value })
	_, err := d.Write(f.(*http2.HeadersFrame).HeaderBlockFragment())
	r.must(err)
	return out
}

var polite = []string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}

// part is a message that is kept.
type part []byte

func (p part) AppendTo(b []byte) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, wrapperspb.Bytes(p))
}

// TestParts: what is kept is sent when it is flushed, when another message follows,
// and when there is much of it; in order.
func TestParts(t *testing.T) {
	addr := serve(t, &service{stream: func(s grpc.ServerStream) error {
		send := func(n int) error {
			return s.SendMsg(part(bytes.Repeat([]byte{1}, n)))
		}
		ask := func() error { return s.RecvMsg(new(wrapperspb.BytesValue)) }
		for i := range 10 {
			if err := send(i); err != nil {
				return err
			}
		}
		rpc.Flush(s.Context())
		if err := ask(); err != nil { // the client has them all
			return err
		}
		if err := send(10); err != nil {
			return err
		}
		if err := s.SendMsg(wrapperspb.Bytes(make([]byte, 11))); err != nil {
			return err
		}
		if err := ask(); err != nil {
			return err
		}
		return send(1 << 20) // and the end
	}}, rpc.Config{})
	s, err := dial(t, addr).NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, 10, 11, -1, 1 << 20} {
		if n < 0 {
			if err := s.SendMsg(wrapperspb.Bytes(nil)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(got); err != nil || len(got.Value) != n {
			t.Fatalf("%d bytes, %v; want %d", len(got.Value), err, n)
		}
	}
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	addr := serve(t, &service{call: echo}, rpc.Config{MaxStreams: 1})
	with := func(name, value string) []string {
		out := append([]string(nil), polite...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
				return out
			}
		}
		return append(out, name, value)
	}
	for _, x := range []struct {
		fields     []string
		http, grpc string
	}{
		{with(":method", "GET"), "405", "13"}, {with("content-type", "text/plain"), "415", "3"}, {with("grpc-encoding", "gzip"), "200", "12"},
		{with("grpc-timeout", "soon"), "400", "13"}, {with("grpc-timeout", "0S"), "200", "4"}, {with("a-bin", "!"), "400", "13"},
	} {
		r := beRude(t, addr)
		r.headers(1, true, x.fields...)
		if got := r.status(r.until(http2.FrameHeaders)); got[":status"] != x.http || got["grpc-status"] != x.grpc {
			t.Errorf("%v: %v", x.fields, got)
		}
	}
	for _, fields := range [][]string{with("connection", "close"), with("Upper", "case"), with("long", strings.Repeat("x", 60<<10)+strings.Repeat("y", 8<<10))} {
		r := beRude(t, addr)
		if len(fields[len(fields)-1]) > 16<<10 { // more than a frame each: as several fields
			fields = append(with("a", strings.Repeat("\x01", 15<<10)), "a", strings.Repeat("x", 15<<10))
		}
		r.headers(1, true, fields...)
		r.until(http2.FrameRSTStream)
	}
	r := beRude(t, addr)
	r.headers(1, false, polite...)
	r.headers(3, false, polite...)
	if f := r.until(http2.FrameRSTStream).(*http2.RSTStreamFrame); f.StreamID != 3 || f.ErrCode != http2.ErrCodeRefusedStream {
		t.Errorf("%v", f)
	}
	// A message in pieces, with padding, and trailers instead of an end.
	msg := []byte{0, 0, 0, 0, 4, 0x0a, 2, 'h', 'i'}
	r.must(r.fr.WriteDataPadded(1, false, msg[:3], make([]byte, 100)))
	r.must(r.fr.WriteData(1, false, msg[3:]))
	r.headers(1, true, "trailer", "x")
	if f := r.until(http2.FrameData).(*http2.DataFrame); !bytes.Equal(f.Data(), msg) {
		t.Errorf("% x", f.Data())
	}
	// A connection that breaks the protocol is told so.
	for _, breach := range []func(r *rude) error{
		func(r *rude) error { return r.fr.WriteData(7, true, nil) },
		func(r *rude) error { r.fr.AllowIllegalWrites = true; return r.fr.WriteWindowUpdate(0, math.MaxInt32) },
		func(r *rude) error { r.headers(2, true, polite...); return nil },
		func(r *rude) error {
			return r.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff})
		},
	} {
		r := beRude(t, addr)
		r.must(breach(r))
		r.until(http2.FrameGoAway)
	}
}

func TestTooManyPings(t *testing.T) {
	addr := serve(t, &service{call: echo}, rpc.Config{})
	r := beRude(t, addr)
	for range 4 {
		r.must(r.fr.WritePing(false, [8]byte{1}))
	}
	f := r.until(http2.FrameGoAway).(*http2.GoAwayFrame)
	if f.ErrCode != http2.ErrCodeEnhanceYourCalm || string(f.DebugData()) != "too_many_pings" {
		t.Errorf("%v %s", f, f.DebugData())
	}
}

// TestPingsBesideCalls: a ping that comes with a call is answered, also if the call is not.
func TestPingsBesideCalls(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	addr := serve(t, &service{call: func(ctx context.Context, in []byte) ([]byte, error) {
		if len(in) > 0 {
			return in, nil
		}
		select {
		case <-done:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}}, rpc.Config{})
	r := beRude(t, addr)
	acked := func(n byte) {
		t.Helper()
		for {
			if f := r.until(http2.FramePing).(*http2.PingFrame); f.IsAck() && f.Data[0] == n {
				return
			}
		}
	}
	message := []byte{0, 0, 0, 0, 3, 0x0a, 1, 'x'}
	for n := byte(1); n <= 20; n++ { // in one write, as grpc's client does it
		var both bytes.Buffer
		fr := http2.NewFramer(&both, nil)
		r.must(fr.WritePing(false, [8]byte{n}))
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		for i := 0; i < len(polite); i += 2 {
			r.must(e.WriteField(hpack.HeaderField{Name: polite[i], Value: polite[i+1], Sensitive: true})) // in no table
		}
		id := uint32(n)*2 - 1
		r.must(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}))
		r.must(fr.WriteData(id, true, message))
		r.do(r.nc.Write(both.Bytes()))
		acked(n)
		for r.until(http2.FrameHeaders).Header().Flags&http2.FlagHeadersEndStream == 0 {
		}
	}
	r.headers(101, false, polite...)
	r.must(r.fr.WriteData(101, true, []byte{0, 0, 0, 0, 0}))
	r.must(r.fr.WritePing(false, [8]byte{99}))
	acked(99)
}

// TestSilentClients: one that does not answer a ping is given up.
func TestSilentClients(t *testing.T) {
	addr := serve(t, &service{call: echo}, rpc.Config{KeepaliveMinTime: time.Minute, KeepaliveInterval: 50 * time.Millisecond, KeepaliveTimeout: 50 * time.Millisecond})
	r := beRude(t, addr)
	r.until(http2.FramePing)
	for {
		if _, err := r.fr.ReadFrame(); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection stays")
			}
			return
		}
	}
}

// FuzzConn: whatever a client sends, the server lives and the connection ends with
// it.
func FuzzConn(f *testing.F) {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	if err := fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3}); err != nil {
		f.Fatal(err)
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i < len(polite); i += 2 {
		if err := e.WriteField(hpack.HeaderField{Name: polite[i], Value: polite[i+1]}); err != nil {
			f.Fatal(err)
		}
	}
	if err := errors.Join(
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		fr.WriteData(1, true, []byte{0, 0, 0, 0, 4, 0x0a, 2, 'h', 'i'}), fr.WriteWindowUpdate(1, 100), fr.WritePing(false, [8]byte{}), fr.WriteRSTStream(1, 0),
	); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		srv := rpc.New(rpc.Config{MaxRecvBytes: 1000, MaxStreams: 10, KeepaliveInterval: time.Hour, KeepaliveTimeout: time.Hour})
		srv.RegisterService(&desc, &service{call: echo, stream: func(ss grpc.ServerStream) error {
			return ss.RecvMsg(new(wrapperspb.BytesValue))
		}})
		here, there := net.Pipe()
		var all sync.WaitGroup
		all.Go(func() { srv.ServeConn(there) })
		all.Go(func() { _, _ = io.Copy(io.Discard, here) })
		_, _ = here.Write(append([]byte(http2.ClientPreface), data...)) // fails when the server hangs up
		here.Close()
		srv.Close()
		all.Wait()
	})
}
