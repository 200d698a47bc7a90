package manifests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// errBusy is of a file that somebody is writing.
var errBusy = errors.New("somebody is writing the file")

// list names the folder's manifests in order. Without the folder there are none.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".yaml", ".yml", ".json":
			if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// read returns a file's content, or errBusy while it is open for writing: the
// kernel grants a read lease only on a file without writers. File systems without
// leases get no such protection.
func read(dir, name string) ([]byte, error) {
	// Not blocking: what looks like a file may be a fifo.
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("not a file")
	}
	if fi.Size() > maxFileBytes {
		return nil, fmt.Errorf("the file has %d bytes, more than %d: split it", fi.Size(), maxFileBytes)
	}
	// The lease goes with the descriptor; a writer that comes meanwhile waits.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
		return nil, errBusy
	}
	return io.ReadAll(io.LimitReader(f, maxFileBytes))
}

// watcher tells by inotify when a folder may have changed, also one that does
// not exist yet: then it watches for the next part of its path.
type watcher struct {
	changed chan struct{} // nil: nothing is ever told
	dir     string
	inotify *os.File
	reader  sync.WaitGroup

	mu     sync.Mutex
	wd     int    // of what is watched, -1 for nothing
	wanted string // the name that matters there; "" for all
}

const (
	inFolder = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	above    = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
)

// watch starts a watcher; arm says what it watches.
func watch(ctx context.Context, dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &watcher{changed: make(chan struct{}, 1), dir: dir, inotify: os.NewFile(uintptr(fd), "inotify"), wd: -1}
	stop := context.AfterFunc(ctx, func() { w.inotify.Close() })
	w.reader.Go(func() {
		defer stop()
		w.read()
	})
	return w, nil
}

func (w *watcher) close() {
	if w.inotify == nil {
		return
	}
	w.inotify.Close()
	w.reader.Wait()
}

// arm watches the folder, or the nearest of those above it that exists. It is to
// be called before the folder is read, so that no change falls in between.
func (w *watcher) arm() error {
	if w.inotify == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		wd, path, wanted, err := w.nearest()
		if err != nil {
			return err
		}
		if wd != w.wd && w.wd >= 0 {
			w.remove(w.wd)
		}
		w.wd, w.wanted = wd, wanted
		if wanted == "" {
			return nil
		}
		if _, err := os.Stat(filepath.Join(path, wanted)); err != nil {
			return nil
		}
		// It came between the two looks.
	}
}

// nearest watches the folder, or what is above it: there the name wanted matters.
func (w *watcher) nearest() (wd int, path, wanted string, err error) {
	mask := uint32(inFolder)
	for path = w.dir; ; path, wanted, mask = filepath.Dir(path), filepath.Base(path), above {
		wd, err = w.add(path, mask)
		if errors.Is(err, unix.ENOENT) && path != filepath.Dir(path) {
			continue
		}
		if err != nil {
			return -1, "", "", fmt.Errorf("watch %s: %w", path, err)
		}
		return wd, path, wanted, nil
	}
}

func (w *watcher) add(path string, mask uint32) (wd int, err error) {
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(fd uintptr) { wd, err = unix.InotifyAddWatch(int(fd), path, mask) }); e != nil {
		return -1, e
	}
	return wd, err
}

// remove forgets a watch; one whose folder is gone is forgotten already.
func (w *watcher) remove(wd int) {
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) })
}

// read turns events into the one signal until the descriptor is closed.
func (w *watcher) read() {
	buf := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		if w.matters(buf[:n]) {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
}

// matters says whether one of the events is about the folder.
func (w *watcher) matters(events []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		length := int(binary.NativeEndian.Uint32(events[12:]))
		name := string(bytes.TrimRight(events[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length], "\x00"))
		events = events[unix.SizeofInotifyEvent+length:]
		if name == "" || w.wanted == "" && !strings.HasPrefix(name, ".") || name == w.wanted || mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
	}
	return false
}
