// Package nodestatus keeps this device's Node object true: what the machine has,
// where it is reached, and that it is ready.
//
// It does not judge other devices (controller/node). It writes only what
// changed: a heartbeat would be a write to every card of the cluster, and
// liveness travels with Raft's own. Capacities and labels that others gave the
// Node, such as extended resources, are left alone.
//
// Goroutines: [Reporter.Run] is one, owned by the caller; it wakes once a minute
// to look at the disk, and when [Reporter.Changed] is called.
//
// May be imported by cmd/edged. Source of the fields:
// k8s.io/kubernetes/pkg/kubelet/nodestatus.
package nodestatus
