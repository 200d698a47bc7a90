package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged/net/bridge"
	"edged/net/mesh"
	"edged/net/nft"
)

// feature is something of the kernel that edged uses.
type feature struct {
	name, purpose string
	required      bool
	instead       string // what edged does without it
	options       string // of the kernel's configuration, without CONFIG_
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
	missing := 0
	for _, f := range kernelNeeds() {
		err := f.probe()
		if err != nil && f.options != "" {
			err = fmt.Errorf("%w; CONFIG_%s", err, strings.ReplaceAll(f.options, " ", " CONFIG_"))
		}
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

// kernelNeeds are all that a kernel is asked for. The Buildroot package turns the
// same options on: kernelconfig_test.go.
func kernelNeeds() []feature {
	list := kernelFeatures()
	for _, f := range nft.Features() {
		list = append(list, feature{"nftables " + f.Name, f.Purpose, f.Required, f.Instead, f.Options, f.Probe})
	}
	return list
}

func kernelFeatures() []feature {
	return []feature{
		{"overlayfs", "images without copies", false, "layers are copied", "OVERLAY_FS", fileSystem("overlay")},
		{"tmpfs", "Secrets that never touch flash", true, "", "TMPFS", fileSystem("tmpfs")},
		{"message queues", "each container's /dev/mqueue", true, "", "POSIX_MQUEUE", fileSystem("mqueue")},
		{"network namespaces", "a network for each Pod", true, "", "NAMESPACES NET_NS", namespaceOf("net")},
		{"IPC namespaces", "Pods apart from each other", true, "", "SYSVIPC IPC_NS", namespaceOf("ipc")},
		{"UTS namespaces", "a host name for each Pod", true, "", "UTS_NS", namespaceOf("uts")},
		{"PID namespaces", "Pods apart from each other", true, "", "PID_NS", namespaceOf("pid")},
		{"mount namespaces", "a root file system for each container", true, "", "NAMESPACES", namespaceOf("mnt")},
		{"bridges", "the link that Pods are on", true, "", "BRIDGE", bridge.ProbeBridge},
		{"veth pairs", "the links of Pods", true, "", "VETH", bridge.ProbeVeth},
		{"conntrack netlink", "UDP clients of a Service whose endpoint goes", false, "they wait for the kernel's timeout", "NF_CONNTRACK NF_CT_NETLINK", bridge.ProbeConntrack},
		{"VXLAN", "Pods of devices behind a router", false, "only devices on one link reach each other's Pods", "VXLAN", mesh.Probe},
		{"seccomp", "profiles that restrict containers", false, "only Pods without a seccomp profile run", "SECCOMP SECCOMP_FILTER", readable("/proc/sys/kernel/seccomp/actions_avail")},
		{"pidfd", "the ends of containers without polling", true, "", "", func() error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"device cgroup", "devices that a container may not touch", true, "", "CGROUPS CGROUP_DEVICE BPF_SYSCALL CGROUP_BPF", deviceCgroup},
		{"memory cgroup", "memory limits", false, "limits are not enforced", "CGROUPS MEMCG", cgroupController("memory")},
		{"cpu cgroup", "CPU shares and limits", false, "limits are not enforced", "CGROUP_SCHED FAIR_GROUP_SCHED CFS_BANDWIDTH", cgroupController("cpu")},
		{"pids cgroup", "limits on processes", false, "limits are not enforced", "CGROUP_PIDS", cgroupController("pids")},
	}
}

// deviceCgroup: a controller in v1, programs of a cgroup in v2.
func deviceCgroup() error {
	if cgroupController("devices")() == nil {
		return nil
	}
	dir, err := os.Open("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	defer dir.Close()
	// linux/bpf.h: union bpf_attr of BPF_PROG_QUERY.
	query := struct {
		fd, attachType, flags, attachFlags uint32
		ids                                uint64
		count                              uint32
		_                                  [4]byte
	}{fd: uint32(dir.Fd()), attachType: unix.BPF_CGROUP_DEVICE}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query)); errno != 0 {
		return fmt.Errorf("ask for the programs of a cgroup: %w", errno)
	}
	return nil
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
