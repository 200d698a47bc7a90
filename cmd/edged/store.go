package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"

	"edged/raftstore"
	"edged/raftstore/etcdapi"
)

// storeFreeAfter is when the memory that starting took goes back: nothing but the
// store starts.
const storeFreeAfter = time.Second

// runStore runs the store alone, in the place of an etcd.
func runStore(ctx context.Context, e env) error {
	if len(e.args) > 0 && e.args[0] == "gateway" {
		return runGateway(ctx, e, e.args[1:])
	}
	var c storeConfig
	help, err := c.parse(e.args, os.Environ())
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	if c.version {
		_, err := fmt.Fprintf(e.stdout, "etcd Version: %s\nGit SHA: edged %s\nGo Version: %s\nGo OS/Arch: %s/%s\n",
			etcdapi.Version, version, goruntime.Version(), goruntime.GOOS, goruntime.GOARCH)
		return err
	}
	var memory *pacer
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		memory = newPacer(gcPercent)
	}
	out, closeLog, err := c.logOutput(e)
	if err != nil {
		return err
	}
	defer closeLog()
	log := slog.New(zapLike(out, c.logLevel()))
	for _, f := range c.ignored {
		if text, ok := deprecated[f]; ok {
			log.Warn(text)
			continue
		}
		log.Warn("this flag of etcd's has no meaning here", "flag", f)
	}
	s := &storeServer{cfg: &c, log: log, memory: memory}
	err = s.run(ctx)
	if err != nil {
		log.Error("the store stopped", "error", err.Error())
	}
	return err
}

// storeServer is what `edged store` runs.
type storeServer struct {
	cfg   *storeConfig
	log   *slog.Logger
	store *raftstore.Store
	api   *etcdapi.Server
	// memory is nil where the environment says when to collect.
	memory *pacer
}

// listener is a port and what is spoken on it.
type listener struct {
	net.Listener
	host       string
	plain, tls bool
	httpOnly   bool
}

func (s *storeServer) run(ctx context.Context) (err error) {
	c := s.cfg
	s.log.Info("starting an etcd server", "etcd-version", etcdapi.Version, "name", c.name, "data-dir", c.dataDir,
		"listen-client-urls", c.listenClient, "advertise-client-urls", c.advertiseClient,
		"listen-peer-urls", c.listenPeer, "initial-advertise-peer-urls", c.advertisePeer,
		"initial-cluster", c.initialCluster, "initial-cluster-state", c.initialState,
		"quota-backend-bytes", c.quotaBytes(), "max-request-bytes", c.maxRequestBytes,
		"snapshot-count", c.snapshotCount, "snapshot-catchup-entries", c.catchUp, "v2-deprecation", v2Deprecation)
	conf, err := c.client.server()
	if err != nil {
		return err
	}
	if conf == nil {
		if u := firstSecure(c.listenMetrics); u != "" {
			return errors.New("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")
		}
		if u := firstSecure(slices.Concat(c.listenClient, c.listenClientHTTP)); u != "" {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u)
		}
	}
	if err := os.MkdirAll(c.dataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if err := s.adopt(); err != nil {
		return err
	}
	// What etcd keeps in this folder is not ours; other files beside it may be.
	unlock, err := lockDataDir(filepath.Join(c.dataDir, "member"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.prepare(); err != nil {
		return err
	}
	if c.needsDiscovery(filepath.Join(c.dataDir, "member")) {
		if c.founders, err = c.discover(ctx, s.log); err != nil {
			return endOf(ctx, err)
		}
	}
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			if cerr := l.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
				err = errors.Join(err, cerr)
			}
		}
	}()
	if s.store, err = s.open(ctx); err != nil {
		return endOf(ctx, err)
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	if err := s.defragment(); err != nil {
		return err
	}
	var metrics http.Handler // of the server as well, which is made with it
	s.api = etcdapi.New(etcdapi.Config{
		Store: s.store, Logger: s.log, Gateway: c.gateway,
		Metrics:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { metrics.ServeHTTP(w, r) }),
		ClientCertAuth: c.client.certAuth, ProgressInterval: c.progressInterval, ElectionTimeout: c.election(),
		KeepaliveMinTime: c.keepaliveMinTime, KeepaliveInterval: c.keepaliveInterval, KeepaliveTimeout: c.keepaliveTimeout,
		MaxStreams: c.maxStreams, SlowRequest: c.slowRequest, NotServingOnDefrag: c.features["StopGRPCServiceOnDefrag"],
	})
	metrics = metricsHandler(storeCollector(s.store), apiCollector(s.api, c.metrics == "extensive"))
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			conf := conf
			if !l.tls {
				conf = nil
			}
			if l.httpOnly {
				return s.api.ServeHTTP(l.Listener, conf)
			}
			return s.api.Serve(l.Listener, l.plain || conf == nil, conf)
		})
	}
	g.Go(func() error { return s.compact(ctx) })
	g.Go(func() error { s.keepMemory(ctx); return nil })
	for _, l := range listeners {
		if l.plain || conf == nil {
			s.log.Info("serving client traffic insecurely; this is strongly discouraged!", "address", l.Addr().String())
		}
		if l.tls && conf != nil {
			s.log.Info("serving client traffic securely", "address", l.Addr().String())
		}
	}
	s.log.Info("ready to serve client requests", "cluster-id", fmt.Sprintf("%x", s.store.ClusterID()), "local-member-id", fmt.Sprintf("%x", s.store.MemberID()))
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-s.store.Done():
		}
		return errors.Join(s.store.Err(), s.api.Close())
	})
	return g.Wait()
}

