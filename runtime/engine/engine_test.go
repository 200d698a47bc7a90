package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edged/runtime/engine"
)

var ctx = context.Background()

// A container runs, says something on both streams and leaves an exit code; then
// it can be deleted, with everything that it was made of.
func TestRunToExit(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	d.start(e, d.box("one", "print=out", "error=err", "exit=7"))
	out, errOut := d.output(e, "one")
	if out != "out\n" || errOut != "err\n" {
		t.Errorf("output %q, %q", out, errOut)
	}
	c := d.wait(e, "one", engine.Exited)
	if c.ExitCode != 7 || c.PID != 0 || c.OOMKilled || c.StartedAt.IsZero() || c.FinishedAt.Before(c.StartedAt) {
		t.Errorf("exited as %+v", c)
	}
	if ev := <-e.Events(); ev != (engine.Event{Type: engine.EventExit, ID: "one"}) {
		t.Errorf("event %+v", ev)
	}
	if err := e.Delete(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if err := e.Delete(ctx, "one"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if list := e.List(); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}

func TestKill(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	d.start(e, d.box("polite", "forever"))
	d.start(e, d.box("deaf", "deaf"))
	for _, id := range []string{"polite", "deaf"} {
		d.expectLine(e, id, "up")
		if err := e.Kill(ctx, id, unix.SIGTERM, false); err != nil {
			t.Fatal(err)
		}
	}
	if c := d.wait(e, "polite", engine.Exited); c.ExitCode != 0 {
		t.Errorf("polite: %+v", c)
	}
	if c, _ := e.Get("deaf"); c.State != engine.Running {
		t.Errorf("deaf: %+v", c)
	}
	if err := e.Kill(ctx, "deaf", unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if c := d.wait(e, "deaf", engine.Exited); c.ExitCode != 137 {
		t.Errorf("deaf: %+v", c)
	}
	if err := e.Kill(ctx, "deaf", unix.SIGKILL, true); !errors.Is(err, engine.ErrNotRunning) {
		t.Errorf("kill of an exited container: %v", err)
	}
}

// What cannot be started says why, with the code that Kubernetes shows for it.
func TestStartError(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	spec := d.box("bad")
	spec.Command = []string{"/no/such/program"}
	d.create(e, spec)
	err := e.Start(ctx, "bad")
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Fatalf("start: %v", err)
	}
	c := d.wait(e, "bad", engine.Exited)
	if c.ExitCode != 128 || !strings.Contains(c.Message, "no such file") {
		t.Errorf("exited as %+v", c)
	}
	if err := e.Delete(ctx, "bad"); err != nil {
		t.Fatal(err)
	}
	spec.Image = "test.local/absent:1"
	if err := e.Create(ctx, spec); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("create from an absent image: %v", err)
	}
	if _, ok := e.Get("bad"); ok {
		t.Error("a container is left of a failed create")
	}
	spec = d.box("bad", "print")
	d.create(e, spec)
	if err := e.Create(ctx, spec); !errors.Is(err, engine.ErrExists) {
		t.Errorf("create of an existing id: %v", err)
	}
	spec.ID = "../bad"
	if err := e.Create(ctx, spec); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("create of a bad id: %v", err)
	}
}

