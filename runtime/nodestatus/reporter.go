package nodestatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/runtime/engine"
)

const (
	// LabelControlPlane is the role that kubectl shows: every device serves the
	// API.
	LabelControlPlane = "node-role.kubernetes.io/control-plane"
	// MaxPods is the kubelet's default.
	MaxPods = 110
	// removal is how long the cluster may take to remove the device of a Node that
	// was deleted.
	removal = 10 * time.Second
	// lookEvery is how often the disk is looked at, lookAgain how often while the
	// device is not ready: as the kubelet looks at its runtime.
	lookEvery = time.Minute
	lookAgain = 5 * time.Second
	// MaxImages bounds the list in the Node object, as the kubelet's default.
	MaxImages = 50
	// lowDisk is the share of free bytes or inodes below which the device is
	// under disk pressure, the kubelet's default for nodefs.
	lowDisk = 0.10
	// lowMemory in bytes is the kubelet's default for memory.available.
	lowMemory = 100 << 20
)

// Images lists the device's images.
type Images interface {
	Images(ctx context.Context) ([]engine.Image, error)
	Version() string // of the containerd that keeps them
}

// Config is what a Reporter needs.
type Config struct {
	NodeName string
	IP       func() netip.Addr
	// OtherIP is the device's address of the second family, invalid if it has
	// none; may be nil.
	OtherIP     func() netip.Addr
	KubeletPort int32
	// Version is the kubelet version to report, e.g. v1.37.2+edged.
	Version string
	// DataDir is on the disk whose room is reported.
	DataDir  string
	Labels   map[string]string
	Taints   []corev1.Taint // at registration only
	Registry *registry.Registry
	Images   Images
	// Alone says that this device is a cluster by itself; nil is true. In a larger
	// one, deleting its Node removes a device for good.
	Alone func() bool
	// Ready says why the device cannot run Pods; nil is ready. It is asked again
	// every minute, and every 5 s while it is not.
	Ready func(context.Context) error
	// Now is the clock of what is written; nil is time.Now.
	Now func() time.Time
	// ClockOff says whether the system's clock is off the cluster's time; nil is
	// never.
	ClockOff func() bool
	Logger   *slog.Logger
}

// Reporter writes the Node object.
type Reporter struct {
	cfg   Config
	nodes registry.Client[*corev1.Node]
	wake  chan struct{}
	// podCIDRs are what this device's Pods have their addresses from.
	podCIDRs []string
	unready  error     // of Run: what Ready said last
	power    power     // of Run
	gone     time.Time // when the Node was first found deleted
}

// New returns a Reporter.
func New(cfg Config) *Reporter {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Reporter{cfg: cfg, nodes: registry.For[*corev1.Node](cfg.Registry), wake: make(chan struct{}, 1)}
}

// Changed makes the Reporter look again soon.
func (r *Reporter) Changed() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Register makes the Node object if it is not there, and returns it with the
// range of Pod addresses that the device has. A Node that was deleted and whose
// device runs on comes back with the addresses that its Pods have.
func (r *Reporter) Register(ctx context.Context) (*corev1.Node, error) {
	node, ok := r.nodes.Get("", r.cfg.NodeName)
	if !ok {
		labels := map[string]string{
			LabelControlPlane: "", corev1.LabelHostname: r.cfg.NodeName, corev1.LabelOSStable: goruntime.GOOS, corev1.LabelArchStable: goruntime.GOARCH,
			"beta.kubernetes.io/os": goruntime.GOOS, "beta.kubernetes.io/arch": goruntime.GOARCH,
		}
		maps.Copy(labels, r.cfg.Labels)
		var err error
		node, err = r.nodes.Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: r.cfg.NodeName, Labels: labels},
			Spec:       corev1.NodeSpec{PodCIDRs: r.podCIDRs, Taints: r.cfg.Taints},
		})
		if err != nil {
			return nil, err
		}
	}
	if len(node.Spec.PodCIDRs) == 0 {
		return nil, fmt.Errorf("the Node %s has no podCIDRs: delete it, and this device makes it anew", node.Name)
	}
	r.podCIDRs = node.Spec.PodCIDRs
	return node, nil
}

// Run keeps the status true until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	t := time.NewTimer(lookEvery)
	defer t.Stop()
	defer r.nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Object.Name == r.cfg.NodeName && doubted(e) {
			r.Changed()
		}
	})()
	for failing, said := false, ""; ; {
		err := r.report(ctx)
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			r.cfg.Logger.Warn("the Node's status is not written", "err", err)
		case err == nil && failing:
			r.cfg.Logger.Info("the Node's status is written again")
		}
		failing = err != nil
		if err == nil {
			said = r.say(said)
		}
		if err != nil || r.unready != nil {
			t.Reset(lookAgain)
		} else {
			t.Reset(lookEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-t.C:
		}
	}
}

