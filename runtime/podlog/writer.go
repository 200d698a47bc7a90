package podlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Limits bound what is kept of a container's log.
type Limits struct {
	FileBytes int64 // how large a file becomes before the next is begun
	Files     int   // how many are kept, that one included; at least 2
}

var (
	// OnDisk are the kubelet's defaults.
	OnDisk = Limits{FileBytes: 10 << 20, Files: 5}
	// InMemory has 100 containers fill 50 MB.
	InMemory = Limits{FileBytes: 256 << 10, Files: 2}
)

// partBytes is the longest piece of a line kept in memory.
const partBytes = 4 << 10

// Dir is the folder of a Pod's logs below root.
func Dir(root, namespace, name, uid string) string {
	return filepath.Join(root, namespace+"_"+name+"_"+uid)
}

// Path is the log of one attempt at running a container.
func Path(podDir, container string, attempt int) string {
	return filepath.Join(podDir, container, strconv.Itoa(attempt)+".log")
}

// Writer copies a container's output into its log.
type Writer struct {
	path   string
	limits Limits
	log    *slog.Logger
	source io.Closer
	copies sync.WaitGroup

	mu sync.Mutex
	// guarded by mu
	f        *os.File
	size     int64
	broken   bool // the log could not be written; told once
	attached map[*attachment]struct{}
	ended    bool
}

// attachment receives output live, from a goroutine of its own: a client that is slow
// must not hold up the container for long.
type attachment struct {
	stdout, stderr io.Writer
	queue          chan output // sent to and closed with Writer.mu held
	done           chan error  // holds one
	left           context.Context
	leave          context.CancelFunc // nothing more is passed on
}

// output is a line, or a part of one, for one of an attachment's streams.
type output struct {
	to   io.Writer
	text []byte
}

const (
	// attachQueue is how many lines, or parts of them, wait for a client: at most
	// 256 KB.
	attachQueue = 64
	// attachPatience is how long the container waits for a client that has taken
	// nothing of a full queue. As with containerd, who takes what is printed more
	// slowly than it is printed slows that down; who takes nothing has left.
	attachPatience = time.Second
)

// ErrSlow ends an attachment whose client did not take what the container printed.
var ErrSlow = errors.New("the client does not take what the container prints")

// Start copies stdout and stderr (nil with a terminal) to the file at path
// until both end, and keeps what limits allow of it. source is closed by Close, to stop early.
func Start(path string, limits Limits, stdout, stderr io.Reader, source io.Closer, log *slog.Logger) (*Writer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of a log: %w", err)
	}
	w := &Writer{path: path, limits: limits, log: log, source: source, attached: map[*attachment]struct{}{}}
	if err := w.open(); err != nil {
		return nil, err
	}
	for name, r := range map[string]io.Reader{"stdout": stdout, "stderr": stderr} {
		if r != nil {
			w.copies.Go(func() { w.copy(name, r) })
		}
	}
	go func() {
		w.copies.Wait()
		w.end()
	}()
	return w, nil
}

func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open a log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("look at a log: %w", err)
	}
	w.f, w.size = f, fi.Size()
	return nil
}

// copy reads lines, cutting long ones, until the stream ends.
func (w *Writer) copy(stream string, r io.Reader) {
	br := bufio.NewReaderSize(r, partBytes)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			w.write(stream, line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// write stores one line, or a part of one that does not end in a newline, and
// passes it on to those attached.
func (w *Writer) write(stream string, text []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for a := range w.attached {
		to := a.stdout
		if stream == "stderr" {
			to = a.stderr
		}
		if to == nil {
			continue
		}
		if !a.pass(output{to, slices.Clone(text)}) {
			w.detachLocked(a)
		}
	}
	if w.f == nil {
		return
	}
	tag := "P"
	if n := len(text); text[n-1] == '\n' {
		tag, text = "F", text[:n-1]
	}
	line := time.Now().UTC().AppendFormat(make([]byte, 0, len(text)+48), time.RFC3339Nano)
	line = append(append(append(append(append(line, ' '), stream...), ' '), tag...), ' ')
	line = append(append(line, text...), '\n')
	n, err := w.f.Write(line)
	w.size += int64(n)
	if err != nil && !w.broken {
		w.broken = true
		w.log.Error("a container's output is not logged any more", "file", w.path, "err", err)
	}
	if w.size >= w.limits.FileBytes { // also in the middle of a line, which may have no end
		if err := w.rotate(); err != nil && !w.broken {
			w.broken = true
			w.log.Error("a log was not rotated", "file", w.path, "err", err)
		}
	}
}

// rotate begins a new file and removes the oldest. What cannot be done is tried again
// by the next write, to which the old file stays.
func (w *Writer) rotate() error {
	err := os.Rename(w.path, w.path+"."+time.Now().UTC().Format("20060102-150405.000000"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old, err := Rotated(w.path)
	if err != nil {
		return err
	}
	for len(old) > w.limits.Files-1 {
		if err := os.Remove(old[0]); err != nil {
			return err
		}
		old = old[1:]
	}
	full := w.f
	if err := w.open(); err != nil {
		return err
	}
	return full.Close()
}

// Rotated lists the rotated files of the log at path, oldest first.
func Rotated(path string) ([]string, error) {
	files, err := filepath.Glob(path + ".*")
	slices.Sort(files)
	return files, err
}

// Attach passes output on from now on. done receives one value when the container has
// ended and all is passed on, a writer failed, or the client is too slow (ErrSlow);
// detach ends it early. A write that is under way then, or that nobody takes, may end
// later than that.
func (w *Writer) Attach(stdout, stderr io.Writer) (done <-chan error, detach func()) {
	a := &attachment{stdout: stdout, stderr: stderr, queue: make(chan output, attachQueue), done: make(chan error, 1)}
	a.left, a.leave = context.WithCancel(context.Background())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		a.finish(nil)
		return a.done, func() {}
	}
	w.attached[a] = struct{}{}
	go a.run() // until it is detached, which end does at the latest, and its writer has returned
	return a.done, func() {
		a.leave()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.detachLocked(a)
	}
}

// run passes on what is in the queue until that is closed, or the client leaves.
func (a *attachment) run() {
	for o := range a.queue {
		if a.left.Err() != nil {
			break
		}
		if _, err := o.to.Write(o.text); err != nil {
			break
		}
	}
	a.finish(nil)
}

// pass puts output into the queue. It is false if the client left or is too slow.
func (a *attachment) pass(o output) bool {
	select {
	case a.queue <- o:
		return a.left.Err() == nil
	default:
	}
	patience := time.NewTimer(attachPatience)
	defer patience.Stop()
	select {
	case a.queue <- o:
		return true
	case <-a.left.Done():
	case <-patience.C:
		a.finish(ErrSlow)
	}
	return false
}

// finish tells the first reason and has nothing more passed on.
func (a *attachment) finish(why error) {
	select {
	case a.done <- why:
	default:
	}
	a.leave()
}

func (w *Writer) detachLocked(a *attachment) {
	if _, ok := w.attached[a]; ok {
		delete(w.attached, a)
		close(a.queue)
	}
}

func (w *Writer) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for a := range w.attached {
		w.detachLocked(a)
	}
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}

// Wait waits until everything that the container printed is written.
func (w *Writer) Wait() { w.copies.Wait() }

// Close stops copying; the container's fifos keep what it prints meanwhile.
func (w *Writer) Close() error {
	err := w.source.Close()
	w.copies.Wait()
	return err
}
