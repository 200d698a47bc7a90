package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"edged/runtime/agent"
	"edged/runtime/engine"
)

// nodeMetrics are of this device's node agent, under the kubelet's names.
type nodeMetrics struct {
	node   string
	agent  *agent.Agent
	engine *engine.Engine
}

var (
	kubeletNode       = prometheus.NewDesc("kubelet_node_name", "The node's name. The count is always 1.", []string{"node"}, nil)
	kubeletPods       = prometheus.NewDesc("kubelet_running_pods", "Number of pods that have a running container.", nil, nil)
	kubeletContainers = prometheus.NewDesc("kubelet_running_containers", "Number of containers by state.", []string{"container_state"}, nil)
)

// Describe is empty: the collector is not checked.
func (nodeMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect counts what is there now.
func (m nodeMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	pods, states := 0, map[engine.State]int{}
	for _, p := range m.agent.Report() {
		running := false
		for _, cs := range p.Status.ContainerStatuses {
			running = running || cs.State.Running != nil
		}
		for _, cs := range p.Status.InitContainerStatuses {
			running = running || cs.State.Running != nil
		}
		if running {
			pods++
		}
	}
	for _, c := range m.engine.List() {
		states[c.State]++
	}
	gauge(kubeletNode, 1, m.node)
	gauge(kubeletPods, pods)
	for state, name := range map[engine.State]string{engine.Created: "created", engine.Running: "running", engine.Exited: "exited"} {
		gauge(kubeletContainers, states[state], name)
	}
}
