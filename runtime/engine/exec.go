package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// execPrefix of the folder, in the container's, that holds the fifos of an exec.
	execPrefix = "exec-"
	// drainExec is how long output may pause after the process has ended before it
	// is taken to be complete: something else in the container holds the pipe.
	drainExec = 2 * time.Second
	// processTypeURL is what the shim is told about the JSON it gets.
	processTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
)

// Exec runs one more process in a running container and waits for it and its
// output. When ctx ends the process is killed. The exit code of a process that
// was killed by a signal is 128 plus its number.
func (e *Engine) Exec(ctx context.Context, id string, spec ExecSpec, streams Streams) (int, error) {
	done, err := e.begin()
	if err != nil {
		return 0, err
	}
	defer done()
	c, err := e.find(id)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	s := e.liveShim()
	if c.phase() != phaseRunning || s == nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, ErrNotRunning)
	}
	x := &execution{e: e, s: s, c: c, id: rand.Text(), spec: spec, began: time.Now()}
	code, err := x.run(inNamespace(ctx), streams)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

// execution is one exec.
type execution struct {
	e    *Engine
	s    *shim
	c    *container
	id   string
	spec ExecSpec

	began   time.Time
	moved   atomic.Int64 // when output last moved, nanoseconds since began, by the monotonic clock
	writing atomic.Int32 // how many streams wait for the client
	copies  sync.WaitGroup
}

func (x *execution) run(ctx context.Context, streams Streams) (int, error) {
	process, err := x.process()
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(x.c.dir, execPrefix+x.id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	added := false
	defer func() {
		if !added {
			_ = os.RemoveAll(dir)
			return
		}
		x.e.wg.Go(func() { x.e.deleteExec(x.s, x.c, x.id) })
	}()
	io, err := openExecIO(dir, streams, x.spec.TTY)
	if err != nil {
		return 0, err
	}
	defer io.close()
	_, err = x.s.tasks.Exec(ctx, &taskapi.ExecProcessRequest{
		ID: x.c.id(), ExecID: x.id, Terminal: x.spec.TTY,
		Stdin: io.in, Stdout: io.out, Stderr: io.err, Spec: process,
	})
	if err != nil {
		return 0, x.explain(err)
	}
	added = true
	if _, err := x.s.tasks.Start(ctx, &taskapi.StartRequest{ID: x.c.id(), ExecID: x.id}); err != nil {
		return 0, x.explain(err)
	}
	return x.attend(ctx, io, streams)
}

// attend moves the streams until the process has ended and its output is read.
func (x *execution) attend(ctx context.Context, io *execIO, streams Streams) (int, error) {
	ended := make(chan struct{})
	defer close(ended)
	x.copyOut(io.stdout, streams.Stdout)
	x.copyOut(io.stderr, streams.Stderr)
	if io.stdin != nil {
		// Not waited for: the client's reader may never return.
		go x.copyIn(io, streams.Stdin)
	}
	if streams.Resize != nil {
		go x.followSize(streams.Resize, ended)
	}
	resp, err := x.s.tasks.Wait(ctx, &taskapi.WaitRequest{ID: x.c.id(), ExecID: x.id})
	if err != nil {
		x.kill()
		io.close()
		x.copies.Wait()
		return 0, errors.Join(context.Cause(ctx), fromShim(err))
	}
	x.drain(ctx, io)
	return int(resp.ExitStatus), nil
}

// process is the container's own with the spec's differences.
func (x *execution) process() (*anypb.Any, error) {
	data, err := os.ReadFile(filepath.Join(x.c.dir, "process.json"))
	if err != nil {
		return nil, err
	}
	var p specs.Process
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	p.Args, p.Terminal = x.spec.Args, x.spec.TTY
	p.Env = mergeEnv(p.Env, x.spec.Env)
	if x.spec.TTY {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	p.Cwd = firstOf(x.spec.Cwd, p.Cwd)
	if x.spec.User != (User{}) {
		if p.User, err = resolveUser(filepath.Join(x.c.dir, "rootfs"), x.spec.User, "", nil, false); err != nil {
			return nil, err
		}
	}
	if data, err = json.Marshal(p); err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: processTypeURL, Value: data}, nil
}

// explain tells the end of the container from other failures.
func (x *execution) explain(err error) error {
	if x.c.phase() != phaseRunning {
		return errors.Join(ErrNotRunning, fromShim(err))
	}
	return fromShim(err)
}

func (x *execution) copyOut(from *os.File, to io.Writer) {
	if from == nil {
		return
	}
	if to == nil {
		to = io.Discard
	}
	x.copies.Go(func() {
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		for {
			n, err := from.Read(*buf)
			if n > 0 {
				x.writing.Add(1)
				if _, werr := to.Write((*buf)[:n]); werr != nil {
					to = io.Discard // the process must not stop for a client that left
				}
				x.moved.Store(int64(time.Since(x.began)))
				x.writing.Add(-1)
			}
			if err != nil {
				return
			}
		}
	})
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

func (x *execution) copyIn(streams *execIO, from io.Reader) {
	_, _ = io.Copy(streams.stdin, from) // either side may go away
	_ = streams.stdin.Close()
	// The shim's own writing end is the last one.
	ctx, cancel := context.WithTimeout(x.e.ctx, cleanupTimeout)
	defer cancel()
	_, _ = x.s.tasks.CloseIO(ctx, &taskapi.CloseIORequest{ID: x.c.id(), ExecID: x.id, Stdin: true})
}

func (x *execution) followSize(sizes <-chan Size, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_, err := x.s.tasks.ResizePty(x.e.ctx, &taskapi.ResizePtyRequest{
				ID: x.c.id(), ExecID: x.id, Width: uint32(size.Width), Height: uint32(size.Height),
			})
			if err != nil {
				x.e.log.Debug("resize a terminal", "container", x.c.id(), "err", fromShim(err))
			}
		}
	}
}

