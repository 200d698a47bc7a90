package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// disk is a file system on a loop device of its own.
type disk struct{ image, mount, device string }

func newDisk(image, mount string) (*disk, error) {
	d := &disk{image: image, mount: mount}
	if err := os.MkdirAll(mount, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(6 << 30)
	f.Close()
	if err != nil {
		return nil, err
	}
	out, err := output("losetup", "--find", "--show", image)
	if err != nil {
		return nil, err
	}
	d.device = strings.TrimSpace(out)
	if _, err := output("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.device); err != nil {
		return nil, err
	}
	_, err = output("mount", "-o", "noatime", d.device, mount)
	return d, err
}

func (d *disk) close() error {
	_, err := output("umount", d.mount)
	if _, lerr := output("losetup", "-d", d.device); err == nil {
		err = lerr
	}
	os.Remove(d.image)
	return err
}

// counts are the bytes written to the device and the flushes it was asked for.
func (d *disk) counts() (bytes, flushes float64, err error) {
	data, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.device), "stat"))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(data))
	if len(f) < 16 {
		return 0, 0, fmt.Errorf("%s has %d fields", d.device, len(f))
	}
	sectors, err := strconv.ParseFloat(f[6], 64)
	if err != nil {
		return 0, 0, err
	}
	flushes, err = strconv.ParseFloat(f[15], 64)
	return sectors * 512, flushes, err
}

func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
