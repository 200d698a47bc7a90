// Package endpointslicemirroring gives a Service without a selector the slices
// of the Endpoints that somebody made for it, since proxy and DNS read slices
// only.
//
// It is not controller/endpointslice, which makes slices of Pods, and leaves the
// slices alone that somebody makes by hand.
//
// Types: Reconcile compares Endpoints with their slices; the rest is the loop.
//
// Promises: at rest nothing is written. At most MaxPerSubset addresses of a
// subset are mirrored, ready ones first; an Event tells if there were more.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/endpointslicemirroring and
// pkg/api/v1/endpoints (RepackSubsets); KEP-752.
package endpointslicemirroring

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"

	"edged/controller/endpointslice"
	"edged/controller/podset"
)

const (
	// Manager is the value of the label that says who keeps a slice.
	Manager = "endpointslicemirroring-controller.k8s.io"
	// MaxPerSubset is upstream's default, and what the API lets a slice hold: a
	// subset becomes one slice.
	MaxPerSubset = 1000
)

// Reconcile compares e with its slices. skipped is how many addresses found no
// place.
func Reconcile(e *corev1.Endpoints, have []*discoveryv1.EndpointSlice) (change endpointslice.Change, skipped int) {
	var groups []endpointslice.Group
	for _, s := range repack(e.Subsets) {
		byType := map[discoveryv1.AddressType]*endpointslice.Group{}
		room := MaxPerSubset
		for _, o := range s.offers {
			ep, t := endpoint(o)
			if room == 0 || ep == nil {
				skipped++
				continue
			}
			room--
			if byType[t] == nil {
				byType[t] = &endpointslice.Group{AddressType: t, Ports: s.ports}
			}
			byType[t].Endpoints = append(byType[t].Endpoints, *ep)
		}
		for _, t := range slices.Sorted(maps.Keys(byType)) {
			groups = append(groups, *byType[t])
		}
	}
	var mine []*discoveryv1.EndpointSlice
	for _, s := range have {
		// Those of Endpoints that were deleted and made again go, before the
		// garbage collector takes them.
		if metav1.IsControlledBy(s, e) {
			mine = append(mine, s)
		} else if s.DeletionTimestamp == nil {
			change.Delete = append(change.Delete, s)
		}
	}
	packed := endpointslice.Pack(groups, mine, MaxPerSubset, func(t discoveryv1.AddressType) *discoveryv1.EndpointSlice { return blank(e, t) })
	packed.Delete = append(packed.Delete, change.Delete...)
	return packed, skipped
}

// offer is an address and whether it is ready.
type offer struct {
	address *corev1.EndpointAddress
	ready   bool
}

// subset is one in canonical form: no two have the same offers, and ready offers
// come first.
type subset struct {
	ports  []discoveryv1.EndpointPort
	offers []offer
}

// repack brings subsets into canonical form, as upstream's RepackSubsets: ports
// that the same addresses offer come together, and an address that is not ready
// for a port anywhere is not ready for it.
func repack(in []corev1.EndpointSubset) []subset {
	type portOffers struct {
		port   *corev1.EndpointPort // nil: an address without ports
		offers map[string]offer
	}
	byPort := map[string]*portOffers{}
	add := func(port *corev1.EndpointPort, s *corev1.EndpointSubset) {
		key := ""
		if port != nil {
			key = endpointslice.PortsKey([]discoveryv1.EndpointPort{slicePort(port)})
		}
		p := byPort[key]
		if p == nil {
			p = &portOffers{port: port, offers: map[string]offer{}}
			byPort[key] = p
		}
		for i := range s.Addresses {
			a := &s.Addresses[i]
			if _, known := p.offers[addressKey(a)]; !known {
				p.offers[addressKey(a)] = offer{a, true}
			}
		}
		for i := range s.NotReadyAddresses {
			a := &s.NotReadyAddresses[i]
			p.offers[addressKey(a)] = offer{a, false}
		}
	}
	for i := range in {
		s := &in[i]
		if len(s.Ports) == 0 {
			add(nil, s)
		}
		for j := range s.Ports {
			add(&s.Ports[j], s)
		}
	}
	byOffers := map[string]*subset{}
	for _, portKey := range slices.Sorted(maps.Keys(byPort)) {
		p := byPort[portKey]
		var key strings.Builder
		var ready, other []offer
		for _, a := range slices.Sorted(maps.Keys(p.offers)) {
			o := p.offers[a]
			fmt.Fprintf(&key, "%s=%t,", a, o.ready)
			if o.ready {
				ready = append(ready, o)
			} else {
				other = append(other, o)
			}
		}
		s := byOffers[key.String()]
		if s == nil {
			s = &subset{ports: []discoveryv1.EndpointPort{}, offers: append(ready, other...)}
			byOffers[key.String()] = s
		}
		if p.port != nil {
			s.ports = append(s.ports, slicePort(p.port))
		}
	}
	var out []subset
	for _, key := range slices.Sorted(maps.Keys(byOffers)) {
		out = append(out, *byOffers[key])
	}
	return out
}

func addressKey(a *corev1.EndpointAddress) string {
	if a.TargetRef != nil {
		return a.IP + "/" + string(a.TargetRef.UID)
	}
	return a.IP
}

func slicePort(p *corev1.EndpointPort) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: ptr.To(p.Port), Protocol: ptr.To(p.Protocol), AppProtocol: p.AppProtocol}
}

// endpoint is nil if the address is none.
func endpoint(o offer) (*discoveryv1.Endpoint, discoveryv1.AddressType) {
	ip := netutils.ParseIPSloppy(o.address.IP)
	if ip == nil {
		return nil, ""
	}
	t := discoveryv1.AddressTypeIPv4
	if ip.To4() == nil {
		t = discoveryv1.AddressTypeIPv6
	}
	e := &discoveryv1.Endpoint{
		Addresses:  []string{ip.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(o.ready)},
		TargetRef:  o.address.TargetRef,
		NodeName:   o.address.NodeName,
	}
	if o.address.Hostname != "" {
		e.Hostname = ptr.To(o.address.Hostname)
	}
	return e, t
}

func blank(e *corev1.Endpoints, t discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	labels := maps.Clone(e.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[discoveryv1.LabelServiceName] = e.Name
	labels[discoveryv1.LabelManagedBy] = Manager
	annotations := maps.Clone(e.Annotations)
	delete(annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: podset.NamePrefix(e.Name), Namespace: e.Namespace, Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))},
		},
		AddressType: t,
	}
}
