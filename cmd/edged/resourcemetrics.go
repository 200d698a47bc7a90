package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"edged/runtime/engine"
	"edged/runtime/pod"
)

// resourceMetrics is what the kubelet's /metrics/resource tells metrics-server:
// processor time and memory of the device, its Pods and their containers, under the
// kubelet's names. Nothing is measured until somebody asks.
type resourceMetrics struct{ engine *engine.Engine }

var (
	containerLabels = []string{"container", "pod", "namespace"}
	podLabels       = []string{"pod", "namespace"}

	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Current working set of the node in bytes", nil, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", containerLabels, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Current working set of the container in bytes", containerLabels, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", podLabels, nil)
	resourceError   = prometheus.NewDesc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

func resourceMetricsHandler(e *engine.Engine) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(resourceMetrics{e})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// Describe is empty: the collector is not checked.
func (resourceMetrics) Describe(chan<- *prometheus.Desc) {}

// used is what was consumed until a time.
type used struct {
	at     time.Time
	cpu    time.Duration
	memory uint64
}

// Collect measures now.
func (m resourceMetrics) Collect(ch chan<- prometheus.Metric) {
	tell := func(u used, cpu, memory *prometheus.Desc, labels ...string) {
		ch <- prometheus.NewMetricWithTimestamp(u.at, prometheus.MustNewConstMetric(cpu, prometheus.CounterValue, u.cpu.Seconds(), labels...))
		ch <- prometheus.NewMetricWithTimestamp(u.at, prometheus.MustNewConstMetric(memory, prometheus.GaugeValue, float64(u.memory), labels...))
	}
	failed := 0.0
	if u, err := nodeUsed("/proc", time.Now()); err == nil {
		tell(u, nodeCPU, nodeMemory)
	} else {
		failed = 1
	}
	stats, err := m.engine.Stats(context.Background())
	if err != nil {
		failed = 1
	}
	pods := map[[2]string]used{}
	for _, s := range stats {
		c, ok := m.engine.Get(s.ID)
		if !ok || pod.ContainerOf(c) == "" {
			continue
		}
		_, ns, name := pod.Owner(c)
		labels := []string{pod.ContainerOf(c), name, ns}
		ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(c.StartedAt.UnixNano())/1e9, labels...)
		tell(used{s.Time, s.CPUUsage, s.MemoryWorkingSetBytes}, containerCPU, containerMemory, labels...)
		sum := pods[[2]string{name, ns}]
		pods[[2]string{name, ns}] = used{s.Time, sum.cpu + s.CPUUsage, sum.memory + s.MemoryWorkingSetBytes}
	}
	for p, u := range pods {
		tell(u, podCPU, podMemory, p[0], p[1])
	}
	ch <- prometheus.MustNewConstMetric(resourceError, prometheus.GaugeValue, failed)
}

// nodeUsed reads what the whole device uses: its working set is what is neither
// free nor the page cache that goes first, as cAdvisor has it of the root.
func nodeUsed(proc string, now time.Time) (used, error) {
	u := used{at: now}
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return u, err
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	if _, err := fmt.Sscanf(string(line), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return u, fmt.Errorf("reading %s/stat: %w", proc, err)
	}
	const tick = time.Second / 100 // the kernel's unit towards programs, on every architecture
	u.cpu = time.Duration(user+nice+system+irq+softirq+steal) * tick
	info, err := os.ReadFile(proc + "/meminfo")
	if err != nil {
		return u, err
	}
	kib := map[string]int64{}
	for line := range bytes.Lines(info) {
		var name string
		var n int64
		if _, err := fmt.Sscanf(string(line), "%s %d", &name, &n); err == nil {
			kib[name] = n
		}
	}
	u.memory = uint64(max(0, kib["MemTotal:"]-kib["MemFree:"]-kib["Inactive(file):"])) << 10
	return u, nil
}
