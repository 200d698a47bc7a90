// Package usage is how devices tell each other what they and their Pods use: less than
// a tenth of the bytes of the kubelet's summary, and with the time that a rate is of.
//
// Types: Report is the JSON that a device's node API answers with at Path. May be
// imported by: runtime/nodestats, runtime/nodeapi, apiserver/metricsapi.
package usage

import "time"

const (
	// Path is where the node API serves a Report.
	Path = "/stats/usage"
	// Namespace is the query parameter that asks for the Pods of one namespace alone.
	Namespace = "namespace"
)

// Report is what a device and its Pods use.
type Report struct {
	Node Use   `json:"node"`
	Pods []Pod `json:"pods"`
}

// Pod is one that runs.
type Pod struct {
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	UID        string      `json:"uid"`
	Containers []Container `json:"containers"`
}

// Container is one that runs.
type Container struct {
	Name string `json:"name"`
	Use
}

// Use is how much. Times are told as their age, for clocks differ.
type Use struct {
	// Age is how long ago it was measured, Window over how long the processor was.
	Age    time.Duration `json:"age"`
	Window time.Duration `json:"window"`
	// CPUNanoCores is the processor time in a second, in nanoseconds.
	CPUNanoCores uint64 `json:"cpu"`
	// MemoryBytes is the working set.
	MemoryBytes uint64 `json:"memory"`
}
