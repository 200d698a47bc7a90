package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"edged/runtime/engine/payload"
)

const (
	// connectTimeout bounds the wait for a shim that is there but does not answer.
	connectTimeout = 5 * time.Second
	// idleShim is how long the shim stays after the last container: a Pod that
	// restarts should not wait for it, an idle device should not carry it.
	idleShim = 30 * time.Second
	// shimOOMScore makes the kernel take anything else first, where permitted.
	shimOOMScore = -999
	maxShimLog   = 1 << 20
)

// shim is the connection to the process that holds the containers.
type shim struct {
	conn  *ttrpc.Client
	tasks taskapi.TTRPCTaskService
	gone  chan struct{} // closed when the connection is
}

// shimDir holds the shim's socket and log; it is its working directory.
func (e *Engine) shimDir() string    { return filepath.Join(e.cfg.State, "shim") }
func (e *Engine) shimSocket() string { return filepath.Join(e.shimDir(), "socket") }
func (e *Engine) runcRoot() string   { return filepath.Join(e.cfg.State, "runc") }

// liveShim is the connected shim, or nil.
func (e *Engine) liveShim() *shim {
	e.shimMu.Lock()
	defer e.shimMu.Unlock()
	return e.shim
}

// connectShim dials a shim that is already running. Nil without an error: there
// is none.
func (e *Engine) connectShim(ctx context.Context) (*shim, error) {
	e.shimMu.Lock()
	defer e.shimMu.Unlock()
	return e.dialShimLocked(ctx)
}

func (e *Engine) dialShimLocked(ctx context.Context) (*shim, error) {
	if e.shim != nil {
		return e.shim, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", e.shimSocket())
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the shim: %w", err)
	}
	s := &shim{gone: make(chan struct{})}
	s.conn = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.gone) }))
	s.tasks = taskapi.NewTTRPCTaskClient(s.conn)
	if _, err := s.tasks.Connect(ctx, &taskapi.ConnectRequest{}); err != nil {
		return nil, errors.Join(fmt.Errorf("the shim does not answer: %w", err), s.conn.Close())
	}
	e.shim = s
	e.wg.Go(func() { e.watchShim(s) })
	return s, nil
}

// needShim connects to the shim and starts it if there is none.
func (e *Engine) needShim(ctx context.Context) (*shim, error) {
	e.shimMu.Lock()
	defer e.shimMu.Unlock()
	e.idle.Stop()
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if s, err := e.dialShimLocked(ctx); s != nil || err != nil {
		return s, err
	}
	if err := e.startShim(); err != nil {
		return nil, err
	}
	s, err := e.dialShimLocked(ctx)
	if s == nil && err == nil {
		err = fmt.Errorf("the shim ended at once: see %s", filepath.Join(e.shimDir(), "log"))
	}
	return s, err
}

// startShim runs the shim on a socket that is listening already, so there is
// nothing to wait for, in a session and a control group of its own.
func (e *Engine) startShim() error {
	programs, err := e.unpackPrograms()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.shimDir(), 0o700); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	_ = os.Remove(e.shimSocket()) // of a shim that is no more
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.shimSocket(), Net: "unix"})
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	defer socket.Close()
	logFile, err := openLog(filepath.Join(e.shimDir(), "log"))
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	defer logFile.Close()

	cmd := exec.Command(programs.Shim)
	cmd.Dir = e.shimDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + e.shimDir()}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	e.settleShim(cmd.Process.Pid)
	// Reaps it; not waited for by Close, since the shim stays.
	go func() { _ = cmd.Wait() }()
	return nil
}

// settleShim does for the new process what it can do without: the shim works in
// the daemon's control group too, it just would not survive all of its ends.
func (e *Engine) settleShim(pid int) {
	if err := e.host.cgroups.add(e.shimCgroup(), pid); err != nil {
		e.log.Warn("the shim shares the daemon's control group", "err", err)
	}
	score := *e.host.oomScore(shimOOMScore)
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	if err := os.WriteFile(path, strconv.AppendInt(nil, int64(score), 10), 0); err != nil {
		e.log.Warn("the shim is not protected from the OOM killer", "err", err)
	}
	e.log.Info("shim started", "pid", pid)
}

func (e *Engine) shimCgroup() string { return filepath.Join(e.cfg.CgroupRoot, "shim") }

func openLog(path string) (*os.File, error) {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxShimLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// watchShim waits for the end of the connection. While the engine is open that is
// the end of the shim, and of what only it could tell about its containers.
func (e *Engine) watchShim(s *shim) {
	<-s.gone
	e.shimMu.Lock()
	lost := e.shim == s // a dismissed shim is no longer there
	if lost {
		e.shim = nil
	}
	e.shimMu.Unlock()
	_ = s.conn.Close()
	if !lost || e.ctx.Err() != nil {
		return
	}
	e.log.Warn("the shim ended: its containers are lost")
	for _, c := range e.snapshot() {
		c.op.Lock()
		e.settleOrphan(c)
		c.op.Unlock()
	}
}

// dismissShim ends the shim when no container needs it. Who needs one meanwhile
// waits for its end and starts another.
func (e *Engine) dismissShim() {
	e.shimMu.Lock()
	defer e.shimMu.Unlock()
	e.mu.Lock()
	busy := len(e.containers) > 0
	e.mu.Unlock()
	s := e.shim
	if busy || s == nil || e.ctx.Err() != nil {
		return
	}
	e.shim = nil
	ctx, cancel := context.WithTimeout(e.ctx, connectTimeout)
	defer cancel()
	if _, err := s.tasks.Shutdown(ctx, &taskapi.ShutdownRequest{}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		e.log.Warn("the idle shim does not end", "err", err)
	}
	select {
	case <-s.gone:
	case <-ctx.Done():
		_ = s.conn.Close()
	}
}

// unpackPrograms happens with the first container, not at start.
func (e *Engine) unpackPrograms() (payload.Programs, error) {
	e.programsMu.Lock()
	defer e.programsMu.Unlock()
	if e.programs.Shim == "" {
		p, err := payload.Unpack(e.cfg.BinDir)
		if err != nil {
			return p, err
		}
		e.programs = p
	}
	return e.programs, nil
}

// runcOptions tell the shim which runc to use. The path is the same for every
// version of edged: the shim remembers it for as long as the container lives.
func (e *Engine) runcOptions() (*anypb.Any, error) {
	programs, err := e.unpackPrograms()
	if err != nil {
		return nil, err
	}
	return typeurl.MarshalAnyToProto(&runcoptions.Options{BinaryName: programs.Runc, Root: e.runcRoot()})
}

// fromShim makes an error of the shim readable and comparable.
func fromShim(err error) error {
	if _, ok := status.FromError(err); err == nil || !ok {
		return err
	}
	return errgrpc.ToNative(err)
}

// unknownToShim says that the shim has no such container or process.
func unknownToShim(err error) bool { return errdefs.IsNotFound(fromShim(err)) }
