package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
)

const (
	// startErrorCode is the exit code of a container whose process could not be
	// started, as containerd reports it to the kubelet.
	startErrorCode = 128
	// lostCode is that of a container that the engine had to kill because its shim
	// was gone.
	lostCode = 137
	// drainAfter is how long a deletion waits for whoever reads the output.
	drainAfter = time.Second
	// cleanupTimeout bounds what must be done after a caller has given up.
	cleanupTimeout = 30 * time.Second
)

func (e *Engine) containerDir(id string) string {
	return filepath.Join(e.cfg.State, "containers", id)
}

// Create makes a container ready to start: root file system, specification,
// fifos. No process runs for it yet.
func (e *Engine) Create(ctx context.Context, spec ContainerSpec) (err error) {
	ctx = inNamespace(ctx)
	done, err := e.begin()
	if err != nil {
		return err
	}
	defer done()
	if err := checkSpec(spec); err != nil {
		return fmt.Errorf("create container %s: %w", spec.ID, err)
	}
	if spec.CgroupParent == "" {
		spec.CgroupParent = e.cfg.CgroupRoot
	}
	c, err := e.register(spec)
	if err != nil {
		return fmt.Errorf("create container %s: %w", spec.ID, err)
	}
	defer c.op.Unlock()
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			err = fmt.Errorf("create container %s: %w", spec.ID, errors.Join(err, e.destroy(clean, c)))
		}
	}()
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	if err := c.save(nil); err != nil {
		return err
	}
	img, err := e.makeBundle(ctx, c, spec)
	if err != nil {
		return err
	}
	if err := makeFifos(c.dir, spec.Stdin, spec.TTY); err != nil {
		return err
	}
	return c.save(func(r *record) {
		r.ImageID = img.ID
		r.StopSignal = stopSignal(spec, img.Config)
		r.Phase = phaseReady
	})
}

