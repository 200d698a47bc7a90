package etcdapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers gRPC's codec
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"edged/raftstore"
	"edged/raftstore/etcdapi/electionpb"
	"edged/raftstore/etcdapi/lockpb"
	"edged/raftstore/etcdapi/rpc"
)

// Defaults of Config, which are etcd's.
const (
	defaultProgressInterval = 10 * time.Minute
	minProgressInterval     = 100 * time.Millisecond
	defaultElectionTimeout  = time.Second
	// firstBytes is how long a connection may take to say what it speaks.
	firstBytes = 10 * time.Second
	preface    = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// tlsHandshake is the first byte of a client that speaks TLS.
	tlsHandshake = 0x16
)

// Config says what is served and how.
type Config struct {
	Store  *raftstore.Store
	Logger *slog.Logger
	// Metrics answers /metrics; nil is not found.
	Metrics http.Handler
	// Gateway turns the JSON gateway on.
	Gateway bool
	// ClientCertAuth takes a client certificate's common name for a user.
	ClientCertAuth bool
	// ProgressInterval is how often quiet watches are told how far they are.
	ProgressInterval time.Duration
	// ElectionTimeout is how long to wait before asking again for a leader.
	ElectionTimeout time.Duration
	// KeepaliveMinTime, KeepaliveInterval and KeepaliveTimeout are gRPC's; 0 is
	// etcd's default.
	KeepaliveMinTime, KeepaliveInterval, KeepaliveTimeout time.Duration
	// MaxStreams bounds the streams of a connection; 0 is no bound.
	MaxStreams uint32
	// SlowRequest is how long a request may take before a line in the log tells
	// of it.
	SlowRequest time.Duration
	// NotServingOnDefrag makes the health service say so during a defragmentation.
	NotServingOnDefrag bool
}

// Server serves a store.
type Server struct {
	cfg     Config
	store   *raftstore.Store
	log     *slog.Logger
	grpc    *grpc.Server // of connections with TLS
	rpc     *rpc.Server  // of those without
	http    *http.Server
	health  *health.Server
	leaders leaders

	calls        *calls
	watching     *watching
	healthy, ill atomic.Uint64 // checks

	ctx     context.Context // ends when Close begins
	stop    context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	listeners []io.Closer // guarded by mu
	closed    bool        // guarded by mu
}

// New makes a server; nothing is served before Serve.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ProgressInterval <= 0 {
		cfg.ProgressInterval = defaultProgressInterval
	}
	cfg.ProgressInterval = max(cfg.ProgressInterval, minProgressInterval)
	if cfg.ElectionTimeout <= 0 {
		cfg.ElectionTimeout = defaultElectionTimeout
	}
	if cfg.SlowRequest <= 0 {
		cfg.SlowRequest = defaultSlowRequest
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = math.MaxUint32
	}
	if cfg.KeepaliveMinTime == 0 {
		cfg.KeepaliveMinTime = 5 * time.Second
	}
	if cfg.KeepaliveInterval == 0 {
		cfg.KeepaliveInterval = 2 * time.Hour
	}
	if cfg.KeepaliveTimeout == 0 {
		cfg.KeepaliveTimeout = 20 * time.Second
	}
	s := &Server{cfg: cfg, store: cfg.Store, log: cfg.Logger, health: health.NewServer(), calls: &calls{}, watching: newWatching()}
	s.calls.tell = s.tellSlow
	s.leaders.ends = map[int]context.CancelCauseFunc{}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(s.calls.unary(s.unary)), grpc.StreamInterceptor(s.calls.stream(s.stream)), grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}),
		grpc.MaxRecvMsgSize(cfg.Store.MaxRequestBytes()+sendOverhead), grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(cfg.MaxStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: cfg.KeepaliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: cfg.KeepaliveInterval, Timeout: cfg.KeepaliveTimeout}),
		// A buffer a connection each way is what a device with many clients pays for.
		grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(8<<10),
	)
	s.rpc = rpc.New(rpc.Config{
		Unary: s.calls.unary(s.unary), Stream: s.calls.stream(s.stream),
		MaxRecvBytes: cfg.Store.MaxRequestBytes() + sendOverhead, MaxStreams: cfg.MaxStreams,
		KeepaliveMinTime: cfg.KeepaliveMinTime, KeepaliveInterval: cfg.KeepaliveInterval, KeepaliveTimeout: cfg.KeepaliveTimeout,
	})
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	s.register(s.grpc)
	s.register(s.rpc)
	s.calls.fill(s.grpc)
	s.http = &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: firstBytes,
		ErrorLog: log.New(&httpLog{s.log}, "", 0),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.running.Go(func() { s.watchLeaders(s.ctx) })
	return s
}

func (s *Server) register(r grpc.ServiceRegistrar) {
	pb.RegisterKVServer(r, kvService{Server: s})
	pb.RegisterWatchServer(r, watchService{Server: s})
	pb.RegisterLeaseServer(r, leaseService{Server: s})
	pb.RegisterClusterServer(r, clusterService{Server: s})
	pb.RegisterAuthServer(r, authService{Server: s})
	pb.RegisterMaintenanceServer(r, maintenanceService{Server: s})
	lockpb.RegisterLockServer(r, lockService{Server: s})
	electionpb.RegisterElectionServer(r, electionService{Server: s})
	healthpb.RegisterHealthServer(r, s.health)
}

