package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"
	helper "k8s.io/component-helpers/resource"

	"edged/runtime/engine"
	"edged/runtime/sandbox"
	"edged/runtime/volume"
)

// CgroupRoot is the parent of all Pods' control groups.
const CgroupRoot = "/edged"

// Group is the control group of a Pod.
func Group(uid string) string { return CgroupRoot + "/pod" + uid }

// making is what the worker knows when it makes a container.
type making struct {
	pod     *corev1.Pod
	slot    slot
	attempt int
	image   engine.Image
	env     *variables
	box     sandbox.Sandbox
	volumes map[string]string // by volume
	// subPath resolves a subPath of a volume.
	subPath func(index int, volumePath, sub string, readOnly bool) (string, error)
	// files of the Pod: "" for none
	hosts, resolvConf, hostname string
	terminationLog              string
	pidNS                       string
	seccompDir                  string
	memoryBytes                 int64 // of the device
}

// spec makes the engine's container out of the API's.
func (m *making) spec() (engine.ContainerSpec, error) {
	c, pod := m.slot.c, m.pod
	s := engine.ContainerSpec{
		ID: containerID(string(pod.UID), c.Name, m.attempt), Labels: labels(pod, c, m.attempt), Image: c.Image,
		Command: expandAll(c.Command, m.env), Args: expandAll(c.Args, m.env), Env: m.env.list(), Cwd: c.WorkingDir,
		CgroupParent: Group(string(pod.UID)),
		NetNSPath:    m.box.Net, IPCNSPath: m.box.IPC, UTSNSPath: m.box.UTS, PIDNSPath: m.pidNS,
		HostNetwork: pod.Spec.HostNetwork, HostPID: pod.Spec.HostPID, HostIPC: pod.Spec.HostIPC,
		Hostname: m.hostname, TTY: c.TTY, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
		Resources: resources(pod, c, m.memoryBytes),
	}
	if m.image.ID != "" {
		s.Image = m.image.ID
	}
	if err := m.security(&s); err != nil {
		return s, err
	}
	if err := m.mounts(&s); err != nil {
		return s, err
	}
	return s, nil
}

// mounts adds volumes, and the files that every container has unless a volume
// is mounted in their place.
func (m *making) mounts(s *engine.ContainerSpec) error {
	taken := map[string]bool{}
	filled := map[string]bool{} // by volume
	for i := range m.pod.Spec.Volumes {
		filled[m.pod.Spec.Volumes[i].Name] = volume.Filled(&m.pod.Spec.Volumes[i])
	}
	for i, vm := range m.slot.c.VolumeMounts {
		source, ok := m.volumes[vm.Name]
		if !ok {
			return configErrorf("volume %q of container %q is not there", vm.Name, m.slot.c.Name)
		}
		readOnly := vm.ReadOnly || slices.ContainsFunc(m.pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == vm.Name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
		})
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var missing string
			sub = expand(vm.SubPathExpr, func(name string) (string, bool) {
				v, ok := m.env.values[name]
				if !ok {
					missing = name
				}
				return v, ok
			})
			if missing != "" {
				return configErrorf("missing value for %q", missing)
			}
			if filepath.IsAbs(sub) {
				return configErrorf("error SubPath `%s` must not be an absolute path", sub)
			}
			if slices.Contains(strings.Split(sub, "/"), "..") {
				return configErrorf("unable to provision SubPath `%s`: must not contain '..'", sub)
			}
		}
		if sub != "" {
			var err error
			if source, err = m.subPath(i, source, sub, readOnly); err != nil {
				return configErrorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, m.slot.c.Name, err)
			}
		}
		mount := engine.Mount{Source: source, Target: vm.MountPath, Readonly: readOnly || filled[vm.Name]}
		if vm.MountPropagation != nil {
			switch *vm.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = engine.PropagationHostToContainer
			case corev1.MountPropagationBidirectional:
				mount.Propagation = engine.PropagationBidirectional
			}
		}
		if r := vm.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
			mount.Recursive = true
		}
		s.Mounts = append(s.Mounts, mount)
		taken[filepath.Clean(vm.MountPath)] = true
	}
	for i, vm := range m.slot.c.VolumeMounts {
		if !filled[vm.Name] {
			continue
		}
		if err := nestedIn(s.Mounts[i], s.Mounts); err != nil {
			return configErrorf("mount inside of volume %q of container %q: %w", vm.Name, m.slot.c.Name, err)
		}
	}
	for _, f := range []engine.Mount{
		{Source: m.hosts, Target: "/etc/hosts"},
		{Source: m.resolvConf, Target: "/etc/resolv.conf"},
		{Source: m.box.Shm, Target: "/dev/shm"},
		{Source: m.terminationLog, Target: terminationPath(m.slot.c)},
	} {
		if f.Source != "" && !taken[f.Target] {
			s.Mounts = append(s.Mounts, f)
		}
	}
	return nil
}

