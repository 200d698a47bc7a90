package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edged/test/harness"
)

// TestDaemonUpgrade: the daemon's binary is replaced under a running container,
// which does not notice; what is no edged is refused; one that does not come up is
// taken back.
func TestDaemonUpgrade(t *testing.T) {
	whole, err := os.ReadFile(harness.Edged())
	if err != nil {
		t.Fatal(err)
	}
	d := harness.New(t, harness.NewSwitch(t), 1)
	d.Binary = filepath.Join(d.Dir, "edged")
	file := func(name string, data []byte) string {
		path := filepath.Join(d.Dir, name)
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("edged", whole)
	d.Start()
	d.WaitReady()
	d.ImportBusybox()
	p := placeOn(t, d)
	p.apply(fmt.Sprintf(sleeper, "steady", 7654300))
	before := p.waitReady("steady").Status.ContainerStatuses[0]
	process := func() string {
		out, err := p.Run("sh", "-c", `for d in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $d/cmdline 2>/dev/null)" = "sleep 7654300 " ] && echo ${d#/proc/} $(cut -d ' ' -f 22 $d/stat); done; true`)
		if err != nil || strings.Count(out, "\n") != 1 {
			t.Fatalf("processes of the container: %q %v", out, err)
		}
		return out
	}
	same := func() {
		t.Helper()
		d.WaitReady()
		pod := p.waitReady("steady")
		if now := pod.Status.ContainerStatuses[0]; now.ContainerID != before.ContainerID || now.RestartCount != 0 || !now.State.Running.StartedAt.Equal(&before.State.Running.StartedAt) {
			t.Errorf("the container was %+v, is %+v", before, now)
		}
	}
	was := process()
	upgrade := func(args ...string) (string, error) {
		return d.Edged(append([]string{"upgrade", "--run-dir", d.RunDir()}, args...)...)
	}

	// Bytes behind the program change the file and nothing else.
	next := append(whole[:len(whole):len(whole)], "another build"...)
	out, err := upgrade("--daemon", file("next", next))
	if err != nil || !strings.Contains(out, "the daemon is ready") {
		t.Fatalf("%q %v\n%s", out, err, d.LogTail())
	}
	if now, err := os.ReadFile(d.Binary); err != nil || len(now) != len(next) {
		t.Errorf("the binary has %d bytes, want %d: %v", len(now), len(next), err)
	}
	same()

	if _, err := upgrade("--daemon", file("garbage", []byte("garbage"))); err == nil || !strings.Contains(err.Error(), "is not an edged that this machine can start") {
		t.Errorf("garbage: %v", err)
	}
	if _, err := upgrade("--daemon", file("next", next), "--sha256", strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "--sha256") {
		t.Errorf("another hash: %v", err)
	}
	same()

	// It knows its version and cannot do more.
	broken := file("broken", []byte("#!/bin/sh\n[ \"$1\" = version ] && echo edged broken\n"))
	if _, err := upgrade("--daemon", broken, "--wait", "2s"); err == nil || !strings.Contains(err.Error(), "is the old one again") {
		t.Errorf("a broken one: %v", err)
	}
	if now, err := os.ReadFile(d.Binary); err != nil || len(now) != len(next) {
		t.Errorf("after a broken one the binary has %d bytes, want %d: %v", len(now), len(next), err)
	}
	d.Start() // as a service manager does
	same()
	if now := process(); now != was {
		t.Errorf("the process was %q, is %q", was, now)
	}
}
