package etcdapi

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"edged/internal/histogram"
)

// calls counts what clients ask, by method: what etcd's gRPC metrics tell.
type calls struct {
	methods map[string]*method // by full name; never changed once filled
	tell    func(ctx context.Context, req, resp any, start time.Time)

	// sent and received are bytes of gRPC connections.
	sent, received atomic.Uint64

	// versions counts unary calls and streams by the clients' versions. The map is
	// replaced, with mu held, never changed.
	versions atomic.Pointer[map[string]*[2]atomic.Uint64]
	mu       sync.Mutex
}

const lastCode = codes.Unauthenticated

type method struct {
	service, name, kind string
	started, in, out    atomic.Uint64
	ended               [lastCode + 1]atomic.Uint64
	took                *histogram.Histogram
	failed              *histogram.Histogram
}

// fill makes room for the methods of s; before it nothing is counted.
func (c *calls) fill(s *grpc.Server) {
	c.methods = map[string]*method{}
	c.versions.Store(&map[string]*[2]atomic.Uint64{})
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			kind := "unary"
			switch {
			case m.IsClientStream && m.IsServerStream:
				kind = "bidi_stream"
			case m.IsServerStream:
				kind = "server_stream"
			case m.IsClientStream:
				kind = "client_stream"
			}
			const first, buckets = time.Millisecond, 14 // etcd's
			c.methods["/"+service+"/"+m.Name] = &method{
				service: service, name: m.Name, kind: kind,
				took: histogram.Doubling(first, buckets), failed: histogram.Doubling(first, buckets),
			}
		}
	}
}

func (m *method) end(err error, start time.Time) {
	code := min(status.Code(err), lastCode)
	m.ended[code].Add(1)
	if m.kind != "unary" {
		return
	}
	if err == nil {
		m.out.Add(1)
		m.took.Since(start)
	} else {
		m.failed.Since(start)
	}
}

// unary counts the calls that next answers.
func (c *calls) unary(next grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		m := c.methods[info.FullMethod]
		if m == nil {
			return next(ctx, req, info, handler)
		}
		start := time.Now()
		m.started.Add(1)
		m.in.Add(1)
		c.client(ctx, 0)
		resp, err := next(ctx, req, info, handler)
		m.end(err, start)
		c.tell(ctx, req, resp, start)
		return resp, err
	}
}

// stream counts the streams that next serves.
func (c *calls) stream(next grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		m := c.methods[info.FullMethod]
		if m == nil {
			return next(srv, ss, info, handler)
		}
		m.started.Add(1)
		c.client(ss.Context(), 1)
		err := next(srv, countedStream{ss, m}, info, handler)
		m.end(err, time.Time{})
		return err
	}
}

type countedStream struct {
	grpc.ServerStream
	m *method
}

func (s countedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.m.in.Add(1)
	}
	return err
}

func (s countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.m.out.Add(1)
	}
	return err
}

const (
	// maxVersions bounds the versions of clients that are told apart: they say
	// them themselves.
	maxVersions  = 16
	otherVersion = "other"
)

func (c *calls) client(ctx context.Context, kind int) {
	version := "unknown"
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 && utf8.ValidString(v[0]) && len(v[0]) < 32 {
		version = v[0]
	}
	n := (*c.versions.Load())[version]
	if n == nil {
		n = c.newVersion(version)
	}
	n[kind].Add(1)
}

func (c *calls) newVersion(version string) *[2]atomic.Uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.versions.Load()
	if old[version] == nil && len(old) >= maxVersions {
		version = otherVersion
	}
	if n := old[version]; n != nil {
		return n
	}
	all := maps.Clone(old)
	n := new([2]atomic.Uint64)
	all[strings.Clone(version)] = n
	c.versions.Store(&all)
	return n
}

// bytesOn counts the bytes of a connection of gRPC.
func (c *calls) bytesOn(conn net.Conn) net.Conn { return countedConn{conn, c} }

type countedConn struct {
	net.Conn
	c *calls
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.c.received.Add(uint64(n))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.c.sent.Add(uint64(n))
	return n, err
}

// countedListener is a port of which every connection may speak gRPC.
type countedListener struct {
	net.Listener
	c *calls
}

func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.c.bytesOn(conn), nil
}

// MethodStats are what was asked of one method. Histograms are live.
type MethodStats struct {
	Service, Method, Type   string
	Started, Received, Sent uint64
	Ended                   map[codes.Code]uint64
	Took, Failed            *histogram.Histogram // of unary ones
}

// ClientStats are how many calls came from clients of one version.
type ClientStats struct {
	Version        string
	Unary, Streams uint64
}

// Stats are what a server has done since it was made. Histograms are live.
type Stats struct {
	Methods                   []MethodStats
	Clients                   []ClientStats
	BytesSent, BytesReceived  uint64
	Healthy, Unhealthy        uint64
	Streams, Watches, Slow    int64
	Events                    uint64
	SendEvents, SendPerEvent  *histogram.Histogram
	SendControl, SendProgress *histogram.Histogram
}

// Stats returns them.
func (s *Server) Stats() Stats {
	c := s.calls
	out := Stats{
		BytesSent: c.sent.Load(), BytesReceived: c.received.Load(), Healthy: s.healthy.Load(), Unhealthy: s.ill.Load(),
		Streams: s.watching.streams.Load(), Watches: s.watching.watches.Load(), Slow: s.watching.slow.Load(), Events: s.watching.events.Load(),
		SendEvents: s.watching.sendEvents, SendPerEvent: s.watching.sendPerEvent, SendControl: s.watching.sendControl, SendProgress: s.watching.sendProgress,
	}
	for _, name := range slices.Sorted(maps.Keys(c.methods)) {
		m := c.methods[name]
		st := MethodStats{
			Service: m.service, Method: m.name, Type: m.kind, Started: m.started.Load(), Received: m.in.Load(), Sent: m.out.Load(),
			Ended: map[codes.Code]uint64{}, Took: m.took, Failed: m.failed,
		}
		for code := range m.ended {
			if n := m.ended[code].Load(); n > 0 || code == int(codes.OK) {
				st.Ended[codes.Code(code)] = n
			}
		}
		out.Methods = append(out.Methods, st)
	}
	for version, n := range *c.versions.Load() {
		out.Clients = append(out.Clients, ClientStats{version, n[0].Load(), n[1].Load()})
	}
	slices.SortFunc(out.Clients, func(a, b ClientStats) int { return cmp.Compare(a.Version, b.Version) })
	return out
}

// watching counts watches.
type watching struct {
	streams, watches, slow                              atomic.Int64
	events                                              atomic.Uint64
	sendEvents, sendPerEvent, sendControl, sendProgress *histogram.Histogram
}

func newWatching() *watching {
	h := func() *histogram.Histogram { return histogram.Doubling(time.Millisecond, 14) } // etcd's bounds
	return &watching{sendEvents: h(), sendPerEvent: h(), sendControl: h(), sendProgress: h()}
}

// sent counts a response with events.
func (w *watching) sent(took time.Duration, events int) {
	w.events.Add(uint64(events))
	w.sendEvents.Observe(took)
	w.sendPerEvent.Observe(took / time.Duration(events))
}
