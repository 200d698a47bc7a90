package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

const gatewayUsage = `Usage: edged store gateway start [flags]

Passes connections on to the members of a cluster, one after the other, as
etcd's gateway does.

Flags:
`

// gatewayConnections bounds what a gateway holds open; who comes beyond waits in
// the kernel's queue.
const gatewayConnections = 1024

// gateway passes TCP connections on. Of the endpoints that do not answer one is
// tried again after retryDelay.
type gateway struct {
	listen    string
	endpoints []string
	retry     time.Duration
	log       *slog.Logger

	next  atomic.Uint64
	slots chan struct{} // a token per connection

	mu   sync.Mutex
	dead map[string]time.Time // guarded by mu: when an endpoint was found not to answer
}

func runGateway(ctx context.Context, e env, args []string) error {
	g := &gateway{dead: map[string]time.Time{}, slots: make(chan struct{}, gatewayConnections)}
	fs := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.StringVar(&g.listen, "listen-addr", "127.0.0.1:23790", "`address` to listen on")
	fs.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "`addresses` or URLs of the members")
	fs.DurationVar(&g.retry, "retry-delay", time.Minute, "`duration` before a member that did not answer is tried again")
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		_, err = fmt.Fprint(e.stdout, gatewayUsage, fs.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged store gateway --help` lists the flags", err)
	}
	if !slices.Equal(fs.Args(), []string{"start"}) {
		return misusef("%q: want gateway start; `edged store gateway --help` tells its use", strings.Join(fs.Args(), " "))
	}
	for i, ep := range g.endpoints {
		if u, err := url.Parse(ep); err == nil && u.Host != "" {
			ep = u.Host
		}
		if _, _, err := net.SplitHostPort(ep); err != nil {
			return misusef("--endpoints: %w", err)
		}
		g.endpoints[i] = ep
	}
	g.log = slog.New(zapLike(e.stderr, slog.LevelInfo))
	return g.run(ctx)
}

func (g *gateway) run(ctx context.Context) error {
	l, err := net.Listen("tcp", g.listen)
	if err != nil {
		return fmt.Errorf("--listen-addr: %w", err)
	}
	g.log.Info("ready to proxy client requests", "listen-addr", l.Addr().String(), "endpoints", g.endpoints)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return l.Close()
	})
	group.Go(func() error {
		for {
			g.slots <- struct{}{}
			conn, err := l.Accept()
			if err != nil {
				return endOf(ctx, err)
			}
			group.Go(func() error {
				defer func() { <-g.slots }()
				g.pass(ctx, conn)
				return nil
			})
		}
	})
	return group.Wait()
}

// pass connects a client with the first member that answers.
func (g *gateway) pass(ctx context.Context, client net.Conn) {
	defer client.Close()
	member, err := g.dial(ctx)
	if err != nil {
		g.log.Warn("a client was turned away: no member answers", "client", client.RemoteAddr().String(), "error", err.Error())
		return
	}
	defer member.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); member.Close() })
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{member, client}, {client, member}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // either side may go at any time
			// What it has sent already still arrives.
			if c, ok := way[0].(*net.TCPConn); ok {
				_ = c.CloseWrite()
			}
		})
	}
	both.Wait()
}

func (g *gateway) dial(ctx context.Context) (net.Conn, error) {
	first := g.next.Add(1)
	last := errors.New("all have failed and wait to be tried again")
	for i := range g.endpoints {
		ep := g.endpoints[(first+uint64(i))%uint64(len(g.endpoints))]
		if !g.mayTry(ep) {
			continue
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", ep)
		if err == nil {
			return conn, nil
		}
		last = err
		g.log.Warn("a member does not answer", "endpoint", ep, "error", err.Error())
		g.mu.Lock()
		g.dead[ep] = time.Now()
		g.mu.Unlock()
	}
	return nil, last
}

// mayTry lets one caller try a dead member when its time has come.
func (g *gateway) mayTry(ep string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	since, dead := g.dead[ep]
	if dead && time.Since(since) < g.retry {
		return false
	}
	delete(g.dead, ep)
	return true
}
