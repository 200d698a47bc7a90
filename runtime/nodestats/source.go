package nodestats

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/runtime/engine"
	"edged/runtime/volume"
)

// Engine is what a Source needs of runtime/engine.
type Engine interface {
	List() []engine.Container
	Images(ctx context.Context) ([]engine.Image, error)
	Stats(ctx context.Context, ids ...string) ([]engine.Stats, error)
	GroupStats(group string) engine.Stats
	WritableLayer(ctx context.Context, id string) (int64, error)
}

// Config is what New needs.
type Config struct {
	NodeName string
	Engine   Engine
	// Pods lists those of this device.
	Pods interface{ Pods() []*corev1.Pod }
	// Owner tells the UID of the Pod whose a container is, and which one of it.
	Owner func(engine.Container) (uid, container string)
	// Group is the control group of a Pod, Log the folder of a container's log, Volume
	// how to measure a volume, NetDev what /proc/net/dev says in a Pod's network.
	Group  func(uid string) string
	Log    func(p *corev1.Pod, container string) string
	Volume func(p *corev1.Pod, v *corev1.Volume) (volume.Use, bool)
	NetDev func(p *corev1.Pod) ([]byte, error)
	// DataDir is on the disk of images, containers and volumes.
	DataDir string
	// Proc is where proc is mounted.
	Proc string
	Now  func() time.Time
}

// Source measures. Its methods may be called by several goroutines.
type Source struct {
	cfg   Config
	rates rates

	// walking is held while disks are measured, for all who ask meanwhile.
	walking sync.Mutex
	disks   diskUse
	walked  time.Time // when disks was begun
}

// New returns a Source.
func New(cfg Config) *Source {
	return &Source{cfg: cfg}
}

// Usage is the part of Summary that is cheap: processor and memory of the device,
// its Pods and their containers, without usageNanoCores.
func (s *Source) Usage(ctx context.Context) (*statsapi.Summary, error) {
	host, err := readHost(s.cfg.Proc, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	out := &statsapi.Summary{Pods: []statsapi.PodStats{}, Node: statsapi.NodeStats{
		NodeName: s.cfg.NodeName, StartTime: metav1.NewTime(host.boot), CPU: host.cpu, Memory: host.memory, Swap: host.swap,
	}}
	stats, err := s.cfg.Engine.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure the containers: %w", err)
	}
	containers := map[string][]statsapi.ContainerStats{}
	byID := make(map[string]engine.Stats, len(stats))
	for _, st := range stats {
		byID[st.ID] = st
	}
	for _, c := range s.cfg.Engine.List() {
		uid, name := s.cfg.Owner(c)
		st, ok := byID[c.ID]
		if !ok || name == "" {
			continue
		}
		cpu, memory := used(st)
		containers[uid] = append(containers[uid], statsapi.ContainerStats{Name: name, StartTime: metav1.NewTime(c.StartedAt), CPU: cpu, Memory: memory})
	}
	for _, p := range s.cfg.Pods.Pods() {
		uid := string(p.UID)
		list := containers[uid]
		if len(list) == 0 {
			continue // nothing of it runs: the kubelet does not tell of it either
		}
		slices.SortFunc(list, func(a, b statsapi.ContainerStats) int { return cmp.Compare(a.Name, b.Name) })
		group := s.cfg.Engine.GroupStats(s.cfg.Group(uid))
		ps := statsapi.PodStats{
			PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: uid}, Containers: list,
			ProcessStats: &statsapi.ProcessStats{ProcessCount: &group.PIDs},
		}
		if p.Status.StartTime != nil {
			ps.StartTime = *p.Status.StartTime
		}
		ps.CPU, ps.Memory = used(group)
		out.Pods = append(out.Pods, ps)
	}
	slices.SortFunc(out.Pods, func(a, b statsapi.PodStats) int {
		return cmp.Or(cmp.Compare(a.PodRef.Namespace, b.PodRef.Namespace), cmp.Compare(a.PodRef.Name, b.PodRef.Name))
	})
	return out, nil
}

