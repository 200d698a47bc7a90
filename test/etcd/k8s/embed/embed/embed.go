// Package embed stands in for etcd's: what Kubernetes' storage tests call to
// start a server starts the binary that EDGED_STORE_BIN names.
package embed

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// Config has the fields of etcd's that the tests set.
type Config struct {
	Name                        string
	Dir                         string
	UnsafeNoFsync               bool
	ListenPeerUrls              []url.URL
	AdvertisePeerUrls           []url.URL
	ListenClientUrls            []url.URL
	AdvertiseClientUrls         []url.URL
	InitialCluster              string
	ClientTLSInfo               transport.TLSInfo
	MaxRequestBytes             uint
	ZapLoggerBuilder            func(*Config) error
	WatchProgressNotifyInterval time.Duration
}

// NewConfig returns etcd's defaults.
func NewConfig() *Config { return &Config{Name: "default"} }

// InitialClusterFromName is the cluster of this member alone.
func (c *Config) InitialClusterFromName(name string) string {
	return name + "=" + join(c.AdvertisePeerUrls)
}

// NewZapLoggerBuilder is there for the signature: the binary logs by itself.
func NewZapLoggerBuilder(*zap.Logger) func(*Config) error { return nil }

func join(urls []url.URL) string {
	out := make([]string, len(urls))
	for i, u := range urls {
		out[i] = u.String()
	}
	return strings.Join(out, ",")
}

// Etcd is a running server.
type Etcd struct {
	Server *Server
	cmd    *exec.Cmd
	errs   chan error
	once   sync.Once
	ended  chan struct{}
}

// Server is what the tests ask of it.
type Server struct {
	ready   chan struct{}
	cluster Cluster
	stop    func()
}

// Cluster knows where clients find it.
type Cluster struct{ urls []string }

// ClientURLs are those of the server.
func (c Cluster) ClientURLs() []string { return c.urls }

// Cluster describes the cluster.
func (s *Server) Cluster() Cluster { return s.cluster }

// ReadyNotify is closed when the server answers clients.
func (s *Server) ReadyNotify() <-chan struct{} { return s.ready }

// Stop ends the server.
func (s *Server) Stop() { s.stop() }

// StartEtcd starts the binary.
func StartEtcd(c *Config) (*Etcd, error) {
	bin := os.Getenv("EDGED_STORE_BIN")
	if bin == "" {
		return nil, errors.New("EDGED_STORE_BIN names no binary")
	}
	args := []string{
		"--name=" + c.Name, "--data-dir=" + c.Dir,
		"--listen-client-urls=" + join(c.ListenClientUrls), "--advertise-client-urls=" + join(c.AdvertiseClientUrls),
		"--listen-peer-urls=" + join(c.ListenPeerUrls), "--initial-advertise-peer-urls=" + join(c.AdvertisePeerUrls),
		"--initial-cluster=" + c.InitialCluster,
	}
	if c.MaxRequestBytes > 0 {
		args = append(args, fmt.Sprintf("--max-request-bytes=%d", c.MaxRequestBytes))
	}
	if c.WatchProgressNotifyInterval > 0 {
		args = append(args, "--watch-progress-notify-interval="+c.WatchProgressNotifyInterval.String())
	}
	if t := c.ClientTLSInfo; t.CertFile != "" {
		args = append(args, "--cert-file="+t.CertFile, "--key-file="+t.KeyFile)
		if t.TrustedCAFile != "" {
			args = append(args, "--trusted-ca-file="+t.TrustedCAFile)
		}
		if t.ClientCertAuth {
			args = append(args, "--client-cert-auth")
		}
	}
	e := &Etcd{cmd: exec.Command(bin, args...), errs: make(chan error, 1), ended: make(chan struct{})}
	e.Server = &Server{ready: make(chan struct{}), stop: e.Close}
	for _, u := range c.AdvertiseClientUrls {
		e.Server.cluster.urls = append(e.Server.cluster.urls, u.String())
	}
	out, err := e.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go e.follow(bufio.NewScanner(out))
	return e, nil
}

func (e *Etcd) follow(lines *bufio.Scanner) {
	var ready sync.Once
	for lines.Scan() {
		if strings.Contains(lines.Text(), "ready to serve client requests") {
			ready.Do(func() { close(e.Server.ready) })
		}
	}
	// A server that was told to stop ends without an error.
	_ = e.cmd.Wait()
	close(e.ended)
	close(e.errs)
}

// Err tells why the server ended by itself.
func (e *Etcd) Err() <-chan error { return e.errs }

// Close ends the server.
func (e *Etcd) Close() {
	e.once.Do(func() {
		_ = e.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-e.ended:
		case <-time.After(10 * time.Second):
			_ = e.cmd.Process.Kill()
			<-e.ended
		}
	})
}
