// Package dns answers the cluster's names on every device, at the cluster DNS
// address, from the device's own replica: also when no other device and no
// uplink can be reached.
//
// It is not a general resolver: names outside of the cluster's domain are
// forwarded to the servers of the device's resolv.conf, with a small cache.
//
// # Types
//
// [Records] is the zone, a pure function from Services, EndpointSlices and Pods
// to answers. [Server] listens, asks Records, and forwards the rest.
//
// # Promises
//
// The Kubernetes DNS specification 1.1.0: A, AAAA, SRV and PTR records of
// Services and their endpoints, headless Services with host names, ExternalName
// as CNAME, addresses of Pods; negative answers with SOA, so that resolvers
// remember them. The answer to a name of the cluster never leaves the device.
// A name from outside that was known keeps being answered, for at most
// a day, while no upstream server does (RFC 8767).
//
// # Dangers
//
// Records keeps pointers to the shared objects of the registry's cache.
//
// # Goroutines
//
// One per listener (UDP and TCP of each address) and one per query under way;
// at most maxForwards of these wait for upstream servers. All end with Run.
//
// May be imported by cmd/edged.
//
// Sources: github.com/kubernetes/dns docs/specification.md; RFC 1035, 2308, 6891, 8767.
package dns
