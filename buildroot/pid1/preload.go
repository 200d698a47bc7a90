package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
)

// preloadDirs are folders of the boot partition whose files the daemon finds in
// its data folder.
var preloadDirs = []string{"images", "manifests"}

// preload copies what lies on the boot partition and is not there yet.
func (s *system) preload() error {
	f, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for _, dir := range preloadDirs {
		names, err := v.List(dir)
		if errors.Is(err, fat.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasSuffix(name, "/") {
				continue
			}
			if err := copyOut(f, v, dir+"/"+name, filepath.Join(dataDir, dir, name)); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// copyOut copies a file, beside and then renamed. One of the same size is the
// same.
func copyOut(boot io.ReaderAt, v *fat.Volume, from, to string) error {
	extents, err := v.Extents(from)
	if err != nil {
		return err
	}
	size := int64(0)
	for _, e := range extents {
		size += e.Length
	}
	if fi, err := os.Stat(to); err == nil && fi.Size() == size {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// The name begins with a dot: the daemon takes no half file.
	beside := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".new")
	out, err := os.Create(beside)
	if err != nil {
		return err
	}
	for _, e := range extents {
		if _, err = io.Copy(out, io.NewSectionReader(boot, e.Offset, e.Length)); err != nil {
			break
		}
	}
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(beside, to)
}

// RootDisk is the disk that the system was started from, for `edged upgrade`.
func RootDisk() (path string, sizeBytes int64, err error) {
	name, err := rootDiskName()
	if err != nil {
		return "", 0, err
	}
	n, err := sectors("/sys/class/block/" + name)
	return "/dev/" + name, n * disk.SectorBytes, err
}

// OpenRootDisk opens it as it is now.
func OpenRootDisk(flags int) (f *os.File, sizeBytes int64, err error) {
	path, size, err := RootDisk()
	if err != nil {
		return nil, 0, err
	}
	f, err = openFresh(path, flags)
	return f, size, err
}

// openFresh opens a disk or a partition, and has the kernel forget what it read from
// it: each has a cache of its own, and what is written by way of the one is not seen
// by way of the other. The first process writes the boot partition, `edged upgrade`
// the disk; both sync.
func openFresh(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		f.Close()
		return nil, fmt.Errorf("forget what was read from %s: %w", path, err)
	}
	return f, nil
}

// rootDiskName goes from the root's device number to its disk.
func rootDiskName() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return "", err
	}
	dev, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))))
	if err != nil {
		return "", fmt.Errorf("the root's device: %w", err)
	}
	return filepath.Base(filepath.Dir(dev)), nil
}

// RunningSlot is the slot that was started; empty on another system than ours.
func RunningSlot() string { return readOptions()["edged.slot"] }

// Restart asks the first process to start the machine anew, with an argument for
// the firmware.
func Restart(argument string) error {
	if err := os.WriteFile(rebootFile, []byte(argument+"\n"), 0o600); err != nil {
		return err
	}
	if err := unix.Kill(1, unix.SIGTERM); err != nil {
		return fmt.Errorf("ask the first process to restart the machine: %w", err)
	}
	return nil
}
