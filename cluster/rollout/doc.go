// Package rollout decides how the devices of a cluster get another daemon, or
// another system in their second slot, one after the other.
//
// A [State] is kept as an object of the cluster, so that whoever leads goes on
// with it, also after a power cut. Devices say on their Nodes which binary they run.
// [Decide] is a pure function from state, devices and time to the next step; the
// leader does it and asks again.
//
// Promise: at most one device is worked on; the next one begins only while the
// cluster is whole, every device Ready and every member caught up, so that no
// quorum depends on a device that restarts; the leader comes last. The first device
// that goes back to its old daemon, or does not come back, stops it all, and no
// further device is touched.
//
// A daemon is replaced under its containers. For a system the device restarts: it is
// drained before, as far as there are other devices for its Pods.
//
// It replaces nothing itself: that is `edged upgrade` on the device.
//
// May be imported by cmd/edged. Starts no goroutines.
package rollout