// keepMemory gives back what starting took, soon, and what load took when it is
// over.
func (s *storeServer) keepMemory(ctx context.Context) {
	failed := func(err error) {
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("memory that is not needed any more was not given back", "error", err.Error())
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(storeFreeAfter):
		if err := s.release(ctx); err != nil {
			failed(err)
		}
	}
	if s.memory != nil {
		s.memory.run(ctx, s.release, failed)
	}
}

func (s *storeServer) release(ctx context.Context) error {
	err := s.store.ReleaseMemory(ctx)
	return errors.Join(err, releaseMemory())
}

// firstSecure is the first URL with TLS, or nothing.
func firstSecure(urls []string) string {
	i := slices.IndexFunc(urls, func(u string) bool { return strings.HasPrefix(u, "https://") || strings.HasPrefix(u, "unixs://") })
	if i < 0 {
		return ""
	}
	return urls[i]
}

// open opens the store with its port for members, which the store then owns.
func (s *storeServer) open(ctx context.Context) (*raftstore.Store, error) {
	c := s.cfg
	network, err := s.network()
	if err != nil {
		return nil, err
	}
	conf := raftstore.Config{
		Dir: filepath.Join(c.dataDir, "member"), Name: c.name, Logger: s.log, Network: network,
		PeerURLs: c.advertisePeer, ClientURLs: c.advertiseClient, InitialCluster: c.founders, Join: c.initialState == "existing", Token: c.initialToken,
		MaxTxnOps: c.maxTxnOps, MaxRequestBytes: c.maxRequestBytes, Quota: c.quotaBytes(),
		AuthToken: c.authToken, AuthTokenTTL: time.Duration(c.authTokenTTL) * time.Second, BcryptCost: c.bcryptCost,
		Tick: time.Duration(c.heartbeatMillis) * time.Millisecond, ElectionTicks: int(c.electionMillis / c.heartbeatMillis),
		CommitEntries: c.snapshotCount, CatchUpEntries: c.catchUp, MaxLearners: c.maxLearners, StrictReconfig: c.strictReconfig,
		CompactionBatch: c.compactionBatch, CompactionSleep: c.compactionSleep,
		SlowApply: c.slowApply, HashOnCompact: true, StateFile: stateFile, CheckStart: c.features["InitialCorruptCheck"], CheckEvery: c.corruptCheck,
	}
	if c.features["LeaseCheckpoint"] {
		conf.LeaseCheckpoint = leaseCheckpoint
	}
	if c.features["CompactHashCheck"] {
		conf.CheckCompactedEvery = c.compactHashCheck
	}
	st, err := raftstore.Open(ctx, conf)
	if err != nil {
		return nil, errors.Join(err, closed(network.Listener))
	}
	return st, nil
}

// stateFile is where etcd has it, and so etcdutl looks for it.
const stateFile = "snap/db"

