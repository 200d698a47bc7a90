// Package bridge gives every Pod of this device a network interface and an
// address: a Linux bridge, one veth pair per Pod, addresses out of the device's
// Pod CIDRs.
//
// It is not the service proxy (net/proxy), not the path to other devices
// (net/mesh), and it writes no packet filter rules: host ports and masquerade
// are handed over as data ([Config.HostPorts]) to whoever owns the rules.
//
// # Shape
//
// A Pod's interface has a host address (/32, /128) and one route, to the
// gateway on the bridge; the bridge's ports are isolated from each other. Every
// packet of a Pod therefore passes the host's IP layer, also to its neighbor on
// the same bridge. That costs a routing decision per (up to 64 KB) segment and
// buys three things on every kernel, br_netfilter or not: a Service address
// answered by a Pod of the same bridge is translated back on the way home,
// NetworkPolicy sees all traffic, and no Pod can speak to another below IP.
// A Pod that reaches itself through a Service needs no hairpin mode on its port.
//
// # Types
//
// [Bridge] is the device's bridge. [Bridge.Attach] and [Bridge.Detach] are keyed
// by the Pod's UID and idempotent; [Bridge.Sync] frees what is not kept.
// [Cleanup] removes everything the package ever made, with no memory of it.
//
// # Promises
//
// An address is never given to two Pods. A Pod's address survives the death of
// the daemon: it stands in a file of StateDir before the link is made, and in
// the alias of the host's end of the veth pair afterwards, so that either can be
// lost. An address that was freed rests for [reuseAfter] and is then the last to
// be taken again, so that nobody's cached connection reaches a stranger.
// [Bridge.Close] leaves every Pod connected.
//
// # Dangers
//
// StateDir must not outlive a reboot (a folder in /run). New and all methods
// work in the network namespace of the thread that called New.
//
// # Goroutines
//
// None. Methods are safe for concurrent use; a mutex serializes them, as the
// kernel's own lock on links would.
//
// May be imported by cmd/edged and net/cniplugin.
package bridge