func TestUserEnvAndMerge(t *testing.T) {
	uid := func(n uint32) *uint32 { return &n }
	tests := []struct {
		name   string
		change func(*engine.ContainerSpec)
		steps  []string
		want   string
	}{
		{"image command", func(s *engine.ContainerSpec) {}, nil, "hello"},
		{"args", func(s *engine.ContainerSpec) {}, []string{"print=args"}, "args"},
		{"command drops cmd", func(s *engine.ContainerSpec) { s.Command = []string{"/bin/box", "print=command"} }, nil, "command"},
		{"image env", func(s *engine.ContainerSpec) {}, []string{"env=FROM"}, "image"},
		{"own env", func(s *engine.ContainerSpec) { s.Env = []string{"FROM=spec"} }, []string{"env=FROM"}, "spec"},
		{"hostname", func(s *engine.ContainerSpec) {}, []string{"read=/proc/sys/kernel/hostname"}, "box"},
		{"root", func(s *engine.ContainerSpec) {}, []string{"id"}, "0 0 [0]"},
		{"image user", func(s *engine.ContainerSpec) { s.Image = "test.local/custom:1" }, []string{"id"}, "1000 1000 [50 1000]"},
		{"second layer", func(s *engine.ContainerSpec) { s.Image = "test.local/custom:1" }, []string{"read=/etc/banner"}, "second layer"},
		{"uid", func(s *engine.ContainerSpec) { s.User.UID = uid(77); s.SupplementalGroups = []uint32{5} }, []string{"id"}, "77 0 [0 5]"},
		{"uid of the image", func(s *engine.ContainerSpec) { s.User.UID = uid(1000); s.User.GID = uid(9) }, []string{"id"}, "1000 9 [9 50]"},
		{"strict groups", func(s *engine.ContainerSpec) { s.User.UID = uid(1000); s.SupplementalGroupsStrict = true }, []string{"id"}, "1000 1000 [1000]"},
		{"name", func(s *engine.ContainerSpec) { s.User.Name = "alice" }, []string{"id"}, "1000 1000 [50 1000]"},
		{"read-only root", func(s *engine.ContainerSpec) { s.ReadonlyRootfs = true }, []string{"write=/x:y"}, "open /x: read-only file system"},
		{"pid namespace", func(s *engine.ContainerSpec) {}, []string{"pid"}, "1"},
	}
	d := newDevice(t)
	e := d.openWithImages()
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			spec := d.box(fmt.Sprintf("c%d", i), tc.steps...)
			tc.change(&spec)
			d.start(e, spec)
			out, errOut := d.output(e, spec.ID)
			if strings.TrimSpace(out) != tc.want {
				t.Errorf("said %q (%q), want %q", out, errOut, tc.want)
			}
			if err := e.Delete(ctx, spec.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMounts(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	dir := t.TempDir()
	spec := d.box("m", "write=/data/file:text", "write=/ro/file:text", "read=/data/file", "write=/small/x:y", "read=/small/x")
	spec.Mounts = []engine.Mount{
		{Source: dir, Target: "/data"},
		{Source: dir, Target: "/ro", Readonly: true},
		{Type: "tmpfs", Target: "/small", Options: []string{"size=64k"}},
	}
	d.start(e, spec)
	out, _ := d.output(e, "m")
	if out != "open /ro/file: read-only file system\ntexty" {
		t.Errorf("said %q", out)
	}
}

func TestOOMKilled(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	spec := d.box("hog", "eat=256")
	spec.Resources = engine.Resources{MemoryLimitBytes: 32 << 20, PidsLimit: 64, CPUShares: 2, OOMScoreAdj: -997}
	d.start(e, spec)
	c := d.wait(e, "hog", engine.Exited)
	if c.ExitCode != 137 || !c.OOMKilled {
		t.Errorf("exited as %+v", c)
	}
}

func TestStatsAndUpdate(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	spec := d.box("s", "eat=8", "forever")
	spec.Resources.MemoryLimitBytes = 64 << 20
	d.start(e, spec)
	d.expectLine(e, "s", "8388608")
	stats, err := e.Stats(ctx)
	if err != nil || len(stats) != 1 {
		t.Fatalf("stats %v, %v", stats, err)
	}
	s := stats[0]
	if s.ID != "s" || s.MemoryWorkingSetBytes < 8<<20 || s.CPUUsage <= 0 || s.PIDs == 0 {
		t.Errorf("stats %+v", s)
	}
	if err := e.UpdateResources(ctx, "s", engine.Resources{MemoryLimitBytes: 48 << 20}); err != nil {
		t.Fatal(err)
	}
	if n, err := e.WritableLayer(ctx, "s"); err != nil || n < 0 {
		t.Errorf("writable layer %d, %v", n, err)
	}
}

// late takes nothing for some time, longer than output may pause, and then all.
type late struct {
	bytes.Buffer
	wait time.Duration
}

func (l *late) Write(b []byte) (int, error) {
	time.Sleep(l.wait)
	l.wait = 0
	return l.Buffer.Write(b)
}

func TestExec(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	d.start(e, d.box("c", "forever"))
	t.Run("exit code and streams", func(t *testing.T) {
		var out, errOut bytes.Buffer
		code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "env=FROM", "env=X", "error=e", "exit=3"}, Env: []string{"X=y"}},
			engine.Streams{Stdout: &out, Stderr: &errOut})
		if err != nil || code != 3 || out.String() != "image\ny\n" || errOut.String() != "e\n" {
			t.Errorf("code %d, err %v, output %q %q", code, err, &out, &errOut)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		var out bytes.Buffer
		big := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB: more than any pipe
		code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "cat"}},
			engine.Streams{Stdin: strings.NewReader(big), Stdout: &out})
		if err != nil || code != 0 || out.String() != big {
			t.Errorf("code %d, err %v, %d bytes of %d", code, err, out.Len(), len(big))
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		sizes := make(chan engine.Size, 1)
		sizes <- engine.Size{Width: 80, Height: 24}
		code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "env=TERM", "error=both", "exit=4"}, TTY: true},
			engine.Streams{Stdout: &out, Resize: sizes})
		if err != nil || code != 4 || out.String() != "xterm\r\nboth\r\n" {
			t.Errorf("code %d, err %v, output %q", code, err, &out)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		_, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/nope"}}, engine.Streams{})
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("err %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "deaf"}}, engine.Streams{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err %v", err)
		}
	})
	t.Run("background child", func(t *testing.T) {
		var out bytes.Buffer
		code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "fork", "print=x", "exit=0"}}, engine.Streams{Stdout: &out})
		if err != nil || code != 0 || out.String() != "x\n" {
			t.Errorf("code %d, err %v, output %q", code, err, &out)
		}
	})
	t.Run("slow client", func(t *testing.T) {
		// Less than the pipes hold: the process ends before the client takes any.
		big := strings.Repeat("0123456789abcdef", 3<<10)
		out := &late{wait: 3 * time.Second}
		code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "cat"}}, engine.Streams{Stdin: strings.NewReader(big), Stdout: out})
		if err != nil || code != 0 || out.String() != big {
			t.Errorf("code %d, err %v, %d bytes of %d", code, err, out.Len(), len(big))
		}
	})
	t.Run("not running", func(t *testing.T) {
		d.create(e, d.box("idle", "forever"))
		_, err := e.Exec(ctx, "idle", engine.ExecSpec{Args: []string{"/bin/box"}}, engine.Streams{})
		if !errors.Is(err, engine.ErrNotRunning) {
			t.Errorf("err %v", err)
		}
	})
}

// Attach: a container with input and a terminal answers what it is told.
func TestStdinAndTerminal(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	spec := d.box("in", "upper", "exit=5")
	spec.Stdin = true
	d.start(e, spec)
	s, err := e.Stdio(ctx, "in")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stdin, err := e.Stdin(ctx, "in")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(stdin, "hello")
	buf := make([]byte, 64)
	n, err := s.Stdout.Read(buf)
	if err != nil || string(buf[:n]) != "HELLO\n" {
		t.Fatalf("answer %q, %v", buf[:n], err)
	}
	stdin.Close()
	if err := e.CloseStdin(ctx, "in"); err != nil {
		t.Fatal(err)
	}
	if c := d.wait(e, "in", engine.Exited); c.ExitCode != 5 {
		t.Errorf("exited as %+v", c)
	}

	spec = d.box("tty", "upper")
	spec.Stdin, spec.TTY = true, true
	d.start(e, spec)
	s, err = e.Stdio(ctx, "tty")
	if err != nil || s.Stderr != nil {
		t.Fatalf("stdio %+v, %v", s, err)
	}
	defer s.Close()
	if err := e.ResizeTTY(ctx, "tty", engine.Size{Width: 80, Height: 24}); err != nil {
		t.Error(err)
	}
	if stdin, err = e.Stdin(ctx, "tty"); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	fmt.Fprint(stdin, "hello\r")
	var got []byte
	for !bytes.Contains(got, []byte("HELLO")) {
		n, err := s.Stdout.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, buf[:n]...)
	}
}

// The containers of a Pod that shares its PID namespace see each other, and the
// holder is the first process.
func TestSharedPIDNamespace(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	d.start(e, engine.ContainerSpec{ID: "holder", Holder: true, CgroupParent: d.cfg.CgroupRoot + "/pod1"})
	holder := d.wait(e, "holder", engine.Running)
	spec := d.box("member", "read=/proc/1/comm")
	spec.PIDNSPath = fmt.Sprintf("/proc/%d/ns/pid", holder.PID)
	d.start(e, spec)
	if out, _ := d.output(e, "member"); out != "holder\n" {
		t.Errorf("first process %q", out)
	}
	spec = d.box("other", "fork", "print=up")
	spec.PIDNSPath = fmt.Sprintf("/proc/%d/ns/pid", holder.PID)
	d.start(e, spec)
	d.wait(e, "other", engine.Exited)
	for _, id := range []string{"member", "other", "holder"} {
		if err := e.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

// Twenty containers, started side by side, run, and Delete of a running one ends
// it.
func TestTwentyContainers(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id := fmt.Sprintf("c%02d", i)
			if err := errors.Join(e.Create(ctx, d.box(id, "forever")), e.Start(ctx, id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range e.List() {
		if c.State != engine.Running || c.PID == 0 {
			t.Errorf("container %+v", c)
		}
	}
	for i := range 20 {
		wg.Go(func() {
			if err := e.Delete(ctx, fmt.Sprintf("c%02d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := e.List(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}
