package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edged/cluster/backup"
)

// state is what is backed up: its text is "revision N".
type state struct {
	mu       sync.Mutex
	revision int64
	broken   error
	taken    int
}

func (s *state) at() int64 { s.mu.Lock(); defer s.mu.Unlock(); return s.revision }

func (s *state) set(rev int64, broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision, s.broken = rev, broken
}

func (s *state) take() (backup.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	return &copied{strings.NewReader(fmt.Sprint("revision ", s.revision)), s.broken}, nil
}

type copied struct {
	io.WriterTo
	broken error
}

func (c *copied) WriteTo(w io.Writer) (int64, error) {
	n, err := c.WriterTo.WriteTo(w)
	return n, errors.Join(err, c.broken)
}

func (c *copied) Close() error { return nil }

func names(t *testing.T, p backup.Place) []backup.Entry {
	t.Helper()
	out, err := p.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSchedule follows one for hours: on time, nothing without a change, the
// newest kept, failures told once and repaired.
func TestSchedule(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &state{revision: 5}
		place := backup.NewFolder(filepath.Join(dir, "snapshots"))
		sch := backup.New(backup.Config{
			Interval: time.Hour, Keep: 2, Place: place, Revision: s.at, Take: s.take, Now: time.Now,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { sch.Run(ctx) })
		defer running.Wait()
		defer cancel()
		revisions := func() (out []int64) {
			synctest.Wait()
			for _, e := range names(t, place) {
				out = append(out, e.Revision)
			}
			return out
		}
		expect := func(what string, want ...int64) {
			t.Helper()
			if got := revisions(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s: %v, want %v", what, got, want)
			}
		}
		expect("at the start", 5)
		time.Sleep(3 * time.Hour)
		expect("nothing changed", 5)
		if s.taken != 1 {
			t.Errorf("%d snapshots were taken of what did not change", s.taken)
		}
		for rev := int64(6); rev < 9; rev++ {
			s.set(rev, nil)
			time.Sleep(time.Hour)
		}
		expect("two are kept", 7, 8)
		s.set(9, errors.New("no such luck"))
		time.Sleep(3 * time.Hour)
		expect("a failure", 7, 8)
		if st := sch.Status(); st.Failures < 2 || !strings.Contains(st.Error, "no such luck") || st.Newest.Revision != 8 {
			t.Errorf("%+v", st)
		}
		if n := strings.Count(log.String(), "no such luck"); n != 1 {
			t.Errorf("the failure was logged %d times:\n%s", n, log.String())
		}
		s.set(9, nil)
		time.Sleep(time.Hour)
		expect("repaired", 8, 9)
		if st := sch.Status(); st.Failures != 0 || st.Newest.Revision != 9 {
			t.Errorf("%+v", st)
		}
		// A restored state begins with older revisions.
		s.set(3, nil)
		time.Sleep(time.Hour)
		expect("restored", 9, 3)
	})
	data, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	if err != nil || len(data) != 2 {
		t.Fatalf("%v, %v", data, err)
	}
	for _, f := range data {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		body := raw[:len(raw)-sha256.Size]
		if sum := sha256.Sum256(body); !bytes.Equal(sum[:], raw[len(body):]) || !strings.HasPrefix(string(body), "revision ") {
			t.Errorf("%s holds %q", f, raw)
		}
	}
}

// TestNewLeaderGoesOn: one that begins to follow a schedule looks at what is
// there first.
func TestNewLeaderGoesOn(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &state{revision: 5}
		place := backup.NewFolder(dir)
		for range 3 {
			sch := backup.New(backup.Config{Interval: time.Hour, Keep: 9, Place: place, Revision: s.at, Take: s.take, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { sch.Run(ctx) })
			synctest.Wait()
			time.Sleep(10 * time.Minute)
			cancel()
			running.Wait()
			s.set(s.at()+1, nil)
		}
		if n := len(names(t, place)); n != 1 {
			t.Errorf("%d snapshots in half an hour, want 1", n)
		}
	})
}

func write(text string, sum [sha256.Size]byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(append([]byte(text), sum[:]...)); return err }
}

const name = "edged-000000000007-20260102T030405Z.snapshot"

