package announce

import (
	"context"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
)

// missingFor is how long at most a device is missing: longer than it takes to be told
// that it is gone, or is not.
const missingFor = 10 * time.Second

// Owned are the load balancer addresses that a device answers for. It is pure,
// and over all devices that see the same objects, each address has at most one
// owner.
func Owned(node string, nodes []*corev1.Node, services []*corev1.Service, slcs []*discoveryv1.EndpointSlice) []netip.Addr {
	var ready []string
	for _, n := range nodes {
		if mayAnnounce(n) {
			ready = append(ready, n.Name)
		}
	}
	var out []netip.Addr
	for _, s := range services {
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || !fromPool(s) {
			continue
		}
		candidates := ready
		if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			with := nodesWithEndpoints(s, slcs)
			candidates = slices.DeleteFunc(slices.Clone(ready), func(n string) bool { return !with[n] })
		}
		for _, a := range addresses(s) {
			if owner(a, candidates) == node {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// mayAnnounce says whether clients may be sent to a device.
func mayAnnounce(n *corev1.Node) bool {
	if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded || n.DeletionTimestamp != nil {
		return false
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func nodesWithEndpoints(s *corev1.Service, slcs []*discoveryv1.EndpointSlice) map[string]bool {
	out := map[string]bool{}
	for _, e := range slcs {
		if e.Namespace != s.Namespace || e.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, p := range e.Endpoints {
			if p.NodeName != nil && (p.Conditions.Ready == nil || *p.Conditions.Ready) {
				out[*p.NodeName] = true
			}
		}
	}
	return out
}

// owner is the device whose hash with the address is highest; none of none.
func owner(a netip.Addr, nodes []string) string {
	best, highest := "", uint64(0)
	for _, n := range nodes {
		h := fnv.New64a()
		h.Write([]byte(n))
		h.Write(a.AsSlice())
		// FNV's last byte mixes little; fold the halves.
		sum := h.Sum64()
		sum = (sum ^ sum>>32) * 0x9e3779b97f4a7c15
		if best == "" || sum > highest || sum == highest && n < best {
			best, highest = n, sum
		}
	}
	return best
}

// Follow keeps the announcer holding this device's load balancer addresses until
// ctx ends.
func (a *Announcer) Follow(ctx context.Context, node string, reg *registry.Registry) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	nodes, services, endpoints := registry.For[*corev1.Node](reg), registry.For[*corev1.Service](reg), registry.For[*discoveryv1.EndpointSlice](reg)
	wake := make(chan struct{}, 1)
	defer nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Old == nil || mayAnnounce(e.Old) != mayAnnounce(e.Object) || e.Type == watch.Deleted {
			poke(wake)
		}
	})()
	defer services.Subscribe(func(registry.Event[*corev1.Service]) { poke(wake) })()
	defer endpoints.Subscribe(func(registry.Event[*discoveryv1.EndpointSlice]) { poke(wake) })()
	defer a.Hold("services", nil)
	poke(wake)
	for {
		var expired <-chan time.Time
		if _, left := a.missing(); left > 0 {
			expired = time.After(left)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-a.follow:
		case <-expired:
		}
		all, lb, eps := nodes.List(""), services.List(""), endpoints.List("")
		owned := Owned(node, all, lb, eps)
		silent, _ := a.missing()
		a.hold("services", owned, inherited(node, silent, all, lb, eps, owned))
	}
}

// inherited are the addresses that would be the device's without those that are
// silent. Only of what is on a link of this device it can be told whether another
// answers for it; Announcer asks.
func inherited(node string, silent map[string]bool, nodes []*corev1.Node, services []*corev1.Service, slcs []*discoveryv1.EndpointSlice, owned []netip.Addr) []netip.Addr {
	if len(silent) == 0 {
		return nil
	}
	there := slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool { return silent[n.Name] })
	return slices.DeleteFunc(Owned(node, there, services, slcs), func(a netip.Addr) bool { return slices.Contains(owned, a) })
}
