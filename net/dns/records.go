package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// ttlSeconds of all our records. Short, because answers change with the
	// endpoints and asking costs a hop to the same device.
	ttlSeconds = 5
	// specVersion is what dns-version answers.
	specVersion = "1.1.0"
)

// Records is the zone of a cluster.
type Records struct {
	// Constant after construction.
	zone    string // lower case, with a dot at the end
	servers []netip.Addr
	inside  []netip.Prefix // whose reverse names are ours
	hasPod  func(ns string, a netip.Addr) bool

	mu       sync.RWMutex // guards the following
	services map[key]*corev1.Service
	perNS    map[string]int                                // Services of a namespace
	slices   map[key]map[string]*discoveryv1.EndpointSlice // of a Service, by name
	owners   map[netip.Addr]map[key]bool                   // Services that have an address, their own or an endpoint's
}

// key is a Service's namespace and name.
type key struct{ ns, name string }

// NewRecords makes an empty zone. servers are the name servers' own addresses,
// inside the networks whose reverse names are answered here; hasPod says whether
// a namespace has a Pod with an address.
func NewRecords(domain string, servers []netip.Addr, inside []netip.Prefix, hasPod func(ns string, a netip.Addr) bool) *Records {
	return &Records{
		zone: strings.ToLower(dns.Fqdn(domain)), servers: servers, inside: inside, hasPod: hasPod,
		services: map[key]*corev1.Service{}, perNS: map[string]int{},
		slices: map[key]map[string]*discoveryv1.EndpointSlice{}, owners: map[netip.Addr]map[key]bool{},
	}
}

// SetService takes note of a Service that came, changed (old is what it was) or
// went (svc is nil).
func (r *Records) SetService(old, svc *corev1.Service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old != nil {
		k := key{old.Namespace, old.Name}
		if r.services[k] != nil {
			delete(r.services, k)
			if r.perNS[k.ns]--; r.perNS[k.ns] == 0 {
				delete(r.perNS, k.ns)
			}
		}
		r.disown(k, clusterIPs(old))
	}
	if svc != nil {
		k := key{svc.Namespace, svc.Name}
		if r.services[k] == nil {
			r.perNS[k.ns]++
		}
		r.services[k] = svc
		r.own(k, clusterIPs(svc))
	}
}

// SetSlice takes note of an EndpointSlice, as SetService of a Service.
func (r *Records) SetSlice(old, s *discoveryv1.EndpointSlice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old != nil {
		k := key{old.Namespace, old.Labels[discoveryv1.LabelServiceName]}
		delete(r.slices[k], old.Name)
		if len(r.slices[k]) == 0 {
			delete(r.slices, k)
		}
		// An address may stand in several slices; those that stay own it.
		r.disown(k, sliceIPs(old))
		for _, o := range r.slices[k] {
			r.own(k, sliceIPs(o))
		}
	}
	if s == nil || s.Labels[discoveryv1.LabelServiceName] == "" {
		return
	}
	k := key{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
	if r.slices[k] == nil {
		r.slices[k] = map[string]*discoveryv1.EndpointSlice{}
	}
	r.slices[k][s.Name] = s
	r.own(k, sliceIPs(s))
}

func (r *Records) own(k key, ips []netip.Addr) {
	for _, a := range ips {
		if r.owners[a] == nil {
			r.owners[a] = map[key]bool{}
		}
		r.owners[a][k] = true
	}
}

func (r *Records) disown(k key, ips []netip.Addr) {
	for _, a := range ips {
		delete(r.owners[a], k)
		if len(r.owners[a]) == 0 {
			delete(r.owners, a)
		}
	}
}

func clusterIPs(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, s := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// sliceIPs are the addresses with a name of their own, for reverse names.
func sliceIPs(s *discoveryv1.EndpointSlice) []netip.Addr {
	var out []netip.Addr
	for i := range s.Endpoints {
		if s.Endpoints[i].Hostname == nil || len(s.Endpoints[i].Addresses) == 0 {
			continue
		}
		if a, err := netip.ParseAddr(s.Endpoints[i].Addresses[0]); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// endpoint is an address of a Service with its name below the Service's.
type endpoint struct {
	name  string
	addr  netip.Addr
	ports []discoveryv1.EndpointPort
	named bool // by its Pod's host name, not by its address
}

// endpoints are those to be published: ready ones, or all if the Service says so.
func (r *Records) endpoints(k key) []endpoint {
	svc := r.services[k]
	all := svc != nil && svc.Spec.PublishNotReadyAddresses
	var out []endpoint
	for _, s := range r.slices[k] {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if len(e.Addresses) == 0 || !all && e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			a, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			ep := endpoint{name: dashed(a), addr: a, ports: s.Ports}
			if e.Hostname != nil && *e.Hostname != "" {
				ep.name, ep.named = *e.Hostname, true
			}
			out = append(out, ep)
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.addr == b.addr && a.name == b.name && samePorts(a.ports, b.ports) })
}

func samePorts(a, b []discoveryv1.EndpointPort) bool {
	return slices.EqualFunc(a, b, func(x, y discoveryv1.EndpointPort) bool { return portName(x.Name) == portName(y.Name) })
}

func portName(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// dashed is the name that an address is given: 10-42-0-7.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// undashed is the inverse.
func undashed(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil
}