// nestedIn makes the mount points of what is mounted right inside of outer, which is
// read-only.
func nestedIn(outer engine.Mount, all []engine.Mount) error {
	below := filepath.Clean(outer.Target) + "/"
	for _, m := range all {
		name, ok := strings.CutPrefix(filepath.Clean(m.Target), below)
		if !ok || slices.ContainsFunc(all, func(o engine.Mount) bool {
			between := filepath.Clean(o.Target) + "/"
			return len(between) > len(below) && strings.HasPrefix(between, below) && strings.HasPrefix(filepath.Clean(m.Target), between)
		}) {
			continue
		}
		fi, err := os.Stat(m.Source)
		if err != nil {
			return err
		}
		if err := volume.MakeMountPoint(outer.Source, name, fi.IsDir()); err != nil {
			return err
		}
	}
	return nil
}

func terminationPath(c *corev1.Container) string {
	if c.TerminationMessagePath == "" {
		return corev1.TerminationMessagePathDefault
	}
	return c.TerminationMessagePath
}

const (
	// minShares, maxShares and sharesPerCPU are the kernel's cpu.shares; see
	// k8s.io/kubernetes/pkg/kubelet/cm/helpers_linux.go.
	minShares, maxShares, sharesPerCPU = 2, 262144, 1024
	quotaPeriod                        = 100_000 // microseconds
	minQuota                           = 1_000
)

// resources makes cgroup limits as the kubelet does: shares from the request
// (or the limit), quota and memory from the limits.
func resources(pod *corev1.Pod, c *corev1.Container, memory int64) engine.Resources {
	var r engine.Resources
	request, limit := c.Resources.Requests.Cpu().MilliValue(), c.Resources.Limits.Cpu().MilliValue()
	if _, ok := c.Resources.Requests[corev1.ResourceCPU]; !ok {
		request = limit
	}
	r.CPUShares = uint64(min(max(request*sharesPerCPU/1000, minShares), maxShares))
	if limit > 0 {
		r.CPUPeriod = quotaPeriod
		r.CPUQuota = max(limit*quotaPeriod/1000, minQuota)
	}
	r.MemoryLimitBytes = c.Resources.Limits.Memory().Value()
	r.OOMScoreAdj = oomScore(pod, c, memory)
	return r
}

// podShares are those of the whole Pod.
func podShares(pod *corev1.Pod) uint64 {
	requests := helper.PodRequests(pod, helper.PodResourcesOptions{})
	return uint64(min(max(requests.Cpu().MilliValue()*sharesPerCPU/1000, minShares), maxShares))
}

