package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver"
	"edged/apiserver/crd"
	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/cluster/backup"
	"edged/cluster/clock"
	"edged/cluster/discovery"
	"edged/cluster/identity"
	"edged/cluster/join"
	"edged/cluster/seal"
	"edged/net/announce"
	"edged/net/cni"
	"edged/raftstore"
	"edged/runtime/engine"
)

const (
	// gcPercent trades a little CPU for resident memory; below this nothing more
	// is gained.
	gcPercent = 40
	// freeAfter is when the memory that starting took goes back to the system.
	freeAfter = 10 * time.Second
	// witnessFreeAfter is that of a witness: no Pods start.
	witnessFreeAfter = time.Second
)

func runRun(ctx context.Context, e env) error {
	var c config
	help, err := c.parse("run", e.args, c.runFlags)
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	if err := c.validate(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: c.parsed.logLevel}))
	routeKlog(log)
	d := &device{
		cfg: &c, log: log, announcer: announce.New(log), started: time.Now(), restart: make(chan struct{}, 1), missed: make(chan struct{}, 1),
		node: nodeHandler{wait: runtimeWait},
	}
	defer d.close()
	err = d.open(ctx)
	if err != nil && !errors.Is(err, raftstore.ErrRemoved) {
		return endOf(ctx, err) // told to stop while it joined or formed
	}
	if err == nil {
		err = d.run(ctx)
	}
	switch {
	case errors.Is(err, errRestart):
		d.close()
		return reexec()
	case errors.Is(err, raftstore.ErrRemoved):
		// Its Pods are others' now.
		d.close()
		return errors.Join(errors.New("this device was removed from its cluster; `edged reset` lets it join one again"), leaveCluster(ctx, &c))
	}
	return err
}

// device is everything that runs on a device, in the order in which it is made.
type device struct {
	cfg    *config
	log    *slog.Logger
	nodeIP netip.Addr                 // at start
	moved  atomic.Pointer[netip.Addr] // where it went since, nil for nowhere

	clock    *clock.Clock
	ports    ports
	control  control // what the control socket answers, from the start on
	identity *identity.Identity
	cluster  *clusterFile
	// discovery finds other devices; nil if it is not wanted.
	discovery *discovery.Discovery
	// misses is whether this device leads and hears nothing of another, and missed is
	// told when that begins.
	misses   atomic.Bool
	missed   chan struct{}
	kubelets *http.Transport // to the kubelet APIs of the others
	store    *raftstore.Store
	seals    *seal.Keys // of the Secrets in the store
	registry *registry.Registry
	access   access
	custom   *crd.Manager
	api      *apiserver.Server
	events   *recorder.Recorder
	engine   *engine.Engine
	cni      *cni.Network // in the bridge's place, or nil
	node     nodeHandler  // the kubelet API, once the agent runs
	shared   nodeHandler  // images for other devices, once there is an engine
	// announcer holds the addresses of load balancers and of the API.
	announcer *announce.Announcer
	backups   *backup.Schedule // nil: none are taken

	started time.Time
	restart chan struct{} // somebody wants the daemon to start itself again
	sumOnce sync.Once
	sum     string // of the binary, once somebody asked
	sumErr  error
	quiet   atomic.Bool // some device is metered
	ready   atomic.Bool // the registry has loaded
	running atomic.Bool // Pods can run
	closers []func() error
	once    sync.Once

	movedMu sync.Mutex
	// guarded by movedMu
	whenMoved []func()

	systemMu sync.Mutex
	// guarded by systemMu
	system      string // what systemSum said for systemBytes
	systemBytes int64
}

// onClose registers what close does, last first.
func (d *device) onClose(f func() error) { d.closers = append(d.closers, f) }

func (d *device) close() {
	d.once.Do(func() {
		for i := len(d.closers) - 1; i >= 0; i-- {
			if err := d.closers[i](); err != nil {
				d.log.Error("while stopping", "err", err)
			}
		}
	})
}

