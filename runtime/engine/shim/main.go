// Command shim is the one process that stands between edged and all its
// containers, so that the daemon can die and come back without them noticing. It
// is containerd's runc task service, served over ttrpc on the socket that it
// inherits, for many containers at once.
//
// It is not a daemon of its own: runtime/engine starts it with the first
// container, with the folder of its socket and log as working directory, and asks
// it to end when there is none left.
//
// It differs from containerd-shim-runc-v2 in three things. It keeps a reading end
// of each container's output open until the container is deleted, so that what a
// container said last is not lost when the daemon is away. It publishes no
// events: the daemon watches the processes themselves, and a publisher that nobody
// listens to would hold up the service. And it does nothing while idle.
//
// Goroutines: the task service's own, one that reaps, and one that returns memory
// some time after the last request. It ignores every signal but SIGKILL.
//
// May be imported by nobody; payload/build.sh builds it.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
)

const (
	// listenerFD is where the parent puts the listening socket.
	listenerFD = 3
	// gcPercent trades the shim's small CPU use for memory, as containerd's does.
	gcPercent = 40
	// quietPeriod after a request memory goes back to the system.
	quietPeriod = 10 * time.Second
	// maxLogBytes bounds the log, which lives in memory (tmpfs).
	maxLogBytes = 256 << 10
)

func main() {
	debug.SetGCPercent(gcPercent)
	goruntime.GOMAXPROCS(2) // a stack per thread; requests mostly wait for runc
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "edged-shim: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	listener, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("take the inherited socket (edged starts this program): %w", err)
	}
	log.L.Logger.SetOutput(boundedLog{os.Stderr})
	signal.Ignore(syscall.SIGPIPE, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	children := make(chan os.Signal, 32)
	signal.Notify(children, syscall.SIGCHLD)
	if err := reaper.SetSubreaper(1); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}

	ctx, down := shutdown.WithShutdown(context.Background())
	tasks, err := task.NewTaskService(ctx, nobody{}, down)
	if err != nil {
		return fmt.Errorf("make the task service: %w", err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return fmt.Errorf("make the server: %w", err)
	}
	taskapi.RegisterTTRPCTaskService(server, newKeeper(tasks))

	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	for {
		select {
		case <-children:
			if err := reaper.Reap(); err != nil {
				log.L.WithError(err).Error("reap")
			}
		case <-down.Done():
			// The answer to the request to shut down is on its way.
			grace, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return ignoreClosed(server.Shutdown(grace))
		case err := <-served:
			return ignoreClosed(err)
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// nobody listens to events.
type nobody struct{}

func (nobody) Publish(context.Context, string, events.Event) error { return nil }
func (nobody) Close() error                                        { return nil }

// boundedLog starts over when the log is full: what went wrong last matters.
type boundedLog struct{ f *os.File }

func (l boundedLog) Write(p []byte) (int, error) {
	if st, err := l.f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > maxLogBytes {
		if err := l.f.Truncate(0); err != nil {
			return 0, err
		}
	}
	return l.f.Write(p)
}
