// Package podlog writes what containers print to files in CRI's format, rotates
// them, and reads them back for `kubectl logs`.
//
// It is not the engine, which hands out the ends of containers' fifos, and it
// does not serve HTTP (runtime/nodeapi).
//
// Types: a [Writer] copies one container's output to its file and to those who
// are attached; [Read] serves a request for a log.
//
// Layout: <root>/<namespace>_<pod>_<uid>/<container>/<attempt>.log, the rotated
// ones beside it with the time of rotation as suffix. A line is time (RFC 3339
// with nanoseconds), stream, F or P (the line goes on in the next one), text.
//
// Bounds: a file of 10 MiB, five files an attempt; a line is cut into parts of
// 4 KiB. Lines are handed to the kernel as they come and never synced: after a
// power cut the newest may be missing.
//
// 256 KiB wait for who is attached, and the container for a second if that is full:
// then the client is let go (ErrSlow).
//
// Goroutines: two per Writer, ended by the container's end or Close; one per
// following Read, ended by its context; one per Attach, ended by the container's end,
// by detach or by its client, when a write to it returns. May be imported by runtime/... .
// Source: the CRI's logging design, k8s.io/kubernetes/pkg/kubelet/kuberuntime/logs.
package podlog
