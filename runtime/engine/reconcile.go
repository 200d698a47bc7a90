package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
)

const (
	// interruptedStart is how long nothing must be seen of a start that the last
	// daemon did not finish, before it is taken to have failed with that daemon's
	// connection.
	interruptedStart = 250 * time.Millisecond
	settlePoll       = 20 * time.Millisecond
)

// reconcile brings the records of the last daemon in line with what is there.
func (e *Engine) reconcile(ctx context.Context) error {
	dir := filepath.Join(e.cfg.State, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the containers: %w", err)
	}
	for _, entry := range entries {
		c := &container{dir: filepath.Join(dir, entry.Name()), pidfd: -1, exited: make(chan struct{})}
		if c.rec, err = readRecord(c.dir); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				e.log.Warn("a container without a readable record is removed", "container", entry.Name(), "err", err)
			}
			c.rec = record{ID: entry.Name(), Phase: phaseMaking, Cgroup: cgroupOfBundle(c.dir, e.cfg.CgroupRoot)}
		}
		e.containers[c.rec.ID] = c
	}
	s, err := e.connectShim(ctx)
	if err != nil {
		return err
	}
	for _, c := range e.snapshot() {
		if err := e.settle(ctx, s, c); err != nil {
			return fmt.Errorf("find container %s again: %w", c.id(), err)
		}
	}
	if len(e.containers) == 0 && s != nil {
		e.idle.Reset(idleShim)
	}
	return nil
}

// settle decides what has become of one container since its record was written.
func (e *Engine) settle(ctx context.Context, s *shim, c *container) error {
	was := c.phase()
	switch was {
	case phaseMaking, phaseDeleting:
		c.op.Lock()
		defer c.op.Unlock()
		return e.destroy(ctx, c)
	case phaseDone:
		close(c.exited)
		return nil
	case phaseReady:
		return nil
	}
	if s == nil {
		c.op.Lock()
		defer c.op.Unlock()
		e.settleOrphan(c)
		return nil
	}
	e.endExecs(ctx, s, c)
	if was == phaseStarting {
		c.op.Lock() // until it is known what became of the start
		e.wg.Go(func() {
			defer c.op.Unlock()
			e.settleStart(s, c)
		})
		return nil
	}
	return e.adopt(ctx, s, c)
}

// adopt takes over a container that was running.
func (e *Engine) adopt(ctx context.Context, s *shim, c *container) error {
	c.mu.Lock()
	pid := c.rec.PID
	c.mu.Unlock()
	if err := c.openPidfd(pid); err != nil {
		return err
	}
	st, err := s.tasks.State(ctx, &taskapi.StateRequest{ID: c.id()})
	switch {
	case err != nil && unknownToShim(err):
		e.settleOrphan(c) // it belonged to a shim that is no more
		return nil
	case err != nil:
		return fromShim(err)
	case st.Status == task.Status_STOPPED || int(st.Pid) != pid:
		// The descriptor may be of another process with the same number.
		e.closePidfd(c)
	}
	return e.watchExit(s, c)
}

// settleStart waits for the end of a start that the last daemon had begun. A
// process that came of it is adopted; otherwise the container is as before.
func (e *Engine) settleStart(s *shim, c *container) {
	for quiet := time.Now(); e.ctx.Err() == nil && time.Since(quiet) < interruptedStart; {
		st, err := s.tasks.State(e.ctx, &taskapi.StateRequest{ID: c.id()})
		if err == nil && (st.Status == task.Status_RUNNING || st.Status == task.Status_STOPPED) {
			err = c.save(func(r *record) {
				r.Phase, r.PID, r.Started = phaseRunning, int(st.Pid), r.Created
			})
			if err == nil {
				err = e.adopt(e.ctx, s, c)
			}
			if err != nil && e.ctx.Err() == nil {
				e.log.Error("a started container cannot be adopted", "container", c.id(), "err", err)
			}
			return
		}
		if runcWorksOn(c.id()) {
			quiet = time.Now()
		}
		select {
		case <-time.After(settlePoll):
		case <-e.ctx.Done():
		}
	}
	if e.ctx.Err() != nil {
		return // the record still says starting
	}
	err := e.forget(e.ctx, s, c)
	if err == nil {
		err = c.save(func(r *record) { r.Phase = phaseReady })
	}
	if err != nil {
		e.log.Error("an interrupted start cannot be undone", "container", c.id(), "err", err)
	}
}

// runcWorksOn says whether a runc of the shim has a container in hand: the id is
// its last argument.
func runcWorksOn(id string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		data, _ := os.ReadFile(file)
		if strings.HasSuffix(string(data), "\x00"+id+"\x00") && strings.Contains(string(data), "runc") {
			return true
		}
	}
	return false
}

// settleOrphan ends a container whose shim is gone: its output went nowhere and
// nobody would reap it. The exit code is right if the shim lived to write it
// down. Called with c.op held.
func (e *Engine) settleOrphan(c *container) {
	switch c.phase() {
	case phaseRunning, phaseStarting:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, cleanupTimeout)
	defer cancel()
	exit, known := readExit(c.dir)
	oom := e.host.cgroups.oomKilled(c.cgroup()) // before the group goes
	if err := e.forget(ctx, nil, c); err != nil {
		e.log.Error("a container without a shim cannot be cleaned up", "container", c.id(), "err", err)
	}
	e.finish(c, func(r *record) {
		r.ExitCode, r.Finished = exit.Status, exit.Timestamp
		if !known {
			r.ExitCode, r.Finished, r.Lost = lostCode, time.Now(), true
			r.Message = "the process that held the container ended"
		}
	})
	if oom {
		_ = c.save(func(r *record) { r.OOMKilled = true })
	}
}

// exit is what the shim writes beside the bundle when the process ends.
type exit struct {
	Timestamp time.Time
	Pid       int
	Status    uint32
}

func readExit(dir string) (exit, bool) {
	var x exit
	data, err := os.ReadFile(filepath.Join(dir, "exit.json"))
	if err != nil || json.Unmarshal(data, &x) != nil || x.Timestamp.IsZero() {
		return exit{}, false
	}
	return x, true
}

// endExecs ends what the last daemon's clients were running in a container.
func (e *Engine) endExecs(ctx context.Context, s *shim, c *container) {
	dirs, err := filepath.Glob(filepath.Join(c.dir, execPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		id := strings.TrimPrefix(filepath.Base(dir), execPrefix)
		_, err := s.tasks.Kill(ctx, &taskapi.KillRequest{ID: c.id(), ExecID: id, Signal: uint32(unix.SIGKILL)})
		if err != nil && !unknownToShim(err) {
			e.log.Debug("an exec of the last daemon cannot be killed", "container", c.id(), "err", err)
		}
		e.wg.Go(func() { e.deleteExec(s, c, id) })
	}
}

// cgroupOfBundle finds the control group of a container whose record is lost.
func cgroupOfBundle(dir, root string) string {
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil && json.Unmarshal(data, &spec) == nil && spec.Linux.CgroupsPath != "" {
		return spec.Linux.CgroupsPath
	}
	return filepath.Join(root, filepath.Base(dir)) // there is none by that name
}
