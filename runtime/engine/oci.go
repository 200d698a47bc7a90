package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is what an image without a PATH gets, as everywhere.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultCaps are those of docker and containerd.
func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

func defaultMasked() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

func defaultReadonly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// host is what the daemon itself has and can pass on.
type host struct {
	cgroups     cgroups
	caps        map[string]bool
	oomScoreAdj int  // of the daemon
	canLowerOOM bool // CAP_SYS_RESOURCE
	apparmor    bool
	swapLimit   bool
}

func examineHost() (host, error) {
	cg, err := findCgroups()
	if err != nil {
		return host{}, err
	}
	h := host{cgroups: cg, caps: map[string]bool{}}
	have, err := cap.Current()
	if err != nil {
		return host{}, fmt.Errorf("read the daemon's capabilities: %w", err)
	}
	for _, c := range have {
		h.caps[c] = true
	}
	h.canLowerOOM = h.caps["CAP_SYS_RESOURCE"]
	if data, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.oomScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	if data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil {
		h.apparmor = bytes.HasPrefix(data, []byte("Y"))
	}
	if !cg.isV2() {
		_, err := os.Stat(cg.file("/", "memory", "memory.memsw.limit_in_bytes"))
		h.swapLimit = err == nil
	} else {
		_, err := os.Stat("/proc/swaps")
		h.swapLimit = err == nil
	}
	return h, nil
}

// ociSpec turns a specification into what runc reads. It looks at the device only
// where the specification names something of it (devices, profiles).
func (h host) ociSpec(c ContainerSpec, img ImageConfig, rootfs string, user specs.User) (*specs.Spec, error) {
	args, err := argv(c, img)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: rootfs, Readonly: c.ReadonlyRootfs},
		Process: &specs.Process{
			Terminal:        c.TTY,
			User:            user,
			Args:            args,
			Env:             environ(c, img),
			Cwd:             firstOf(c.Cwd, img.WorkingDir, "/"),
			NoNewPrivileges: c.NoNewPrivileges,
		},
		Linux: &specs.Linux{
			CgroupsPath:   path.Join(c.CgroupParent, c.ID),
			Namespaces:    h.namespaces(c),
			MaskedPaths:   pathList(c.MaskedPaths, defaultMasked()),
			ReadonlyPaths: pathList(c.ReadonlyPaths, defaultReadonly()),
			Sysctl:        c.Sysctls,
			Resources:     h.resources(c.Resources),
		},
	}
	if c.UTSNSPath == "" && !c.HostNetwork {
		s.Hostname = c.Hostname
	}
	if c.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	s.Process.OOMScoreAdj = h.oomScore(c.Resources.OOMScoreAdj)
	if s.Process.Capabilities, err = h.capabilities(c); err != nil {
		return nil, err
	}
	h.setMounts(s, c)
	if err := setDevices(s, c); err != nil {
		return nil, err
	}
	return s, h.setProfiles(s, c)
}

// argv merges command and arguments with the image's as Kubernetes documents it.
func argv(c ContainerSpec, img ImageConfig) ([]string, error) {
	command, args := c.Command, c.Args
	if len(command) == 0 {
		command = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	out := append(slices.Clone(command), args...)
	if len(out) == 0 || out[0] == "" {
		return nil, fmt.Errorf("%w: no command specified", ErrInvalid)
	}
	return out, nil
}

func environ(c ContainerSpec, img ImageConfig) []string {
	base := []string{defaultPath}
	if c.Hostname != "" {
		base = append(base, "HOSTNAME="+c.Hostname)
	}
	if c.TTY {
		base = append(base, "TERM=xterm")
	}
	return mergeEnv(base, img.Env, c.Env)
}

// mergeEnv applies lists over each other; a variable keeps its first place and
// its last value.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			key, _, _ := strings.Cut(kv, "=")
			if i, ok := at[key]; ok {
				out[i] = kv
				continue
			}
			at[key] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

func pathList(wish *[]string, otherwise []string) []string {
	if wish != nil {
		return *wish
	}
	return otherwise
}

func (h host) namespaces(c ContainerSpec) []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string, onHost bool) {
		if path != "" || !onHost {
			out = append(out, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	add(specs.PIDNamespace, c.PIDNSPath, c.HostPID)
	add(specs.IPCNamespace, c.IPCNSPath, c.HostIPC)
	add(specs.UTSNamespace, c.UTSNSPath, c.HostNetwork)
	add(specs.NetworkNamespace, c.NetNSPath, c.HostNetwork)
	if h.cgroups.isV2() {
		add(specs.CgroupNamespace, "", c.Privileged)
	}
	return out
}

// oomScore gives the wish, or the daemon's own where it may not go below that.
func (h host) oomScore(want int) *int {
	if !h.canLowerOOM {
		want = max(want, h.oomScoreAdj)
	}
	return &want
}

func (h host) resources(r Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}}
	if r.CPUShares > 0 {
		out.CPU.Shares = &r.CPUShares
	}
	if r.CPUQuota != 0 {
		out.CPU.Quota = &r.CPUQuota
		if r.CPUPeriod > 0 {
			out.CPU.Period = &r.CPUPeriod
		}
	}
	if r.MemoryLimitBytes > 0 {
		out.Memory = &specs.LinuxMemory{Limit: &r.MemoryLimitBytes}
		if h.swapLimit {
			out.Memory.Swap = &r.MemoryLimitBytes // memory and swap together: no swap
		}
	}
	if r.PidsLimit > 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.PidsLimit}
	}
	for size, limit := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	if h.cgroups.isV2() {
		out.Unified = r.Unified
	}
	return out
}

