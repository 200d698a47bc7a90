package sandbox

import (
	"os"
	"strings"
	"testing"

	"edged/internal/netns"
)

func TestSandboxOutlivesItsMakerAndGoesWhole(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	dir := t.TempDir() + "/sandboxes"
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Cleanup(dir); err != nil {
			t.Error(err)
		}
		if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), dir) {
			t.Error("mounts are left")
		}
	})
	box, fresh, err := s.Ensure("uid-1", Options{Hostname: "inside"})
	if err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	links := func() (names string) {
		err := netns.Do(box.Net, func() error {
			data, err := os.ReadFile("/proc/thread-self/net/dev")
			names = string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if l := links(); strings.Count(l, ":") != 1 || !strings.Contains(l, "lo:") {
		t.Errorf("links in a new sandbox: %s", l)
	}
	s2, err := New(dir) // a daemon that was started again
	if err != nil {
		t.Fatal(err)
	}
	again, fresh, err := s2.Ensure("uid-1", Options{Hostname: "inside"})
	if err != nil || fresh || again != box {
		t.Errorf("ensured again: %+v fresh=%v %v, want %+v", again, fresh, err, box)
	}
	host, _, err := s.Ensure("uid-2", Options{HostNetwork: true, HostIPC: true})
	if err != nil || host != (Sandbox{}) {
		t.Errorf("a Pod of the host's namespaces: %+v, %v", host, err)
	}
	if uids, _ := s2.List(); len(uids) != 2 {
		t.Errorf("listed %v", uids)
	}
	for range 2 {
		if err := s2.Remove("uid-1"); err != nil {
			t.Error(err)
		}
	}
}
