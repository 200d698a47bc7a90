package proxy

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// labelProxyName names a proxy other than the device's own.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// maxEndpoints bounds the endpoints of one port: Kubernetes itself truncates at
// 1000 for Endpoints objects. Each number of endpoints in use costs a chain.
const maxEndpoints = 4096

// masquerade says whose source address is replaced, so that answers come back
// through this device.
type masquerade uint8

const (
	masqNever   masquerade = iota
	masqOutside            // clients that are not Pods
	masqAlways
)

// group is a list of endpoints to balance over.
type group struct {
	endpoints []netip.AddrPort // sorted
	sticky    time.Duration    // session affinity; 0 is none
}

// target says what becomes of a connection to a frontend.
type target struct {
	group *group // nil or empty: refused, or dropped
	masq  masquerade
	drop  bool // rather than refuse
}

// frontend is an address and port at which a Service is reached. An invalid
// address stands for every address of the device (a NodePort).
type frontend struct {
	addr    netip.Addr
	is6     bool
	proto   uint8
	port    uint16
	target  target
	outside *target // for traffic that does not come from Pods, if it differs
	ranges  []netip.Prefix
	guarded bool // only ranges may use it
}

// service is what became of one Service (or of the host ports): the unit of
// change. It is immutable.
type service struct {
	name      string
	frontends []frontend
	local     []netip.Addr // endpoints on this device, which may reach themselves
	health    *health      // asked for from outside; nil: nobody asks
}

// translateService is pure.
func translateService(n *Network, svc *corev1.Service, slcs []*discoveryv1.EndpointSlice, zone string) *service {
	out := &service{name: svc.Namespace + "/" + svc.Name}
	if !proxied(n, svc) {
		return out
	}
	for _, is6 := range []bool{false, true} {
		if ips := familyOf(svc.Spec.ClusterIPs, is6); len(ips) > 0 {
			for i := range svc.Spec.Ports {
				out.addPort(n, svc, &svc.Spec.Ports[i], ips, slcs, is6, zone)
			}
		}
	}
	out.settle()
	out.health = healthOf(n, svc, slcs)
	return out
}

// settle leaves each place once: a second answer to one question would have the kernel
// refuse the rules of all Services. The first counts.
func (s *service) settle() {
	slices.SortFunc(s.local, netip.Addr.Compare)
	s.local = slices.Compact(s.local)
	taken := make(map[frontKey]bool, len(s.frontends))
	s.frontends = slices.DeleteFunc(s.frontends, func(f frontend) bool {
		k := f.key()
		was := taken[k]
		taken[k] = true
		return was
	})
}

// healthOf counts the Pods that are ready here, if somebody may ask.
func healthOf(n *Network, svc *corev1.Service, slcs []*discoveryv1.EndpointSlice) *health {
	if svc.Spec.HealthCheckNodePort == 0 || svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return nil
	}
	// Of a Pod with two families only one counts.
	ready := [2]map[netip.Addr]bool{{}, {}}
	for i, is6 := range []bool{false, true} {
		for p := range svc.Spec.Ports {
			for _, e := range endpointsOf(n, slcs, svc.Spec.Ports[p].Name, svc.Spec.Ports[p].Protocol, is6) {
				if e.local && e.ready {
					ready[i][e.addr.Addr()] = true
				}
			}
		}
	}
	return &health{svc.Namespace, svc.Name, uint16(svc.Spec.HealthCheckNodePort), max(len(ready[0]), len(ready[1]))}
}

func proxied(n *Network, svc *corev1.Service) bool {
	_, other := svc.Labels[labelProxyName]
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone || other {
		return false
	}
	for _, ip := range svc.Spec.ClusterIPs {
		a, err := netip.ParseAddr(ip)
		if err == nil && slices.Contains(n.Reserved, a) {
			return false
		}
	}
	return true
}

