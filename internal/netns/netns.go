// Package netns makes Linux network namespaces that outlive the process that
// made them, and runs functions inside them.
//
// A namespace is kept by a bind mount on a file, which is also how container
// runtimes name one to each other. A namespace belongs to a thread, not to a
// goroutine: Do therefore locks the goroutine to its thread for the time of the
// call and never gives a thread back whose namespace it could not restore.
//
// It is not a network: links, addresses and routes are made by net/bridge.
//
// Danger: what fn starts (goroutines, lazily created threads) does not run in
// the namespace; sockets that fn opens stay in it for as long as they are open.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// threadNS is the network namespace of the calling thread. /proc/self/ns/net
// would be that of the process's first thread.
const threadNS = "/proc/thread-self/ns/net"

// Create makes a namespace and pins it to path. It is idempotent: a path that
// already holds a namespace is left as it is.
func Create(path string) error {
	if Is(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("creating network namespace %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("creating network namespace %s: %w", path, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount(threadNS, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("creating network namespace %s: %w", path, err)
	}
	return nil
}

// Remove unpins the namespace at path. The kernel destroys it, with its links,
// when the last process in it and the last socket of it are gone. A path that
// is not there is not an error.
func Remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing network namespace %s: %w", path, err)
	}
	return nil
}

// Is says whether path holds a namespace (and not just a file that a crash
// between its creation and the mount left behind).
func Is(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do runs fn in the namespace at path.
func Do(path string, fn func() error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("entering network namespace: %w", err)
	}
	defer f.Close()
	return onThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread whose namespace it may change. A thread that
// cannot be brought back is not unlocked, so that the runtime ends it together
// with the goroutine; fn's goroutine is therefore its own.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		home, err := os.Open(threadNS)
		if err != nil {
			goruntime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				goruntime.UnlockOSThread()
			}
			done <- err
		}()
		err = fn()
	}()
	return <-done
}
