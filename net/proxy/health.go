package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// health is what a load balancer outside asks a device about a Service with
// externalTrafficPolicy Local: whether to send it clients.
type health struct {
	namespace, name string
	port            uint16 // healthCheckNodePort
	local           int    // ready endpoints on this device
}

// healthChecks answer on the healthCheckNodePorts of Services.
type healthChecks struct {
	log     *slog.Logger
	servers map[uint16]*healthServer
}

type healthServer struct {
	now  atomic.Pointer[health]
	http *http.Server
	done sync.WaitGroup
}

const (
	healthHeaderTimeout = 5 * time.Second
	// healthIdleTimeout is longer than the period of any load balancer's
	// checks that would keep its connection.
	healthIdleTimeout = time.Minute
)

func newHealthChecks(log *slog.Logger) *healthChecks {
	return &healthChecks{log: log, servers: map[uint16]*healthServer{}}
}

// sync answers for exactly these. A port that another program has is logged
// and tried again by the next sync.
func (c *healthChecks) sync(want []health) {
	keep := map[uint16]bool{}
	for _, h := range want {
		if keep[h.port] {
			continue // the API server gives a port to one Service
		}
		keep[h.port] = true
		s := c.servers[h.port]
		if s == nil {
			var err error
			if s, err = openHealth(h.port); err != nil {
				c.log.Error("no health checks of a Service", "service", h.namespace+"/"+h.name, "port", h.port, "err", err)
				continue
			}
			c.servers[h.port] = s
		}
		s.now.Store(&h)
	}
	for port, s := range c.servers {
		if !keep[port] {
			s.close()
			delete(c.servers, port)
		}
	}
}

func (c *healthChecks) close() { c.sync(nil) }

func openHealth(port uint16) (*healthServer, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	s := &healthServer{}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: healthHeaderTimeout, IdleTimeout: healthIdleTimeout}
	s.done.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			l.Close()
		}
	})
	return s, nil
}

func (s *healthServer) close() {
	s.http.Close() // also of the connections: there is nothing to finish
	s.done.Wait()
}

// ServeHTTP answers as kube-proxy does.
func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := s.now.Load()
	if h == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	body, err := json.MarshalIndent(map[string]any{
		"service":             map[string]string{"namespace": h.namespace, "name": h.name},
		"localEndpoints":      h.local,
		"serviceProxyHealthy": true,
	}, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(h.local))
	if h.local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(body) // the asker is gone: it will ask again
}
