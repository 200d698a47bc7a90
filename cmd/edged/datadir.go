package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"edged/internal/atomicfile"
)

// dataVersion is the layout of the data-dir; a newer daemon reads older ones.
const dataVersion = "edged-data 1\n"

// lockWait is how long a daemon waits for the data-dir's lock: the one before may be
// on its way out.
const lockWait = 2 * time.Second

// lockDataDir makes the data-dir if it is not there, checks that this daemon
// understands it, and takes its lock: two daemons on one data-dir would each
// undo what the other acknowledged. The lock goes with the process.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for end := time.Now().Add(lockWait); errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("--data-dir: %s is in use by another edged", dir)
		}
		return nil, fmt.Errorf("--data-dir: lock %s: %w", f.Name(), err)
	}
	if err := checkDataVersion(dir); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func checkDataVersion(dir string) error {
	path := filepath.Join(dir, "version")
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		names, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		for _, n := range names {
			switch n.Name() {
			case "lock", "lost+found", "images", "manifests":
			default:
				if !strings.HasPrefix(n.Name(), ".") {
					return fmt.Errorf("--data-dir: %s holds %q and no version file: not a folder of edged's; name another or empty it", dir, n.Name())
				}
			}
		}
		return atomicfile.Write(path, []byte(dataVersion), 0o644)
	case err != nil:
		return fmt.Errorf("--data-dir: %w", err)
	case string(data) != dataVersion:
		return fmt.Errorf("--data-dir: %s is of version %q, this edged understands %q: use a newer edged", dir, strings.TrimSpace(string(data)), strings.TrimSpace(dataVersion))
	}
	return nil
}
