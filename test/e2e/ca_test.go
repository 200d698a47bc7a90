package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// ca runs `edged ca` on a device.
func ca(d *harness.Device, args ...string) (string, error) {
	return d.Edged(append([]string{"ca", "--run-dir", d.RunDir()}, args...)...)
}

// TestReplaceCA: the CA is replaced while a device is off. Nobody is shut out
// meanwhile, the device catches up, a new one can join with an old token, and
// after 'finish' the old CA is worth nothing.
func TestReplaceCA(t *testing.T) {
	devices := newCluster(t, 3)
	first, away := devices[0], devices[2]
	old, err := os.ReadFile(first.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	oldFile := first.Dir + "/old.kubeconfig"
	if err := os.WriteFile(oldFile, old, 0o600); err != nil {
		t.Fatal(err)
	}
	withOld := func(args ...string) (string, error) {
		return first.Run(append([]string{harness.Kubectl(), "--kubeconfig", oldFile}, args...)...)
	}
	token, err := first.Edged("token", "create", "--run-dir", first.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	away.PowerOff()
	// The other two go on by themselves when the leader was the one that is off.
	first.Eventually(30*time.Second, "beginning to replace the CA", func() error { _, err := ca(first, "rotate"); return err })
	first.Eventually(30*time.Second, "both devices with the new CA", func() error {
		out, err := ca(first, "status")
		if err == nil && !strings.Contains(out, "not yet: "+away.Name+"\n") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if _, err := ca(first, "finish"); err == nil || !strings.Contains(err.Error(), away.Name) {
		t.Errorf("finish while %s is away: %v", away.Name, err)
	}
	for _, get := range []func() (string, error){
		func() (string, error) { return withOld("get", "nodes") },
		func() (string, error) { return devices[1].Kubectl("", "get", "nodes") },
	} {
		if out, err := get(); err != nil {
			t.Errorf("while the CA is replaced: %v: %s", err, out)
		}
	}
	late := harness.New(t, first.Switch(), 4, "--join", first.Addr.String()+":6443", "--token", strings.TrimSpace(token))
	late.Start()
	late.WaitReady()
	away.Reboot()
	away.WaitReady()
	allReady(t, first, 4)
	first.Eventually(30*time.Second, "giving up the old CA", func() error { _, err := ca(first, "finish"); return err })
	first.Eventually(30*time.Second, "shutting out who knows the old CA", func() error {
		if out, err := withOld("get", "nodes"); err == nil {
			return fmt.Errorf("still let in: %s", out)
		}
		return nil
	})
	for _, d := range append(devices, late) {
		d.Eventually(30*time.Second, "trusting one CA", func() error {
			pem, err := os.ReadFile(d.DataDir() + "/pki/ca.crt")
			if err == nil && bytes.Count(pem, []byte("BEGIN")) != 1 {
				err = fmt.Errorf("%d certificates", bytes.Count(pem, []byte("BEGIN")))
			}
			return err
		})
	}
	late.MustKubectl("", "create", "configmap", "afterwards")
	first.Eventually(30*time.Second, "publishing the new CA to Pods", func() error {
		out, err := first.Kubectl("", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}")
		pem, _ := os.ReadFile(first.DataDir() + "/pki/ca.crt")
		if err == nil && strings.TrimSpace(out) != strings.TrimSpace(string(pem)) {
			err = fmt.Errorf("another one is published")
		}
		return err
	})
}
