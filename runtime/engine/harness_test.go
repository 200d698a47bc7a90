package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edged/internal/ociimage"
	"edged/runtime/engine"
)

// patience bounds every wait for a state: machines that run these tests are slow
// and shared.
const patience = 60 * time.Second

const boxName = "test.local/box:1"

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		daemonMain() // see restart_test.go
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if dir, err := sharedBin(); err == nil {
			os.RemoveAll(dir)
		}
		os.Exit(code)
	}))
}

// boxArchive builds the test image once for all tests: an OCI archive with a
// second image of two layers.
var boxArchive = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "box-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "base", "bin", "box"), "./testdata/box")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the test program: %w\n%s", err, out)
	}
	files := map[string]string{
		"base/etc/passwd":  "root:x:0:0::/root:/bin/box\nalice:x:1000:1000::/:/bin/box\n",
		"base/etc/group":   "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n",
		"base/tmp/.keep":   "",
		"extra/etc/banner": "second layer\n",
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return nil, err
		}
	}
	config := ociimage.Config{Entrypoint: []string{"/bin/box"}, Cmd: []string{"print=hello"}, Env: []string{"FROM=image"}}
	custom := config
	custom.User, custom.WorkingDir, custom.StopSignal = "alice", "/srv", "SIGINT"
	var archive bytes.Buffer
	err = ociimage.Write(&archive, dir, ociimage.Spec{
		Arch:   runtime.GOARCH,
		Layers: map[string]string{"base": "base", "extra": "extra"},
		Images: []ociimage.Image{
			{Names: []string{boxName, "test.local/box:latest"}, Layers: []string{"base"}, Config: config},
			{Names: []string{"test.local/custom:1"}, Layers: []string{"base", "extra"}, Config: custom},
		},
	})
	return archive.Bytes(), err
})

// device is an engine's configuration in folders and control groups of its own.
type device struct {
	t   testing.TB
	cfg engine.Config
}

var devices atomic.Int64

func newDevice(t testing.TB) *device {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("", "eng") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, cfg: engine.Config{
		Root: dir + "/data", State: dir + "/run", BinDir: binDir(t),
		CgroupRoot: fmt.Sprintf("/edged-test-%d-%d", os.Getpid(), devices.Add(1)),
		Logger:     slog.New(slog.NewTextHandler(newTestWriter(t), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	t.Cleanup(func() {
		cfg := d.cfg
		cfg.BinDir = dir + "/bin" // the shared programs stay
		if t.Failed() {
			log, _ := os.ReadFile(dir + "/run/shim/log")
			t.Logf("shim log:\n%s", log)
		}
		if err := engine.Cleanup(context.Background(), cfg); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		d.checkNothingLeft(dir)
		os.RemoveAll(dir)
	})
	return d
}

// binDir is where the carried programs lie for all tests of a run.
var sharedBin = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "engbin") })

func binDir(t testing.TB) string {
	t.Helper()
	dir, err := sharedBin()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// testWriter logs to a test while it runs; containerd's global logger may keep it
// for longer.
type testWriter struct {
	mu   sync.Mutex
	t    testing.TB
	over bool
}

func newTestWriter(t testing.TB) *testWriter {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
	})
	return w
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// checkNothingLeft is the proof of Cleanup: no mounts, processes, control groups.
func (d *device) checkNothingLeft(dir string) {
	d.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			d.t.Errorf("a mount is left: %s", line)
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + d.cfg.CgroupRoot)
	if one, _ := filepath.Glob("/sys/fs/cgroup" + d.cfg.CgroupRoot); len(groups)+len(one) > 0 {
		d.t.Errorf("control groups are left: %v %v", groups, one)
	}
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if at, _ := os.Readlink(link); strings.HasPrefix(at, dir) {
			d.t.Errorf("process %s works in %s", link, at)
		}
	}
}

// open opens the engine and closes it with the test.
func (d *device) open() *engine.Engine {
	d.t.Helper()
	e, err := engine.Open(context.Background(), d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := e.Close(); err != nil {
			d.t.Errorf("close: %v", err)
		}
	})
	return e
}

// openWithImages is open with the test images imported.
func (d *device) openWithImages() *engine.Engine {
	d.t.Helper()
	e := d.open()
	importBox(d.t, e)
	return e
}

func importBox(t testing.TB, e *engine.Engine) {
	t.Helper()
	archive, err := boxArchive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.ImportImages(context.Background(), bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
}

// box is the specification of a container that runs the test program.
func (d *device) box(id string, steps ...string) engine.ContainerSpec {
	return engine.ContainerSpec{
		ID: id, Image: boxName, Args: steps, CgroupParent: d.cfg.CgroupRoot + "/pod1",
		Labels: map[string]string{"id": id}, Hostname: "box",
	}
}

func (d *device) create(e *engine.Engine, spec engine.ContainerSpec) {
	d.t.Helper()
	if err := e.Create(context.Background(), spec); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) start(e *engine.Engine, spec engine.ContainerSpec) {
	d.t.Helper()
	d.create(e, spec)
	if err := e.Start(context.Background(), spec.ID); err != nil {
		d.t.Fatal(err)
	}
}

// wait for a container to reach a state.
func (d *device) wait(e *engine.Engine, id string, state engine.State) engine.Container {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		c, ok := e.Get(id)
		if ok && c.State == state {
			return c
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("container %s is %+v, want %s", id, c, state)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// output reads what a container says until it ends.
func (d *device) output(e *engine.Engine, id string) (stdout, stderr string) {
	d.t.Helper()
	s, err := e.Stdio(context.Background(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.Close()
	stop := time.AfterFunc(patience, func() { s.Close() })
	defer stop.Stop()
	var wg sync.WaitGroup
	var out, errOut bytes.Buffer
	wg.Go(func() { io.Copy(&out, s.Stdout) })
	if s.Stderr != nil {
		wg.Go(func() { io.Copy(&errOut, s.Stderr) })
	}
	wg.Wait()
	return out.String(), errOut.String()
}

// expectLine reads one line of a running container's output.
func (d *device) expectLine(e *engine.Engine, id, want string) {
	d.t.Helper()
	s, err := e.Stdio(context.Background(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.Close()
	stop := time.AfterFunc(patience, func() { s.Close() })
	defer stop.Stop()
	var got []byte
	for buf := make([]byte, 1); !bytes.HasSuffix(got, []byte("\n")); {
		if _, err := s.Stdout.Read(buf); err != nil {
			d.t.Fatalf("read the output of %s after %q: %v", id, got, err)
		}
		got = append(got, buf[0])
	}
	if strings.TrimSpace(string(got)) != want {
		d.t.Fatalf("container %s said %q, want %q", id, got, want)
	}
}
