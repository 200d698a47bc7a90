package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

	if _, err := upgrade("--daemon", file("garbage", []byte("garbage"))); err == nil || !strings.Contains(err.Error(), "it is not an edged that this machine can start") {
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

// TestRollingUpgrade: started on one device, every device of three gets another
// daemon, the containers go on; with a daemon that does not come up, the first
// device takes its old one back and the others are not touched.
func TestRollingUpgrade(t *testing.T) {
	whole, err := os.ReadFile(harness.Edged())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(path string, data []byte) string {
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	devices := newClusterOf(t, 3, func(d *harness.Device) {
		d.Binary = file(filepath.Join(d.Dir, "edged"), whole)
	})
	for _, d := range devices {
		d.ImportBusybox()
	}
	p := placeOn(t, devices[1])
	ids := map[string]string{}
	for i, d := range devices {
		name := fmt.Sprintf("steady-%d", i)
		p.kubectl("run", name, "--image=edged.example/busybox:1", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, d.Name), "--", "sleep", "3600")
		ids[name] = p.waitReady(name).Status.ContainerStatuses[0].ContainerID
	}
	check := func(size int) {
		t.Helper()
		allReady(t, devices[1], 3)
		for _, d := range devices {
			if now, err := os.ReadFile(d.Binary); err != nil || len(now) != size {
				t.Errorf("the binary of %s has %d bytes, want %d: %v", d.Name, len(now), size, err)
			}
		}
		nodes, err := devices[1].Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes.Items {
			if n.Spec.Unschedulable {
				t.Errorf("%s is still cordoned", n.Name)
			}
		}
		for name, id := range ids {
			if now := p.waitReady(name).Status.ContainerStatuses[0]; now.ContainerID != id || now.RestartCount != 0 {
				t.Errorf("the container of %s was %s, is %+v", name, id, now)
			}
		}
	}
	upgrade := func(binary string) (string, error) {
		return devices[1].Edged("upgrade", "--cluster", "--run-dir", devices[1].RunDir(), "--daemon", binary)
	}
	next := append(whole[:len(whole):len(whole)], "another build"...)
	began := time.Now()
	out, err := upgrade(file(filepath.Join(dir, "next"), next))
	if err != nil || !strings.Contains(out, "every device runs") {
		t.Fatalf("%q %v", out, err)
	}
	t.Logf("three devices in %v: %q", time.Since(began).Round(time.Second), out)
	check(len(next))

	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // what a service manager does
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			for _, d := range devices {
				if _, ended := d.Exited(); ended {
					d.Start()
				}
			}
		}
	}()
	_, err = upgrade(file(filepath.Join(dir, "broken"), []byte("#!/bin/sh\n[ \"$1\" = version ] && echo edged broken\n")))
	close(stop)
	<-done
	if err == nil || !strings.Contains(err.Error(), "is the old one again; the devices after it were not touched") {
		t.Errorf("a broken one: %v", err)
	}
	check(len(next))
}