// drain waits for the rest of the output, and for a client that is slow to take it, but
// not for a process in the background that holds the pipe open and says nothing.
func (x *execution) drain(ctx context.Context, io *execIO) {
	done := make(chan struct{})
	go func() {
		x.copies.Wait()
		close(done)
	}()
	ended := time.Now()
	for {
		last := x.began.Add(time.Duration(x.moved.Load()))
		if last.Before(ended) {
			last = ended
		}
		if x.writing.Load() > 0 {
			last = time.Now()
		}
		wait := time.Until(last.Add(drainExec))
		if wait <= 0 {
			break
		}
		timer := time.NewTimer(wait)
		select {
		case <-done:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			wait = 0
		case <-timer.C:
		}
		if wait == 0 {
			break
		}
	}
	io.close()
	<-done
}

func (x *execution) kill() {
	ctx, cancel := context.WithTimeout(x.e.ctx, cleanupTimeout)
	defer cancel()
	_, err := x.s.tasks.Kill(ctx, &taskapi.KillRequest{ID: x.c.id(), ExecID: x.id, Signal: uint32(unix.SIGKILL)})
	if err != nil && !unknownToShim(err) {
		x.e.log.Debug("kill an exec", "container", x.c.id(), "err", fromShim(err))
	}
}

// deleteExec removes an exec from the shim, which may wait some seconds for
// output, and then its folder.
func (e *Engine) deleteExec(s *shim, c *container, id string) {
	ctx, cancel := context.WithTimeout(e.ctx, cleanupTimeout)
	defer cancel()
	_, err := s.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: c.id(), ExecID: id})
	if err != nil && !unknownToShim(err) && s.alive() && ctx.Err() == nil {
		e.log.Debug("delete an exec", "container", c.id(), "err", fromShim(err))
	}
	if e.ctx.Err() == nil {
		_ = os.RemoveAll(filepath.Join(c.dir, execPrefix+id))
	}
}

// execIO are both names of an exec's streams: paths for the shim, files for us.
type execIO struct {
	in, out, err          string
	stdin, stdout, stderr *os.File
}

func openExecIO(dir string, streams Streams, tty bool) (_ *execIO, err error) {
	x := &execIO{out: os.DevNull, err: os.DevNull}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	open := func(name string, path *string, file **os.File, how func(string) (*os.File, error)) error {
		*path = filepath.Join(dir, name)
		if err := unix.Mkfifo(*path, 0o600); err != nil {
			return fmt.Errorf("make the fifo %s: %w", *path, err)
		}
		*file, err = how(*path)
		return err
	}
	if streams.Stdin != nil {
		if err := open("0", &x.in, &x.stdin, openWriter); err != nil {
			return nil, err
		}
	}
	if streams.Stdout != nil || tty {
		if err := open("1", &x.out, &x.stdout, openReader); err != nil {
			return nil, err
		}
	}
	if tty {
		x.err = ""
	} else if streams.Stderr != nil {
		if err := open("2", &x.err, &x.stderr, openReader); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (x *execIO) close() {
	for _, f := range []*os.File{x.stdin, x.stdout, x.stderr} {
		if f != nil {
			_ = f.Close() // also a second time
		}
	}
}
