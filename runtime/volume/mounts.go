package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func mounted(path string) bool {
	var a, b unix.Stat_t
	return unix.Lstat(path, &a) == nil && unix.Lstat(filepath.Dir(path), &b) == nil && a.Dev != b.Dev
}

func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// detachBelow unmounts everything below dir, so that removing dir removes nothing of
// another file system. It fails if something stays mounted.
func detachBelow(dir string) error {
	for range 2 { // what was mounted over another mount point comes to light by its end
		points, err := mountsBelow(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for _, at := range slices.Backward(points) {
			if err := unmount(at); err != nil {
				return err
			}
		}
	}
	points, err := mountsBelow(dir)
	if err == nil && len(points) > 0 {
		err = fmt.Errorf("%s is still mounted", points[0])
	}
	return err
}

// mountsBelow lists the mount points below dir, in the order in which they were made.
func mountsBelow(dir string) ([]string, error) {
	real, err := filepath.EvalSymlinks(dir) // the kernel's table knows no links
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range bytes.Lines(table) {
		const mountPoint = 4 // proc_pid_mountinfo(5)
		if f := strings.Fields(string(line)); len(f) > mountPoint {
			if at := unescape(f[mountPoint]); strings.HasPrefix(at, real+"/") {
				points = append(points, at)
			}
		}
	}
	return points, nil
}

// unescape undoes the kernel's writing of blanks in paths, \040 for a space.
func unescape(s string) string {
	head, rest, ok := strings.Cut(s, `\`)
	if !ok || len(rest) < 3 {
		return s
	}
	n, err := strconv.ParseUint(rest[:3], 8, 8)
	if err != nil {
		return s
	}
	return head + string([]byte{byte(n)}) + unescape(rest[3:])
}