// open makes what the API needs: nothing of it touches containers or the
// network, so that the API is up within a second whatever state those are in.
func (d *device) open(ctx context.Context) (err error) {
	c := d.cfg
	// The data-dir first: everything below writes to it.
	unlock, err := lockDataDir(c.dataDir)
	if err != nil {
		return err
	}
	d.onClose(func() error { unlock(); return nil })
	if err := d.mayFound(); err != nil {
		return err
	}
	// Before anything that has a date.
	if err := d.openClock(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.runDir, 0o711); err != nil {
		return fmt.Errorf("--run-dir: %w", err)
	}
	// Ports before the store: a port in use is found out before anything starts.
	if d.ports, err = listen(c); err != nil {
		return err
	}
	d.onClose(d.ports.close)
	d.openControl()
	d.nodeIP = d.lookForNodeIP()
	d.openDiscovery()
	if err := d.openCluster(ctx); err != nil {
		return err
	}
	d.setPhase("opening its copy of the cluster's state")
	if err := d.openIdentity(); err != nil {
		return err
	}
	if len(c.join) > 0 && !slices.ContainsFunc(d.identity.CAs(), func(ca *x509.Certificate) bool { return c.parsed.token.Pin == join.PinOf(ca) }) {
		return fmt.Errorf("--join: this device is of a cluster already, and the token is for another one; `edged reset` makes it forget the first")
	}
	if err := d.openStore(ctx); err != nil {
		return err
	}
	d.onClose(d.store.Close)
	return d.openAPI()
}

// openStore does not wait for a leader: this device's own replica says what it has
// to run, also when it is alone. One that was let in and has no replica yet asks the
// others until they answer: all may have lost their power meanwhile.
func (d *device) openStore(ctx context.Context) (err error) {
	for told := ""; ; {
		d.store, err = raftstore.OpenUnready(ctx, d.storeConfig())
		if !errors.Is(err, raftstore.ErrNotLetIn) || ctx.Err() != nil {
			return err
		}
		if err.Error() != told {
			told = err.Error()
			d.log.Warn("no device of the cluster answers, trying again", "err", err)
			d.setPhase("waiting for a device of the cluster: " + told)
		}
		select {
		case <-ctx.Done():
		case <-time.After(askAgain):
		}
	}
}

func (d *device) openIdentity() (err error) {
	c := d.cfg
	d.identity, err = identity.Open(identity.Config{
		Dir: filepath.Join(c.dataDir, "pki"), NodeName: c.nodeName, Now: d.clock.Now, Logger: d.log,
		IPs: d.servingIPs(),
		DNSNames: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.clusterDomain,
		},
		AdminKubeconfig: filepath.Join(c.dataDir, "admin.kubeconfig"), APIServer: d.apiURL(),
	})
	if err != nil {
		return err
	}
	return d.identity.WriteAdminKubeconfig()
}

// servingIPs are the addresses that this device's API has.
func (d *device) servingIPs() []netip.Addr {
	c := d.cfg
	ips := []netip.Addr{d.address()}
	for _, p := range slices.Concat(c.parsed.serviceCIDRs, c.parsed.clusterCIDRs) {
		ips = append(ips, firstOf(p))
	}
	if c.parsed.apiVIP.IsValid() {
		ips = append(ips, c.parsed.apiVIP)
	}
	return ips
}

// firstOf is the first usable address of a range: the API's Service, or the
// bridge.
func firstOf(p netip.Prefix) netip.Addr { return p.Addr().Next() }

// apiURL is the API as this device itself reaches it.
func (d *device) apiURL() string {
	a := d.cfg.parsed.api
	host := a.Addr()
	if host.IsUnspecified() {
		host = netip.MustParseAddr("127.0.0.1")
	}
	return "https://" + netip.AddrPortFrom(host, a.Port()).String()
}

