package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// TestImageOfAnotherDevice: an image is imported on one device; a Pod on another
// runs with it, and one that has to ask the registry does not.
func TestImageOfAnotherDevice(t *testing.T) {
	devices := newCluster(t, 2)
	devices[0].ImportBusybox()
	p := placeOn(t, devices[0])
	on := `{"spec":{"nodeName":"` + devices[1].Name + `"}}`
	p.kubectl("run", "copied", "--image=edged.example/busybox:1", "--image-pull-policy=IfNotPresent", "--overrides", on, "--", "sleep", "3600")
	p.kubectl("wait", "--for=condition=Ready", "pod/copied", "--timeout=60s")
	out, err := devices[1].Edged("image", "list", "--run-dir", devices[1].RunDir())
	if err != nil || !strings.Contains(out, "edged.example/busybox:1") {
		t.Errorf("images of the other device: %v\n%s", err, out)
	}
	p.kubectl("run", "fresh", "--image=edged.example/busybox:1", "--image-pull-policy=Always", "--overrides", on, "--", "sleep", "3600")
	p.eventually(60*time.Second, "told that the registry does not answer", func() error {
		out, err := p.Kubectl("", "-n", p.ns, "get", "pod", "fresh", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
		if err == nil && !strings.Contains(out, "failed to resolve reference") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}

// TestImageDir: a device has the images whose archives lie in --image-dir, also one
// that was put there while it was off; one that is damaged holds up none.
func TestImageDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := harness.New(t, harness.NewSwitch(t), 1, "--image-dir", dir)
	if err := os.WriteFile(filepath.Join(dir, "a-damaged.tar"), []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.WaitReady()
	d.Eventually(30*time.Second, "told of the damaged archive", func() error {
		if log := d.LogTail(); !strings.Contains(log, "a-damaged.tar") {
			return fmt.Errorf("its log does not name it")
		}
		return nil
	})
	d.PowerOff()
	archive, err := d.BusyboxArchive()
	if err == nil {
		err = os.Rename(archive, filepath.Join(dir, "busybox.tar"))
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Reboot()
	d.WaitReady()
	p := placeOn(t, d)
	p.kubectl("run", "offline", "--image="+harness.Busybox, "--image-pull-policy=Never", "--", "sleep", "3600")
	p.waitReady("offline")
}

// TestLastCopy: of an imported image that no Pod uses, a device whose disk runs
// full gives up its copy while another has one, and keeps the last; with that the
// first device runs it again.
func TestLastCopy(t *testing.T) {
	t.Parallel()
	devices := newClusterWith(t, 2, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		return harness.NewOnDisk(t, sw, i, 256, flags...)
	})
	keeper, other := devices[0], devices[1]
	other.ImportBusybox()
	p := placeOn(t, keeper)
	on := func(d *harness.Device) string {
		return `{"spec":{"nodeName":"` + d.Name + `","terminationGracePeriodSeconds":1}}`
	}
	p.kubectl("run", "copied", "--image="+harness.Busybox, "--overrides", on(keeper), "--", "sleep", "3600")
	p.waitReady("copied")
	p.kubectl("delete", "pod", "copied", "--timeout=60s")
	has := func(d *harness.Device) bool {
		t.Helper()
		out, err := d.Edged("image", "list", "--run-dir", d.RunDir())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out, harness.Busybox)
	}
	// fill leaves a fifteenth of a disk, which is where Pods would go next.
	fill := func(d *harness.Device) string {
		t.Helper()
		file := filepath.Join(d.DataDir(), "filler")
		if out, err := d.Run("sh", "-c", `fallocate -l $(df -B1 --output=avail,size "$1" | awk 'END {print int($1 - $2 / 15)}') "$1/filler"`, "sh", d.DataDir()); err != nil {
			t.Fatalf("filling the disk of %s: %v\n%s", d.Name, err, out)
		}
		return file
	}
	full := fill(other)
	p.eventually(60*time.Second, "short of space, "+other.Name+" has given its copy up", func() error {
		if has(other) {
			return fmt.Errorf("it has it")
		}
		return nil
	})
	fill(keeper)
	p.eventually(60*time.Second, keeper.Name+" is short of space", func() error {
		out, err := p.Kubectl("", "get", "node", keeper.Name, "-o", `jsonpath={.status.conditions[?(@.type=="DiskPressure")].status}`)
		if err == nil && out != "True" {
			err = fmt.Errorf("DiskPressure is %q", out)
		}
		return err
	})
	time.Sleep(25 * time.Second) // two looks at the disk
	if !has(keeper) {
		t.Fatal("the last copy is gone")
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	p.kubectl("run", "again", "--image="+harness.Busybox, "--overrides", on(other), "--", "sleep", "3600")
	p.waitReady("again")
}