// say tells of a change from what it said last, which it returns anew. That a device is
// not up yet is no news.
func (r *Reporter) say(last string) string {
	const ready, notReady = "the Node is Ready", "the Node is not Ready"
	switch {
	case r.unready == nil && last != ready:
		r.cfg.Logger.Info(ready)
		return ready
	case r.unready != nil && last != notReady && !errors.Is(r.unready, ErrStarting):
		r.cfg.Logger.Warn(notReady, "err", r.unready)
		return notReady
	}
	return last
}

// doubted says that the Node is gone, or that others say of this device what it
// has to put right: it is there.
func doubted(e registry.Event[*corev1.Node]) bool {
	return e.Type == watch.Deleted || slices.ContainsFunc(e.Object.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

func (r *Reporter) report(ctx context.Context) error {
	images, err := r.cfg.Images.Images(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	m, err := look(r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.unready = r.cfg.Ready(ctx)
	now := metav1.NewTime(r.cfg.Now())
	r.power.look("/sys", time.Now())
	set := func(n *corev1.Node) error {
		r.fill(n, m, images, now)
		r.power.fill(&n.Status, time.Now(), now)
		return nil
	}
	_, err = r.nodes.UpdateStatus(ctx, "", r.cfg.NodeName, set)
	if apierrors.IsNotFound(err) {
		if r.cfg.Alone != nil && !r.cfg.Alone() {
			if r.gone.IsZero() {
				r.gone = time.Now()
				time.AfterFunc(removal, r.Changed)
			}
			if time.Since(r.gone) < removal {
				return nil
			}
		}
		// It is here and not removed, so it comes back.
		if _, err := r.Register(ctx); err != nil {
			return err
		}
		_, err = r.nodes.UpdateStatus(ctx, "", r.cfg.NodeName, set)
	}
	if err != nil {
		return err
	}
	r.gone = time.Time{}
	_, err = r.nodes.Update(ctx, "", r.cfg.NodeName, func(n *corev1.Node) error {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelHostname], n.Labels[corev1.LabelOSStable], n.Labels[corev1.LabelArchStable] = r.cfg.NodeName, goruntime.GOOS, goruntime.GOARCH
		maps.Copy(n.Labels, r.cfg.Labels)
		return nil
	})
	return err
}

// machine is what the device has.
type machine struct {
	memory, available  int64
	disk, free         int64
	inodes, freeInodes uint64
	kernel, osImage    string
	machineID, bootID  string
}

func look(dataDir string) (m machine, err error) {
	if err := m.room(dataDir); err != nil {
		return m, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, err
	}
	m.kernel = unix.ByteSliceToString(uts.Release[:])
	m.osImage = "Linux"
	if data, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(data)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				m.osImage = strings.Trim(v, `"`)
			}
		}
	}
	m.machineID = readLine("/etc/machine-id")
	m.bootID = readLine("/proc/sys/kernel/random/boot_id")
	return m, nil
}

// room reads what can run short.
func (m *machine) room(dataDir string) error {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kib); n == 1 {
			m.memory = kib << 10
		}
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			m.available = kib << 10
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dataDir, &st); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dataDir, err)
	}
	m.disk, m.free = int64(st.Blocks)*int64(st.Bsize), int64(st.Bavail)*int64(st.Bsize)
	m.inodes, m.freeInodes = st.Files, st.Ffree
	return nil
}

// Room is what can run short on the device.
type Room struct {
	Disk, DiskFree                   int64 // bytes of the disk that holds dataDir
	Inodes, InodesFree               uint64
	MemoryAvailable, MemoryThreshold int64 // below the latter is memory pressure
}

// RoomOf looks at the device now.
func RoomOf(dataDir string) (Room, error) {
	var m machine
	if err := m.room(dataDir); err != nil {
		return Room{}, err
	}
	return Room{m.disk, m.free, m.inodes, m.freeInodes, m.available, m.memoryThreshold()}, nil
}