// header is one of now.
func (s *Server) header() *pb.ResponseHeader {
	rev, _ := s.store.Revision()
	return s.headerAt(rev)
}

func (s *Server) headerAt(rev int64) *pb.ResponseHeader { return s.store.Header(rev) }

// Serve accepts connections on l until Close: plain ones if plain is set, and
// TLS with conf if that is not nil. It does not return before l fails or the
// server is closed, then with nil.
func (s *Server) Serve(l net.Listener, plain bool, conf *tls.Config) error {
	if !s.own(l) {
		return nil
	}
	if !plain {
		return s.ended(s.serveTLS(l, conf))
	}
	return s.ended(s.servePlain(l, conf))
}

// ServeHTTP serves the HTTP half alone: a port for metrics and health.
func (s *Server) ServeHTTP(l net.Listener, conf *tls.Config) error {
	if !s.own(l) {
		return nil
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	return s.ended(s.http.Serve(l))
}

func (s *Server) own(l io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return false
	}
	s.listeners = append(s.listeners, l)
	return true
}

func (s *Server) ended(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Server) serveTLS(l net.Listener, conf *tls.Config) error {
	conf = conf.Clone()
	conf.NextProtos = []string{"h2", "http/1.1"}
	both := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			s.grpc.ServeHTTP(w, r)
			return
		}
		s.http.Handler.ServeHTTP(w, r)
	})
	srv := &http.Server{Handler: both, ReadHeaderTimeout: firstBytes, TLSConfig: conf, ErrorLog: s.http.ErrorLog,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: int(min(s.cfg.MaxStreams, math.MaxInt32))}}
	if !s.own(srv) {
		return nil
	}
	return srv.ServeTLS(countedListener{l, s.calls}, "", "")
}

// queues are where the connections of a port go that speaks more than one
// language.
type queues struct{ http, tls *queueListener }

// servePlain gives each connection to gRPC, to HTTP/1 or, if there is a conf, to
// TLS, by its first bytes.
func (s *Server) servePlain(l net.Listener, conf *tls.Config) error {
	q := queues{http: newQueue(l.Addr()), tls: newQueue(l.Addr())}
	for _, x := range []*queueListener{q.http, q.tls} {
		defer x.Close()
		if !s.own(x) {
			return nil
		}
	}
	// They return when their queue is closed.
	s.running.Go(func() { s.report(s.http.Serve(q.http)) })
	if conf != nil {
		s.running.Go(func() { s.report(s.serveTLS(q.tls, conf)) })
	} else {
		q.tls.Close() // turns away who speaks TLS
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		s.running.Go(func() { s.sort(conn, q) })
	}
}

func (s *Server) report(err error) {
	if err := s.ended(err); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		s.log.Error("clients are not served any more", "err", err)
	}
}

// sort waits for the first bytes of a connection, which tell what it speaks, or for
// the end of the server. One of gRPC it serves.
func (s *Server) sort(conn net.Conn, q queues) {
	waiting := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer waiting()
	if err := conn.SetReadDeadline(time.Now().Add(firstBytes)); err != nil {
		conn.Close()
		return
	}
	r := bufio.NewReaderSize(conn, len(preface))
	// "PRI" is no method of HTTP/1.
	head, err := r.Peek(3)
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if !waiting() || err != nil {
		conn.Close()
		return
	}
	c := &peeked{Conn: conn, r: r}
	switch {
	case string(head) == preface[:3]:
		s.rpc.ServeConn(s.calls.bytesOn(c))
	case head[0] == tlsHandshake:
		q.tls.put(c)
	default:
		q.http.put(c)
	}
}

// Close ends all connections and waits until nothing runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	listeners := s.listeners
	s.listeners = nil
	s.mu.Unlock()
	s.stop()
	var errs []error
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.grpc.Stop()
	s.rpc.Close()
	errs = append(errs, s.http.Close())
	s.running.Wait()
	return errors.Join(errs...)
}

// httpLog tells of clients whose handshake failed, and of the rest to those who
// look for a fault.
type httpLog struct{ log *slog.Logger }

func (l *httpLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if what, ok := strings.CutPrefix(text, "http: TLS handshake error from "); ok {
		addr, err, _ := strings.Cut(what, ": ")
		l.log.Warn("rejected connection on client endpoint", "remote-addr", addr, "error", err)
	} else {
		l.log.Debug(text)
	}
	return len(line), nil
}

// peeked is a connection of which some bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader // nil once it is empty
}

func (p *peeked) Read(b []byte) (int, error) {
	if p.r == nil {
		return p.Conn.Read(b)
	}
	n, err := p.r.Read(b[:min(len(b), max(p.r.Buffered(), 1))])
	if p.r.Buffered() == 0 {
		p.r = nil
	}
	return n, err
}

// queueListener is a listener whose connections were accepted elsewhere.
type queueListener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queueListener {
	return &queueListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queueListener) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

func (q *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queueListener) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queueListener) Addr() net.Addr { return q.addr }