// capabilities are the default set less CapDrop plus CapAdd, within what the
// daemon has: what it lacks no container can have.
func (h host) capabilities(c ContainerSpec) (*specs.LinuxCapabilities, error) {
	set := map[string]bool{}
	all := cap.Known()
	each := func(list []string, on bool) error {
		for _, name := range list {
			name = strings.ToUpper(name)
			if name == "ALL" {
				for _, k := range all {
					set[k] = on
				}
				continue
			}
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if !slices.Contains(all, name) {
				return fmt.Errorf("%w: unknown capability %q", ErrInvalid, name)
			}
			set[name] = on
		}
		return nil
	}
	base := defaultCaps()
	if c.Privileged {
		base = all
	}
	addsAll := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, "ALL") })
	}
	steps := []struct {
		list []string
		on   bool
	}{{base, true}, {c.CapAdd, true}, {c.CapDrop, false}}
	if addsAll(c.CapDrop) { // drop ALL, then add some
		steps[1], steps[2] = steps[2], steps[1]
	}
	if c.Privileged {
		steps = steps[:1]
	}
	for _, step := range steps {
		if err := each(step.list, step.on); err != nil {
			return nil, err
		}
	}
	var list []string
	for _, name := range all {
		if set[name] && h.caps[name] {
			list = append(list, name)
		}
	}
	return &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list}, nil
}

// setMounts gives the default mounts, replaced where the specification mounts the
// same place, and the specification's, outer ones first.
func (h host) setMounts(s *specs.Spec, c ContainerSpec) {
	own := map[string]bool{}
	for _, m := range c.Mounts {
		own[filepath.Clean(m.Target)] = true
	}
	for _, m := range defaultMounts(c) {
		if !own[m.Destination] {
			s.Mounts = append(s.Mounts, m)
		}
	}
	mounts := slices.Clone(c.Mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int { return depth(a.Target) - depth(b.Target) })
	for _, m := range mounts {
		s.Mounts = append(s.Mounts, ociMount(m))
		switch m.Propagation {
		case PropagationBidirectional:
			s.Linux.RootfsPropagation = "rshared"
		case PropagationHostToContainer:
			s.Linux.RootfsPropagation = firstOf(s.Linux.RootfsPropagation, "rslave")
		}
	}
}

func depth(p string) int { return strings.Count(filepath.Clean(p), "/") }

func defaultMounts(c ContainerSpec) []specs.Mount {
	access := "ro"
	if c.Privileged {
		access = "rw"
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}
	if c.HostIPC {
		shm = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate"}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		shm,
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

func ociMount(m Mount) specs.Mount {
	out := specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: slices.Clone(m.Options)}
	if m.Type == "" || m.Type == "bind" {
		out.Type = "bind"
		propagation := map[Propagation]string{
			PropagationPrivate: "rprivate", PropagationHostToContainer: "rslave", PropagationBidirectional: "rshared",
		}[m.Propagation]
		out.Options = append(out.Options, "rbind", propagation)
	}
	switch {
	case m.Readonly && m.Recursive:
		out.Options = append(out.Options, "rro")
	case m.Readonly:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	return out
}

func setDevices(s *specs.Spec, c ContainerSpec) error {
	ctx := context.Background() // the options below do no I/O but stat
	if c.Privileged {
		devices, err := oci.HostDevices()
		if err != nil {
			return fmt.Errorf("list the device's nodes: %w", err)
		}
		s.Linux.Devices = devices
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return nil
	}
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range c.Devices {
		opt := oci.WithDevices(d.HostPath, firstOf(d.ContainerPath, d.HostPath), firstOf(d.Permissions, "rwm"))
		if err := opt(ctx, nil, nil, s); err != nil {
			return fmt.Errorf("%w: device %s: %w", ErrInvalid, d.HostPath, err)
		}
	}
	return nil
}

func (h host) setProfiles(s *specs.Spec, c ContainerSpec) error {
	if name := c.AppArmor.Localhost; name != "" && !c.Privileged {
		if !h.apparmor {
			return fmt.Errorf("%w: AppArmor profile %q: AppArmor is not enabled on this device", ErrInvalid, name)
		}
		s.Process.ApparmorProfile = name
	}
	switch {
	case c.Privileged || c.Seccomp.Unconfined:
	case c.Seccomp.Localhost != "":
		data, err := os.ReadFile(c.Seccomp.Localhost)
		if err != nil {
			return fmt.Errorf("cannot load seccomp profile %q: %w", c.Seccomp.Localhost, err)
		}
		profile := &specs.LinuxSeccomp{}
		if err := json.Unmarshal(data, profile); err != nil {
			return fmt.Errorf("decode seccomp profile %q: %w", c.Seccomp.Localhost, err)
		}
		s.Linux.Seccomp = profile
	default:
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	}
	return nil
}

// checkID keeps ids from escaping the folders that are named after them.
func checkID(id string) error {
	valid := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r)
	}
	if id == "" || len(id) > 76 || strings.ContainsFunc(id, func(r rune) bool { return !valid(r) }) || strings.HasPrefix(id, ".") || strings.HasPrefix(id, "-") {
		return fmt.Errorf("%w: id %q", ErrInvalid, id)
	}
	return nil
}

// checkSpec refuses what no kernel could make.
func checkSpec(c ContainerSpec) error {
	if err := checkID(c.ID); err != nil {
		return err
	}
	var errs []error
	for _, m := range c.Mounts {
		if !filepath.IsAbs(m.Target) {
			errs = append(errs, fmt.Errorf("mount target %q is not absolute", m.Target))
		}
	}
	if c.CgroupParent != "" && !filepath.IsAbs(c.CgroupParent) {
		errs = append(errs, fmt.Errorf("control group %q is not absolute", c.CgroupParent))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrInvalid, errors.Join(errs...))
	}
	return nil
}
