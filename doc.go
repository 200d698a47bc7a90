// Package edged is the root of the edged repository. It holds no code: the
// daemon is built from cmd/edged, and the tests beside this file check the
// repository itself (package comments, import graph, dependencies).
//
// edged turns a box of small Linux machines into a Kubernetes cluster: one
// statically linked daemon per device holds a replica of the cluster's state
// in a Raft group, serves the Kubernetes API, schedules Pods, runs them under
// containerd and connects them by a bridge. ARCHITECTURE.md is the map.
package edged
