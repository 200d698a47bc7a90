package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"

	"edged/runtime/engine/payload"
)

const (
	// DefaultCgroupRoot is where control groups of edged lie in each hierarchy.
	DefaultCgroupRoot = "/edged"
	// maxStatePath leaves room for the longest socket that is made below State
	// (runc's console socket, shim/pty<10 digits>/pty.sock) in the 107 bytes that the
	// kernel has for one.
	maxStatePath = 78
	// maxEvents that nobody fetched yet; then one resync replaces them all.
	maxEvents = 256
)

// Config of an Engine. All paths are absolute.
type Config struct {
	// Root holds images and writable layers: <data-dir>/containerd.
	Root string
	// State holds what lives as long as the boot, best on a tmpfs: sockets, fifos,
	// records, mounts: <run-dir>/containerd.
	State string
	// BinDir is where the carried programs are unpacked: <data-dir>/bin.
	BinDir string
	// CgroupRoot is the parent of the shim's own control group, and what Cleanup
	// removes. Default [DefaultCgroupRoot].
	CgroupRoot string
	// Socket is of another containerd, whose images and layers are used in place of an
	// own store in Root; empty is none.
	Socket string
	Logger *slog.Logger
}

func (c *Config) check() error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = DefaultCgroupRoot
	}
	for name, path := range map[string]string{
		"Root": c.Root, "State": c.State, "BinDir": c.BinDir, "CgroupRoot": c.CgroupRoot,
	} {
		if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
			return fmt.Errorf("engine: %s %q is not an absolute folder", name, path)
		}
	}
	if len(c.State) > maxStatePath {
		return fmt.Errorf("engine: the run-dir's path %s is too long for unix sockets: choose one of at most %d bytes",
			c.State, maxStatePath)
	}
	return nil
}

// resolve follows symbolic links in what is there of the folders: the kernel's
// mount table knows no others.
func (c *Config) resolve() error {
	for _, path := range []*string{&c.Root, &c.State} {
		real, err := filepath.EvalSymlinks(*path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		*path = real
	}
	return nil
}

// Engine runs the containers of this device. Its methods are safe for concurrent
// use; operations on one container wait for each other.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	host   host
	store  *store
	rootfs *rootfsMaker
	watch  *watcher
	events chan Event

	// ctx ends with Close; wg counts what Close waits for.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// imagesMu: adding what may share layers reads, collecting garbage writes.
	imagesMu sync.RWMutex

	mu         sync.Mutex // never held over I/O
	containers map[string]*container

	eventMu      sync.Mutex // makes emptying and filling a full channel one step
	eventsClosed bool

	shimMu sync.Mutex // held while the shim is dialed, started or dismissed
	shim   *shim      // nil: not connected
	idle   *time.Timer

	programsMu sync.Mutex
	programs   payload.Programs
}

// container is a record with what belongs to its process.
type container struct {
	dir string // bundle, record, fifos, mount point

	// op is held by whoever changes the container's phase on purpose (Start, Delete,
	// reconciliation), over I/O.
	op sync.Mutex

	mu     sync.Mutex
	rec    record
	pidfd  int           // -1: none
	exited chan struct{} // closed when the phase becomes done
}

// Open makes the engine ready and finds again what a former daemon left running.
// After a reboot, or when State is gone, there are no containers.
func Open(ctx context.Context, cfg Config) (_ *Engine, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	adoptContainerdLog(cfg.Logger)
	if err := errors.Join(os.MkdirAll(cfg.Root, 0o700), os.MkdirAll(cfg.State, 0o711)); err != nil {
		return nil, fmt.Errorf("make the engine's folders: %w", err)
	}
	if err := cfg.resolve(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger,
		events:     make(chan Event, maxEvents),
		containers: map[string]*container{},
	}
	e.ctx, e.cancel = context.WithCancel(inNamespace(context.Background()))
	e.idle = time.AfterFunc(time.Hour, e.dismissShim)
	e.idle.Stop()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.host, err = examineHost(); err != nil {
		return nil, err
	}
	if err := e.openState(); err != nil {
		return nil, err
	}
	if err := e.openTemp(); err != nil {
		return nil, err
	}
	if cfg.Socket != "" {
		e.store, err = openExternal(inNamespace(ctx), cfg.Root, cfg.Socket)
	} else {
		e.store, err = openStore(inNamespace(ctx), cfg.Root, e.log)
	}
	if err != nil {
		return nil, err
	}
	if e.rootfs, err = newRootfsMaker(e.store, cfg.Root); err != nil {
		return nil, err
	}
	if e.watch, err = newWatcher(); err != nil {
		return nil, err
	}
	if err := e.reconcile(inNamespace(ctx)); err != nil {
		return nil, err
	}
	e.leaveStores()
	// Every lease that is there now is of a daemon that died; from here on there
	// are others.
	left, err := e.store.leases.List(inNamespace(ctx), e.store.leaseFilter...)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	e.wg.Go(func() { e.sweep(left) })
	return e, nil
}

