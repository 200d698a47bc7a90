// Command mounts shows that mounts propagate between Pods and the device: both of
// its containers have one folder of the device.
//
//	mounts make DIR   in a container with Bidirectional: waits for see, mounts in DIR, waits to be told that it was seen
//	mounts see DIR    in one with HostToContainer: sees what was mounted after it had started
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mounts:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("want make or see, and a folder")
	}
	ready, inner := filepath.Join(args[1], "ready"), filepath.Join(args[1], "inner")
	if args[0] == "see" {
		if err := os.WriteFile(ready, nil, 0o600); err != nil {
			return err
		}
		if err := await(filepath.Join(inner, "mounted")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(inner, "seen"), nil, 0o600)
	}
	if err := await(ready); err != nil {
		return err
	}
	if err := os.MkdirAll(inner, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("inner", inner, "tmpfs", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(inner, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(inner, "mounted"), nil, 0o600); err != nil {
		return err
	}
	return await(filepath.Join(inner, "seen"))
}

// await waits for a file of another container.
func await(path string) error {
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s did not come", path)
}
