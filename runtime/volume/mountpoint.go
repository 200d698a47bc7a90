package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Filled says whether edged makes the content of a volume. Containers only read it:
// what writes the next version trusts what it finds there (CVE-2017-1002102).
func Filled(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || v.Image != nil
}

// MakeMountPoint makes the place below a volume's folder at which something else is
// mounted in a container, a folder or an empty file, as containers cannot make one in
// a volume that they only read. What is there already stays.
func MakeMountPoint(volumePath, name string, isDir bool) error {
	root, err := os.OpenRoot(volumePath)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if isDir {
		return root.MkdirAll(name, 0o755)
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// SubPath returns the path to mount for a subPath of a volume, which is made as
// a folder if it is not there. The index tells the mounts of a container apart.
func (m *Manager) SubPath(uid, container string, index int, volumePath, subPath string, readOnly bool) (string, error) {
	if filepath.IsAbs(subPath) {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: subPath %q must not be absolute", filepath.Base(volumePath), container, subPath)
	}
	root, err := os.OpenRoot(volumePath)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(subPath); os.IsNotExist(err) && !readOnly {
		if err := root.MkdirAll(subPath, 0o750); err != nil {
			return "", fmt.Errorf("make subPath %q: %w", subPath, err)
		}
		if fi, err := root.Stat("."); err == nil {
			if err := root.Chmod(subPath, fi.Mode()); err != nil {
				return "", fmt.Errorf("make subPath %q: %w", subPath, err)
			}
		}
	}
	f, fi, err := openPath(root, subPath)
	if err != nil {
		return "", fmt.Errorf("open subPath %q of its volume: %w", subPath, err)
	}
	defer f.Close()
	target := filepath.Join(m.PodRunDir(uid), "subpaths", container, strconv.Itoa(index))
	if err := unmount(target); err != nil {
		return "", err
	}
	// An empty folder or file, or, if something is still mounted, an error.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove the mount point of an older subPath: %w", err)
	}
	if fi.IsDir() {
		err = os.MkdirAll(target, 0o750)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o750); err == nil {
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind subPath %q: %w", subPath, err)
	}
	return target, nil
}

// maxLinks that one path may lead over, the kernel's own bound.
const maxLinks = 40

// openPath takes hold of what a path below root leads to, without opening it: a Pod may
// have put a fifo there, which nobody writes to, or a node of a device that does
// something when it is opened.
func openPath(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	for range maxLinks {
		f, err := root.OpenFile(name, unix.O_PATH, 0)
		if err != nil {
			return nil, nil, err
		}
		fi, err := f.Stat()
		if err == nil && fi.Mode()&fs.ModeSymlink == 0 {
			return f, fi, nil
		}
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		link, err := root.Readlink(name)
		if err != nil {
			return nil, nil, err
		}
		if path.IsAbs(link) {
			return nil, nil, fmt.Errorf("%s leads out of it", name)
		}
		// Not cleaned: the way back from a folder that is a link is root's to find.
		name = name[:strings.LastIndexByte(name, '/')+1] + link
	}
	return nil, nil, fmt.Errorf("too many links")
}
