package engine_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edged/runtime/engine"
)

const daemonEnv = "EDGED_ENGINE_TEST_DAEMON"

// order is what a daemon in a process of its own is told to do.
type order struct {
	Config     engine.Config
	Containers []engine.ContainerSpec
	Exec       []string // run in the first container, for ever
	Import     string   // an archive
}

// daemonMain is a daemon that can be killed: it opens the engine, starts
// containers, says so for each, and hangs.
func daemonMain() {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(daemonEnv)), &o); err != nil {
		panic(err)
	}
	e, err := engine.Open(ctx, o.Config)
	if err != nil {
		panic(err)
	}
	if o.Import != "" {
		f, err := os.Open(o.Import)
		if err != nil {
			panic(err)
		}
		fmt.Println("importing")
		if _, err := e.ImportImages(ctx, f); err != nil {
			panic(err)
		}
	}
	for _, spec := range o.Containers {
		if err := errors.Join(e.Create(ctx, spec), e.Start(ctx, spec.ID)); err != nil {
			panic(err)
		}
		fmt.Println(spec.ID)
	}
	if o.Exec != nil {
		_, err := e.Exec(ctx, o.Containers[0].ID, engine.ExecSpec{Args: o.Exec}, engine.Streams{Stdout: os.Stdout})
		panic(fmt.Sprint("the exec ended: ", err))
	}
	fmt.Println("ready")
	select {}
}

// daemon runs a daemon until kill.
type daemon struct {
	t   testing.TB
	cmd *exec.Cmd
	out *bufio.Reader
}

func (d *device) daemon(o order) *daemon {
	d.t.Helper()
	o.Config = d.cfg
	o.Config.Logger = nil
	data, err := json.Marshal(o)
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonEnv+"="+string(data))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	r := &daemon{t: d.t, cmd: cmd, out: bufio.NewReader(out)}
	d.t.Cleanup(r.kill)
	return r
}

// expect reads the daemon's output until a line.
func (r *daemon) expect(line string) {
	r.t.Helper()
	for {
		got, err := r.out.ReadString('\n')
		if err != nil {
			r.t.Fatalf("the daemon ended before it said %q: %v", line, err)
		}
		if strings.TrimSpace(got) == line {
			return
		}
	}
}