// oomScore is the kubelet's: what asks for more of the memory dies later.
func oomScore(pod *corev1.Pod, c *corev1.Container, memory int64) int {
	switch pod.Status.QOSClass {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if memory <= 0 {
		return 999
	}
	score := 1000 - 1000*c.Resources.Requests.Memory().Value()/memory
	return int(min(max(score, 3), 999))
}

// security applies the Pod's and the container's security context.
func (m *making) security(s *engine.ContainerSpec) error {
	psc, sc := m.pod.Spec.SecurityContext, m.slot.c.SecurityContext
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	user, group := or(sc.RunAsUser, psc.RunAsUser), or(sc.RunAsGroup, psc.RunAsGroup)
	if isTrue(or(sc.RunAsNonRoot, psc.RunAsNonRoot)) {
		if err := m.nonRoot(user); err != nil {
			return err
		}
	}
	s.User = engine.User{UID: id(user), GID: id(group)}
	for _, g := range psc.SupplementalGroups {
		s.SupplementalGroups = append(s.SupplementalGroups, uint32(g))
	}
	if psc.FSGroup != nil {
		s.SupplementalGroups = append(s.SupplementalGroups, uint32(*psc.FSGroup))
	}
	s.SupplementalGroupsStrict = psc.SupplementalGroupsPolicy != nil && *psc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	s.Privileged = isTrue(sc.Privileged)
	s.ReadonlyRootfs = isTrue(sc.ReadOnlyRootFilesystem)
	s.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	if sc.Capabilities != nil {
		for _, c := range sc.Capabilities.Add {
			s.CapAdd = append(s.CapAdd, string(c))
		}
		for _, c := range sc.Capabilities.Drop {
			s.CapDrop = append(s.CapDrop, string(c))
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount {
		s.MaskedPaths, s.ReadonlyPaths = &[]string{}, &[]string{}
	}
	s.Seccomp = m.seccomp(or(sc.SeccompProfile, psc.SeccompProfile))
	if a := or(sc.AppArmorProfile, psc.AppArmorProfile); a != nil {
		s.AppArmor = engine.Profile{Unconfined: a.Type == corev1.AppArmorProfileTypeUnconfined}
		if a.LocalhostProfile != nil {
			s.AppArmor.Localhost = *a.LocalhostProfile
		}
	}
	if len(psc.Sysctls) > 0 {
		s.Sysctls = map[string]string{}
		for _, x := range psc.Sysctls {
			s.Sysctls[sysctl.NormalizeName(x.Name)] = x.Value
		}
	}
	return nil
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func id(v *int64) *uint32 {
	if v == nil {
		return nil
	}
	u := uint32(*v)
	return &u
}

// nonRoot refuses what would run as root, with the kubelet's words.
func (m *making) nonRoot(user *int64) error {
	name := fmt.Sprintf("pod: %q, container: %s", describe(m.pod), m.slot.c.Name)
	if user != nil {
		if *user == 0 {
			return configErrorf("container's runAsUser breaks non-root policy (%s)", name)
		}
		return nil
	}
	uid, imageUser := m.image.Config.UserID()
	switch {
	case uid != nil && *uid == 0:
		return configErrorf("container has runAsNonRoot and image will run as root (%s)", name)
	case uid == nil && imageUser != "":
		return configErrorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (%s)", imageUser, name)
	}
	return nil
}

// seccomp: without a profile a container is unconfined, Kubernetes' default.
func (m *making) seccomp(p *corev1.SeccompProfile) engine.Profile {
	switch {
	case p == nil || p.Type == corev1.SeccompProfileTypeUnconfined:
		return engine.Profile{Unconfined: true}
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return engine.Profile{Localhost: filepath.Join(m.seccompDir, filepath.Clean("/"+*p.LocalhostProfile))}
	}
	return engine.Profile{}
}

// safeSysctls are those that a Pod may set: they have an effect in its
// namespaces only. k8s.io/kubernetes/pkg/kubelet/sysctl/safe_sysctls.go
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// admit tells why this device refuses the Pod, nil if it does not.
func admit(pod *corev1.Pod) *failure {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctl.NormalizeName(s.Name)
		switch {
		case !slices.Contains(safeSysctls, name):
			return &failure{reason: "SysctlForbidden", message: "forbidden sysctl: " + strconv.Quote(s.Name) + " not allowlisted"}
		case strings.HasPrefix(name, "net.") && pod.Spec.HostNetwork, strings.HasPrefix(name, "kernel.shm") && pod.Spec.HostIPC:
			return &failure{reason: "SysctlForbidden", message: "forbidden sysctl: " + strconv.Quote(s.Name) + " not allowed with host namespaces"}
		}
	}
	return nil
}
