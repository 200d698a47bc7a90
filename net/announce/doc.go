// Package announce gives Services of type LoadBalancer addresses out of a pool,
// and has exactly one device answer for each such address on the network; the
// same for the address of the API, which the leader has.
//
// It is not the service proxy (net/proxy), which leads what arrives at such an
// address to a Pod, on whichever device it arrives.
//
// # Shape
//
// The leader allocates ([RunPool]) and writes the address into the Service's
// status. Each device finds out for itself, from Nodes, Services and
// EndpointSlices, which addresses are its own ([Owned]): the ready device for
// which a hash of both is highest, so that a device that goes moves only its own
// addresses, and nobody has to agree on anything.
//
// A device takes an address by adding it, with a short lifetime, to the link
// whose network it lies in (or the default route's) and by telling the neighbors,
// unasked, where it is now. The kernel answers ARP and NDP. The lifetime is
// renewed as long as the daemon lives: of a daemon that dies, the kernel takes the
// address away.
//
// A device that is taken for gone is not ready. That takes seconds, as one whose disk
// hangs must not be; an address can move before. The leader says at once of whom it
// hears nothing ([Announcer.Missing]), which may be wrong: who would have an address
// without that device asks its neighbors for it, by ARP or NDP, and takes it if nobody
// answers.
//
// # Types
//
// [Pool] is what --lb-pool says, [Pool.Allocate] and [Owned] are pure; an
// [Announcer] holds addresses.
//
// # Promises
//
// No address is given to two Services. An address stays with its Service until
// that is deleted or is no LoadBalancer any more; spec.loadBalancerIP is honored
// if the pool has it. Addresses that others wrote are neither changed nor
// announced.
//
// # Dangers
//
// A device that is cut off from the cluster but not from the clients goes on
// answering for its addresses until its daemon learns or ends. All methods of an
// Announcer work in the network namespace of the thread that called Run.
//
// A device whose daemon hangs keeps its addresses until it is taken for gone: its
// kernel answers.
//
// # Goroutines
//
// Announcer.Run, Announcer.Follow and RunPool are the caller's.
//
// May be imported by cmd/edged.
//
// Sources: RFC 826, RFC 5227 (announcements by ARP), RFC 4861, 7.2.6 (unsolicited
// neighbor advertisements); MetalLB's layer 2 mode (what users expect).
package announce
