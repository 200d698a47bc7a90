package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveDir: a folder goes; one on which a file system is mounted is emptied.
func TestRemoveDir(t *testing.T) {
	dir := t.TempDir()
	plain, mounted := filepath.Join(dir, "plain"), filepath.Join(dir, "mounted")
	for _, d := range []string{plain, mounted} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, ""); err != nil {
		t.Skipf("no right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{plain, mounted} {
		if err := os.MkdirAll(filepath.Join(d, "a", "b"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := removeDir(d); err != nil {
			t.Errorf("%s: %v", filepath.Base(d), err)
		}
	}
	if _, err := os.Stat(plain); !os.IsNotExist(err) {
		t.Errorf("the plain folder is there: %v", err)
	}
	if left, err := os.ReadDir(mounted); err != nil || len(left) > 0 {
		t.Errorf("%v is left: %v", left, err)
	}
	if err := removeDir(filepath.Join(dir, "never")); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}
