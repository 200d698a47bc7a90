package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged/buildroot/disk"
)

type mountPoint struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

func mountBase() error {
	return mountList([]mountPoint{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", "proc", safe, ""},
		{"sysfs", "/sys", "sysfs", safe, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		// Volumes propagate between Pods and the host.
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
	})
}

func mountList(points []mountPoint) error {
	var errs []error
	for _, m := range points {
		if strings.HasPrefix(m.target, "/dev/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				errs = append(errs, err)
			}
		}
		// What the kernel mounted already is as good.
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("%s: %w", m.target, err))
		}
	}
	return errors.Join(errs...)
}

// setupCgroups mounts cgroup v2 and hands every controller down.
func setupCgroups() error {
	const root = "/sys/fs/cgroup"
	if err := mountList([]mountPoint{{"cgroup2", root, "cgroup2", safe, "nsdelegate"}}); err != nil {
		return err
	}
	have := strings.Fields(readTrim(root + "/cgroup.controllers"))
	if !slices.Contains(have, "memory") {
		return fmt.Errorf("the kernel offers %q: there are no memory limits", have)
	}
	var errs []error
	for _, name := range have {
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// unmountAll unmounts the data partition, and makes it read-only if something
// holds it.
func unmountAll(c *console) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		c.check("unmount", err)
		return
	}
	var targets []string
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 1 && (f[1] == dataMount || strings.HasPrefix(f[1], dataMount+"/") || strings.HasPrefix(f[1], "/run/")) {
			targets = append(targets, f[1])
		}
	}
	slices.Reverse(targets)
	for _, t := range targets {
		if err := unix.Unmount(t, 0); err != nil && t == dataMount {
			c.check("make the data partition read-only", unix.Mount("", dataMount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}
	}
}

// loadModules loads what a list names, which is in the order of dependencies. A
// module whose device is not there is not missed.
func loadModules(list string) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if err := loadModule(filepath.Join(filepath.Dir(list), sc.Text())); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", sc.Text(), err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	// ENOENT: it needs symbols of a module whose device is not there.
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// inRAM tells whether the root is the initial RAM disk.
func inRAM() bool {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return false
	}
	kind := uint32(st.Type) // of different width by architecture
	return kind == unix.RAMFS_MAGIC || kind == unix.TMPFS_MAGIC
}

// stage0 goes from the RAM disk to the root.
func stage0(c *console) error {
	c.check("mount", mountList([]mountPoint{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", "proc", safe, ""},
		{"sysfs", "/sys", "sysfs", safe, ""},
	}))
	c.check("load modules", loadModules("/lib/modules/edged.list"))
	options := readOptions()
	want, ok := strings.CutPrefix(options["root"], "PARTUUID=")
	if !ok {
		return fmt.Errorf("root=%s names no PARTUUID", options["root"])
	}
	var dev string
	var err error
	for range 300 { // disks on USB take seconds
		if dev, err = findPartition(want); dev != "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if dev == "" {
		return fmt.Errorf("no partition %s in 30 s: %w", want, err)
	}
	if err := unix.Mount(dev, "/root", "squashfs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount the root %s: %w", dev, err)
	}
	for _, m := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(m, "/root"+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m, err)
		}
	}
	// What the RAM disk holds is memory.
	for _, p := range []string{"/lib", "/init"} {
		c.check("empty the RAM disk", os.RemoveAll(p))
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make %s the root: %w", dev, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init", "init"}, os.Environ())
}

// findPartition looks through all disks for a PARTUUID.
func findPartition(want string) (string, error) {
	disks, err := os.ReadDir("/sys/block")
	if err != nil {
		return "", err
	}
	err = errors.New("there is no disk")
	for _, d := range disks {
		t, _, readErr := readTable(d.Name())
		if readErr != nil {
			err = readErr
			continue
		}
		for i := range t.Partitions {
			if t.PARTUUID(i) == want {
				return partitionPath(d.Name(), i+1), nil
			}
		}
		err = fmt.Errorf("%s holds other partitions", d.Name())
	}
	return "", err
}

func readTable(name string) (disk.Table, int64, error) {
	size, err := sectors("/sys/class/block/" + name)
	if err != nil {
		return disk.Table{}, 0, err
	}
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return disk.Table{}, 0, err
	}
	defer f.Close()
	t, err := disk.Read(f, size*disk.SectorBytes)
	return t, size, err
}

func sectors(sys string) (n int64, err error) {
	_, err = fmt.Sscan(readTrim(sys+"/size"), &n)
	if err != nil {
		return 0, fmt.Errorf("%s/size: %w", sys, err)
	}
	return n, nil
}

// partitionPath is how the kernel names partition n of a disk.
func partitionPath(name string, n int) string {
	if last := name[len(name)-1]; last >= '0' && last <= '9' {
		name += "p"
	}
	return fmt.Sprintf("/dev/%s%d", name, n)
}

// restartWith reboots with an argument for the firmware.
func restartWith(argument string) {
	arg, err := unix.BytePtrFromString(argument)
	if err != nil {
		return
	}
	unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(arg)), 0, 0)
	runtime.KeepAlive(arg)
}