// used tells in the API's words what a group used.
func used(s engine.Stats) (*statsapi.CPUStats, *statsapi.MemoryStats) {
	now, nanos := metav1.NewTime(s.Time), uint64(s.CPUUsage)
	m := &statsapi.MemoryStats{
		Time: now, UsageBytes: &s.MemoryUsageBytes, WorkingSetBytes: &s.MemoryWorkingSetBytes, RSSBytes: &s.MemoryRSSBytes,
		PageFaults: &s.PageFaults, MajorPageFaults: &s.MajorPageFaults,
	}
	if s.MemoryLimitBytes > 0 {
		available := s.MemoryLimitBytes - min(s.MemoryWorkingSetBytes, s.MemoryLimitBytes)
		m.AvailableBytes = &available
	}
	return &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &nanos}, m
}

// Summary measures all; with cpuAndMemoryOnly, processor and memory.
func (s *Source) Summary(ctx context.Context, cpuAndMemoryOnly bool) (*statsapi.Summary, error) {
	out, err := s.Usage(ctx)
	if err != nil {
		return nil, err
	}
	if fresh := s.rates.fill(out); fresh {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(shortWindow):
		}
		if out, err = s.Usage(ctx); err != nil {
			return nil, err
		}
		s.rates.fill(out)
	}
	if cpuAndMemoryOnly {
		return out, nil
	}
	return out, s.rest(ctx, out)
}

// rest adds networks, processes and disks.
func (s *Source) rest(ctx context.Context, out *statsapi.Summary) error {
	now := metav1.NewTime(s.cfg.Now())
	var err error
	if out.Node.Network, err = readHostNetwork(s.cfg.Proc, now); err != nil {
		return err
	}
	if out.Node.Rlimit, err = readRlimit(s.cfg.Proc, now); err != nil {
		return err
	}
	out.Node.CPU.PSI, out.Node.Memory.PSI = readPressure(s.cfg.Proc, "cpu"), readPressure(s.cfg.Proc, "memory")
	if psi := readPressure(s.cfg.Proc, "io"); psi != nil {
		out.Node.IO = &statsapi.IOStats{Time: now, PSI: psi}
	}
	disk, err := fsStats(s.cfg.DataDir, now)
	if err != nil {
		return err
	}
	out.Node.Fs = &disk
	use, err := s.measureDisks(ctx)
	if err != nil {
		return err
	}
	of := func(u du) *statsapi.FsStats { return u.of(disk, use.at) }
	imageFS, containerFS := of(use.images), of(use.layers)
	imageFS.InodesUsed, containerFS.InodesUsed = disk.InodesUsed, disk.InodesUsed
	out.Node.Runtime = &statsapi.RuntimeStats{ImageFs: imageFS, ContainerFs: containerFS}
	pods := map[string]*corev1.Pod{}
	for _, p := range s.cfg.Pods.Pods() {
		pods[string(p.UID)] = p
	}
	for i := range out.Pods {
		ps := &out.Pods[i]
		p := pods[ps.PodRef.UID]
		if p == nil {
			continue // gone meanwhile
		}
		if !p.Spec.HostNetwork {
			if data, err := s.cfg.NetDev(p); err == nil {
				ps.Network = networkStats(data, "eth0", now)
			}
		}
		total := du{}
		for j := range ps.Containers {
			c := &ps.Containers[j]
			u, ok := use.containers[[2]string{ps.PodRef.UID, c.Name}]
			if !ok {
				continue // it began since
			}
			c.Rootfs, c.Logs = of(du{bytes: u.layer}), of(u.logs)
			c.Rootfs.InodesUsed = nil // not counted
			total.add(u.logs)
			total.bytes += u.layer
		}
		for _, v := range use.volumes[ps.PodRef.UID] {
			ps.VolumeStats = append(ps.VolumeStats, v.stats)
			if v.ephemeral {
				total.add(du{bytes: *v.stats.UsedBytes, inodes: *v.stats.InodesUsed})
			}
		}
		ps.EphemeralStorage = of(total)
	}
	return nil
}

// fsStats tells of the file system that path is on.
func fsStats(path string, now metav1.Time) (statsapi.FsStats, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return statsapi.FsStats{}, fmt.Errorf("look at the file system of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	available, capacity, used := uint64(st.Bavail)*size, uint64(st.Blocks)*size, (uint64(st.Blocks)-uint64(st.Bfree))*size
	inodes, free := uint64(st.Files), uint64(st.Ffree)
	inodesUsed := inodes - free
	return statsapi.FsStats{
		Time: now, AvailableBytes: &available, CapacityBytes: &capacity, UsedBytes: &used, Inodes: &inodes, InodesFree: &free, InodesUsed: &inodesUsed,
	}, nil
}
