package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
)

// The fifos of a process lie in a folder under the names of their descriptors.
func fifoPaths(dir string, stdin, tty bool) (in, out, err string) {
	if stdin {
		in = filepath.Join(dir, "0")
	}
	out = filepath.Join(dir, "1")
	if !tty {
		err = filepath.Join(dir, "2")
	}
	return in, out, err
}

func makeFifos(dir string, stdin, tty bool) error {
	in, out, errPath := fifoPaths(dir, stdin, tty)
	for _, path := range []string{in, out, errPath} {
		if path == "" {
			continue
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("make the fifo %s: %w", path, err)
		}
	}
	return nil
}

// openReader opens the reading end of a fifo without waiting for a writer.
func openReader(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// openWriter opens a fifo for writing whether it has a reader yet or not: the end
// it also has for reading keeps the bytes until the shim comes for them.
func openWriter(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
}

// Stdio opens the daemon's ends of the output of a container that was started. See
// the dangers in the package comment.
func (e *Engine) Stdio(_ context.Context, id string) (_ Stdio, err error) {
	c, err := e.find(id)
	if err != nil {
		return Stdio{}, fmt.Errorf("open the output: %w", err)
	}
	if c.phase() == phaseReady {
		return Stdio{}, fmt.Errorf("open the output of container %s: %w", id, ErrNotRunning)
	}
	var s Stdio
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the output of container %s: %w", id, err), s.Close())
		}
	}()
	_, out, errPath := fifoPaths(c.dir, false, c.rec.TTY)
	// Assigned one by one: a nil *os.File in an interface would not be nil.
	f, err := openReader(out)
	if err != nil {
		return s, err
	}
	s.Stdout = f
	if errPath != "" {
		f, err := openReader(errPath)
		if err != nil {
			return s, err
		}
		s.Stderr = f
	}
	return s, nil
}

// Stdin opens the input of a container that was started with one. It may be opened
// by several, and again after it was closed; the container sees no end of it before
// [Engine.CloseStdin].
func (e *Engine) Stdin(_ context.Context, id string) (io.WriteCloser, error) {
	c, err := e.find(id)
	if err != nil {
		return nil, fmt.Errorf("open the input: %w", err)
	}
	if c.phase() == phaseReady {
		return nil, fmt.Errorf("open the input of container %s: %w", id, ErrNotRunning)
	}
	if !c.rec.Stdin {
		return nil, fmt.Errorf("open the input of container %s: it has none", id)
	}
	in, _, _ := fifoPaths(c.dir, true, c.rec.TTY)
	f, err := openWriter(in)
	if err != nil {
		return nil, fmt.Errorf("open the input of container %s: %w", id, err)
	}
	return f, nil
}

// CloseStdin ends the container's input for good, once everything that
// [Engine.Stdin] opened is closed too.
func (e *Engine) CloseStdin(ctx context.Context, id string) error {
	c, err := e.find(id)
	if err != nil {
		return fmt.Errorf("close the input: %w", err)
	}
	s := e.liveShim()
	if s == nil || !c.rec.Stdin {
		return nil
	}
	_, err = s.tasks.CloseIO(inNamespace(ctx), &taskapi.CloseIORequest{ID: id, Stdin: true})
	if err != nil && !unknownToShim(err) {
		return fmt.Errorf("close the input of container %s: %w", id, fromShim(err))
	}
	return nil
}

// drain throws away what nobody reads any more, so that a full fifo holds up no
// deletion.
func (e *Engine) drain(ctx context.Context, c *container) {
	_, out, errPath := fifoPaths(c.dir, false, c.rec.TTY)
	var wg sync.WaitGroup
	for _, path := range []string{out, errPath} {
		if path == "" {
			continue
		}
		f, err := openReader(path)
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { _ = f.Close() })
		wg.Go(func() {
			defer stop()
			defer f.Close()
			_, _ = io.Copy(io.Discard, f)
		})
	}
	wg.Wait()
}