// run serves until ctx ends or something that the device cannot do without
// fails. The goroutines of the whole daemon have one owner: this group.
func (d *device) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.registry.Run(ctx) })
	g.Go(func() error { return d.watchStore(ctx) })
	g.Go(func() error { return d.identity.Run(ctx) })
	defer d.clock.Subscribe(d.identity.Look)()
	g.Go(func() error { return d.clock.Run(ctx, clockPeers{d.store}) })
	g.Go(func() error { return d.rotation().Run(ctx) })
	g.Go(func() error { return d.seals.Run(ctx) })
	g.Go(func() error { return d.followCA(ctx) })
	g.Go(func() error { return d.followPace(ctx) })
	g.Go(func() error { return d.tell(ctx, meteredPrefix, d.cfg.metered) })
	g.Go(func() error { return d.announcer.Run(ctx) })
	d.events = recorder.New(d.registry, "kubelet", d.cfg.nodeName, d.log)
	g.Go(func() error { return d.events.Run(ctx) })
	d.serve(ctx, g)
	g.Go(func() error {
		if err := d.registry.WaitReady(ctx); err != nil {
			return endOf(ctx, err)
		}
		g.Go(func() error { return endOf(ctx, d.custom.Run(ctx)) })
		d.custom.Settled(ctx)
		d.ready.Store(true)
		g.Go(func() error { return d.applyManifests(ctx) })
		g.Go(func() error { return d.removeDeleted(ctx) })
		return d.lead(ctx)
	})
	g.Go(func() error {
		if err := d.registry.WaitReady(ctx); err != nil {
			return endOf(ctx, err)
		}
		if d.cfg.role == roleWitness {
			return d.runWitness(ctx)
		}
		if !d.awaitItself(ctx) {
			return nil
		}
		g.Go(func() error { return d.tellRole(ctx) })
		return d.runNode(ctx, g)
	})
	g.Go(func() error { return d.runDiscovery(ctx) })
	g.Go(func() error { return d.seekMembers(ctx) })
	g.Go(func() error { return d.followAddress(ctx) })
	g.Go(func() error { return d.announce(ctx) })
	g.Go(func() error { return d.sayAlive(ctx) })
	g.Go(func() error { return d.awaitRestart(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// knowsItself says whether this device's replica has its Node.
func (d *device) knowsItself() bool {
	_, ok := registry.For[*corev1.Node](d.registry).Get("", d.cfg.nodeName)
	return ok
}

// awaitItself waits until this device may run Pods: its replica has its Node, or
// has seen the cluster, as one that joins must. Without a quorum the Node is all
// there is to wait for, and it may be in the part of the log that is still being
// applied. It reports false when ctx ended.
func (d *device) awaitItself(ctx context.Context) bool {
	there := make(chan struct{}, 1)
	defer registry.For[*corev1.Node](d.registry).Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Object.Name == d.cfg.nodeName && e.Type != watch.Deleted {
			select {
			case there <- struct{}{}:
			default:
			}
		}
	})()
	if d.knowsItself() {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-there:
	case <-d.store.Ready():
	}
	return true
}

// endOf turns the error of a call that ctx cut short into none.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watchStore ends the daemon when its disk has failed: what starts it again
// then finds either a disk that works or the reason why not.
func (d *device) watchStore(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.store.Done():
		if err := d.store.Err(); err != nil {
			return fmt.Errorf("the store stopped: %w", err)
		}
		return nil
	}
}

// announce tells the operator and the service manager that the API is ready.
func (d *device) announce(ctx context.Context) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for d.readiness() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
	t.Stop()
	d.log.Info("edged is ready", "api", d.apiURL(), "node", d.cfg.nodeName, "address", d.nodeIP, "kubeconfig", filepath.Join(d.cfg.dataDir, "admin.kubeconfig"), "version", version)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		d.log.Warn("the service manager was not told", "err", err)
	}
	after := freeAfter
	if d.cfg.role == roleWitness {
		after = witnessFreeAfter
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(after):
	}
	err := releaseMemory()
	if err == nil && d.cfg.role == roleWitness {
		err = keepSmall(ctx)
	}
	if err != nil {
		d.log.Warn("memory that is not needed any more was not given back", "err", err)
	}
	return nil
}