func (m *machine) memoryThreshold() int64 { return min(lowMemory, m.memory/20) }

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// fill writes what is known into n, and nothing else.
func (r *Reporter) fill(n *corev1.Node, m machine, images []engine.Image, now metav1.Time) {
	s := &n.Status
	set := func(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = q
	}
	for _, list := range []*corev1.ResourceList{&s.Capacity, &s.Allocatable} {
		set(list, corev1.ResourceCPU, *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI))
		set(list, corev1.ResourceMemory, *resource.NewQuantity(m.memory, resource.BinarySI))
		set(list, corev1.ResourcePods, *resource.NewQuantity(MaxPods, resource.DecimalSI))
		set(list, corev1.ResourceEphemeralStorage, *resource.NewQuantity(m.disk, resource.BinarySI))
	}
	// What others gave the Node is allocatable too.
	for name, q := range s.Capacity {
		if _, ok := s.Allocatable[name]; !ok {
			s.Allocatable[name] = q
		}
	}
	s.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: r.cfg.IP().String()}}
	if r.cfg.OtherIP != nil {
		if a := r.cfg.OtherIP(); a.IsValid() {
			s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: r.cfg.NodeName})
	s.DaemonEndpoints.KubeletEndpoint.Port = r.cfg.KubeletPort
	s.NodeInfo = corev1.NodeSystemInfo{
		MachineID: m.machineID, SystemUUID: m.machineID, BootID: m.bootID, KernelVersion: m.kernel, OSImage: m.osImage,
		ContainerRuntimeVersion: "containerd://" + r.cfg.Images.Version(), KubeletVersion: r.cfg.Version, OperatingSystem: goruntime.GOOS, Architecture: goruntime.GOARCH,
	}
	s.Images = imageList(images)
	lowMem := m.available > 0 && m.available < m.memoryThreshold()
	lowSpace := float64(m.free) < lowDisk*float64(m.disk) || m.inodes > 0 && float64(m.freeInodes) < 0.05*float64(m.inodes)
	condition(s, corev1.NodeMemoryPressure, lowMem, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "kubelet has insufficient memory available", "kubelet has sufficient memory available", now)
	condition(s, corev1.NodeDiskPressure, lowSpace, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "kubelet has disk pressure", "kubelet has no disk pressure", now)
	condition(s, corev1.NodePIDPressure, false, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "kubelet has insufficient PID available", "kubelet has sufficient PID available", now)
	r.fillClock(s, now)
	message := "kubelet is posting ready status"
	if r.unready != nil {
		message = r.unready.Error()
	}
	condition(s, corev1.NodeReady, r.unready == nil, "KubeletReady", "KubeletNotReady", message, message, now)
}

// ClockOff is the condition of a device whose system's clock is off the cluster's
// time. A device whose clock never was has none.
const ClockOff corev1.NodeConditionType = "ClockOff"

func (r *Reporter) fillClock(s *corev1.NodeStatus, now metav1.Time) {
	if r.cfg.ClockOff == nil {
		return
	}
	wrong := r.cfg.ClockOff()
	has := slices.ContainsFunc(s.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ClockOff })
	if !wrong && !has {
		return
	}
	// By how much is not said: what changes is written.
	condition(s, ClockOff, wrong, "SystemClockOff", "SystemClockRight",
		"the system's clock, which Pods see, is off what the devices agree on; edged status tells by how much", "the system's clock is what the devices agree on", now)
}

// condition sets a condition; its heartbeat is the time of its last change.
func condition(s *corev1.NodeStatus, t corev1.NodeConditionType, is bool, yes, no, yesText, noText string, now metav1.Time) {
	c := corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: no, Message: noText, LastHeartbeatTime: now, LastTransitionTime: now}
	if is {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, yes, yesText
	}
	i := slices.IndexFunc(s.Conditions, func(o corev1.NodeCondition) bool { return o.Type == t })
	if i < 0 {
		s.Conditions = append(s.Conditions, c)
		return
	}
	old := s.Conditions[i]
	if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	s.Conditions[i] = c
}

// imageList is the largest images first.
func imageList(images []engine.Image) []corev1.ContainerImage {
	var out []corev1.ContainerImage
	for _, im := range images {
		names := append(slices.Clone(im.RepoDigests), im.Names...)
		if len(names) > 5 {
			names = names[:5]
		}
		out = append(out, corev1.ContainerImage{Names: names, SizeBytes: im.SizeBytes})
	}
	slices.SortFunc(out, func(a, b corev1.ContainerImage) int {
		if a.SizeBytes != b.SizeBytes {
			return int(min(max(b.SizeBytes-a.SizeBytes, -1), 1))
		}
		return slices.Compare(a.Names, b.Names)
	})
	if len(out) > MaxImages {
		out = out[:MaxImages]
	}
	return out
}

// ErrStarting is a Ready of a device that is not up yet.
var ErrStarting = errors.New("container runtime is starting")

// Memory is the machine's, in bytes.
func Memory() (int64, error) {
	m, err := look("/")
	return m.memory, err
}
