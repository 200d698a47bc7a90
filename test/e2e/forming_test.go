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

// secretFile is what the cards of a cluster have in common.
func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func zeroTouch(secret string, expect int) []string {
	return []string{"--discovery", "mdns", "--cluster-name", "box", "--cluster-secret-file", secret, "--bootstrap-expect", fmt.Sprint(expect)}
}

// TestFiveDevicesFormACluster: five fresh devices with one secret, nothing typed,
// become one cluster; a sixth with another secret stays alone.
func TestFiveDevicesFormACluster(t *testing.T) {
	sw := harness.NewSwitch(t)
	secret := secretFile(t, "correct horse battery staple")
	devices := make([]*harness.Device, 5)
	for i := range devices {
		devices[i] = harness.New(t, sw, i+1, zeroTouch(secret, 3)...)
	}
	stranger := harness.New(t, sw, 6, zeroTouch(secretFile(t, "another secret of a neighbor"), 2)...)
	t.Cleanup(func() {
		for _, d := range append(devices, stranger) {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		}
	})
	start := time.Now()
	stranger.Start()
	for _, d := range devices {
		d.Start()
	}
	for _, d := range devices {
		d.WaitReady()
	}
	t.Logf("five APIs were ready after %v", time.Since(start).Round(100*time.Millisecond))
	allReady(t, devices[0], 5)
	t.Logf("five Nodes were ready after %v", time.Since(start).Round(100*time.Millisecond))
	uids := map[string]bool{}
	for _, d := range devices {
		ns, err := d.Client().CoreV1().Namespaces().Get(context.Background(), "kube-system", metav1.GetOptions{})
		if err != nil {
			t.Fatalf("%s: %v", d.Name, err)
		}
		uids[string(ns.UID)] = true
		allReady(t, d, 5)
	}
	if len(uids) != 1 {
		t.Errorf("%d clusters", len(uids))
	}
	devices[4].Eventually(60*time.Second, "five voters", func() error {
		out, err := devices[4].Edged("member", "list", "--run-dir", devices[4].RunDir())
		if err == nil && (strings.Count(out, "voter") != 4 || strings.Count(out, "leader") != 1) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	t.Logf("five voters after %v", time.Since(start).Round(100*time.Millisecond))
	if err := stranger.Ready(); err == nil {
		t.Error("a device with another secret has a cluster of its own though it expects two")
	}
}
