package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"edged/raftstore/etcdapi"
)

// mastersGroup is the organization in an administrator's certificate.
const mastersGroup = "system:masters"

// serveEtcd answers etcd's clients on --etcd-listen. Nothing of gRPC is set up
// before the first of them: most devices never see one.
func (d *device) serveEtcd(ctx context.Context, g *errgroup.Group) {
	if d.ports.etcd == nil {
		return
	}
	l := &eagerListener{Listener: d.ports.etcd}
	g.Go(func() error {
		if err := l.wait(); err != nil {
			return endOf(ctx, fmt.Errorf("serve on %s: %w", l.Addr(), err))
		}
		srv := etcdapi.New(etcdapi.Config{Store: d.store, Logger: d.log, Gateway: true})
		stop := context.AfterFunc(ctx, func() {
			if err := srv.Close(); err != nil {
				d.log.Warn("while ending etcd's clients", "err", err)
			}
		})
		defer stop()
		return endOf(ctx, srv.Serve(l, false, d.etcdTLS()))
	})
	g.Go(func() error {
		<-ctx.Done()
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
}

// etcdTLS demands an administrator's certificate: the store knows nothing of
// Kubernetes' permissions, and holds its secrets.
func (d *device) etcdTLS() *tls.Config {
	conf := d.identity.ServerTLS()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.VerifyConnection = func(s tls.ConnectionState) error { return administrator(s.VerifiedChains) }
	return conf
}

func administrator(chains [][]*x509.Certificate) error {
	if len(chains) > 0 && len(chains[0]) > 0 && slices.Contains(chains[0][0].Subject.Organization, mastersGroup) {
		return nil
	}
	return errors.New("the etcd API is for administrators: the certificate is not of " + mastersGroup)
}

// eagerListener hands out the connection that was waited for first.
type eagerListener struct {
	net.Listener
	mu    sync.Mutex
	first net.Conn // guarded by mu
}

// wait returns when somebody has connected.
func (l *eagerListener) wait() error {
	c, err := l.Listener.Accept()
	l.mu.Lock()
	l.first = c
	l.mu.Unlock()
	return err
}

func (l *eagerListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.first
	l.first = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	return l.Listener.Accept()
}
