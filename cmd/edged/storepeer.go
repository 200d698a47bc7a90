package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"edged/raftstore"
)

// leaseCheckpoint is how often etcd writes down what leases have left.
const leaseCheckpoint = 5 * time.Minute

// network listens for members and says how to call them.
func (s *storeServer) network() (*raftstore.Network, error) {
	c := s.cfg
	serve, err := c.peer.server()
	if err != nil {
		return nil, err
	}
	call, err := c.peer.caller()
	if err != nil {
		return nil, err
	}
	many := &manyListener{conns: make(chan net.Conn), done: make(chan struct{})}
	for _, u := range c.listenPeer {
		l, secure, err := listenPeer(u)
		if err == nil && secure && serve == nil {
			err = errors.Join(fmt.Errorf("%s needs --peer-cert-file or --peer-auto-tls", u), l.Close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("--listen-peer-urls: %w", err), many.Close())
		}
		if secure {
			l = tellingListener{tls.NewListener(l, serve), s.log}
		}
		many.add(l)
	}
	return &raftstore.Network{Listener: many, Dial: func(ctx context.Context, u string) (net.Conn, error) { return dialPeer(ctx, u, call) }}, nil
}

func listenPeer(s string) (l net.Listener, secure bool, err error) {
	all, err := addListener(nil, s, false)
	if err != nil {
		return nil, false, err
	}
	return all[0].Listener, all[0].tls, nil
}

func dialPeer(ctx context.Context, s string, conf *tls.Config) (net.Conn, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	network, addr := "tcp", u.Host
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		network, addr = "unix", u.Host+u.Path
	}
	if u.Scheme == "http" || u.Scheme == "unix" {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	conf = conf.Clone()
	conf.ServerName = u.Hostname()
	return (&tls.Dialer{Config: conf}).DialContext(ctx, network, addr)
}

// caller returns what to call members with that speak TLS.
func (t *tlsConfig) caller() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.auto && t.cert == "" {
		conf.InsecureSkipVerify = true // they made their certificates themselves
		return conf, nil
	}
	if t.ca != "" {
		pool, err := readPool(t.ca)
		if err != nil {
			return nil, fmt.Errorf("--%strusted-ca-file: %w", t.prefix, err)
		}
		conf.RootCAs = pool
	}
	cert, key := t.cert, t.key
	if t.clientCert != "" {
		cert, key = t.clientCert, t.clientKey
	}
	if cert != "" {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(cert, key)
			return &c, err
		}
	}
	return conf, nil
}

// tellingListener tells of members whose handshake fails.
type tellingListener struct {
	net.Listener
	log *slog.Logger
}

func (l tellingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tellingConn{Conn: conn.(*tls.Conn), log: l.log}, nil
}

// tellingConn shakes hands when it is first read from, within the reader's
// deadline.
type tellingConn struct {
	*tls.Conn
	log  *slog.Logger
	once sync.Once
}

func (c *tellingConn) Read(p []byte) (int, error) {
	c.once.Do(func() {
		if err := c.Handshake(); err != nil {
			c.log.Warn("rejected connection on peer endpoint", "remote-addr", c.RemoteAddr().String(), "error", err.Error())
		}
	})
	return c.Conn.Read(p)
}

// manyListener accepts on several ports.
type manyListener struct {
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
	running sync.WaitGroup
	all     []net.Listener
}

// add is called before anything else.
func (m *manyListener) add(l net.Listener) {
	m.all = append(m.all, l)
	m.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			select {
			case m.conns <- c:
			case <-m.done:
				c.Close()
			}
		}
	})
}

func (m *manyListener) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *manyListener) Close() (err error) {
	m.once.Do(func() {
		close(m.done)
		for _, l := range m.all {
			err = errors.Join(err, l.Close())
		}
		m.running.Wait()
	})
	return err
}

func (m *manyListener) Addr() net.Addr { return m.all[0].Addr() }