// openState makes the folder, and empties it when it is of an earlier boot (a
// run-dir that is not on a tmpfs).
func (e *Engine) openState() error {
	if err := os.MkdirAll(filepath.Join(e.cfg.State, "containers"), 0o711); err != nil {
		return fmt.Errorf("make the run-dir: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	path := filepath.Join(e.cfg.State, "boot")
	if old, err := os.ReadFile(path); err == nil && string(old) == string(boot) {
		return nil
	}
	bundles, _ := filepath.Glob(filepath.Join(e.cfg.State, "containers", "*"))
	for _, dir := range bundles { // none is left after a boot, but see the promise of Open
		if err := e.host.cgroups.destroy(e.ctx, cgroupOfBundle(dir, e.cfg.CgroupRoot)); err != nil {
			return err
		}
	}
	if err := unmountBelow(filepath.Join(e.cfg.State, "containers")); err != nil {
		return err
	}
	for _, name := range []string{"containers", "runc", "shim"} {
		if err := os.RemoveAll(filepath.Join(e.cfg.State, name)); err != nil {
			return fmt.Errorf("empty the run-dir of the last boot: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(e.cfg.State, "containers"), 0o711); err != nil {
		return fmt.Errorf("make the run-dir: %w", err)
	}
	return wrap("write the boot id", os.WriteFile(path, boot, 0o600))
}

// openTemp gives containerd a place of ours for the mounts that it makes while it
// unpacks, and takes down those of a daemon that was killed meanwhile.
func (e *Engine) openTemp() error {
	dir := filepath.Join(e.cfg.State, "tmp")
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return fmt.Errorf("make the folder of temporary mounts: %w", err)
	}
	return wrap("set the folder of temporary mounts", mount.SetTempMountLocation(dir))
}

// sweep removes, behind the back of a start that must be quick, what a crash left
// on disk: half-imported images, writable layers of no container.
func (e *Engine) sweep(left []leases.Lease) {
	ctx := e.ctx
	err := e.store.drop(ctx, left)
	if err == nil && len(left) > 0 {
		err = e.GC(ctx)
	}
	if err == nil {
		err = e.rootfs.sweep(ctx, func(id string) bool {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.containers[id] != nil
		})
	}
	if err != nil && ctx.Err() == nil {
		e.log.Warn("left-overs of a crash cannot be removed", "err", err)
	}
}

// Version is that of the containerd which keeps the images.
func (e *Engine) Version() string { return e.store.version }

// Close lets go of everything; the containers run on. Calls under way end with an
// error.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.cancel()
	e.mu.Unlock()
	e.idle.Stop()
	e.shimMu.Lock()
	if e.shim != nil {
		_ = e.shim.conn.Close() // its end is what watchShim waits for
	}
	e.shimMu.Unlock()
	var errs []error
	if e.watch != nil {
		errs = append(errs, e.watch.close())
	}
	e.wg.Wait()
	for _, c := range e.snapshot() {
		e.closePidfd(c)
	}
	if e.store != nil {
		errs = append(errs, e.store.close())
	}
	e.eventMu.Lock()
	defer e.eventMu.Unlock()
	if !e.eventsClosed {
		close(e.events)
		e.eventsClosed = true
	}
	return errors.Join(errs...)
}

// begin announces an operation that Close must wait for.
func (e *Engine) begin() (done func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	e.wg.Add(1)
	return e.wg.Done, nil
}

// Events tells that containers changed by themselves. The channel is closed by
// Close. When more happens than it holds, everything in it becomes one resync.
func (e *Engine) Events() <-chan Event { return e.events }

func (e *Engine) emit(ev Event) {
	e.eventMu.Lock()
	defer e.eventMu.Unlock()
	if e.eventsClosed {
		return
	}
	select {
	case e.events <- ev:
		return
	default:
	}
	for len(e.events) > 0 {
		select {
		case <-e.events:
		default:
		}
	}
	e.events <- Event{Type: EventResync}
}

// snapshot of the containers, by id.
func (e *Engine) snapshot() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*container, 0, len(e.containers))
	for _, c := range e.containers {
		out = append(out, c)
	}
	return out
}

// List is every container, ordered by id.
func (e *Engine) List() []Container {
	var out []Container
	for _, c := range e.snapshot() {
		c.mu.Lock()
		if c.rec.Phase != phaseMaking && c.rec.Phase != phaseDeleting {
			out = append(out, c.rec.view())
		}
		c.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Container) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Get is one container; false when there is none.
func (e *Engine) Get(id string) (Container, bool) {
	c, err := e.find(id)
	if err != nil {
		return Container{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.view(), true
}

// find gives the container of an id once it is made and until Delete begins.
func (e *Engine) find(id string) (*container, error) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.rec.Phase != phaseMaking {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
}
