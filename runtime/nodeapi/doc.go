// Package nodeapi is the kubelet's HTTP API of this device: its Pods, their logs,
// exec, attach and port-forward, and its metrics.
//
// It authenticates and authorizes nobody: the API server in this process calls
// it directly, and cmd/edged guards the port that serves it to other devices.
//
// Streams are SPDY or WebSocket, terminated by k8s.io/cri-streaming; what
// kubectl tries first is added here: v5.channel.k8s.io for exec and attach,
// and SPDY within a WebSocket for port-forward.
//
// Goroutines: those of requests. May be imported by cmd/edged. Source of paths
// and parameters: k8s.io/kubernetes/pkg/kubelet/server.
package nodeapi
