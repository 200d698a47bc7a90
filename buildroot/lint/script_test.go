package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets this program stand in for edged: a copy of that name waits to be ended.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "edged" {
		time.Sleep(time.Hour)
		return
	}
	os.Exit(m.Run())
}

// TestInitScript starts, restarts and stops a daemon by S90edged with the programs
// that it finds on a Buildroot system, BusyBox's.
func TestInitScript(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: make deps")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("../external/package/edged/S90edged")
	if err != nil {
		t.Fatal(err)
	}
	// What is the machine's own is not touched: a shell of BusyBox's would take its own
	// mount and hostname, whatever PATH says.
	text := string(script)
	for old, stub := range map[string]string{
		"\tmount -t ": "\t" + bin + "/mount -t ", "$(hostname)": "$(" + bin + "/hostname)", "|| hostname ": "|| " + bin + "/hostname ",
		"/usr/bin/": dir + "/usr-bin/", "/var/run/": dir + "/", "/proc/device-tree/serial-number": dir + "/serial", "/sys/fs/cgroup/cgroup.procs": dir + "/none",
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("S90edged does not hold %q", old)
		}
		text = strings.ReplaceAll(text, old, stub)
	}
	for _, d := range []string{bin, dir + "/usr-bin"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, content := range map[string]string{
		dir + "/usr-bin/edged": string(self), dir + "/S90edged": text, dir + "/serial": "100000003d1d1c36\x00",
		bin + "/hostname": "#!/bin/sh\n[ $# = 0 ] && echo edged || echo hostname \"$@\" >>" + dir + "/log\n",
		bin + "/mount":    "#!/bin/sh\necho mount \"$@\" >>" + dir + "/log\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range []string{"start-stop-daemon", "tr", "cat", "tail", "rm", "sleep", "echo", "printf", "["} {
		if err := os.Symlink(busybox, filepath.Join(bin, applet)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(verb string) (string, error) {
		cmd := exec.Command("/bin/sh", dir+"/S90edged", verb)
		cmd.Env = []string{"PATH=" + bin}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// running is the daemon's process, by /proc: it may take a moment to be that
	// program.
	running := func() (pid string) {
		text, err := os.ReadFile(dir + "/edged.pid")
		if err != nil {
			return ""
		}
		pid = strings.TrimSpace(string(text))
		for range 1000 {
			exe, err := os.Readlink("/proc/" + pid + "/exe")
			if err != nil {
				return ""
			}
			if exe == dir+"/usr-bin/edged" {
				return pid
			}
			time.Sleep(10 * time.Millisecond)
		}
		return ""
	}
	t.Cleanup(func() { _, _ = run("stop") }) // it may be stopped
	if out, err := run("start"); err != nil {
		t.Fatalf("start: %v: %s", err, out)
	}
	first := running()
	if first == "" {
		t.Fatal("start: it does not run")
	}
	if out, err := run("restart"); err != nil {
		t.Fatalf("restart: %v: %s", err, out)
	}
	if second := running(); second == "" || second == first {
		t.Errorf("restart: process %q after %q", second, first)
	}
	if out, err := run("stop"); err != nil || running() != "" {
		t.Errorf("stop: %v: %s; process %q", err, out, running())
	}
	log, err := os.ReadFile(dir + "/log")
	if want := "mount -t cgroup2 cgroup2 /sys/fs/cgroup\nhostname edged-3d1d1c36\n"; err != nil || string(log) != want+want {
		t.Errorf("it did %q, %v; want %q twice", log, err, want)
	}
	if out, err := run("nonsense"); err == nil || !strings.Contains(out, "Usage:") {
		t.Errorf("nonsense: %v: %s", err, out)
	}
}
