// Package policy enforces NetworkPolicy for the Pods of this device: it
// translates policies, Pods and namespaces into the section "pol" of the
// nftables table.
//
// It is not the packet filter library (net/nft), nor the one that attaches Pods
// (net/bridge), whose promise it relies on: every packet of a Pod, also one to
// its neighbor, passes the host's IP layer.
//
// # Shape
//
// Two chains look at packets that are forwarded, first for the sender's egress,
// then for the receiver's ingress. A Pod that no policy selects is in no map and
// costs one lookup; a device without policies has no chain at all. All Pods that
// are selected by the same policies share a chain, which tries the policies in
// turn and drops what none of them accepts. The peers of a policy's rule are a
// set of Pod addresses, so that a Pod which comes or goes is an element. Blocks
// of addresses are sets of ranges, with the exceptions taken out.
//
// Translation of Service addresses has happened before (prerouting) and that of
// source addresses happens after (postrouting): policies see Pods. The device
// itself reaches its Pods always, and they it, as Kubernetes demands for probes:
// that traffic is not forwarded. So does a Pod itself through a Service.
//
// # Types
//
// [State] is all that is wanted, [Translate] the pure function from it to an
// [nft.Ruleset]; [Enforcer] applies it: Run keeps it in step with the registry,
// Protect applies it for a Pod that is about to start.
//
// # Promises
//
// A Pod that policies select is isolated before its containers start. Packets of
// connections that were accepted pass, whatever policies say later. A named port
// is the number that the receiving Pod gives the name.
//
// # Dangers
//
// A Pod of another device is known by its status: for as long as its address is
// not written, it is a stranger.
//
// # Goroutines
//
// Run is the only one, the caller's.
//
// May be imported by cmd/edged.
//
// Sources: k8s.io/api/networking/v1 (what fields mean), the Network Policies page
// of the Kubernetes documentation, sigs.k8s.io/kube-network-policies.
package policy
