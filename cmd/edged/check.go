package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"edged/net/mesh"
	"edged/net/nft"
)

// feature is something of the kernel that edged uses.
type feature struct {
	name, purpose string
	required      bool
	instead       string // what edged does without it
	probe         func() error
}

// runCheck tells whether this machine is fit, and names each thing that is
// missing. What is missing and required makes it fail.
func runCheck(_ context.Context, e env) error {
	var c config
	help, err := c.parse("check", e.args, c.folderFlags)
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, as the daemon does")
	}
	features := kernelFeatures()
	for _, f := range nft.Features() {
		features = append(features, feature{"nftables " + f.Name, f.Purpose, f.Required, f.Instead, f.Probe})
	}
	missing := 0
	for _, f := range features {
		err := f.probe()
		switch {
		case err == nil:
			fmt.Fprintf(e.stdout, "ok       %s\n", f.name)
		case f.required:
			missing++
			fmt.Fprintf(e.stdout, "MISSING  %s: %s (%v)\n", f.name, f.purpose, err)
		default:
			fmt.Fprintf(e.stdout, "without  %s: %s; instead: %s (%v)\n", f.name, f.purpose, f.instead, err)
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d required features are missing; they are listed above", missing)
	}
	return nil
}

func kernelFeatures() []feature {
	return []feature{
		{"overlayfs", "images without copies", false, "layers are copied", fileSystem("overlay")},
		{"tmpfs", "Secrets that never touch flash", true, "", fileSystem("tmpfs")},
		{"network namespaces", "a network for each Pod", true, "", namespaceOf("net")},
		{"IPC namespaces", "Pods apart from each other", true, "", namespaceOf("ipc")},
		{"UTS namespaces", "a host name for each Pod", true, "", namespaceOf("uts")},
		{"PID namespaces", "Pods apart from each other", true, "", namespaceOf("pid")},
		{"mount namespaces", "a root file system for each container", true, "", namespaceOf("mnt")},
		{"VXLAN", "Pods of devices behind a router (CONFIG_VXLAN)", false, "only devices on one link reach each other's Pods", mesh.Probe},
		{"seccomp", "profiles that restrict containers", false, "only Pods without a seccomp profile run", readable("/proc/sys/kernel/seccomp/actions_avail")},
		{"pidfd", "the ends of containers without polling", true, "", func() error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"memory cgroup", "memory limits", false, "limits are not enforced", cgroupController("memory")},
		{"cpu cgroup", "CPU shares and limits", false, "limits are not enforced", cgroupController("cpu")},
		{"pids cgroup", "limits on processes", false, "limits are not enforced", cgroupController("pids")},
	}
}

func fileSystem(name string) func() error {
	return func() error {
		data, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
				return nil
			}
		}
		return fmt.Errorf("%s is not in /proc/filesystems", name)
	}
}

func namespaceOf(name string) func() error { return readable("/proc/self/ns/" + name) }

func readable(path string) func() error {
	return func() error {
		_, err := os.Stat(path)
		return err
	}
}

// cgroupController looks for a cgroup controller in v2 and in v1, wherever it is
// mounted.
func cgroupController(name string) func() error {
	return func() error {
		if data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && containsWord(string(data), name) {
			return nil
		}
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			_, after, ok := strings.Cut(line, " - cgroup ")
			if ok && containsWord(strings.ReplaceAll(after, ",", " "), name) {
				return nil
			}
		}
		return errors.New("no such cgroup controller is mounted")
	}
}

func containsWord(text, word string) bool {
	for _, f := range strings.Fields(text) {
		if f == word {
			return true
		}
	}
	return false
}
