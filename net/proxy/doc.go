// Package proxy makes Service addresses work on this device: it translates
// Services and EndpointSlices into the section "svc" of the nftables table.
//
// It is not the packet filter library (net/nft), not NetworkPolicy (net/policy),
// not the announcement of load balancer addresses to the network (net/announce).
// It also owns the two kinds of address translation that are not about Services,
// host ports and the masquerade of Pods that speak to the outside, because all
// of it must agree.
//
// # Shape
//
// The number of rules does not depend on the number of Services. An address and
// port leads through a verdict map to a chain that is shared by all Services
// with as many endpoints; its one rule draws a number and finds the endpoint
// with that number:
//
//	dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @svc-addr-endpoints4
//
// Session affinity remembers, in a map that packets write and that forgets by
// itself, an identity of the endpoint per client and Service; an endpoint that is
// gone is not found by its identity, and the client gets another one. A changed
// endpoint is a few map elements in one transaction.
//
// # Types
//
// [State] is all that is wanted, [Translate] the pure function from it to an
// [nft.Ruleset], [Proxier] the one that applies it: Apply takes a whole State,
// Run keeps it in step with the registry.
//
// # Promises
//
// Connections that exist go on when endpoints are added, and when the daemon
// restarts. A Service without endpoints refuses at once. UDP clients are led to
// another endpoint when theirs goes: connection tracks are deleted.
//
// # Goroutines
//
// Run is the caller's. Each healthCheckNodePort in use has a server of its own,
// which [Proxier.Close] ends.
//
// May be imported by cmd/edged.
//
// Sources: k8s.io/kubernetes pkg/proxy/nftables (semantics), KEP-1669 (terminating
// endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 (topology hints).
package proxy
