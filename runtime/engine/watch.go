package engine

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watcher tells when processes end, whoever is their parent: an epoll set of
// pidfds (Linux 5.3). The set itself is a file of Go's poller, so waiting costs a
// goroutine and no thread, and a container costs one descriptor.
type watcher struct {
	file  *os.File // the epoll set
	conn  syscall.RawConn
	ended sync.WaitGroup

	mu    sync.Mutex
	funcs map[int32]func() // pidfd -> what to call, once
}

func newWatcher() (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch processes: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("watch processes: %w", err), unix.Close(fd))
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "processes"), funcs: map[int32]func(){}}
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch processes: %w", err), w.file.Close())
	}
	w.ended.Go(w.run)
	return w, nil
}

// add calls fn, from the watcher's goroutine, when the process behind pidfd ends;
// at once if it has ended. fn must not block. The caller closes pidfd, after fn
// was called or after forget.
func (w *watcher) add(pidfd int, fn func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.funcs[int32(pidfd)] = fn
	var err error
	ctl := w.conn.Control(func(set uintptr) {
		err = unix.EpollCtl(int(set), unix.EPOLL_CTL_ADD, pidfd,
			&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(pidfd)})
	})
	if err = errors.Join(ctl, err); err != nil {
		delete(w.funcs, int32(pidfd))
		return fmt.Errorf("watch a process: %w", err)
	}
	return nil
}

// forget ends the interest in a pidfd. It leaves the set when it is closed.
func (w *watcher) forget(pidfd int) {
	w.mu.Lock()
	delete(w.funcs, int32(pidfd))
	w.mu.Unlock()
}

func (w *watcher) run() {
	var events [16]unix.EpollEvent
	for {
		n := 0
		// Read waits in Go's poller until the set has something; the poller is edge
		// triggered, so the set is asked first, each time.
		err := w.conn.Read(func(set uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(set), events[:], 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return // closed
		}
		for _, ev := range events[:max(n, 0)] {
			w.mu.Lock()
			fn := w.funcs[ev.Fd]
			delete(w.funcs, ev.Fd)
			w.mu.Unlock()
			if fn != nil {
				fn()
			}
		}
	}
}

func (w *watcher) close() error {
	err := w.file.Close()
	w.ended.Wait()
	return err
}
