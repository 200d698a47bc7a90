// Package mesh leads Pod traffic to the other devices: one route per Pod CIDR of
// a peer, straight to the peer's address where both are on one link, through a
// VXLAN tunnel where a router or a link without Ethernet is in between.
//
// It is not the bridge (net/bridge), which connects this device's own Pods, nor
// the one who decides which device has which Pod CIDR (it stands in the Node).
// It translates no addresses: net/proxy masquerades only what leaves the
// cluster's Pod CIDRs.
//
// # Shape
//
// A tunnel device has no flooding and learns nothing: neighbor and forwarding
// entries are written per peer and follow from the Node object alone, because a
// peer's hardware address in the tunnel is made from its name and its address in
// the tunnel is its bridge's. There is one device per address family of the
// network below. Pod addresses that no device has are unreachable rather than
// sent to the default router.
//
// # Types
//
// [Plan] is the pure function from peers, and from what the kernel says about
// the way to each, to all that is wanted ([Wanted]). [Mesh.Apply] brings the
// kernel there; [Mesh.Run] does so for the cluster's Nodes and again when links,
// addresses or routes of the device change.
//
// # Promises
//
// Apply changes only what differs from the kernel's state, which it reads each
// time: it needs no memory of an earlier daemon and mends what others removed. A
// peer whose way is lost costs that peer's routes only. Routes stay when the
// daemon ends.
//
// # Dangers
//
// Both ends choose for themselves: if only one of them sees the other on its
// link, each takes what the other sends either way, unless its rp_filter is
// strict. Tunnel packets are not encrypted; the packet filter drops those that
// come from addresses which are not a peer's. All methods work in the network
// namespace of the thread that called New.
//
// # Goroutines
//
// Run is the caller's; it owns one more, which reads the kernel's notices.
//
// May be imported by cmd/edged.
//
// Sources: linux/if_link.h, linux/rtnetlink.h, ip-route(8), bridge(8); flannel's
// vxlan and host-gw backends (what has proved itself).
package mesh