func (r *daemon) kill() {
	_ = r.cmd.Process.Signal(syscall.SIGKILL)
	_ = r.cmd.Wait()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// importAway imports the images in an engine that is closed again.
func (d *device) importAway() {
	d.t.Helper()
	e, err := engine.Open(ctx, d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	importBox(d.t, e)
	if err := e.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// The daemon is killed and comes back: what ran runs on as the same process, what
// ended meanwhile has its exit code and all of its output, what wrote more than
// anyone read was held up and not cut off, and input still arrives.
func TestDaemonKilled(t *testing.T) {
	d := newDevice(t)
	d.importAway()
	dir := t.TempDir()
	mount := []engine.Mount{{Source: dir, Target: "/signal"}}
	leaver := d.box("leaver", "wait=/signal/go", "print=last words", "exit=9")
	leaver.Mounts = mount
	const spamBytes = 1 << 20
	writer := d.box("writer", "wait=/signal/go", fmt.Sprint("spam=", spamBytes), "exit=3")
	writer.Mounts = mount
	shell := d.box("shell", "upper", "exit=1")
	shell.Stdin = true
	daemon := d.daemon(order{Containers: []engine.ContainerSpec{d.box("stayer", "forever"), leaver, writer, shell}})
	daemon.expect("ready")
	daemon.kill()

	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	exitFile := filepath.Join(d.cfg.State, "containers", "leaver", "exit.json")
	eventually(t, "the leaver ends", func() bool { _, err := os.Stat(exitFile); return err == nil })

	e := d.open()
	if c, _ := e.Get("stayer"); c.State != engine.Running || c.PID == 0 || c.Labels["id"] != "stayer" {
		t.Errorf("stayer: %+v", c)
	}
	if c := d.wait(e, "leaver", engine.Exited); c.ExitCode != 9 {
		t.Errorf("leaver: %+v", c)
	}
	if out, _ := d.output(e, "leaver"); out != "last words\n" {
		t.Errorf("leaver said %q", out)
	}
	if c, _ := e.Get("writer"); c.State != engine.Running {
		t.Errorf("the writer did not wait for its reader: %+v", c)
	}
	out, _ := d.output(e, "writer")
	if len(out) != spamBytes || !strings.HasSuffix(out, fmt.Sprintf("%063d\n", spamBytes/64-1)) {
		t.Errorf("writer: %d bytes of %d", len(out), spamBytes)
	}
	if c := d.wait(e, "writer", engine.Exited); c.ExitCode != 3 {
		t.Errorf("writer: %+v", c)
	}
	s, err := e.Stdio(ctx, "shell")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stdin, err := e.Stdin(ctx, "shell")
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	fmt.Fprintln(stdin, "hello")
	buf := make([]byte, 64)
	if n, err := s.Stdout.Read(buf); err != nil || string(buf[:n]) != "HELLO\n" {
		t.Errorf("shell answered %q, %v", buf[:n], err)
	}
	d.expectLine(e, "stayer", "up")
	if err := e.Kill(ctx, "stayer", syscall.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if c := d.wait(e, "stayer", engine.Exited); c.ExitCode != 0 {
		t.Errorf("stayer: %+v", c)
	}
	for _, c := range e.List() {
		if err := e.Delete(ctx, c.ID); err != nil {
			t.Error(err)
		}
	}
}

// What a client was running in a container ends with the daemon.
func TestExecEndsWithDaemon(t *testing.T) {
	d := newDevice(t)
	d.importAway()
	daemon := d.daemon(order{Containers: []engine.ContainerSpec{d.box("c", "forever")}, Exec: []string{"/bin/box", "deaf"}})
	daemon.expect("up")
	daemon.kill()
	e := d.open()
	eventually(t, "the exec's folder goes", func() bool {
		dirs, _ := filepath.Glob(filepath.Join(d.cfg.State, "containers", "c", "exec-*"))
		return len(dirs) == 0
	})
	stats, err := e.Stats(ctx, "c")
	if err != nil || len(stats) != 1 {
		t.Fatalf("stats %v, %v", stats, err)
	}
	var out bytes.Buffer
	if code, err := e.Exec(ctx, "c", engine.ExecSpec{Args: []string{"/bin/box", "print=x"}}, engine.Streams{Stdout: &out}); code != 0 || err != nil || out.String() != "x\n" {
		t.Errorf("exec after the restart: %d, %v, %q", code, err, &out)
	}
}

// Whenever the daemon is killed while it makes and starts containers, the next one
// can bring each of them to run, or remove it.
func TestDaemonKilledAnywhere(t *testing.T) {
	d := newDevice(t)
	d.importAway()
	rng := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		var specs []engine.ContainerSpec
		for i := range 6 {
			specs = append(specs, d.box(fmt.Sprintf("r%dc%d", round, i), "forever"))
		}
		daemon := d.daemon(order{Containers: specs})
		daemon.expect(specs[rng.IntN(3)].ID)
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond) // the moment of the kill is what is tested
		daemon.kill()
		e, err := engine.Open(ctx, d.cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range e.List() {
			if c.State == engine.Created {
				// A start that was under way may have come to its end.
				if err := e.Start(ctx, c.ID); err != nil && !errors.Is(err, engine.ErrInvalid) {
					t.Errorf("round %d: %v", round, err)
				}
			}
			d.wait(e, c.ID, engine.Running)
			d.expectLine(e, c.ID, "up")
			if err := e.Delete(ctx, c.ID); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		entries, _ := os.ReadDir(filepath.Join(d.cfg.State, "containers"))
		if len(entries) > 0 {
			t.Errorf("round %d: folders are left: %v", round, entries)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// shimPID finds the shim by its working directory.
func (d *device) shimPID() int {
	d.t.Helper()
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		exe, _ := os.Readlink(filepath.Join(filepath.Dir(link), "exe"))
		if at, _ := os.Readlink(link); at == filepath.Join(d.cfg.State, "shim") && strings.Contains(exe, "shim") {
			var pid int
			fmt.Sscanf(link, "/proc/%d/", &pid)
			return pid
		}
	}
	d.t.Fatal("no shim")
	return 0
}

// The shim dies: its containers are ended and reported, nothing of them is left
// running, and others can be started.
func TestShimKilled(t *testing.T) {
	d := newDevice(t)
	e := d.openWithImages()
	d.start(e, d.box("old", "forever"))
	d.start(e, d.box("done", "exit=6"))
	d.wait(e, "done", engine.Exited)
	old, _ := e.Get("old")
	if err := syscall.Kill(d.shimPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c := d.wait(e, "old", engine.Unknown)
	if c.ExitCode != 137 || c.Message == "" {
		t.Errorf("old: %+v", c)
	}
	if c, _ := e.Get("done"); c.ExitCode != 6 || c.State != engine.Exited {
		t.Errorf("done: %+v", c)
	}
	eventually(t, "the process ends", func() bool { return syscall.Kill(old.PID, 0) != nil || isZombie(old.PID) })
	d.start(e, d.box("new", "print=x", "exit=2"))
	if out, _ := d.output(e, "new"); out != "x\n" {
		t.Errorf("new said %q", out)
	}
	for _, id := range []string{"old", "done", "new"} {
		if err := e.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

func isZombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(data), ") Z ")
}

// Daemon and shim die: exit codes that the shim knew are right, the rest is
// unknown and ended.
func TestBothKilled(t *testing.T) {
	d := newDevice(t)
	d.importAway()
	daemon := d.daemon(order{Containers: []engine.ContainerSpec{d.box("stayer", "deaf"), d.box("leaver", "sleep=300ms", "exit=9")}})
	daemon.expect("ready")
	daemon.kill()
	exitFile := filepath.Join(d.cfg.State, "containers", "leaver", "exit.json")
	eventually(t, "the leaver ends", func() bool { _, err := os.Stat(exitFile); return err == nil })
	if err := syscall.Kill(d.shimPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := d.open()
	if c, _ := e.Get("leaver"); c.State != engine.Exited || c.ExitCode != 9 {
		t.Errorf("leaver: %+v", c)
	}
	if c, _ := e.Get("stayer"); c.State != engine.Unknown || c.ExitCode != 137 {
		t.Errorf("stayer: %+v", c)
	}
	for _, id := range []string{"leaver", "stayer"} {
		if err := e.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

// After a reboot there are images and no containers, also when the run-dir is on
// a disk.
func TestReboot(t *testing.T) {
	d := newDevice(t)
	d.importAway()
	daemon := d.daemon(order{Containers: []engine.ContainerSpec{d.box("c", "forever")}})
	daemon.expect("ready")
	daemon.kill()
	// What a power cut does, as far as it can be done to one device of a machine.
	if err := syscall.Kill(d.shimPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.cfg.State, "boot"), []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := d.open()
	if list := e.List(); len(list) != 0 {
		t.Errorf("containers after a reboot: %+v", list)
	}
	layer := filepath.Join(d.cfg.Root, "containers", "c")
	eventually(t, "the writable layer goes", func() bool { _, err := os.Stat(layer); return err != nil })
	d.start(e, d.box("c", "print=again"))
	if out, _ := d.output(e, "c"); out != "again\n" {
		t.Errorf("said %q", out)
	}
}

// One data folder, one engine.
func TestSecondEngine(t *testing.T) {
	d := newDevice(t)
	d.open()
	if _, err := engine.Open(ctx, d.cfg); err == nil || !strings.Contains(err.Error(), "another edged") {
		t.Errorf("second open: %v", err)
	}
}

// Reset works with everything running and no engine.
func TestCleanupOfRunning(t *testing.T) {
	d := newDevice(t) // whose cleanup is the test
	d.importAway()
	daemon := d.daemon(order{Containers: []engine.ContainerSpec{d.box("a", "deaf"), d.box("b", "forever"), d.box("c", "exit=1")}})
	daemon.expect("ready")
	daemon.kill()
	if err := engine.Cleanup(ctx, withoutBin(d.cfg)); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{d.cfg.Root, d.cfg.State} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

func withoutBin(cfg engine.Config) engine.Config {
	cfg.BinDir = filepath.Join(cfg.Root, "no-bin")
	return cfg
}