// addPort adds the frontends of one port of one family.
func (s *service) addPort(n *Network, svc *corev1.Service, p *corev1.ServicePort, clusterIPs []netip.Addr, slcs []*discoveryv1.EndpointSlice, is6 bool, zone string) {
	all := endpointsOf(n, slcs, p.Name, p.Protocol, is6)
	for _, e := range all {
		if e.local {
			s.local = append(s.local, e.addr.Addr())
		}
	}
	everywhere := newGroup(svc, clusterEndpoints(n, all, zone))
	internal := target{group: everywhere, masq: masqOutside}
	external := target{group: everywhere, masq: masqAlways}
	var outside *target
	var here *group
	inLocal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	exLocal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if inLocal || exLocal {
		here = newGroup(svc, localEndpoints(all))
	}
	// A device without local endpoints drops what it should not have got, so
	// that clients try again elsewhere, and refuses only if there is nothing
	// anywhere.
	none := here != nil && len(here.endpoints) == 0 && len(everywhere.endpoints) > 0
	if inLocal {
		internal = target{group: here, masq: masqNever, drop: none}
	}
	if exLocal {
		outside = &target{group: here, masq: masqNever, drop: none}
	}
	proto := protocol(p.Protocol)
	for _, ip := range clusterIPs {
		s.frontends = append(s.frontends, frontend{addr: ip, is6: is6, proto: proto, port: uint16(p.Port), target: internal})
	}
	// Before external addresses, of which it may be one: its source ranges hold.
	ranges := prefixes(svc.Spec.LoadBalancerSourceRanges, is6)
	for _, ip := range familyOf(ingressIPs(svc), is6) {
		s.frontends = append(s.frontends, frontend{addr: ip, is6: is6, proto: proto, port: uint16(p.Port), target: external, outside: outside,
			ranges: ranges, guarded: len(svc.Spec.LoadBalancerSourceRanges) > 0})
	}
	for _, ip := range familyOf(svc.Spec.ExternalIPs, is6) {
		s.frontends = append(s.frontends, frontend{addr: ip, is6: is6, proto: proto, port: uint16(p.Port), target: external, outside: outside})
	}
	if p.NodePort != 0 {
		s.frontends = append(s.frontends, frontend{is6: is6, proto: proto, port: uint16(p.NodePort), target: external, outside: outside})
	}
}

// newGroup takes over the list.
func newGroup(svc *corev1.Service, endpoints []netip.AddrPort) *group {
	g := &group{endpoints: endpoints[:min(len(endpoints), maxEndpoints)]}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		seconds := corev1.DefaultClientIPServiceAffinitySeconds
		if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			seconds = *c.ClientIP.TimeoutSeconds
		}
		g.sticky = time.Duration(seconds) * time.Second
	}
	return g
}

// translateHostPorts makes host ports of the same stuff as Services: a group
// with one endpoint each.
func translateHostPorts(list []HostPort) *service {
	out := &service{name: hostPortsPart}
	// Ports of one address first: another container of the Pod may have the same of all.
	isAny := func(hp HostPort) bool { return !hp.HostIP.IsValid() || hp.HostIP.IsUnspecified() }
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b HostPort) int {
		switch {
		case isAny(a) == isAny(b):
			return 0
		case isAny(b):
			return -1
		}
		return 1
	})
	for _, hp := range list {
		for _, ip := range hp.PodIPs {
			if !isAny(hp) && hp.HostIP.Is4() != ip.Is4() {
				continue
			}
			g := &group{endpoints: []netip.AddrPort{netip.AddrPortFrom(ip, hp.PodPort)}}
			f := frontend{is6: ip.Is6(), proto: protocol(corev1.Protocol(hp.Protocol)), port: hp.HostPort, target: target{group: g}}
			if !isAny(hp) {
				f.addr = hp.HostIP
			} else if ip.Is4() {
				// NodePorts are not served on the loopback address; host
				// ports are.
				loopback := f
				loopback.addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
				out.frontends = append(out.frontends, loopback)
			}
			out.frontends = append(out.frontends, f)
			out.local = append(out.local, ip)
		}
	}
	out.settle()
	return out
}

// hostPortsPart sorts before every Service, so that a host port, which its Pod
// cannot do without, wins over a Service with the same port.
const hostPortsPart = "!hostports"

func protocol(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// familyOf parses the addresses of one family; what the API server would not
// have accepted is left out.
func familyOf(ips []string, is6 bool) []netip.Addr {
	var out []netip.Addr
	for _, s := range ips {
		if a, err := netip.ParseAddr(s); err == nil && a.Unmap().Is6() == is6 {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func prefixes(list []string, is6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is6() == is6 {
			out = append(out, p.Masked())
		}
	}
	return out
}

func ingressIPs(svc *corev1.Service) []string {
	var out []string
	for _, i := range svc.Status.LoadBalancer.Ingress {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			out = append(out, i.IP)
		}
	}
	return out
}
