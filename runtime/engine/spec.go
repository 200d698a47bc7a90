package engine

import "syscall"

// ContainerSpec is everything that makes a container. Zero values mean what the
// image says, or what an unprivileged Kubernetes container gets by default.
type ContainerSpec struct {
	// ID names the container on this device: [A-Za-z0-9][A-Za-z0-9_.-]*, unique.
	ID     string
	Labels map[string]string

	// Image is a name or digest that [Engine.Image] finds. Ignored when Holder is set.
	Image string
	// Holder makes a container of nothing but a process that sleeps and reaps: the
	// first process of a PID namespace that the containers of a Pod share.
	Holder bool

	// Command replaces the image's entrypoint (and drops its cmd); Args replace its cmd.
	Command, Args []string
	// Env is applied over the image's, as KEY=value; the last of equal keys wins.
	Env []string
	// Cwd is created when it does not exist.
	Cwd string

	User               User
	SupplementalGroups []uint32
	// SupplementalGroupsStrict leaves out the groups that the image's /etc/group
	// gives to the user.
	SupplementalGroupsStrict bool

	Mounts         []Mount
	ReadonlyRootfs bool
	Devices        []Device

	Privileged       bool
	CapAdd, CapDrop  []string // with or without CAP_; ALL
	NoNewPrivileges  bool
	Seccomp          Profile
	AppArmor         Profile
	MaskedPaths      *[]string // nil: the default list; empty: none
	ReadonlyPaths    *[]string
	Sysctls          map[string]string
	Resources        Resources
	CgroupParent     string // absolute, e.g. /edged/pod<uid>; the container's own cgroup is <parent>/<ID>
	NetNSPath        string // "": a new, empty namespace, unless HostNetwork
	IPCNSPath        string
	UTSNSPath        string
	PIDNSPath        string // "": a new namespace, unless HostPID
	HostNetwork      bool
	HostPID          bool
	HostIPC          bool
	Hostname         string // ignored with UTSNSPath or HostNetwork
	TTY              bool
	Stdin, StdinOnce bool
	// StopSignal replaces the image's; see [Container.StopSignal].
	StopSignal syscall.Signal
}

// User says whom the process runs as. UID wins over Name; both empty means the
// image's user. Name is user[:group], each a name of the image's /etc/passwd and
// /etc/group or a number.
type User struct {
	UID, GID *uint32
	Name     string
}

// Propagation of mounts between host and container.
type Propagation string

// The propagations of Kubernetes' volume mounts.
const (
	PropagationPrivate         Propagation = "" // rprivate
	PropagationHostToContainer Propagation = "HostToContainer"
	PropagationBidirectional   Propagation = "Bidirectional"
)

// Mount binds Source, a path of the host, to Target in the container. With Type
// "tmpfs" Source is ignored and Options are mount(8) options such as size=64m.
type Mount struct {
	Type        string
	Source      string
	Target      string
	Readonly    bool
	Recursive   bool // with Readonly: nested mounts become read-only too
	Propagation Propagation
	Options     []string
}

// Device passes a device node of the host into the container. A directory
// passes in every device below it. Permissions are of "rwm", default all.
type Device struct {
	HostPath, ContainerPath, Permissions string
}

// Profile is a seccomp or AppArmor choice. The zero Profile is the runtime's
// default.
type Profile struct {
	Unconfined bool
	// Localhost is the path of a seccomp profile (JSON, the OCI or docker form), or
	// the name of an AppArmor profile loaded in the kernel.
	Localhost string
}

// Resources are cgroup limits. Zero means no limit (or the kernel's default).
type Resources struct {
	CPUShares        uint64 // cgroup v1 shares, 2..262144; converted for v2
	CPUQuota         int64  // microseconds each CPUPeriod
	CPUPeriod        uint64 // microseconds; default 100000
	MemoryLimitBytes int64
	PidsLimit        int64
	OOMScoreAdj      int // raised to what the daemon itself may set, when it lacks CAP_SYS_RESOURCE
	CpusetCPUs       string
	CpusetMems       string
	// HugepageLimits by page size as the kernel writes it, e.g. "2MB".
	HugepageLimits map[string]uint64
	// Unified are cgroup v2 files and values, e.g. "memory.min"; ignored on v1.
	Unified map[string]string
}
