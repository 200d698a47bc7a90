package harness

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryCgroup is the folder of the machine's memory controller, and whether it is
// of cgroup v1.
func (d *Device) memoryCgroup() (dir string, v1 bool, err error) {
	for _, c := range []struct {
		dir string
		v1  bool
	}{{"/sys/fs/cgroup/memory/" + d.m.cgroup, true}, {"/sys/fs/cgroup/" + d.m.cgroup, false}} {
		if _, err := os.Stat(c.dir); err == nil {
			return c.dir, c.v1, nil
		}
	}
	return "", false, fmt.Errorf("%s has no memory cgroup", d.Name)
}

// LimitMemory gives the machine, until it is powered off, so much memory, in bytes,
// for the daemon and all that runs there, with the page cache of what they read
// first.
func (d *Device) LimitMemory(limit int64) {
	d.tb.Helper()
	dir, v1, err := d.memoryCgroup()
	file := "memory.max"
	if v1 {
		file = "memory.limit_in_bytes"
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0o644)
	}
	if err != nil {
		d.tb.Fatalf("%s: limiting its memory: %v", d.Name, err)
	}
}

// OOMKills is how many processes of the machine the kernel has killed for want of
// memory, in cgroups that are there still.
func (d *Device) OOMKills() (n int, err error) {
	dir, v1, err := d.memoryCgroup()
	if err != nil {
		return 0, err
	}
	file := "memory.events.local"
	if v1 {
		file = "memory.oom_control"
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != file {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if kills, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
				k, err := strconv.Atoi(kills)
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				n += k
			}
		}
		return nil
	})
	return n, err
}