// prepare does what flags or the data ask for before the store is opened.
func (s *storeServer) prepare() error {
	dir := filepath.Join(s.cfg.dataDir, "member")
	if err := os.MkdirAll(filepath.Join(dir, "snap"), 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	// Until 1.37.0 the state was beside the log.
	if err := os.Rename(filepath.Join(dir, "state.db"), filepath.Join(dir, stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if !s.cfg.forceNew {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "wal")); errors.Is(err, os.ErrNotExist) {
		return nil // a new member is alone anyway
	}
	return raftstore.ForceNew(dir, stateFile, s.log)
}

// defragment gives free pages back at start if there are enough of them.
func (s *storeServer) defragment() error {
	above := int64(s.cfg.defragAbove) << 20
	if above == 0 {
		return nil
	}
	st := s.store.Status()
	if free := st.SizeBytes - st.SizeBytesUsed; free < above {
		s.log.Info("Skipping defragmentation", "current-db-size-bytes", st.SizeBytes, "current-db-size-in-use-bytes", st.SizeBytesUsed)
		return nil
	}
	return s.store.Defragment()
}

// closed closes a listener that may be closed already.
func closed(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *storeServer) listen() ([]*listener, error) {
	var out []*listener
	add := func(flag string, urls []string, httpOnly bool) error {
		for _, u := range urls {
			var err error
			if out, err = addListener(out, u, httpOnly); err != nil {
				return fmt.Errorf("--%s: %w", flag, err)
			}
		}
		return nil
	}
	err := add("listen-client-urls", s.cfg.listenClient, false)
	if err == nil {
		err = add("listen-client-http-urls", s.cfg.listenClientHTTP, true)
	}
	if err == nil {
		err = add("listen-metrics-urls", s.cfg.listenMetrics, true)
	}
	if err != nil {
		for _, l := range out {
			l.Close()
		}
		return nil, err
	}
	return out, nil
}

// addListener listens on a URL. Two URLs may differ in nothing but whether TLS
// is spoken: then it is both on one port.
func addListener(all []*listener, s string, httpOnly bool) ([]*listener, error) {
	u, err := url.Parse(s)
	if err != nil {
		return all, err
	}
	secure := u.Scheme == "https" || u.Scheme == "unixs"
	l := &listener{host: u.Host + u.Path, plain: !secure, tls: secure, httpOnly: httpOnly}
	for _, other := range all {
		if other.host == l.host && other.httpOnly == httpOnly {
			other.plain, other.tls = other.plain || l.plain, other.tls || l.tls
			return all, nil
		}
	}
	switch u.Scheme {
	case "http", "https":
		l.Listener, err = net.Listen("tcp", u.Host)
	case "unix", "unixs":
		if err := os.Remove(l.host); err != nil && !errors.Is(err, os.ErrNotExist) {
			return all, err
		}
		l.Listener, err = net.Listen("unix", l.host)
	default:
		err = fmt.Errorf("%s: want http, https, unix or unixs", s)
	}
	if err != nil {
		return all, err
	}
	return append(all, l), nil
}

// compact forgets history as --auto-compaction-retention says, on the member
// that leads.
func (s *storeServer) compact(ctx context.Context) error {
	keep, every := s.cfg.retention()
	if keep == nil {
		return nil
	}
	s.store.RunWhileLeader(ctx, func(ctx context.Context) {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			rev, _ := s.store.Revision()
			at := keep(rev)
			if _, compacted := s.store.Revision(); at <= compacted || at <= 1 {
				continue
			}
			if err := s.compactTo(ctx, at); err != nil && ctx.Err() == nil && !errors.Is(err, raftstore.ErrCompacted) {
				s.log.Warn("history was not compacted", "revision", at, "error", err.Error())
			}
		}
	})
	return nil
}

func (s *storeServer) compactTo(ctx context.Context, at int64) error {
	_, err := s.store.Compact(ctx, &pb.CompactionRequest{Revision: at})
	return err
}

// zapLike is a handler that writes what etcd's logger does: JSON lines with
// level, ts, caller and msg.
func zapLike(w io.Writer, level slog.Level) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, AddSource: true, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.TimeKey:
			return slog.String("ts", a.Value.Time().Format("2006-01-02T15:04:05.000000Z0700"))
		case slog.SourceKey:
			if src, ok := a.Value.Any().(*slog.Source); ok {
				return slog.String("caller", fmt.Sprintf("%s:%d", filepath.Join(filepath.Base(filepath.Dir(src.File)), filepath.Base(src.File)), src.Line))
			}
		case slog.LevelKey:
			return slog.String("level", strings.ToLower(a.Value.String()))
		}
		return a
	}})
}

// logOutput opens what --log-outputs names.
func (c *storeConfig) logOutput(e env) (io.Writer, func(), error) {
	var outs []io.Writer
	var files []*os.File
	for _, name := range c.logOutputs {
		switch name {
		case "default", "stderr", "systemd/journal":
			outs = append(outs, e.stderr)
		case "stdout":
			outs = append(outs, e.stdout)
		default:
			f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, nil, fmt.Errorf("--log-outputs: %w", err)
			}
			files = append(files, f)
			outs = append(outs, f)
		}
	}
	return io.MultiWriter(slices.Clip(outs)...), func() {
		for _, f := range files {
			f.Close()
		}
	}, nil
}
