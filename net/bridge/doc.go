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
// gateway on the bridge. Every packet of a Pod therefore passes the host's IP
// layer, also to its neighbor on the same bridge. That costs a routing decision
// per (up to 64 KB) segment and buys two things on every kernel: a Service
// address answered by a Pod of the same bridge is translated back on the way
// home, and NetworkPolicy sees all traffic.
//
// What a port may do below IP depends on whether the kernel shows bridged frames
// to the packet filter (br_netfilter with bridge-nf-call-iptables, which docker
// turns on, and which [New] turns off if no other bridge is there when it makes
// its own). If not, ports are isolated from each other, so that no Pod passes
// by the packet filter. If so, the kernel itself takes a short cut: a frame to
// a Service address that is translated to a Pod of the same bridge is forwarded
// there without being routed, so that ports must not be isolated, and a Pod that
// reaches itself needs hairpin mode on its port; the packet filter then sees
// bridged frames too. [Bridge.Refresh] follows the setting.
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
