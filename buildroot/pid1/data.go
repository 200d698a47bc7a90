package pid1

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/slot"
)

// pristine is an empty file system, made with the image; writing it is how a
// device without mke2fs makes one.
const pristine = "/usr/share/edged/data.img.gz"

// bootMedium is the disk that the root is on.
type bootMedium struct {
	disk string // its name below /sys/block
	fat  string // path of the partition with edged.yaml
	data string // path of the partition for data
}

// findBoot finds the partitions of the root's disk: the first is the boot
// partition, the last is for data.
func (s *system) findBoot() error {
	var err error
	if s.boot.disk, err = rootDiskName(); err != nil {
		return err
	}
	t, _, err := readTable(s.boot.disk)
	if err != nil {
		return fmt.Errorf("%s: %w", s.boot.disk, err)
	}
	s.boot.fat = partitionPath(s.boot.disk, 1)
	s.boot.data = partitionPath(s.boot.disk, len(t.Partitions))
	return s.findTrial()
}

// openFAT opens the boot partition; nothing ever mounts it.
func (s *system) openFAT() (*os.File, *fat.Volume, error) {
	if s.boot.fat == "" {
		return nil, nil, errors.New("there is no boot partition")
	}
	f, err := openFresh(s.boot.fat, os.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	v, err := fat.Open(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", s.boot.fat, err)
	}
	return f, v, nil
}

func (s *system) findTrial() error {
	f, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer f.Close()
	s.trial, err = slot.IsTrial(v, s.options["edged.slot"])
	return err
}

// markGood makes the running slot the one that is started from now on.
func (s *system) markGood() error {
	f, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := slot.Commit(f, v, s.options["edged.slot"]); err != nil {
		return err
	}
	s.trial = false
	return nil
}

// mountData makes the data partition as large as the disk allows, checks it and
// mounts it. Every step can be cut short and is done again at the next start.
func (s *system) mountData() error {
	if s.boot.data == "" {
		return errors.New("no partition was found")
	}
	c := s.console
	c.check("grow the data partition", s.growPartition())
	if err := s.makeData(); err != nil {
		return err
	}
	out, err := exec.Command("/sbin/e2fsck", "-p", s.boot.data).CombinedOutput()
	var exit *exec.ExitError
	// 1: mended; 2: mended, and a mounted one would want a reboot.
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() < 4) {
		c.say("%s", strings.TrimSpace(string(out)))
		return fmt.Errorf("e2fsck: %w", err)
	}
	if err := unix.Mount(s.boot.data, dataMount, "ext4", unix.MS_NOATIME|unix.MS_NODEV, "commit=30"); err != nil {
		return fmt.Errorf("mount %s: %w", s.boot.data, err)
	}
	c.check("grow the file system", growFS(dataMount, s.boot.data))
	for _, dir := range []string{"lib/edged", "lib/device", "log/pods", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dataMount, dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(dataDir, 0o700), os.Chmod(stateDir, 0o700))
}

// growPartition lets the last partition end where the disk does, on the disk
// and in the kernel.
func (s *system) growPartition() error {
	size, err := sectors("/sys/class/block/" + s.boot.disk)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/"+s.boot.disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	t, _, err := disk.Grow(f, size*disk.SectorBytes)
	if err != nil {
		return err
	}
	n := len(t.Partitions)
	last := t.Partitions[n-1]
	have, err := sectors("/sys/class/block/" + filepath.Base(s.boot.data))
	if err != nil || have == last.Sectors {
		return err
	}
	return resizeInKernel(f, n, last)
}

// blkpgPartition and blkpgArgument are linux/blkpg.h's.
type blkpgPartition struct {
	start, length int64
	number        int32
	_             [128]byte // its names
}

type blkpgArgument struct {
	op, flags, size int32
	data            *blkpgPartition
}

const blkpgResize = 3