// register reserves the id. The container's op is held on return.
func (e *Engine) register(spec ContainerSpec) (*container, error) {
	c := &container{
		dir: e.containerDir(spec.ID), pidfd: -1, exited: make(chan struct{}),
		rec: record{
			Phase: phaseMaking, ID: spec.ID, Labels: spec.Labels, Image: spec.Image, Holder: spec.Holder,
			Cgroup: filepath.Join("/", spec.CgroupParent, spec.ID), TTY: spec.TTY, Stdin: spec.Stdin,
			StdinOnce: spec.StdinOnce, Created: time.Now(),
		},
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containers[spec.ID] != nil {
		return nil, ErrExists
	}
	e.containers[spec.ID] = c
	c.op.Lock()
	return c, nil
}

// makeBundle mounts the root file system and writes config.json, for runc, and
// process.json, for later execs.
func (e *Engine) makeBundle(ctx context.Context, c *container, spec ContainerSpec) (Image, error) {
	target := filepath.Join(c.dir, "rootfs")
	var img Image
	if spec.Holder {
		if err := e.prepareHolder(&spec, target); err != nil {
			return img, err
		}
	} else {
		found, m, err := e.findImage(ctx, spec.Image)
		if err != nil {
			return img, err
		}
		img = found
		if err := e.rootfs.mount(ctx, spec.ID, m.chainID(), target); err != nil {
			return img, err
		}
	}
	user, err := resolveUser(target, spec.User, img.Config.User, spec.SupplementalGroups, spec.SupplementalGroupsStrict)
	if err != nil {
		return img, err
	}
	oci, err := e.host.ociSpec(spec, img.Config, target, user)
	if err != nil {
		return img, err
	}
	if err := writeJSON(filepath.Join(c.dir, "config.json"), oci); err != nil {
		return img, err
	}
	return img, writeJSON(filepath.Join(c.dir, "process.json"), oci.Process)
}

// prepareHolder gives the namespace holder an empty root with one program.
func (e *Engine) prepareHolder(spec *ContainerSpec, target string) error {
	programs, err := e.unpackPrograms()
	if err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	spec.Command, spec.Args = []string{"/holder"}, nil
	spec.ReadonlyRootfs, spec.NoNewPrivileges = true, true
	spec.CapDrop, spec.CapAdd = []string{"ALL"}, nil
	spec.Mounts = append(spec.Mounts, Mount{Source: programs.Holder, Target: "/holder", Readonly: true})
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.WriteFile(path, data, 0o600)
}

func stopSignal(spec ContainerSpec, img ImageConfig) syscall.Signal {
	if spec.StopSignal != 0 {
		return spec.StopSignal
	}
	if img.StopSignal != "" {
		if s, err := signal.ParseSignal(img.StopSignal); err == nil {
			return s
		}
	}
	return unix.SIGTERM
}

// Start runs a created container's process. When that cannot be done the
// container is Exited with code 128 and a message, and the error says the same.
func (e *Engine) Start(ctx context.Context, id string) error {
	ctx = inNamespace(ctx)
	done, err := e.begin()
	if err != nil {
		return err
	}
	defer done()
	c, err := e.find(id)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	c.op.Lock()
	defer c.op.Unlock()
	if got := c.phase(); got != phaseReady {
		return fmt.Errorf("start container %s: it is %s: %w", id, got, ErrInvalid)
	}
	s, err := e.needShim(ctx)
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if err := c.save(func(r *record) { r.Phase = phaseStarting }); err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	if err := e.run(ctx, s, c); err != nil {
		// Whatever was made of it goes; the record stays and tells.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(fromShim(err), e.forget(clean, s, c))
		e.finish(c, func(r *record) {
			r.ExitCode, r.Message, r.Finished = startErrorCode, err.Error(), time.Now()
			r.Started = r.Finished
		})
		return fmt.Errorf("start container %s: %w", id, err)
	}
	return nil
}

// run has the shim create and start the process. The watch begins in between,
// when the process is sure to be there.
func (e *Engine) run(ctx context.Context, s *shim, c *container) error {
	options, err := e.runcOptions()
	if err != nil {
		return err
	}
	c.mu.Lock()
	rec := c.rec
	c.mu.Unlock()
	stdin, stdout, stderr := fifoPaths(c.dir, rec.Stdin, rec.TTY)
	created, err := s.tasks.Create(ctx, &taskapi.CreateTaskRequest{
		ID: rec.ID, Bundle: c.dir, Terminal: rec.TTY, Stdin: stdin, Stdout: stdout, Stderr: stderr, Options: options,
	})
	if err != nil {
		return err
	}
	if err := c.openPidfd(int(created.Pid)); err != nil {
		return err
	}
	// Taken before: it may have ended by the time that the answer is here.
	started := time.Now()
	if _, err := s.tasks.Start(ctx, &taskapi.StartRequest{ID: rec.ID}); err != nil {
		return err
	}
	err = c.save(func(r *record) {
		r.Phase, r.PID, r.Started = phaseRunning, int(created.Pid), started
	})
	if err != nil {
		return err
	}
	return e.watchExit(s, c)
}

// watchExit has the end of the process handled. Called with c.op held.
func (e *Engine) watchExit(s *shim, c *container) error {
	c.mu.Lock()
	fd := c.pidfd
	c.mu.Unlock()
	handle := func() { e.wg.Go(func() { e.processEnded(s, c) }) }
	if fd < 0 { // it was gone before it could be watched
		handle()
		return nil
	}
	return e.watch.add(fd, handle)
}

// processEnded fetches the exit code from the shim, which reaps the process. When
// the shim is gone too, settleOrphan is at it.
func (e *Engine) processEnded(s *shim, c *container) {
	resp, err := s.tasks.Wait(e.ctx, &taskapi.WaitRequest{ID: c.id()})
	if err != nil {
		if e.ctx.Err() == nil && s.alive() {
			e.log.Warn("no exit code for a container", "container", c.id(), "err", err)
			e.finish(c, func(r *record) {
				r.ExitCode, r.Lost, r.Message = lostCode, true, fromShim(err).Error()
				r.Finished = time.Now()
			})
		}
		return
	}
	e.finish(c, func(r *record) {
		r.ExitCode, r.Finished = resp.ExitStatus, resp.ExitedAt.AsTime()
	})
}

func (s *shim) alive() bool {
	select {
	case <-s.gone:
		return false
	default:
		return true
	}
}

// finish makes a container done, once, and tells.
func (e *Engine) finish(c *container, how func(*record)) {
	oom := e.host.cgroups.oomKilled(c.cgroup())
	c.mu.Lock()
	if c.rec.Phase == phaseDone || c.isExited() {
		c.mu.Unlock()
		return
	}
	how(&c.rec)
	c.rec.PID, c.rec.OOMKilled = 0, oom
	var err error
	if c.rec.Phase != phaseDeleting {
		c.rec.Phase = phaseDone
		err = c.rec.write(c.dir)
	}
	close(c.exited)
	e.closePidfdLocked(c)
	id := c.rec.ID
	c.mu.Unlock()
	if err != nil {
		e.log.Error("a container's end is not written down", "container", id, "err", err)
	}
	e.emit(Event{Type: EventExit, ID: id})
}

// Kill sends a signal to the container's first process, or to all of its control
// group. It does not wait.
func (e *Engine) Kill(_ context.Context, id string, sig syscall.Signal, all bool) error {
	c, err := e.find(id)
	if err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Phase != phaseRunning {
		return fmt.Errorf("signal container %s: %w", id, ErrNotRunning)
	}
	if all {
		return wrap("signal container "+id, e.host.cgroups.signal(c.rec.Cgroup, sig))
	}
	err = unix.ESRCH
	if c.pidfd >= 0 {
		err = unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal container %s: %w", id, ErrNotRunning)
	}
	return wrap("signal container "+id, err)
}

// Delete kills what still runs of a container and removes everything of it.
func (e *Engine) Delete(ctx context.Context, id string) error {
	ctx = inNamespace(ctx)
	done, err := e.begin()
	if err != nil {
		return err
	}
	defer done()
	c, err := e.find(id)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	c.op.Lock()
	defer c.op.Unlock()
	if e.current(id) != c {
		return fmt.Errorf("delete: container %s: %w", id, ErrNotFound)
	}
	if err := e.destroy(ctx, c); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

func (e *Engine) current(id string) *container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.containers[id]
}

// destroy undoes Create and Start from whatever point they reached. It can be
// repeated. Called with c.op held.
func (e *Engine) destroy(ctx context.Context, c *container) error {
	if c.phase() != phaseMaking {
		if err := c.save(func(r *record) { r.Phase = phaseDeleting }); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := e.forget(ctx, e.liveShim(), c); err != nil {
		return err
	}
	e.closePidfd(c)
	if err := e.rootfs.remove(ctx, c.id(), filepath.Join(c.dir, "rootfs")); err != nil {
		return err
	}
	if err := unmountBelow(c.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.containers, c.id())
	last := len(e.containers) == 0
	e.mu.Unlock()
	if last {
		e.idle.Reset(idleShim)
	}
	return nil
}

// forget ends the container's processes and removes it from shim, runc and the
// control groups; s may be nil.
func (e *Engine) forget(ctx context.Context, s *shim, c *container) error {
	group := c.cgroup()
	if err := e.host.cgroups.signal(group, unix.SIGKILL); err != nil {
		return err
	}
	if s != nil {
		c.mu.Lock()
		fd := c.pidfd
		c.mu.Unlock()
		if fd >= 0 { // also one that is stopped in the middle of being created
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		drain := time.AfterFunc(drainAfter, func() { e.drain(ctx, c) })
		_, err := s.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: c.id()})
		if err != nil && !unknownToShim(err) && s.alive() {
			err = e.retryDelete(ctx, s, c)
		} else {
			err = nil
		}
		drain.Stop()
		if err != nil {
			return err
		}
	}
	if err := e.host.cgroups.destroy(ctx, group); err != nil {
		return err
	}
	// What runc writes before it renames it, and which it does not write over.
	if err := os.Remove(filepath.Join(c.dir, ".init.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what an interrupted runc left: %w", err)
	}
	return os.RemoveAll(filepath.Join(e.runcRoot(), namespace, c.id()))
}

// retryDelete waits for the process first: runc deletes no running container.
func (e *Engine) retryDelete(ctx context.Context, s *shim, c *container) error {
	if _, err := s.tasks.Wait(ctx, &taskapi.WaitRequest{ID: c.id()}); err != nil {
		if unknownToShim(err) || !s.alive() {
			return nil
		}
		return fromShim(err)
	}
	_, err := s.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: c.id()})
	if err != nil && (unknownToShim(err) || !s.alive()) {
		return nil
	}
	return fromShim(err)
}

// save changes the record and writes it.
func (c *container) save(change func(*record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if change != nil {
		change(&c.rec)
	}
	return c.rec.write(c.dir)
}

func (c *container) phase() phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Phase
}

// id and cgroup never change.
func (c *container) id() string     { return c.rec.ID }
func (c *container) cgroup() string { return c.rec.Cgroup }

// isExited is called with c.mu held.
func (c *container) isExited() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// openPidfd takes hold of the process. One that is gone already leaves none.
func (c *container) openPidfd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pidfd = fd
	return nil
}

func (e *Engine) closePidfd(c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.closePidfdLocked(c)
}

func (e *Engine) closePidfdLocked(c *container) {
	if c.pidfd >= 0 {
		e.watch.forget(c.pidfd)
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
}
