package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// lookAtMemory is how often a witness looks how much it holds, smallEnough the
	// bytes resident that it leaves alone: what it needs all the time is less.
	lookAtMemory = 30 * time.Second
	smallEnough  = 20 << 20
)

// keepSmall gives memory back, until ctx ends, when this process holds more than a
// witness needs at rest: what an election or somebody's request took.
func keepSmall(ctx context.Context) error {
	t := time.NewTicker(lookAtMemory)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		n, err := resident()
		if err == nil && n > smallEnough {
			err = releaseMemory()
		}
		if err != nil {
			return err
		}
	}
}

// resident is how many bytes of memory this process holds, shared ones too.
func resident() (int64, error) {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(data), &size, &pages); err != nil {
		return 0, fmt.Errorf("read /proc/self/statm: %w", err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// releaseMemory gives back what only starting needed: free heap to the system,
// and the pages of the binary that the start touched. Those stay in the page
// cache and are mapped again by a minor fault when they are used; what is never
// used again no longer counts as this process's.
func releaseMemory() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	var ranges [][2]uintptr
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// address perms offset dev inode path, proc(5)
		fields := strings.Fields(sc.Text())
		if len(fields) < 6 || fields[5] != exe || strings.Contains(fields[1], "w") {
			continue
		}
		var r [2]uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &r[0], &r[1]); err != nil {
			return fmt.Errorf("read /proc/self/maps: %w", err)
		}
		ranges = append(ranges, r)
	}
	if err := sc.Err(); err != nil {
		return err
	}
	mapSparsely(ranges)
	for _, r := range ranges {
		// Read-only pages of a file: dropping them loses nothing.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give back pages of the binary: %w", errno)
		}
	}
	return nil
}

// mapSparsely has the kernel map pages of the binary one by one as they are used, not
// with the 64 KB or the folio of the page cache around them: of a large binary a store
// uses a few functions here and there. So it does where it watches for writes
// (userfaultfd(2)), of which there are none; watched asynchronously, they would wait
// for nobody. It reports whether it does: kernels before 6.7, or built without that,
// map as they always do.
func mapSparsely(ranges [][2]uintptr) bool {
	const (
		userModeOnly          = 1 // needs no privilege
		apiVersion            = 0xaa
		wpUnpopulated         = 1 << 13
		wpAsync               = 1 << 15
		ioctlAPI              = 0xc018aa3f // on struct uffdio_api: version, features, ioctls
		ioctlRegister         = 0xc020aa00 // on struct uffdio_register: start, length, mode, ioctls
		registerWriteProtects = 2
	)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		return false
	}
	api := [3]uint64{apiVersion, wpUnpopulated | wpAsync}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ioctlAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		unix.Close(int(fd))
		return false
	}
	for _, r := range ranges {
		register := [4]uint64{uint64(r[0]), uint64(r[1] - r[0]), registerWriteProtects}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ioctlRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
			unix.Close(int(fd))
			return errno == unix.EBUSY // an earlier call's
		}
	}
	return true // fd stays open: the watch ends with it
}
