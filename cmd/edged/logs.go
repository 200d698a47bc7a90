package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"edged/runtime/podlog"
)

const (
	// logRoot is where collectors of logs look for those of containers.
	logRoot = "/var/log/pods"
	// logMount is the source of the file system at logRoot by which it is known for ours.
	logMount = "edged-logs"
	// logShare is the part of the machine's memory that all logs may take.
	logShare = 8
)

// logLimits are what is kept of a container's log.
func (c *config) logLimits() podlog.Limits {
	if c.logsInMemory {
		return podlog.InMemory
	}
	return podlog.OnDisk
}

// keepLogs has the logs of containers where the configuration wants them, before any is
// written. Those that are there already are not moved: with a change to memory they are
// hidden until the change back, with that one lost.
func keepLogs(c *config) error {
	if !c.logsInMemory {
		return keepLogsOnDisk()
	}
	if mounted, err := logsMounted(); err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(logRoot, 0o755); err != nil {
		return fmt.Errorf("--logs-in-memory: %w", err)
	}
	// tmpfs has half of the memory if it is not told.
	options := fmt.Sprintf("mode=0755,size=%d", max(memoryBytes()/logShare, 1<<20))
	if err := unix.Mount(logMount, logRoot, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("--logs-in-memory: mount a tmpfs at %s: %w", logRoot, err)
	}
	return nil
}

// keepLogsOnDisk takes away what [keepLogs] mounted.
func keepLogsOnDisk() error {
	mounted, err := logsMounted()
	if err != nil || !mounted {
		return err
	}
	// Detached: a collector may have a file open.
	if err := unix.Unmount(logRoot, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", logRoot, err)
	}
	return nil
}

func logsMounted() (bool, error) {
	path, err := filepath.EvalSymlinks(logRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", logRoot, err)
	}
	// It may be on top of another mount.
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != path || m.Source != logMount, false
	})
	if err != nil {
		return false, fmt.Errorf("look for a mount at %s: %w", logRoot, err)
	}
	return len(mounts) > 0, nil
}
