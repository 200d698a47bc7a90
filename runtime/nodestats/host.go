package nodestats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// tick is the kernel's unit of time towards programs, on every architecture.
const tick = time.Second / 100

// host is what the whole device uses.
type host struct {
	boot   time.Time
	cpu    *statsapi.CPUStats
	memory *statsapi.MemoryStats
	swap   *statsapi.SwapStats
}

// readHost reads proc. The working set is what is neither free nor the page cache that
// goes first, as cAdvisor has it of the root.
func readHost(proc string, at time.Time) (host, error) {
	now := metav1.NewTime(at)
	h := host{cpu: &statsapi.CPUStats{Time: now}, memory: &statsapi.MemoryStats{Time: now}}
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return h, err
	}
	for line := range bytes.Lines(stat) {
		if s, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			sec, err := strconv.ParseInt(string(bytes.TrimSpace(s)), 10, 64)
			if err != nil {
				return h, fmt.Errorf("reading %s/stat: %w", proc, err)
			}
			h.boot = time.Unix(sec, 0)
		}
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	var user, nice, system, idle, iowait, irq, softirq, steal uint64
	if _, err := fmt.Sscanf(string(line), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return h, fmt.Errorf("reading %s/stat: %w", proc, err)
	}
	nanos := (user + nice + system + irq + softirq + steal) * uint64(tick)
	h.cpu.UsageCoreNanoSeconds = &nanos
	mem, err := readFields(filepath.Join(proc, "meminfo"), ":")
	if err != nil {
		return h, err
	}
	kib := func(n uint64) *uint64 { n <<= 10; return &n }
	total, usage := mem["MemTotal"], mem["MemTotal"]-min(mem["MemFree"], mem["MemTotal"])
	working := usage - min(mem["Inactive(file)"], usage)
	h.memory.UsageBytes, h.memory.WorkingSetBytes, h.memory.AvailableBytes = kib(usage), kib(working), kib(total-working)
	h.memory.RSSBytes = kib(mem["AnonPages"])
	if vm, err := readFields(filepath.Join(proc, "vmstat"), ""); err == nil {
		faults, major := vm["pgfault"], vm["pgmajfault"]
		h.memory.PageFaults, h.memory.MajorPageFaults = &faults, &major
	}
	h.swap = &statsapi.SwapStats{Time: now, SwapAvailableBytes: kib(mem["SwapFree"]), SwapUsageBytes: kib(mem["SwapTotal"] - min(mem["SwapFree"], mem["SwapTotal"]))}
	return h, nil
}

// readFields reads lines of a name, which may end in a sign, and a number.
func readFields(path, sign string) (map[string]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				out[strings.TrimSuffix(f[0], sign)] = n
			}
		}
	}
	return out, nil
}

// readRlimit: every thread takes a number of the kernel's.
func readRlimit(proc string, now metav1.Time) (*statsapi.RlimitStats, error) {
	r := &statsapi.RlimitStats{Time: now}
	var limit int64
	for _, name := range []string{"pid_max", "threads-max"} {
		data, err := os.ReadFile(filepath.Join(proc, "sys/kernel", name))
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading kernel.%s: %w", name, err)
		}
		if limit == 0 || n < limit {
			limit = n
		}
	}
	data, err := os.ReadFile(filepath.Join(proc, "loadavg"))
	if err != nil {
		return nil, err
	}
	var load [3]float64
	var running, tasks int64
	if _, err := fmt.Sscanf(string(data), "%f %f %f %d/%d", &load[0], &load[1], &load[2], &running, &tasks); err != nil {
		return nil, fmt.Errorf("reading %s/loadavg: %w", proc, err)
	}
	r.MaxPID, r.NumOfRunningProcesses = &limit, &tasks
	return r, nil
}

// readPressure is nil on a kernel that does not tell.
func readPressure(proc, of string) *statsapi.PSIStats {
	data, err := os.ReadFile(filepath.Join(proc, "pressure", of))
	if err != nil {
		return nil
	}
	var out statsapi.PSIStats
	for line := range strings.Lines(string(data)) {
		var d statsapi.PSIData
		var kind string
		if _, err := fmt.Sscanf(line, "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &d.Avg10, &d.Avg60, &d.Avg300, &d.Total); err != nil {
			return nil
		}
		d.Total *= uint64(time.Microsecond) // the kernel's unit; the API's is the nanosecond
		switch kind {
		case "some":
			out.Some = d
		case "full":
			out.Full = d
		}
	}
	return &out
}

// readHostNetwork names the link eth0, as the kubelet does, or else that of the
// default route.
func readHostNetwork(proc string, now metav1.Time) (*statsapi.NetworkStats, error) {
	data, err := os.ReadFile(filepath.Join(proc, "net/dev"))
	if err != nil {
		return nil, err
	}
	if n := networkStats(data, "eth0", now); n.Name != "" {
		return n, nil
	}
	routes, err := os.ReadFile(filepath.Join(proc, "net/route"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(routes)) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return networkStats(data, f[0], now), nil
		}
	}
	return networkStats(data, "", now), nil
}

// betweenPod says whether a link is the device's end of one to a Pod, by the names that
// the bridge and CNI plugins give them.
func betweenPod(link string) bool {
	return strings.HasPrefix(link, "edv") || strings.HasPrefix(link, "veth")
}

// networkStats reads /proc/net/dev. What is between Pods and the device is left out,
// as by cAdvisor: its other end is told of with the Pod.
func networkStats(dev []byte, main string, now metav1.Time) *statsapi.NetworkStats {
	out := &statsapi.NetworkStats{Time: now}
	for line := range strings.Lines(string(dev)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 16 || name == "lo" || betweenPod(name) {
			continue
		}
		at := func(i int) *uint64 {
			n, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return nil
			}
			return &n
		}
		s := statsapi.InterfaceStats{Name: name, RxBytes: at(0), RxErrors: at(2), TxBytes: at(8), TxErrors: at(10)}
		if name == main {
			out.InterfaceStats = s
		}
		out.Interfaces = append(out.Interfaces, s)
	}
	return out
}