func resizeInKernel(f *os.File, n int, p disk.Partition) error {
	part := blkpgPartition{start: p.Start * disk.SectorBytes, length: p.Sectors * disk.SectorBytes, number: int32(n)}
	arg := blkpgArgument{op: blkpgResize, size: int32(unsafe.Sizeof(part)), data: &part}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("tell the kernel that partition %d has %d sectors: %w", n, p.Sectors, errno)
	}
	return nil
}

// growFS lets a mounted ext4 fill its partition.
func growFS(mount, dev string) error {
	size, err := sectors("/sys/class/block/" + filepath.Base(dev))
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return err
	}
	blocks := uint64(size*disk.SectorBytes) / uint64(st.Bsize)
	// statfs leaves out the file system's own blocks: a margin of an eighth
	// keeps a full-grown one from being asked at every start.
	if st.Blocks+blocks/8 >= blocks {
		return nil
	}
	d, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer d.Close()
	const resizeFS = 0x40086610 // EXT4_IOC_RESIZE_FS
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("to %d blocks: %w", blocks, errno)
	}
	return nil
}

// superblock is where ext4 keeps its own, and its magic in it.
const (
	superblock = 1024
	magicAt    = superblock + 56
)

// makeData writes an empty file system if the partition is blank, as the image
// leaves it, or if edged.yaml wants one. The part with the superblock comes last:
// cut short, the partition is still blank.
func (s *system) makeData() error {
	f, err := os.OpenFile(s.boot.data, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 4096)
	if _, err := f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read %s: %w", s.boot.data, err)
	}
	blank := true
	for _, b := range head {
		blank = blank && b == 0
	}
	if !blank && s.config.Data != "recreate" {
		return nil
	}
	if !blank && head[magicAt] == 0x53 && head[magicAt+1] == 0xEF && exec.Command("/sbin/e2fsck", "-p", s.boot.data).Run() == nil {
		return nil // sound: the wish is from an earlier start
	}
	s.console.say("making an empty data partition")
	image, err := os.Open(pristine)
	if err != nil {
		return err
	}
	defer image.Close()
	zr, err := gzip.NewReader(image)
	if err != nil {
		return err
	}
	first := make([]byte, 4096)
	if _, err := io.ReadFull(zr, first); err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.Seek(4096, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(f, zr, make([]byte, 1<<20)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(first, 0); err != nil {
		return err
	}
	return f.Sync()
}

// hostname is what edged.yaml says, with {serial} put in; it stays what it was
// at the first start.
func (s *system) hostname() string {
	path := filepath.Join(stateDir, "hostname")
	if s.dataErr == nil {
		if name := readTrim(path); name != "" && s.config.Hostname == "" {
			return name
		}
	}
	pattern := s.config.Hostname
	if pattern == "" {
		pattern = "edged-{serial}"
	}
	name := strings.ReplaceAll(pattern, "{serial}", serial())
	if s.dataErr == nil && readTrim(path) != name {
		s.console.check("remember the host name", writeFile(path, name+"\n", 0o644))
	}
	return name
}

// serial tells boards apart: the board's own number, else the address of its
// first link.
func serial() string {
	for _, path := range []string{"/proc/device-tree/serial-number", "/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/product_uuid"} {
		if s := cleanSerial(readTrim(path)); s != "" {
			return s
		}
	}
	for _, l := range physicalLinks() {
		if s := cleanSerial(readTrim("/sys/class/net/" + l + "/address")); s != "" {
			return s
		}
	}
	return strconv.Itoa(os.Getpid())
}

// cleanSerial keeps the last eight letters and digits; makers write "To be
// filled by O.E.M." and zeros for none.
func cleanSerial(s string) string {
	keep := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, strings.ToLower(s))
	if len(keep) < 4 || strings.Trim(keep, "0") == "" || strings.Contains(strings.ToLower(s), "filled") || strings.Contains(strings.ToLower(s), "not specified") {
		return ""
	}
	return keep[max(0, len(keep)-8):]
}
