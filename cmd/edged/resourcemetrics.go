package main

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/runtime/nodestats"
)

// resourceMetrics is what the kubelet's /metrics/resource tells metrics-server:
// processor time and memory of the device, its Pods and their containers, under the
// kubelet's names. Nothing is measured until somebody asks.
type resourceMetrics struct{ stats *nodestats.Source }

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

func resourceMetricsHandler(s *nodestats.Source) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(resourceMetrics{s})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// Describe is empty: the collector is not checked.
func (resourceMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect measures now.
func (m resourceMetrics) Collect(ch chan<- prometheus.Metric) {
	tell := func(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats, cpuDesc, memoryDesc *prometheus.Desc, labels ...string) {
		seconds := float64(*cpu.UsageCoreNanoSeconds) / 1e9
		ch <- prometheus.NewMetricWithTimestamp(cpu.Time.Time, prometheus.MustNewConstMetric(cpuDesc, prometheus.CounterValue, seconds, labels...))
		ch <- prometheus.NewMetricWithTimestamp(memory.Time.Time, prometheus.MustNewConstMetric(memoryDesc, prometheus.GaugeValue, float64(*memory.WorkingSetBytes), labels...))
	}
	failed := 0.0
	sum, err := m.stats.Usage(context.Background())
	if err != nil {
		failed = 1
	} else {
		tell(sum.Node.CPU, sum.Node.Memory, nodeCPU, nodeMemory)
		for _, p := range sum.Pods {
			for _, c := range p.Containers {
				labels := []string{c.Name, p.PodRef.Name, p.PodRef.Namespace}
				ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(c.StartTime.UnixNano())/1e9, labels...)
				tell(c.CPU, c.Memory, containerCPU, containerMemory, labels...)
			}
			tell(p.CPU, p.Memory, podCPU, podMemory, p.PodRef.Name, p.PodRef.Namespace)
		}
	}
	ch <- prometheus.MustNewConstMetric(resourceError, prometheus.GaugeValue, failed)
}
