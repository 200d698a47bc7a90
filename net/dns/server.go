package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
)

const (
	// DefaultPort is DNS's.
	DefaultPort = 53
	// fallbackPort is where we listen when somebody else has port 53 of all
	// addresses; Config.Redirect leads clients there.
	fallbackPort = 10053
	// maxUDPBytes bounds an answer by UDP. Clients on the same device may ask
	// for as much as they announce, up to this.
	maxUDPBytes = 4096
	// tcpIdle closes a connection on which nothing is asked.
	tcpIdle = 8 * time.Second
)

// Config is what a Server needs.
type Config struct {
	Domain string // of the cluster: cluster.local
	// Addrs to listen at; they need not be assigned yet.
	Addrs []netip.Addr
	Port  uint16 // DefaultPort if 0
	// Inside are the networks of Pods and Services: their reverse names are
	// answered here.
	Inside []netip.Prefix
	// Upstreams are servers for other names; if none are given, those of
	// ResolvConf, which is read again when it changes.
	Upstreams  []netip.AddrPort
	ResolvConf string // default /etc/resolv.conf
	// Redirect, if set, is called when another process holds Port of all
	// addresses: whatever comes to from must be led to the port to. Without
	// it, that is an error.
	Redirect func(from netip.AddrPort, to uint16) error
	Logger   *slog.Logger
}

// Server is a DNS server.
type Server struct {
	cfg     Config
	log     *slog.Logger
	records *Records
	forward *forwarder
}

// New prepares a server; hasPod may be nil.
func New(cfg Config) (*Server, error) {
	if cfg.Domain == "" || len(cfg.Addrs) == 0 {
		return nil, errors.New("dns: no domain or no address to listen at given")
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	s.records = NewRecords(cfg.Domain, cfg.Addrs, cfg.Inside, func(string, netip.Addr) bool { return false })
	s.forward = newForwarder(&s.cfg)
	return s, nil
}

// Records is the zone that the server answers from. Run fills it.
func (s *Server) Records() *Records { return s.records }

// Run listens and answers until ctx ends, from what the registry holds.
func (s *Server) Run(ctx context.Context, reg *registry.Registry) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	pods := registry.For[*corev1.Pod](reg)
	s.records.hasPod = func(ns string, a netip.Addr) bool {
		for _, p := range pods.List(ns) {
			for _, ip := range p.Status.PodIPs {
				if b, err := netip.ParseAddr(ip.IP); err == nil && b == a {
					return true
				}
			}
		}
		return false
	}
	defer registry.For[*corev1.Service](reg).Subscribe(func(e registry.Event[*corev1.Service]) {
		old, now := e.Old, e.Object
		if e.Type == watch.Deleted {
			old, now = now, nil
		}
		s.records.SetService(old, now)
	})()
	defer registry.For[*discoveryv1.EndpointSlice](reg).Subscribe(func(e registry.Event[*discoveryv1.EndpointSlice]) {
		old, now := e.Old, e.Object
		if e.Type == watch.Deleted {
			old, now = now, nil
		}
		s.records.SetSlice(old, now)
	})()
	return s.Serve(ctx)
}

// Serve listens and answers from Records until ctx ends.
func (s *Server) Serve(ctx context.Context) error {
	var servers []*dns.Server
	defer func() {
		for _, srv := range servers {
			// The error is that it was not started, which closes as well.
			if srv.Shutdown() != nil {
				closeServer(srv)
			}
		}
	}()
	for _, a := range s.cfg.Addrs {
		pair, err := s.listen(ctx, netip.AddrPortFrom(a, s.cfg.Port))
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		servers = append(servers, pair...)
	}
	var wg sync.WaitGroup
	failed := make(chan error, len(servers))
	for _, srv := range servers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := srv.ActivateAndServe(); err != nil {
				failed <- err
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("dns: %w", err)
	}
	for _, srv := range servers {
		if srv.Shutdown() != nil {
			closeServer(srv)
		}
	}
	wg.Wait()
	servers = nil
	return err
}

