package e2e

import (
	"context"
	"errors"
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

// TestWitness: two devices and a witness form by themselves; whichever of the three
// is lost, writes go on. The witness runs no Pods and is small.
func TestWitness(t *testing.T) {
	sw := harness.NewSwitch(t)
	secret := secretFile(t, "correct horse battery staple")
	devices := []*harness.Device{
		harness.New(t, sw, 1, zeroTouch(secret, 3)...), harness.New(t, sw, 2, zeroTouch(secret, 3)...),
		harness.New(t, sw, 3, append(zeroTouch(secret, 3), "--role", "witness")...),
	}
	witness := devices[2]
	for _, d := range devices {
		d.Start()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		})
	}
	for _, d := range devices {
		d.WaitReady()
	}
	allReady(t, devices[0], 2) // and there is no third Node
	witness.Eventually(30*time.Second, "a witness that does not lead", func() error {
		out, err := witness.Edged("member", "list", "--run-dir", witness.RunDir())
		if err == nil && (!strings.Contains(out, "voter (witness)") || strings.Count(out, "leader") != 1) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if out, err := witness.Edged("image", "list", "--run-dir", witness.RunDir()); err == nil || !strings.Contains(err.Error(), "witness") {
		t.Errorf("images of a witness: %q %v", out, err)
	}
	n := 0
	write := func(d *harness.Device, without string) {
		t.Helper()
		start := time.Now()
		d.Eventually(60*time.Second, "writing without "+without, func() error {
			n++
			_, err := d.Kubectl("", "create", "configmap", fmt.Sprintf("c%d", n), "--request-timeout=3s")
			return err
		})
		t.Logf("without %s writes were accepted after %v", without, time.Since(start).Round(100*time.Millisecond))
	}
	for i, lost := range devices {
		other := devices[(i+1)%2]
		lost.PowerOff()
		write(other, lost.Name)
		lost.Reboot()
		lost.WaitReady()
		other.Eventually(60*time.Second, "complete", func() error {
			_, err := lost.Client().CoreV1().ConfigMaps("default").Get(context.Background(), fmt.Sprintf("c%d", n), metav1.GetOptions{})
			return err
		})
	}
	// Another card, for the same witness.
	witness.PowerOff()
	if err := errors.Join(os.RemoveAll(witness.DataDir()), os.Mkdir(witness.DataDir(), 0o755)); err != nil {
		t.Fatal(err)
	}
	witness.Reboot()
	witness.WaitReady()
	witness.Eventually(90*time.Second, "the witness again, and nobody else", func() error {
		out, err := devices[0].Edged("member", "list", "--run-dir", devices[0].RunDir())
		if err == nil && (strings.Count(out, "\n") != 4 || !strings.Contains(out, "voter (witness)")) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	devices[1].PowerOff()
	write(devices[0], devices[1].Name+", with the witness of the other card")

	// The witness gives back what starting took, a second after: 60 MB. What it used
	// since is there again.
	const given = 40e6
	witness.Eventually(30*time.Second, "memory given back", func() error {
		mem, err := witness.Memory()
		for _, m := range mem {
			if m.Command != "edged" {
				continue
			}
			if m.RSS > given {
				return fmt.Errorf("resident: %.1f MB, anonymous: %.1f MB", float64(m.RSS)/1e6, float64(m.Anon)/1e6)
			}
			t.Logf("witness: RSS %.1f MB, PSS %.1f MB, anonymous %.1f MB", float64(m.RSS)/1e6, float64(m.PSS)/1e6, float64(m.Anon)/1e6)
		}
		return err
	})
}

// TestStatusBeforeTheCluster: a device that is not of a cluster yet says what it
// waits for.
func TestStatusBeforeTheCluster(t *testing.T) {
	sw := harness.NewSwitch(t)
	member := harness.New(t, sw, 1)
	member.Start()
	member.WaitReady()
	token, err := member.Edged("token", "create", "--run-dir", member.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	joins := harness.New(t, sw, 2, "--join", "10.99.0.250:6443", "--token", strings.TrimSpace(token))
	looks := harness.New(t, sw, 3, zeroTouch(secretFile(t, "a secret that nobody shares"), 3)...)
	for d, want := range map[*harness.Device]string{
		joins: "device-2 is joining the cluster at 10.99.0.250:6443: join by 10.99.0.250:6443: ",
		looks: "device-3 is looking for the devices of cluster box, of which it expects 3",
	} {
		d.Start()
		d.Eventually(60*time.Second, "telling", func() error {
			out, err := d.Edged("status", "--run-dir", d.RunDir())
			if err == nil && !strings.HasPrefix(out, want) {
				err = fmt.Errorf("%q, want %q", out, want)
			}
			return err
		})
		out, err := d.Edged("token", "list", "--run-dir", d.RunDir())
		if err == nil || !strings.Contains(err.Error(), "try again when it is ready") {
			t.Errorf("%s: %q, %v", d.Name, out, err)
		}
	}
	joins.Stop() // also then
	if code, ended := joins.Exited(); !ended || code != 0 {
		t.Errorf("asked to stop while it joined, it ended %v with %d\n%s", ended, code, joins.LogTail())
	}
}
