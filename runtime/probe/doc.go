// Package probe runs containers' probes: startup, liveness and readiness, by
// exec, HTTP, TCP or gRPC.
//
// It decides whether a container counts as started, ready or dead; what follows
// from it is decided by runtime/pod.
//
// Types: a [Set] runs the probes of one run of a container and reports each
// change of their outcome.
//
// Goroutines: one per probe, asleep between two probes, ended by [Set.Stop].
// May be imported by runtime/... . Source of the semantics: the Kubernetes API
// (core/v1 Probe) and k8s.io/kubernetes/pkg/kubelet/prober.
package probe
