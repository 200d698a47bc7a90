package proxy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one address of a Service's port.
type endpoint struct {
	addr        netip.AddrPort
	local       bool
	ready       bool
	serving     bool
	terminating bool
	zones       []string // hinted
	nodes       []string // hinted
}

// endpointsOf collects the endpoints of one port and family from all slices of
// a Service, each address once.
func endpointsOf(n *Network, slcs []*discoveryv1.EndpointSlice, portName string, proto corev1.Protocol, is6 bool) []endpoint {
	var out []endpoint
	family := discoveryv1.AddressTypeIPv4
	if is6 {
		family = discoveryv1.AddressTypeIPv6
	}
	for _, s := range slcs {
		port, ok := portOf(s, portName, proto)
		if _, headless := s.Labels[corev1.IsHeadlessService]; headless || s.AddressType != family || !ok {
			continue // a headless Service's endpoints are for DNS, as to kube-proxy
		}
		for i := range s.Endpoints {
			if e, ok := endpointFrom(n, &s.Endpoints[i], port); ok {
				out = append(out, e)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	// The same address twice, while it moves from one slice to another: the
	// one that is ready counts.
	merged := out[:0]
	for _, e := range out {
		if k := len(merged) - 1; k >= 0 && merged[k].addr == e.addr {
			if e.ready {
				merged[k] = e
			}
			continue
		}
		merged = append(merged, e)
	}
	return merged
}

func portOf(s *discoveryv1.EndpointSlice, name string, proto corev1.Protocol) (uint16, bool) {
	for _, p := range s.Ports {
		pname, pproto := "", corev1.ProtocolTCP
		if p.Name != nil {
			pname = *p.Name
		}
		if p.Protocol != nil {
			pproto = *p.Protocol
		}
		if pname == name && pproto == proto && p.Port != nil {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func endpointFrom(n *Network, e *discoveryv1.Endpoint, port uint16) (endpoint, bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	// All addresses of an endpoint are the same one; proxies use the first.
	a, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return endpoint{}, false
	}
	is := func(b *bool, unset bool) bool {
		if b == nil {
			return unset
		}
		return *b
	}
	out := endpoint{
		addr:        netip.AddrPortFrom(a, port),
		local:       n.isLocal(e.NodeName, a),
		ready:       is(e.Conditions.Ready, true),
		terminating: is(e.Conditions.Terminating, false),
	}
	out.serving = is(e.Conditions.Serving, out.ready)
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.zones = append(out.zones, z.Name)
		}
		for _, h := range e.Hints.ForNodes {
			out.nodes = append(out.nodes, h.Name)
		}
	}
	return out, true
}

// clusterEndpoints chooses for traffic that may go anywhere: what is ready,
// near if the hints say so; else what is ending and still serves.
func clusterEndpoints(n *Network, all []endpoint, zone string) []netip.AddrPort {
	ready := filter(all, func(e endpoint) bool { return e.ready })
	if near := hinted(ready, n.NodeName, func(e endpoint) []string { return e.nodes }); near != nil {
		return addrs(near)
	}
	if near := hinted(ready, zone, func(e endpoint) []string { return e.zones }); near != nil {
		return addrs(near)
	}
	if len(ready) > 0 {
		return addrs(ready)
	}
	return addrs(filter(all, func(e endpoint) bool { return e.serving && e.terminating }))
}

// localEndpoints chooses for traffic that must stay on this device.
func localEndpoints(all []endpoint) []netip.AddrPort {
	if ready := filter(all, func(e endpoint) bool { return e.local && e.ready }); len(ready) > 0 {
		return addrs(ready)
	}
	return addrs(filter(all, func(e endpoint) bool { return e.local && e.serving && e.terminating }))
}

// hinted returns the endpoints hinted for here, or nil if hints are not to be
// used: one endpoint without a hint, or none for here, and the hints are
// incomplete or stale.
func hinted(ready []endpoint, here string, hints func(endpoint) []string) []endpoint {
	if here == "" || slices.ContainsFunc(ready, func(e endpoint) bool { return len(hints(e)) == 0 }) {
		return nil
	}
	near := filter(ready, func(e endpoint) bool { return slices.Contains(hints(e), here) })
	if len(near) == 0 {
		return nil
	}
	return near
}

func filter(all []endpoint, keep func(endpoint) bool) []endpoint {
	var out []endpoint
	for _, e := range all {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

func addrs(list []endpoint) []netip.AddrPort {
	out := make([]netip.AddrPort, len(list))
	for i, e := range list {
		out[i] = e.addr
	}
	return out
}
