package podlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path string, text string) {
	t.Helper()
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(pw, text); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	w.Wait()
}

func read(t *testing.T, path string, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Read(context.Background(), path, o, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatIsPrintedIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c", "0.log")
	long := strings.Repeat("x", 10000)
	text := "one\ntwo\n" + long + "\nlast without newline"
	write(t, path, text)
	if got := read(t, path, Options{Tail: -1}); got != text {
		t.Errorf("read %d bytes, want %d", len(got), len(text))
	}
	for tail, want := range map[int64]string{0: "last without newline", 1: long + "\nlast without newline", 2: "two\n" + long + "\nlast without newline", 99: text} {
		if got := read(t, path, Options{Tail: tail}); got != want {
			t.Errorf("tail %d: %.40q", tail, got)
		}
	}
	if got := read(t, path, Options{Tail: -1, LimitBytes: 6}); got != "one\ntw" {
		t.Errorf("limit: %q", got)
	}
	if got := read(t, path, Options{Tail: -1, Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since: %q", got)
	}
	if got := read(t, path, Options{Tail: -1, Timestamps: true, LimitBytes: 40}); !strings.Contains(got, "Z one\n") {
		t.Errorf("timestamps: %q", got)
	}
	if got := LastLines(path, 80, 10); got != "ut newline" {
		t.Errorf("last: %q", got)
	}
}

func TestRotationKeepsFiveFilesInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("y", 4000)
	const n = 20000 // about 80 MB
	for i := range n {
		fmt.Fprintf(pw, "%06d%s\n", i, line)
	}
	pw.Close()
	w.Wait()
	old, err := Rotated(path)
	if err != nil || len(old) != OnDisk.Files-1 {
		t.Errorf("%d rotated files, %v", len(old), err)
	}
	out := read(t, path, Options{Tail: 5000})
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 5000 || !strings.HasPrefix(lines[0], fmt.Sprintf("%06d", n-5000)) || !strings.HasPrefix(lines[4999], fmt.Sprintf("%06d", n-1)) {
		t.Errorf("%d lines from %.10s", len(lines), lines[0])
	}
}

// TestLineWithoutAnEnd: what shows progress with returns, or is no text, is bounded as
// every log is, and its tail costs no more memory than that of others.
func TestLineWithoutAnEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(pw, "first\n")
	block := strings.Repeat("12 %\r", 1000)
	for range 6 * int(OnDisk.FileBytes) / len(block) {
		io.WriteString(pw, block)
	}
	for fi := (fs.FileInfo)(nil); fi == nil || fi.Size() < OnDisk.FileBytes/2; { // a last file that is large
		io.WriteString(pw, block)
		if fi, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(pw, "end\nlast\n")
	pw.Close()
	w.Wait()
	files, err := Rotated(path)
	files = append(files, path)
	if err != nil || len(files) != OnDisk.Files {
		t.Errorf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > OnDisk.FileBytes+2*partBytes {
			t.Errorf("%s: %v %v", f, fi.Size(), err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	out := read(t, path, Options{Tail: 1})
	runtime.ReadMemStats(&after)
	if out != "last\n" {
		t.Errorf("the last line is %.20q", out)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("it took %d bytes", took)
	}
	if out := read(t, path, Options{Tail: 2}); !strings.HasSuffix(out, "12 %\rend\nlast\n") || strings.Contains(out, "first") {
		t.Errorf("the last lines end in %q", out[max(len(out)-20, 0):])
	}
}

// TestRotationIsTriedAgain: a log goes on when there was no room for a new file.
func TestRotationIsTriedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	path := filepath.Join(dir, "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// A folder in the place of its own leaves no room for a file.
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("y", 4000) + "\n"
	for range int(OnDisk.FileBytes)/len(line) + 10 {
		io.WriteString(pw, line)
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	io.WriteString(pw, line+"later\n")
	pw.Close()
	w.Wait()
	if out := read(t, path, Options{Tail: 1}); out != "later\n" {
		t.Errorf("the last line is %.20q", out)
	}
}

func TestFollowAndAttach(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var live bytes.Buffer
	done, _ := w.Attach(&live, nil)
	running := make(chan struct{})
	got := make(chan string)
	go func() {
		var b bytes.Buffer
		err := Read(context.Background(), path, Options{Tail: -1, Follow: true, Running: func() bool {
			select {
			case <-running:
				return false
			default:
				return true
			}
		}}, &b)
		if err != nil {
			t.Error(err)
		}
		got <- b.String()
	}()
	io.WriteString(pw, "a\n")
	io.WriteString(pw, "b\n")
	pw.Close()
	w.Wait()
	close(running)
	if s := <-got; s != "a\nb\n" {
		t.Errorf("followed %q", s)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if live.String() != "a\nb\n" {
		t.Errorf("attached %q", live.String())
	}
}

// stuck is a client that takes nothing until it is let go.
type stuck struct{ free chan struct{} }

func (s stuck) Write(b []byte) (int, error) {
	<-s.free
	return len(b), nil
}

// TestStuckClient: a client that takes nothing is let go, and neither the log nor another
// client misses what it did not take.
func TestStuckClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := stuck{make(chan struct{})}
	defer close(s.free)
	var live bytes.Buffer
	slow, detach := w.Attach(s, nil)
	defer detach()
	quick, _ := w.Attach(&live, nil)
	text := strings.Repeat("a line\n", 10*attachQueue)
	io.WriteString(pw, text)
	if err := <-slow; !errors.Is(err, ErrSlow) {
		t.Errorf("the client that takes nothing: %v", err)
	}
	pw.Close()
	w.Wait()
	if err := <-quick; err != nil || live.String() != text {
		t.Errorf("the other client: %v, %d bytes of %d", err, live.Len(), len(text))
	}
	if got := read(t, path, Options{Tail: -1}); got != text {
		t.Errorf("the log has %d bytes of %d", len(got), len(text))
	}
}

// TestClientThatLeaves: one that detaches while the container waits for it holds up
// nobody, and what fails is dropped.
func TestClientThatLeaves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r, pw := io.Pipe()
	w, err := Start(path, OnDisk, r, nil, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := stuck{make(chan struct{})}
	defer close(s.free)
	_, detach := w.Attach(s, nil)
	broken, pipe := io.Pipe()
	broken.Close()
	failed, _ := w.Attach(pipe, nil)
	go func() {
		io.WriteString(pw, strings.Repeat("a line\n", 2*attachQueue))
		pw.Close()
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
	detach()
	w.Wait()
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("2026-01-01T00:00:00.5Z stdout F text\n"))
	f.Add([]byte("  P \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, ok := parseLine(b); ok && l.at.IsZero() && len(l.stamp) == 0 {
			t.Error("a line without a time")
		}
	})
}

func TestTornLineIsLeftOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte("2026-01-01T00:00:00Z stdout F good\n\x00\x00\x00\n2026-01-01T00:00:00Z stdout F also\n2026-01-0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path, Options{Tail: -1}); got != "good\nalso\n" {
		t.Errorf("%q", got)
	}
}
