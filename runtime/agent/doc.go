// Package agent keeps this device's Pods running: it gives each Pod that names
// the device a worker, writes what the workers report to the cluster, and
// removes what no Pod wants any more.
//
// It is not a Pod (runtime/pod) and not the device's own object
// (runtime/nodestatus).
//
// It knows its Pods from this device's replica, in memory, by watch. Without a
// quorum nothing changes for it: Pods run on, and statuses wait, the newest of
// each Pod, until they can be written. Nothing is ever stopped because the
// control plane cannot be reached.
//
// Goroutines, all ended by [Agent.Run]'s context: the loop that starts and feeds
// workers, a worker a Pod, the status writer, the reader of the engine's events.
// Bounds: one pending Pod and one pending status for each Pod of the device.
//
// May be imported by cmd/edged and runtime/nodeapi.
package agent
