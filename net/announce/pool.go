package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// ConditionPool is the condition of a Service whose addresses are from the pool.
const ConditionPool = "edged.dev/address-from-pool"

// Pool is a list of address ranges.
type Pool []addrRange

type addrRange struct{ first, last netip.Addr }

// ParsePool reads ranges: 192.0.2.10, 192.0.2.16/28 or 192.0.2.10-192.0.2.20.
func ParsePool(list []string) (Pool, error) {
	var p Pool
	for _, s := range list {
		r, err := parseRange(s)
		if err != nil {
			return nil, err
		}
		p = append(p, r)
	}
	return p, nil
}

func parseRange(s string) (addrRange, error) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		a, err1 := netip.ParseAddr(strings.TrimSpace(first))
		b, err2 := netip.ParseAddr(strings.TrimSpace(last))
		if err1 != nil || err2 != nil || a.Is4() != b.Is4() || b.Less(a) {
			return addrRange{}, fmt.Errorf("%q is not a range like 192.0.2.10-192.0.2.20", s)
		}
		return addrRange{a, b}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		p = p.Masked()
		b := p.Addr().AsSlice()
		for bit := p.Bits(); bit < len(b)*8; bit++ {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
		last, _ := netip.AddrFromSlice(b)
		return addrRange{p.Addr(), last}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return addrRange{}, fmt.Errorf("%q is not an address, a prefix or a range", s)
	}
	return addrRange{a, a}, nil
}

// Contains says whether an address is in the pool.
func (p Pool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(r addrRange) bool { return r.first.Is4() == a.Is4() && !a.Less(r.first) && !r.last.Less(a) })
}

// Allocate says which addresses each Service should have ("namespace/name"): of
// those that are of type LoadBalancer and nobody else's, one per address family
// of the Service that the pool has. A Service that gets none although it should
// is in short with the reason. It is pure: the same Services, the same answer.
func (p Pool) Allocate(services []*corev1.Service) (want map[string][]netip.Addr, short map[string]string) {
	want, short = map[string][]netip.Addr{}, map[string]string{}
	used := map[netip.Addr]bool{}
	services = slices.Clone(services)
	// The older one keeps an address that two have.
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(keyOf(a), keyOf(b)))
	})
	services = slices.DeleteFunc(services, func(s *corev1.Service) bool {
		if !forUs(s) {
			for _, a := range addresses(s) { // somebody else's: hands off
				used[a] = true
			}
			return true
		}
		return false
	})
	// First those that have what they need, then the others.
	for _, s := range services {
		for _, a := range addresses(s) {
			if p.Contains(a) && !used[a] && needs(s, want[keyOf(s)], a) {
				used[a] = true
				want[keyOf(s)] = append(want[keyOf(s)], a)
			}
		}
	}
	for _, s := range services {
		p.complete(s, want, used, short)
	}
	return want, short
}

// complete gives a Service what it lacks.
func (p Pool) complete(s *corev1.Service, want map[string][]netip.Addr, used map[netip.Addr]bool, short map[string]string) {
	k := keyOf(s)
	for _, f := range families(s) {
		if slices.ContainsFunc(want[k], func(a netip.Addr) bool { return a.Is6() == f }) {
			continue
		}
		a, reason := p.free(f, asked(s, f), used)
		if reason != "" {
			short[k] = reason
			continue
		}
		if a.IsValid() {
			used[a] = true
			want[k] = append(want[k], a)
		}
	}
	slices.SortFunc(want[k], func(a, b netip.Addr) int {
		fs := families(s)
		return cmp.Compare(slices.Index(fs, a.Is6()), slices.Index(fs, b.Is6()))
	})
	if len(want[k]) > 0 && len(short) > 0 && !slices.ContainsFunc(families(s), func(f bool) bool { return asked(s, f).IsValid() }) {
		delete(short, k) // one family of two is something
	}
}

// free finds an address of a family, or says why there is none. A pool without
// the family is no reason.
func (p Pool) free(is6 bool, ask netip.Addr, used map[netip.Addr]bool) (netip.Addr, string) {
	if ask.IsValid() {
		switch {
		case !p.Contains(ask):
			return netip.Addr{}, fmt.Sprintf("spec.loadBalancerIP %s is not in the pool", ask)
		case used[ask]:
			return netip.Addr{}, fmt.Sprintf("spec.loadBalancerIP %s is in use", ask)
		}
		return ask, ""
	}
	any := false
	for _, r := range p {
		if r.first.Is6() != is6 {
			continue
		}
		any = true
		for a := r.first; a.IsValid() && !r.last.Less(a); a = a.Next() {
			if !used[a] {
				return a, ""
			}
		}
	}
	if any {
		return netip.Addr{}, "no address of the pool is free"
	}
	return netip.Addr{}, ""
}