// remote is a place on a device that allows a folder beside its data-dir.
func remote(t *testing.T, dir string) (p backup.Remote, data, allowed, other string) {
	t.Helper()
	base := t.TempDir()
	data, allowed, other = filepath.Join(base, "data"), filepath.Join(base, "usb"), filepath.Join(base, "other")
	for _, d := range []string{data, allowed, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	srv := httptest.NewTLSServer(&backup.Server{DataDir: data, Allowed: []string{allowed}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(srv.Close)
	p = backup.Remote{Node: "b", Dir: strings.NewReplacer("DATA", data, "USB", allowed, "OTHER", other).Replace(dir), Dial: func(string) (string, http.RoundTripper, error) {
		return srv.URL, srv.Client().Transport, nil
	}}
	return p, data, allowed, other
}

func TestAnotherDevice(t *testing.T) {
	for dir, want := range map[string]string{"": "data/snapshots", "DATA/x/y": "data/x/y", "USB": "usb", "USB/deep": "usb/deep"} {
		p, data, _, _ := remote(t, dir)
		if err := p.Put(t.Context(), name, write("hello", sha256.Sum256([]byte("hello")))); err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		file := filepath.Join(filepath.Dir(data), want, name)
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if got := names(t, p); len(got) != 1 || got[0].Revision != 7 || got[0].Bytes != 5+sha256.Size {
			t.Errorf("%s: %+v", dir, got)
		}
		if err := p.Remove(t.Context(), name); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if got := names(t, p); len(got) != 0 {
			t.Errorf("%s: %+v", dir, got)
		}
	}
}

// What arrives damaged or cut short gets no name, and nothing is left of it.
func TestDamagedOnTheWay(t *testing.T) {
	sum := sha256.Sum256([]byte("hello"))
	for what, f := range map[string]func(io.Writer) error{
		"damaged":   write("hellO", sum),
		"cut short": write("hel", sum),
		"broken": func(w io.Writer) error {
			_, err := io.WriteString(w, "hello")
			return errors.Join(err, errors.New("the disk cannot be read"))
		},
	} {
		p, data, _, _ := remote(t, "")
		for _, place := range []backup.Place{p, backup.NewFolder(filepath.Join(data, "local"))} {
			if err := place.Put(t.Context(), name, f); err == nil {
				t.Errorf("%s: was kept in %s", what, place)
			}
		}
		for _, dir := range []string{"snapshots", "local"} {
			if left, _ := filepath.Glob(filepath.Join(data, dir, "*")); len(left) > 0 {
				t.Errorf("%s: left %v", what, left)
			}
		}
	}
}

// A device writes where it was allowed to, and nowhere else.
func TestRefusedFolders(t *testing.T) {
	ok := write("x", sha256.Sum256([]byte("x")))
	for _, dir := range []string{"OTHER", "DATA", "DATA/../other", "relative", "/etc", "USB/../other/x", "USB/link"} {
		p, _, allowed, other := remote(t, dir)
		if err := os.Symlink(other, filepath.Join(allowed, "link")); err != nil {
			t.Fatal(err)
		}
		if err := p.Put(t.Context(), name, ok); err == nil {
			t.Errorf("%s was written to", dir)
		}
		if left, _ := filepath.Glob(filepath.Join(other, "*")); len(left) > 0 {
			t.Errorf("%s: there is %v now", dir, left)
		}
	}
	p, data, _, _ := remote(t, "")
	for _, bad := range []string{"x", "../" + name, "edged-1.snapshot", name + "x"} {
		if err := p.Put(t.Context(), bad, ok); err == nil {
			t.Errorf("%q was written", bad)
		}
		if err := p.Remove(t.Context(), bad); err == nil {
			t.Errorf("%q was removed", bad)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(data, "*", "*")); len(left) > 0 {
		t.Errorf("there is %v", left)
	}
}

// What a cut left is removed by the next that is written.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "edged-000000000001-20260102T030405Z.snapshot.part")
	foreign := filepath.Join(dir, "notes.part")
	for _, f := range []string{old, foreign} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := backup.NewFolder(dir).Put(t.Context(), name, write("x", sha256.Sum256([]byte("x")))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", old, err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}
