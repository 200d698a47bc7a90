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
