package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// TestContainerdOfOthers: with --containerd the images and layers are those of a
// containerd that was on the device before. It sees what is imported, keeps the layers
// of a running container though their image is removed, and may go away and come back
// meanwhile; reset leaves it with its images. A device goes over to it, and back, with
// containers running.
func TestContainerdOfOthers(t *testing.T) {
	t.Parallel()
	programs, err := filepath.Abs("../../.cache/containerd/usr/bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(programs, "containerd")); err != nil {
		t.Fatalf("%v: `make containerd` fetches it", err)
	}
	d := harness.Lone(t)
	runs := func(name string) {
		t.Helper()
		d.MustKubectl(sleeperNamed(name), "create", "-f", "-")
		d.MustKubectl("", "wait", "--for=condition=Ready", "pod/"+name, "--timeout=2m")
	}
	works := func(name string) {
		t.Helper()
		if out := d.MustKubectl("", "exec", name, "--", "sh", "-c", "echo written > /f && /bin/busybox cat /f"); out != "written\n" {
			t.Errorf("%s has %q", name, out)
		}
	}
	d.ImportBusybox()
	runs("before")
	d.Stop()
	dir := filepath.Join(d.Dir, "theirs")
	socket := filepath.Join(dir, "s")
	run := func(argv ...string) string {
		t.Helper()
		out, err := d.Run(argv...)
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		return out
	}
	ctr := func(args ...string) string {
		t.Helper()
		return run(append([]string{filepath.Join(programs, "ctr"), "-a", socket, "-n", "k8s.io"}, args...)...)
	}
	run("mkdir", "-p", dir)
	config := filepath.Join(dir, "config.toml")
	run("sh", "-c", fmt.Sprintf("printf 'version = 2\\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\\nroot = \"%[1]s/root\"\\nstate = \"%[1]s/state\"\\n[grpc]\\naddress = \"%[1]s/s\"\\n' > %[2]s", dir, config))
	containerd := func() (end func()) {
		t.Helper()
		cmd := d.Command(context.Background(), filepath.Join(programs, "containerd"), "-c", config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			run("sh", "-c", fmt.Sprintf(`for d in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' < $d/cmdline 2>/dev/null)" = "%s/containerd -c %s " ] && kill -9 ${d#/proc/}
done; true`, programs, config))
			_ = cmd.Wait() // it was killed
		}
	}

	// Started beside it, and first.
	d.Start("--containerd", "unix://"+socket)
	end := containerd()
	t.Cleanup(func() { end() })
	d.WaitReady()
	works("before")
	d.MustKubectl("", "delete", "pod", "before", "--grace-period=0")
	d.ImportBusybox()
	if out := ctr("images", "ls", "-q"); !strings.Contains(out, harness.Busybox) {
		t.Errorf("the other containerd has the images %q", out)
	}
	if out := d.MustKubectl("", "get", "node", "-o", "jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}"); !strings.HasPrefix(out, "containerd://1.") {
		t.Errorf("the Node's runtime is %s", out)
	}
	runs("one")
	works("one")
	ctr("images", "rm", "--sync", harness.Busybox)
	works("one")
	d.ImportBusybox()

	end()
	works("one")
	end = containerd()
	d.Eventually(time.Minute, "it to answer again", func() error {
		_, err := d.Run(filepath.Join(programs, "ctr"), "-a", socket, "version")
		return err
	})
	runs("two")
	works("two")
	if n := strings.Count(ctr("snapshots", "ls"), "Active"); n != 2 {
		t.Errorf("%d snapshots for 2 containers", n)
	}
	d.MustKubectl("", "delete", "pod", "one")
	d.Eventually(time.Minute, "its snapshot to go", func() error {
		if n := strings.Count(ctr("snapshots", "ls"), "Active"); n != 1 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})

	d.Kill()
	d.Start("--containerd", socket)
	d.WaitReady()
	works("two")

	// The way back: what runs goes on, and what it had is gone by the next start.
	d.Stop()
	d.Start()
	d.WaitReady()
	works("two")
	d.MustKubectl("", "delete", "pod", "two", "--grace-period=0")
	runs("after")
	works("after")
	d.MustKubectl("", "delete", "pod", "after", "--grace-period=0")
	d.Stop()
	d.Start()
	d.WaitReady()
	d.Eventually(time.Minute, "rid of what it had in the other containerd", func() error {
		if n := strings.Count(ctr("snapshots", "ls"), "Active"); n != 0 {
			return fmt.Errorf("there are %d snapshots", n)
		}
		return nil
	})
	d.Stop()
	d.Start("--containerd", socket)
	d.WaitReady()
	runs("three")

	d.Stop()
	if out, err := d.Edged("reset", "--data-dir", d.DataDir(), "--run-dir", d.RunDir()); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out := ctr("images", "ls", "-q"); !strings.Contains(out, harness.Busybox) {
		t.Errorf("after reset the images are %q", out)
	}
	if n := strings.Count(ctr("snapshots", "ls"), "Active"); n != 0 {
		t.Errorf("reset left %d snapshots", n)
	}
}
