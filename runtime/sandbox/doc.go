// Package sandbox keeps the namespaces that a Pod's containers share: network,
// IPC and UTS, and the Pod's /dev/shm.
//
// It is not the network (net/bridge connects the namespace) and not the
// containers (runtime/engine). No process holds a sandbox: each namespace is
// pinned by a bind mount below the run-dir, so it outlives the daemon and costs
// no memory but the kernel's. A reboot takes it away, and [Sandboxes.Ensure]
// makes it again.
//
// Layout: <run-dir>/sandboxes/<pod uid>/{net,ipc,uts,shm}.
//
// Concurrency: calls for different Pods may run at once; those for one Pod are
// made by its worker. Goroutines: none that outlive a call.
//
// May be imported by runtime/... and cmd/edged.
package sandbox
