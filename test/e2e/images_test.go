package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
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
