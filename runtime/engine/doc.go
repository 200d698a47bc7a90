// Package engine runs containers and keeps images on this device.
//
// It is containerd's content store, metadata, snapshots and unpacking held as
// plain Go objects (no server, no socket), plus one shim process for all
// containers, to which runc is handed each time a container is made. It is not
// the judge of what should run (runtime/agent and runtime/pod), knows nothing of
// Pods, networks or logs, and never retries a pull (runtime/image).
//
// # Types
//
// An [Engine] holds [Image]s, which [Engine.ImportImages] and [Engine.Pull] add,
// and containers, each made from a [ContainerSpec] and seen as a [Container]:
//
//	Create ──> Created ── Start ──> Running ── exits or Kill ──> Exited ── Delete ──> (gone)
//	                                   └── the shim died ──> Unknown ──────┘
//
// An [Event] says only that a container deserves a look; [Engine.Get] says what
// is true. [Streams] carry an exec's input and output.
//
// # Promises
//
//   - Containers outlive the daemon. The shim has its own session and cgroup and
//     holds the output, the standard input and the exit codes; [Open] finds
//     everything again after a SIGKILL, with the same ids and the right codes.
//   - Output is not lost and a container never gets EPIPE while the daemon is
//     away: the shim keeps both ends of each fifo open until Delete, so a full
//     fifo blocks the writer.
//   - A container's writable layer and its records live and die with the boot:
//     records are on the run-dir's tmpfs, the layer's directory is mounted
//     without syncs and swept by the first Open after a reboot. Making a
//     container writes no database.
//   - An image is listed once its content is complete, synced and unpacked.
//     What a crash left half done is swept by the next Open.
//   - [Cleanup] removes everything the engine ever made, with no memory of it.
//
// # Dangers
//
// Two engines must not share Root or State. Stdio has one reader per stream: two
// readers of one fifo would share the bytes between them. Create, Start, Exec,
// Delete and the image calls block on processes and disks; List, Get and Kill do
// not. Mounts are made in the daemon's mount namespace and the shim inherits the
// one it was started from.
//
// # Goroutines
//
// One watches the exits of all containers (pidfds on one epoll); one more while
// the shim's connection is open. Each Exec runs a few for its lifetime. All end
// with Close, which leaves the containers alone.
//
// May be imported by runtime/*, cmd/edged. Sole importer of containerd.
//
// Sources: containerd v2.4.2 core/metadata, core/unpack, plugins/snapshots/overlay,
// cmd/containerd-shim-runc-v2/task; OCI runtime-spec 1.3; KEP-127 and the
// kubelet's kuberuntime for what a container spec must say.
package engine
