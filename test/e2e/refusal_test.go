package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// refused runs `edged run` with args on d, expects it to end by itself with
// code, and returns what it said last.
func refused(t *testing.T, d *harness.Device, code int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := d.Command(ctx, append([]string{harness.Edged(), "run"}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Fatalf("edged run %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// TestRefusals: a daemon that cannot run says in one line why, naming the flag,
// and leaves what it found as it was.
func TestRefusals(t *testing.T) {
	d := sharedDevice()
	fresh := func(t *testing.T) string { return filepath.Join(t.TempDir(), "data") }
	otherPorts := []string{"--api-listen", "127.0.0.1:7443", "--kubelet-listen", "127.0.0.1:7250", "--etcd-listen", "127.0.0.1:7379"}

	t.Run("data-dir in use", func(t *testing.T) {
		got := refused(t, d, 1, append(otherPorts, "--data-dir", d.DataDir(), "--run-dir", t.TempDir())...)
		if !strings.Contains(got, "--data-dir: "+d.DataDir()+" is in use by another edged") {
			t.Error(got)
		}
	})
	for _, flag := range []struct{ name, addr string }{{"--api-listen", "0.0.0.0:6443"}, {"--kubelet-listen", "0.0.0.0:10250"}, {"--etcd-listen", "127.0.0.1:2379"}} {
		t.Run(flag.name+" in use", func(t *testing.T) {
			data := fresh(t)
			args := append([]string{}, otherPorts...)
			args = append(args, flag.name, flag.addr, "--data-dir", data, "--run-dir", t.TempDir())
			got := refused(t, d, 1, args...)
			if !strings.Contains(got, flag.name+": ") || !strings.Contains(got, "address already in use") {
				t.Error(got)
			}
			if _, err := os.Stat(filepath.Join(data, "store")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a store was made nevertheless: %v", err)
			}
		})
	}
	t.Run("somebody else's folder", func(t *testing.T) {
		data := t.TempDir()
		if err := os.WriteFile(filepath.Join(data, "thesis.tex"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		got := refused(t, d, 1, append(otherPorts, "--data-dir", data, "--run-dir", t.TempDir())...)
		if !strings.Contains(got, `holds "thesis.tex"`) {
			t.Error(got)
		}
		if _, err := os.Stat(filepath.Join(data, "version")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it was marked as edged's nevertheless: %v", err)
		}
	})
	t.Run("a newer edged's folder", func(t *testing.T) {
		data := t.TempDir()
		if err := os.WriteFile(filepath.Join(data, "version"), []byte("edged-data 99\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := refused(t, d, 1, append(otherPorts, "--data-dir", data, "--run-dir", t.TempDir())...)
		if !strings.Contains(got, `"edged-data 99"`) || !strings.Contains(got, "newer edged") {
			t.Error(got)
		}
	})
	t.Run("data-dir is a file", func(t *testing.T) {
		data := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(data, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		got := refused(t, d, 1, append(otherPorts, "--data-dir", data, "--run-dir", t.TempDir())...)
		if !strings.Contains(got, "--data-dir: ") || !strings.Contains(got, "not a directory") {
			t.Error(got)
		}
	})
	t.Run("data-dir cannot be written", func(t *testing.T) {
		got := refused(t, d, 1, append(otherPorts, "--data-dir", "/proc/edged", "--run-dir", t.TempDir())...)
		if !strings.Contains(got, "--data-dir: ") {
			t.Error(got)
		}
	})
}

// storeFiles are the store's files that match pattern.
func storeFiles(t *testing.T, d *harness.Device, pattern string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(filepath.Join(d.DataDir(), "store"), func(path string, _ os.DirEntry, err error) error {
		if ok, _ := filepath.Match(pattern, filepath.Base(path)); ok {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("no %s in the store: %v", pattern, err)
	}
	return found
}

// TestDamagedStore: what a power cut can do to the store's files is mended and
// told; what it cannot have done is refused with the way out.
func TestDamagedStore(t *testing.T) {
	d := harness.Lone(t)
	for i := range 20 {
		d.MustKubectl("", "create", "configmap", fmt.Sprintf("c%d", i), "--from-literal=a=b")
	}
	names := func() string {
		return d.MustKubectl("", "get", "configmaps", "-o", "name", "--sort-by=.metadata.name")
	}
	before := names()

	d.Kill()
	for _, f := range storeFiles(t, d, "*.db") {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	d.WaitReady()
	if after := names(); after != before {
		t.Errorf("the applied state was not rebuilt from the log: %q, want %q", after, before)
	}

	d.Kill()
	for _, f := range storeFiles(t, d, "*.db") {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			data[i] ^= 0x55
		}
		if err := os.WriteFile(f, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	d.Eventually(30*time.Second, "ended", func() error {
		if _, ended := d.Exited(); !ended {
			return errors.New("it runs on a database that it cannot read")
		}
		return nil
	})
	log := d.LogTail()
	if !strings.Contains(log, "state.db") || !strings.Contains(log, "move it away") || strings.Contains(log, "goroutine ") {
		t.Errorf("a damaged database is not told as such:\n%s", log)
	}
	for _, f := range storeFiles(t, d, "*.db") {
		if err := os.Rename(f, f+".damaged"); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	d.WaitReady()
	if after := names(); after != before {
		t.Errorf("after following the advice: %q, want %q", after, before)
	}
}

// TestFullDisk: on a disk without room nothing that was acknowledged is lost,
// reading goes on, writes are refused with a reason or kept, and all is well
// again when there is room.
func TestFullDisk(t *testing.T) {
	d := harness.NewOnDisk(t, harness.NewSwitch(t), 1, 192)
	d.Start()
	d.WaitReady()
	p := placeOn(t, d)
	p.kubectl("create", "configmap", "before", "--from-literal=a=b")

	filler := filepath.Join(d.DataDir(), ".filler")
	fill := func() {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for size := 1 << 20; size >= 512; {
			if _, err := f.Write(make([]byte, size)); err != nil {
				size /= 2
			}
		}
	}
	fill()
	client := d.Client().CoreV1().ConfigMaps(p.ns)
	ctx := context.Background()
	acknowledged := map[string]bool{"before": true}
	var refusal error
	for i := 0; i < 4000 && refusal == nil; i++ {
		name := fmt.Sprintf("full-%d", i)
		_, err := client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"pad": strings.Repeat("x", 100<<10)}}, metav1.CreateOptions{})
		if err == nil {
			acknowledged[name] = true
			continue
		}
		refusal = err
	}
	if refusal == nil {
		t.Fatal("400 MB were acknowledged on a disk of 192 MB")
	}
	t.Logf("after %d writes: %v", len(acknowledged), refusal)
	if _, err := client.List(ctx, metav1.ListOptions{Limit: 10}); err != nil {
		t.Errorf("reading on a full disk: %v", err)
	}
	if err := client.Delete(ctx, "before", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleting on a full disk: %v", err)
	}
	delete(acknowledged, "before")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// What runs edged starts it again if it ended.
	if _, ended := d.Exited(); ended {
		d.Start()
	}
	d.WaitReady()
	p.eventually(30*time.Second, "writing again", func() error {
		_, err := client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return err
	})
	acknowledged["after"] = true
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		delete(acknowledged, c.Name)
	}
	if len(acknowledged) != 0 {
		t.Errorf("acknowledged and gone: %v", acknowledged)
	}
}
