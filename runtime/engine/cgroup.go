package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cgroups knows where this device's control group hierarchies are mounted: the
// one of cgroup v2, one per controller of v1, or both (hybrid), where the limits
// are v1's.
type cgroups struct {
	unified string            // mount point of cgroup2, "" when there is none
	v1      map[string]string // controller (or name=systemd) -> mount point
}

// findCgroups reads the mount table once: hierarchies do not move.
func findCgroups() (cgroups, error) {
	c := cgroups{v1: map[string]string{}}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return c, fmt.Errorf("find the control groups: %w", err)
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if c.unified == "" {
				c.unified = m.Mountpoint
			}
			continue
		}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if option != "rw" && option != "ro" && c.v1[option] == "" {
				c.v1[option] = m.Mountpoint
			}
		}
	}
	if c.unified == "" && len(c.v1) == 0 {
		return c, errors.New("no control groups are mounted on /sys/fs/cgroup")
	}
	return c, nil
}

// isV2 says whether limits are set in the unified hierarchy.
func (c cgroups) isV2() bool { return c.v1["memory"] == "" && c.v1["cpu"] == "" && c.unified != "" }

// dirs are the folders of a group in every hierarchy, existing or not.
func (c cgroups) dirs(group string) []string {
	var dirs []string
	if c.unified != "" {
		dirs = append(dirs, filepath.Join(c.unified, group))
	}
	for _, at := range c.v1 {
		dir := filepath.Join(at, group)
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// file is a file of a group: in the unified hierarchy, or in that of a v1
// controller.
func (c cgroups) file(group, controller, name string) string {
	if c.isV2() {
		return filepath.Join(c.unified, group, name)
	}
	return filepath.Join(c.v1[controller], group, name)
}

// add makes a group in every hierarchy and moves a process into it. Hierarchies
// that refuse are left out; it is an error only if all do.
func (c cgroups) add(group string, pid int) error {
	var errs []error
	moved := false
	for _, dir := range c.dirs(group) {
		err := os.MkdirAll(dir, 0o755)
		if err == nil && strings.HasPrefix(dir, c.v1["cpuset"]+"/") && c.v1["cpuset"] != "" {
			err = inheritCpuset(c.v1["cpuset"], dir)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), strconv.AppendInt(nil, int64(pid), 10), 0)
		}
		if err != nil {
			errs = append(errs, err)
		} else {
			moved = true
		}
	}
	if moved {
		return nil
	}
	return fmt.Errorf("move a process to control group %s: %w", group, errors.Join(errs...))
}

// inheritCpuset fills the two files without which a v1 cpuset takes no process.
func inheritCpuset(root, dir string) error {
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return err
	}
	parent := root
	for part := range strings.SplitSeq(rel, "/") {
		child := filepath.Join(parent, part)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(child, name))
			if err != nil {
				return err
			}
			if len(bytes.TrimSpace(have)) > 0 {
				continue
			}
			value, err := os.ReadFile(filepath.Join(parent, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(child, name), value, 0); err != nil {
				return err
			}
		}
		parent = child
	}
	return nil
}

// pids of a group and those below it, over all hierarchies.
func (c cgroups) pids(group string) []int {
	seen := map[int]bool{}
	for _, dir := range c.dirs(group) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // gone meanwhile
			}
			data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	out := make([]int, 0, len(seen))
	for pid := range seen {
		out = append(out, pid)
	}
	return out
}

// signal sends sig to every process of a group.
func (c cgroups) signal(group string, sig unix.Signal) error {
	if sig == unix.SIGKILL && c.unified != "" {
		// One write that no fork can outrun, where the group exists there (5.14).
		err := os.WriteFile(filepath.Join(c.unified, group, "cgroup.kill"), []byte("1"), 0)
		if err == nil && c.isV2() {
			return nil
		}
	}
	var errs []error
	for _, pid := range c.pids(group) {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// destroy kills what is in a group and those below it and removes them from every
// hierarchy. A group that is not there is fine.
func (c cgroups) destroy(ctx context.Context, group string) error {
	wait := time.Millisecond
	for {
		err := c.signal(group, unix.SIGKILL)
		if err == nil {
			err = c.removeEmpty(group)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w", group, errors.Join(ctx.Err(), err))
		case <-time.After(wait):
			wait = min(2*wait, 100*time.Millisecond)
		}
	}
}

// removeEmpty removes a group's folders, the innermost first.
func (c cgroups) removeEmpty(group string) error {
	var errs []error
	for _, dir := range c.dirs(group) {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove %s: %w", d, err))
			}
		}
	}
	return errors.Join(errs...)
}

// oomKilled says whether the kernel ever killed a process of the group for want
// of memory.
func (c cgroups) oomKilled(group string) bool {
	name := "memory.oom_control"
	if c.isV2() {
		name = "memory.events"
	}
	n, _ := readKey(c.file(group, "memory", name), "oom_kill")
	return n > 0
}

// stats fills s from the group's files; what a kernel does not have stays zero.
func (c cgroups) stats(group string, s *Stats) {
	s.PIDs, _ = readNumber(c.file(group, "pids", "pids.current"))
	stat := c.file(group, "memory", "memory.stat")
	if c.isV2() {
		usec, _ := readKey(c.file(group, "", "cpu.stat"), "usage_usec")
		s.CPUUsage = time.Duration(usec) * time.Microsecond
		s.MemoryUsageBytes, _ = readNumber(c.file(group, "", "memory.current"))
		s.MemoryLimitBytes, _ = readNumber(c.file(group, "", "memory.max")) // "max" is no number, and no limit
		s.MemoryRSSBytes, _ = readKey(stat, "anon")
	} else {
		nsec, _ := readNumber(c.file(group, "cpuacct", "cpuacct.usage"))
		s.CPUUsage = time.Duration(nsec)
		s.MemoryUsageBytes, _ = readNumber(c.file(group, "memory", "memory.usage_in_bytes"))
		if limit, _ := readNumber(c.file(group, "memory", "memory.limit_in_bytes")); limit < unlimited {
			s.MemoryLimitBytes = limit
		}
		s.MemoryRSSBytes, _ = readKey(stat, "total_rss")
	}
	below := "total_" // v1 has a group's own figures beside those with the groups below it
	if c.isV2() {
		below = ""
	}
	file, _ := readKey(stat, below+"inactive_file")
	s.MemoryWorkingSetBytes = s.MemoryUsageBytes - min(file, s.MemoryUsageBytes)
	s.PageFaults, _ = readKey(stat, below+"pgfault")
	s.MajorPageFaults, _ = readKey(stat, below+"pgmajfault")
}

// unlimited and more is how v1 writes that there is no limit.
const unlimited = 1 << 62

func readNumber(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// readKey finds "key value" in a flat-keyed file.
func readKey(path, key string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name == key {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, fs.ErrNotExist
}