func keyOf(s *corev1.Service) string { return s.Namespace + "/" + s.Name }

// forUs says whether a Service wants an address of the pool: one whose class
// names no other implementation, and that no other has written an address to.
func forUs(s *corev1.Service) bool {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil || s.DeletionTimestamp != nil {
		return false
	}
	return len(s.Status.LoadBalancer.Ingress) == 0 || fromPool(s)
}

func fromPool(s *corev1.Service) bool {
	return meta.IsStatusConditionTrue(s.Status.Conditions, ConditionPool)
}

// needs says whether a fits what the Service asks for.
func needs(s *corev1.Service, have []netip.Addr, a netip.Addr) bool {
	if ask := asked(s, a.Is6()); ask.IsValid() && ask != a {
		return false
	}
	return slices.Contains(families(s), a.Is6()) && !slices.ContainsFunc(have, func(h netip.Addr) bool { return h.Is6() == a.Is6() })
}

// asked is spec.loadBalancerIP: deprecated, and what users have.
func asked(s *corev1.Service, is6 bool) netip.Addr {
	a, err := netip.ParseAddr(s.Spec.LoadBalancerIP)
	if err != nil || a.Is6() != is6 {
		return netip.Addr{}
	}
	return a
}

// families of a Service, true for IPv6, in its order.
func families(s *corev1.Service) []bool {
	var out []bool
	for _, f := range s.Spec.IPFamilies {
		out = append(out, f == corev1.IPv6Protocol)
	}
	if len(out) == 0 {
		out = []bool{false}
	}
	return out
}

// addresses that a Service's status has.
func addresses(s *corev1.Service) (out []netip.Addr) {
	for _, i := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// RunPool gives addresses to Services until ctx ends. One device runs it at a
// time, the leader; two would still do no harm that lasts.
func RunPool(ctx context.Context, reg *registry.Registry, pool Pool, log *slog.Logger) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	services := registry.For[*corev1.Service](reg)
	wake := make(chan struct{}, 1)
	defer services.Subscribe(func(registry.Event[*corev1.Service]) { poke(wake) })()
	poke(wake)
	told := map[string]string{}
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry:
		case <-wake:
		}
		retry = nil
		if err := allocate(ctx, services, pool, told, log); err != nil && ctx.Err() == nil {
			log.Error("addresses of load balancers not written; trying again", "every", retryAfter, "err", err)
			retry = time.After(retryAfter)
		}
	}
}

// retryAfter an error.
const retryAfter = 5 * time.Second

func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default: // one is pending already
	}
}

func allocate(ctx context.Context, services registry.Client[*corev1.Service], pool Pool, told map[string]string, log *slog.Logger) error {
	list := services.List("")
	want, short := pool.Allocate(list)
	for k, reason := range short {
		if told[k] != reason {
			log.Warn("a Service of type LoadBalancer has no address", "service", k, "reason", reason)
		}
		told[k] = reason
	}
	for k := range told {
		if short[k] == "" {
			delete(told, k)
		}
	}
	var errs []error
	for _, s := range list {
		if !forUs(s) && !fromPool(s) {
			continue
		}
		next := s.Status.DeepCopy()
		setAddresses(next, want[keyOf(s)], s.Generation)
		if equality.Semantic.DeepEqual(next, &s.Status) {
			continue
		}
		_, err := services.UpdateStatus(ctx, s.Namespace, s.Name, func(o *corev1.Service) error {
			if o.UID == s.UID && o.ResourceVersion == s.ResourceVersion {
				o.Status = *next
			}
			return nil // else its own event comes
		})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("%s: %w", keyOf(s), err)) // the others get theirs
		}
	}
	return errors.Join(errs...)
}

// setAddresses writes what a Service got. What was not ours is not touched: a
// Service that is no LoadBalancer any more has its addresses taken by the API.
func setAddresses(st *corev1.ServiceStatus, addrs []netip.Addr, generation int64) {
	st.LoadBalancer.Ingress = nil
	if len(addrs) == 0 {
		meta.RemoveStatusCondition(&st.Conditions, ConditionPool)
		return
	}
	mode := corev1.LoadBalancerIPModeVIP
	for _, a := range addrs {
		st.LoadBalancer.Ingress = append(st.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	if !meta.IsStatusConditionTrue(st.Conditions, ConditionPool) {
		meta.SetStatusCondition(&st.Conditions, metav1.Condition{Type: ConditionPool, Status: metav1.ConditionTrue, Reason: "Allocated", ObservedGeneration: generation})
	}
}
