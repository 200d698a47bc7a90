package harness

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMachinesAreApart proves what every other test relies on: a device has
// links, mounts, processes and cgroups of its own, reaches its neighbor by the
// switch, and leaves nothing behind.
func TestMachinesAreApart(t *testing.T) {
	var root, cgroups string
	t.Run("devices", func(t *testing.T) {
		sw := NewSwitch(t)
		a, b := New(t, sw, 1), New(t, sw, 2)
		root, cgroups = a.Dir, a.m.cgroup

		if out, err := a.Run("sh", "-c", "ls /sys/class/net; cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l"); err != nil || strings.Contains(out, "br0") {
			t.Errorf("a sees %q, %v", out, err)
		}
		if out, err := a.Run("cat", "/proc/self/cgroup"); err != nil || strings.Contains(out, "edged-test") {
			t.Errorf("a's cgroup is not a root: %q, %v", out, err)
		}
		if _, err := a.Run("sh", "-c", "d=/sys/fs/cgroup/memory; [ -d $d ] || d=/sys/fs/cgroup; mkdir $d/mine"); err != nil {
			t.Error(err)
		}
		if out, err := b.Run("sh", "-c", "ls -d /sys/fs/cgroup/memory/mine /sys/fs/cgroup/mine 2>/dev/null || true"); err != nil || out != "" {
			t.Errorf("b sees a's cgroup: %q, %v", out, err)
		}
		listener := b.Command(context.Background(), "sh", "-c", "echo hi | socat -u - TCP-LISTEN:4444,reuseaddr")
		if err := listener.Start(); err != nil {
			t.Fatal(err)
		}
		defer listener.Wait()
		a.Eventually(10*time.Second, "answered by b", func() error {
			conn, err := a.Dial(context.Background(), "tcp", b.Addr.String()+":4444")
			if err != nil {
				return err
			}
			defer conn.Close()
			data, err := io.ReadAll(conn)
			if err == nil && string(data) != "hi\n" {
				t.Errorf("b said %q", data)
			}
			return err
		})
		if _, err := a.Run("sh", "-c", "touch "+a.RunDir()+"/x "+a.DataDir()+"/x; mount -t tmpfs tmpfs /mnt"); err != nil {
			t.Fatal(err)
		}
		a.PowerOff()
		a.powerOn()
		if out, err := a.Run("sh", "-c", "ls "+a.RunDir()+" "+a.DataDir()+"; grep -c ' /mnt ' /proc/mounts || true"); err != nil || strings.Count(out, "x\n") != 1 || !strings.Contains(out, "0\n") {
			t.Errorf("after a power cycle: %q, %v", out, err)
		}
	})
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", root, err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroups); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if data, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(data), root) {
		t.Errorf("mounts of %s are left", root)
	}
}