func closeServer(srv *dns.Server) {
	if srv.Listener != nil {
		srv.Listener.Close()
	}
	if srv.PacketConn != nil {
		srv.PacketConn.Close()
	}
}

// listen opens both transports of an address, at another port if somebody else
// has this one.
func (s *Server) listen(ctx context.Context, at netip.AddrPort) ([]*dns.Server, error) {
	pair, err := s.open(ctx, at)
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) || s.cfg.Redirect == nil {
		return pair, err
	}
	busy := err
	pair, err = s.open(ctx, netip.AddrPortFrom(at.Addr(), fallbackPort))
	if err != nil {
		return nil, errors.Join(busy, err)
	}
	if err := s.cfg.Redirect(at, fallbackPort); err != nil {
		for _, srv := range pair {
			closeServer(srv)
		}
		return nil, errors.Join(busy, err)
	}
	s.log.Info("another process listens at the DNS port of all addresses; using another port behind the cluster DNS address", "addr", at, "port", fallbackPort)
	return pair, nil
}

func (s *Server) open(ctx context.Context, at netip.AddrPort) ([]*dns.Server, error) {
	lc := net.ListenConfig{Control: freeBind}
	p, err := lc.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, err
	}
	l, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		p.Close()
		return nil, err
	}
	h := dns.HandlerFunc(s.handle)
	return []*dns.Server{
		{PacketConn: p, Handler: h, UDPSize: maxUDPBytes},
		{Listener: l, Handler: h, IdleTimeout: func() time.Duration { return tcpIdle }},
	}, nil
}

// freeBind lets us listen at an address before it is assigned.
func freeBind(_, _ string, c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, syscall.IP_FREEBIND, 1)
	})
	return errors.Join(ctlErr, err)
}

// handle answers one query.
func (s *Server) handle(w dns.ResponseWriter, q *dns.Msg) {
	reply := s.reply(q)
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		if udp {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPBytes)
		}
		reply.Extra = withoutOPT(reply.Extra)
		reply.SetEdns0(maxUDPBytes, opt.Do())
	}
	reply.Truncate(size)
	if err := w.WriteMsg(reply); err != nil {
		s.log.Debug("answer not sent", "to", w.RemoteAddr(), "err", err)
	}
}

func withoutOPT(rrs []dns.RR) []dns.RR {
	out := rrs[:0:0]
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}

func (s *Server) reply(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.RecursionAvailable = true
	switch {
	case q.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case len(q.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
		return reply
	case q.Question[0].Qclass != dns.ClassINET, q.Question[0].Qtype == dns.TypeAXFR, q.Question[0].Qtype == dns.TypeIXFR:
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		reply.Rcode = dns.RcodeBadVers
		return reply
	}
	question := q.Question[0]
	if !s.records.Owns(question.Name) {
		s.outside(reply, question, q)
		return reply
	}
	if alias := s.records.Answer(reply, question); alias != "" {
		// Some resolvers do not ask again for what a CNAME points to.
		sub := new(dns.Msg).SetQuestion(alias, question.Qtype)
		target := s.forward.ask(sub)
		if target != nil && target.Rcode == dns.RcodeSuccess {
			reply.Answer = append(reply.Answer, target.Answer...)
		}
	}
	return reply
}

// outside answers from upstream servers.
func (s *Server) outside(reply *dns.Msg, question dns.Question, q *dns.Msg) {
	if !q.RecursionDesired {
		reply.Rcode = dns.RcodeRefused
		return
	}
	sub := new(dns.Msg).SetQuestion(question.Name, question.Qtype)
	if opt := q.IsEdns0(); opt != nil && opt.Do() {
		sub.SetEdns0(maxUDPBytes, true)
	}
	sub.CheckingDisabled = q.CheckingDisabled
	got := s.forward.ask(sub)
	if got == nil {
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	reply.Rcode, reply.AuthenticatedData = got.Rcode, got.AuthenticatedData
	reply.Answer, reply.Ns, reply.Extra = got.Answer, got.Ns, withoutOPT(got.Extra)
}
