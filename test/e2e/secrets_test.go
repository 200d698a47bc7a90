package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// onCard says whether any file of the device's data-dir holds text, as it is or in
// base64.
func onCard(t *testing.T, d *harness.Device, text string) bool {
	t.Helper()
	encoded := []byte(base64.StdEncoding.EncodeToString([]byte(text)))
	found := false
	err := filepath.WalkDir(d.DataDir(), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // replaced meanwhile
		}
		if err != nil || !e.Type().IsRegular() || found {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = bytes.Contains(data, []byte(text)) || bytes.Contains(data, encoded)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// readsSecret waits until d's API shows the Secret's value.
func readsSecret(t *testing.T, d *harness.Device, name, value string) {
	t.Helper()
	d.Eventually(30*time.Second, "reading the Secret "+name, func() error {
		s, err := d.Client().CoreV1().Secrets("default").Get(context.Background(), name, metav1.GetOptions{})
		if err == nil && string(s.Data["k"]) != value {
			err = fmt.Errorf("it holds %q", s.Data["k"])
		}
		return err
	})
}

func secretsStatus(t *testing.T, d *harness.Device) string {
	t.Helper()
	out, err := d.Edged("secrets", "status", "--run-dir", d.RunDir())
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// TestSecretsAreSealed: no file of any card holds a Secret's value, not even the
// log; each device reads it, also alone after a power cut; when a device is removed
// all are sealed under another key; a snapshot opens only with the keys.
func TestSecretsAreSealed(t *testing.T) {
	devices := newCluster(t, 3)
	a, b, c := devices[0], devices[1], devices[2]
	open, first, second := rand.Text(), rand.Text(), rand.Text()
	a.MustKubectl("", "create", "configmap", "open", "--from-literal=k="+open)
	a.MustKubectl("", "create", "secret", "generic", "first", "--from-literal=k="+first)
	c.MustKubectl("", "create", "secret", "generic", "second", "--from-literal=k="+second)
	for _, d := range devices {
		has(t, d, "open")
		readsSecret(t, d, "first", first)
		readsSecret(t, d, "second", second)
		if !onCard(t, d, open) {
			t.Errorf("%s: what is stored in the clear is not found either", d.Name)
		}
	}
	cards := func(when string, devices ...*harness.Device) {
		t.Helper()
		for _, d := range devices {
			if onCard(t, d, first) || onCard(t, d, second) {
				t.Errorf("%s holds a Secret in the clear, %s", d.Name, when)
			}
		}
	}
	cards("as it runs", devices...)
	before := secretsStatus(t, a)
	if !strings.Contains(before, "devices that can read them: device-1, device-2, device-3\n") {
		t.Errorf("%s", before)
	}

	// The island: nobody is there to give it the key.
	a.PowerOff()
	b.PowerOff()
	c.Reboot()
	c.WaitReady()
	readsSecret(t, c, "first", first)
	readsSecret(t, c, "second", second)
	for _, d := range []*harness.Device{a, b} {
		d.Reboot()
		d.WaitReady()
	}
	cards("after a power cut", devices...)

	saved := filepath.Join(a.Dir, "saved")
	if out, err := a.Edged("snapshot", "save", saved, "--run-dir", a.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	keys, err := a.Edged("secrets", "export", "--run-dir", a.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	a.Eventually(30*time.Second, "removing a device", func() error {
		_, err := a.Edged("member", "remove", c.Name, "--run-dir", a.RunDir())
		return err
	})
	key := func(status string) string {
		_, rest, _ := strings.Cut(status, "key: ")
		name, _, _ := strings.Cut(rest, "\n")
		return name
	}
	a.Eventually(30*time.Second, "another key", func() error {
		now := secretsStatus(t, a)
		if key(now) == key(before) || !strings.Contains(now, "devices that can read them: device-1, device-2\n") || strings.Contains(now, "sealed anew") {
			return errors.New(now)
		}
		return nil
	})
	for _, d := range []*harness.Device{a, b} {
		readsSecret(t, d, "first", first)
	}
	cards("after a removal", a, b)

	// Another device, with what was saved.
	other := harness.New(t, harness.NewSwitch(t), 1)
	if out, err := other.Edged("snapshot", "restore", saved, "--data-dir", other.DataDir(), "--run-dir", other.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	other.Start()
	other.WaitReady()
	has(t, other, "open")
	if _, err := other.Client().CoreV1().Secrets("default").Get(t.Context(), "first", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a snapshot alone gives: %v", err)
	}
	other.MustKubectl("", "create", "secret", "generic", "third", "--from-literal=k=v")
	file := filepath.Join(other.Dir, "keys")
	if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := other.Edged("secrets", "import", file, "--run-dir", other.RunDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	readsSecret(t, other, "first", first)
	readsSecret(t, other, "third", "v")
}
