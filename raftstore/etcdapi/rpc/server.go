package rpc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config says how calls are answered.
type Config struct {
	// Unary and Stream are called for each call and stream.
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
	// MaxRecvBytes bounds a message of a client.
	MaxRecvBytes int
	// MaxStreams bounds the calls and streams of a connection at a time.
	MaxStreams uint32
	// KeepaliveMinTime is how long a client must wait between pings while it asks
	// nothing, KeepaliveInterval after how long a silent one is pinged, and
	// KeepaliveTimeout after how long without an answer it is given up.
	KeepaliveMinTime, KeepaliveInterval, KeepaliveTimeout time.Duration
}

// method is what a path names.
type method struct {
	impl   any
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc // if not unary
	info   *grpc.StreamServerInfo
}

// Server serves registered services. Services are registered before the first
// connection is served.
type Server struct {
	cfg      Config
	services map[string]bool
	methods  map[string]*method // by "/service/method"
	workers  workers
	running  sync.WaitGroup // of handlers

	mu     sync.Mutex
	conns  map[*conn]bool // guarded by mu
	closed bool           // guarded by mu
}

// New makes a server without services.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, services: map[string]bool{}, methods: map[string]*method{}, conns: map[*conn]bool{}}
}

// RegisterService is part of grpc.ServiceRegistrar.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.services[desc.ServiceName] = true
	for i := range desc.Methods {
		m := &desc.Methods[i]
		s.methods["/"+desc.ServiceName+"/"+m.MethodName] = &method{impl: impl, unary: m}
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		path := "/" + desc.ServiceName + "/" + m.StreamName
		info := &grpc.StreamServerInfo{FullMethod: path, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams}
		s.methods[path] = &method{impl: impl, stream: m, info: info}
	}
}

// unknown is the status of a call of a method that there is not.
func (s *Server) unknown(path string) *status.Status {
	service, name := "", ""
	if i := strings.LastIndexByte(path, '/'); i > 0 && path[0] == '/' {
		service, name = path[1:i], path[i+1:]
	} else {
		return status.New(codes.Unimplemented, fmt.Sprintf("malformed method name: %q", path))
	}
	if !s.services[service] {
		return status.New(codes.Unimplemented, fmt.Sprintf("unknown service %v", service))
	}
	return status.New(codes.Unimplemented, fmt.Sprintf("unknown method %v for service %v", name, service))
}

// ServeConn serves a connection, which it owns, until it ends.
func (s *Server) ServeConn(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.conns[c] = true
	s.mu.Unlock()
	c.serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Close ends all connections and waits until no handler runs any more.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.nc.Close() // its reader ends the rest
	}
	s.mu.Unlock()
	s.running.Wait()
	s.workers.close()
}

// begin has a stream's handler run, on a goroutine that waits for work if there is
// one.
func (s *Server) begin(st *stream) bool {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.running.Add(1)
	}
	s.mu.Unlock()
	if closed {
		return false
	}
	if st.m.unary != nil {
		s.workers.do(st)
		return true
	}
	go st.serve()
	return true
}

// decodeTimeout is gRPC's "grpc-timeout".
func decodeTimeout(s string) (time.Duration, error) {
	if len(s) < 2 || len(s) > 9 {
		return 0, fmt.Errorf("transport: timeout string is of wrong length: %q", s)
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[s[len(s)-1]]
	if !ok {
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n := int64(0)
	for _, d := range []byte(s[:len(s)-1]) {
		if d < '0' || d > '9' {
			return 0, fmt.Errorf("transport: timeout is no number: %q", s)
		}
		n = n*10 + int64(d-'0')
	}
	if n > int64(maxTimeout/unit) {
		return maxTimeout, nil
	}
	return time.Duration(n) * unit, nil
}

const maxTimeout = time.Duration(1<<63 - 1)

var _ context.Context = (*stream)(nil)
