package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// has waits until d's API answers with a ConfigMap.
func has(t *testing.T, d *harness.Device, name string) {
	t.Helper()
	d.Eventually(60*time.Second, "reading "+name, func() error {
		_, err := d.Client().CoreV1().ConfigMaps("default").Get(context.Background(), name, metav1.GetOptions{})
		return err
	})
}

// TestQuorumLost: two of three devices are gone for good. The third goes on by
// itself with all that it held; one of the lost comes back with nothing but a
// snapshot. The leader has put snapshots on another device meanwhile.
func TestQuorumLost(t *testing.T) {
	keeper := "device-3"
	devices := newCluster(t, 3, "--snapshot-interval", "1h", "--snapshot-dir", keeper+":")
	a, b, c := devices[0], devices[1], devices[2]
	if c.Name != keeper {
		t.Fatalf("the third device is %s", c.Name)
	}
	a.MustKubectl("", "create", "configmap", "kept", "--from-literal=a=b")
	has(t, c, "kept")
	saved := filepath.Join(b.Dir, "saved")
	if out, err := b.Edged("snapshot", "save", saved, "--run-dir", b.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	scheduled := filepath.Join(c.DataDir(), "snapshots", "edged-*.snapshot")
	c.Eventually(90*time.Second, "a scheduled snapshot in "+scheduled, func() error {
		if found, _ := filepath.Glob(scheduled); len(found) != 1 {
			status, _ := a.Edged("status", "-o", "json", "--run-dir", a.RunDir())
			return fmt.Errorf("%v; %s", found, status)
		}
		return nil
	})
	a.MustKubectl("", "create", "configmap", "later", "--from-literal=a=b")
	has(t, c, "later")

	a.PowerOff()
	b.Kill()
	c.Stop()
	if out, err := c.Edged("recover", "--force-new-cluster", "--data-dir", c.DataDir(), "--run-dir", c.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.Start()
	c.WaitReady()
	has(t, c, "kept")
	has(t, c, "later")
	c.MustKubectl("", "create", "configmap", "after", "--from-literal=a=b")

	if err := os.RemoveAll(filepath.Join(b.DataDir(), "store")); err != nil {
		t.Fatal(err)
	}
	if out, err := b.Edged("snapshot", "restore", saved, "--data-dir", b.DataDir(), "--run-dir", b.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.Start()
	b.WaitReady()
	has(t, b, "kept")
	_, err := b.Client().CoreV1().ConfigMaps("default").Get(context.Background(), "later", metav1.GetOptions{})
	if err == nil {
		t.Error("the snapshot holds what was written after it")
	}
	b.MustKubectl("", "create", "configmap", "again", "--from-literal=a=b")
}
