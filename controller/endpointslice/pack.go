package endpointslice

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// MaxEndpoints is upstream's default number of endpoints in a slice.
const MaxEndpoints = 100

// Group are endpoints that have their ports in common.
type Group struct {
	AddressType discoveryv1.AddressType
	Ports       []discoveryv1.EndpointPort
	Endpoints   []discoveryv1.Endpoint
}

// Change is what is to be written. Update are private copies.
type Change struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// Blank is a slice as every slice of an owner begins.
type Blank func(t discoveryv1.AddressType) *discoveryv1.EndpointSlice

// Pack places the endpoints of each group into slices of at most most. have are the
// owner's slices; one that fits no group goes. labels and annotations that the owner's
// slices should have are taken from blank.
func Pack(groups []Group, have []*discoveryv1.EndpointSlice, most int, blank Blank) Change {
	var c Change
	used := map[*discoveryv1.EndpointSlice]bool{}
	for _, g := range groups {
		var mine []*discoveryv1.EndpointSlice
		for _, s := range have {
			if !used[s] && s.DeletionTimestamp == nil && s.AddressType == g.AddressType && samePorts(s.Ports, g.Ports) {
				used[s] = true
				mine = append(mine, s)
			}
		}
		c.packGroup(g, mine, most, blank)
	}
	for _, s := range have {
		if !used[s] && s.DeletionTimestamp == nil {
			c.Delete = append(c.Delete, s)
		}
	}
	return c
}

// packGroup keeps endpoints where they are, puts new ones where there is room,
// in slices that change anyway first, and drops slices that became empty.
func (c *Change) packGroup(g Group, have []*discoveryv1.EndpointSlice, most int, blank Blank) {
	want := map[string]discoveryv1.Endpoint{}
	var order []string
	for _, e := range g.Endpoints {
		id := identity(&e)
		if _, dup := want[id]; !dup {
			order = append(order, id)
		}
		want[id] = e
	}
	type draft struct {
		was, now *discoveryv1.EndpointSlice
		changed  bool
	}
	var drafts []*draft
	template := blank(g.AddressType)
	for _, s := range have {
		d := &draft{was: s, now: s.DeepCopy()}
		d.changed = dress(d.now, template)
		var kept []discoveryv1.Endpoint
		for _, e := range s.Endpoints {
			id := identity(&e)
			w, ok := want[id]
			if !ok {
				d.changed = true
				continue
			}
			delete(want, id)
			d.changed = d.changed || !equality.Semantic.DeepEqual(e, w)
			kept = append(kept, w)
		}
		d.now.Endpoints = kept
		drafts = append(drafts, d)
	}
	var left []discoveryv1.Endpoint
	for _, id := range order {
		if e, ok := want[id]; ok {
			left = append(left, e)
		}
	}
	place := func(d *draft) {
		n := min(most-len(d.now.Endpoints), len(left))
		if n <= 0 {
			return
		}
		d.now.Endpoints = append(d.now.Endpoints, left[:n]...)
		left = left[n:]
		d.changed = true
	}
	slices.SortStableFunc(drafts, func(a, b *draft) int {
		if a.changed != b.changed {
			if a.changed {
				return -1
			}
			return 1
		}
		return cmp.Compare(len(b.now.Endpoints), len(a.now.Endpoints))
	})
	for _, d := range drafts {
		place(d)
	}
	for len(left) > 0 {
		d := &draft{now: blank(g.AddressType)}
		d.now.Ports = g.Ports
		place(d)
		c.Create = append(c.Create, d.now)
	}
	spare := len(g.Endpoints) == 0 // an owner without endpoints keeps one empty slice
	if spare && len(drafts) == 0 {
		s := blank(g.AddressType)
		s.Ports = g.Ports
		c.Create = append(c.Create, s)
	}
	for _, d := range drafts {
		switch {
		case len(d.now.Endpoints) == 0 && !spare:
			c.Delete = append(c.Delete, d.was)
			continue
		case d.changed:
			c.Update = append(c.Update, d.now)
		}
		if len(d.now.Endpoints) == 0 {
			spare = false
		}
	}
}

// dress gives s the metadata of the template and reports whether that changed
// it. Labels and annotations that the owner does not set go, as upstream.
func dress(s, template *discoveryv1.EndpointSlice) bool {
	same := maps.Equal(s.Labels, template.Labels) && maps.Equal(s.Annotations, template.Annotations)
	if !same {
		s.Labels, s.Annotations = template.Labels, template.Annotations
	}
	return !same
}

// identity tells endpoints apart: an address may change its conditions and
// still be the same endpoint.
func identity(e *discoveryv1.Endpoint) string {
	id := fmt.Sprint(e.Addresses)
	if e.TargetRef != nil {
		id += "/" + string(e.TargetRef.UID) + "/" + e.TargetRef.Name
	}
	if e.Hostname != nil {
		id += "/" + *e.Hostname
	}
	return id
}

func samePorts(a, b []discoveryv1.EndpointPort) bool {
	return equality.Semantic.DeepEqual(SortPorts(a), SortPorts(b))
}

// SortPorts returns the ports in a fixed order.
func SortPorts(ports []discoveryv1.EndpointPort) []discoveryv1.EndpointPort {
	out := slices.Clone(ports)
	slices.SortFunc(out, func(a, b discoveryv1.EndpointPort) int { return cmp.Compare(portKey(a), portKey(b)) })
	return out
}

func portKey(p discoveryv1.EndpointPort) string {
	key := ""
	if p.Name != nil {
		key = *p.Name
	}
	if p.Port != nil {
		key += fmt.Sprintf(":%d", *p.Port)
	}
	if p.Protocol != nil {
		key += "/" + string(*p.Protocol)
	}
	if p.AppProtocol != nil {
		key += "/" + *p.AppProtocol
	}
	return key
}

// PortsKey is equal for equal sets of ports.
func PortsKey(ports []discoveryv1.EndpointPort) string {
	key := ""
	for _, p := range SortPorts(ports) {
		key += portKey(p) + ","
	}
	return key
}

// Apply writes a change.
func (c Change) Apply(ctx context.Context, client registry.Client[*discoveryv1.EndpointSlice]) error {
	for _, s := range c.Create {
		if _, err := client.Create(ctx, s); err != nil {
			return fmt.Errorf("making an EndpointSlice: %w", err)
		}
	}
	for _, s := range c.Update {
		_, err := client.Update(ctx, s.Namespace, s.Name, func(cur *discoveryv1.EndpointSlice) error {
			if cur.ResourceVersion != s.ResourceVersion {
				return apierrors.NewConflict(discoveryv1.Resource("endpointslices"), s.Name, fmt.Errorf("it was changed after it was read"))
			}
			cur.Labels, cur.Annotations, cur.Endpoints = s.Labels, s.Annotations, s.Endpoints
			return nil
		})
		if err != nil {
			return fmt.Errorf("updating EndpointSlice %s: %w", s.Name, err)
		}
	}
	for _, s := range c.Delete {
		err := client.Delete(ctx, s.Namespace, s.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting EndpointSlice %s: %w", s.Name, err)
		}
	}
	return nil
}

// IsHeadless reports whether the Service has no address of its own.
func IsHeadless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }
