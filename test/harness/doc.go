// Package harness starts devices on one machine and drives them as users do.
//
// A [Device] is a daemon with namespaces of its own: network, mount, PID and
// cgroup. What it sees is a machine with one Ethernet link; what it makes dies
// with it. [Device.Kill] is SIGKILL to the daemon alone, [Device.Reboot] is a
// power cycle: every process dies, the run-dir, mounts and links are gone, the
// data-dir stays. A [Switch] connects devices by a bridge in a namespace of its
// own, so no packet of a test leaves the test.
//
// It drives the binary that `make build` made ($EDGED, default bin/edged)
// through flags, kubectl and client-go; it never imports an inner package.
//
// Tests, benchmarks and the conformance run are its users; they pass a [TB],
// which *testing.T satisfies.
//
// Needs root and util-linux (unshare, nsenter). Everything is removed by the
// TB's cleanup, which also fails the test if a process, mount or cgroup of a
// device is left. Goroutines: one per process that a Device runs, ended with it.
//
// May be imported by test/... and bench/... only.
package harness
