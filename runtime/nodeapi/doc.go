// Package nodeapi is the kubelet's HTTP API of this device: logs, exec, attach,
// port-forward and statistics of its Pods.
//
// It authenticates and authorizes nobody: the API server in this process calls
// it directly, and cmd/edged guards the port that serves it to other devices.
//
// Streams are SPDY or WebSocket (v4.channel.k8s.io), terminated by
// k8s.io/cri-streaming. A client that asks for a newer WebSocket protocol is
// refused the upgrade and falls back to SPDY, as kubectl does.
//
// Goroutines: those of requests. May be imported by cmd/edged. Source of paths
// and parameters: k8s.io/kubernetes/pkg/kubelet/server.
package nodeapi
