package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cleanup removes everything that an engine of this configuration ever made, from
// the kernel and the disk: containers and shim, mounts, control groups, Root,
// State and the unpacked programs. It needs no memory of having made anything and
// may be repeated; no engine may be open.
func Cleanup(ctx context.Context, cfg Config) error {
	if err := errors.Join(cfg.check(), cfg.resolve()); err != nil {
		return err
	}
	cg, err := findCgroups()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	// The shim first, or it would report and reap what follows.
	if err := killShims(ctx, cfg); err != nil {
		return err
	}
	var errs []error
	groups := []string{cfg.CgroupRoot}
	dirs, _ := filepath.Glob(filepath.Join(cfg.State, "containers", "*"))
	for _, dir := range dirs { // containers may have had their groups elsewhere
		if group := cgroupOfBundle(dir, cfg.CgroupRoot); !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	for _, group := range slices.Backward(groups) {
		errs = append(errs, cg.destroy(ctx, group))
	}
	for _, dir := range []string{cfg.State, cfg.Root} {
		errs = append(errs, unmountBelow(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up containers: %w", err)
	}
	errs = append(errs, cleanExternal(ctx, cfg.Root))
	for _, dir := range []string{cfg.State, cfg.Root, cfg.BinDir} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return wrap("clean up containers", errors.Join(errs...))
}

// killShims ends the processes that work in the shim's folder: shims, and what
// they were running for a container at this moment (runc).
func killShims(ctx context.Context, cfg Config) error {
	dir := filepath.Join(cfg.State, "shim")
	for {
		pids := workingIn(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end the shim, process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the shim: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// workingIn lists the processes, not zombies, whose working directory is dir.
func workingIn(dir string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cwd, err := os.Readlink(filepath.Join("/proc", entry.Name(), "cwd"))
		if err == nil && strings.TrimSuffix(cwd, " (deleted)") == dir {
			pids = append(pids, pid)
		}
	}
	return pids
}
