// Package servicecidr readies ServiceCIDRs for allocation and lets them go once no
// address of a Service would be left without one. It makes the one named kubernetes,
// which shows the ranges that the cluster was made with.
//
// It allocates nothing: that is done in the transaction that writes a Service
// (apiserver/kinds), which is held to the ServiceCIDR it takes an address of. So
// nobody can take one of a range that goes, and none is waited for.
//
// Removable is the decision. Goroutines: those of the loop.Queue. May be imported
// by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/servicecidrs and
// pkg/controlplane/controller/defaultservicecidr.
package servicecidr

import (
	"context"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

const (
	defaultName = "kubernetes"
	finalizer   = "networking.k8s.io/service-cidr-finalizer"
)

// Removable reports whether a ServiceCIDR may go: each of its ranges is within
// another's, or none of the addresses in use is in its ranges alone.
func Removable(c *networkingv1.ServiceCIDR, all []*networkingv1.ServiceCIDR, used []netip.Addr) bool {
	var others []netip.Prefix
	for _, o := range all {
		if o.Name != c.Name {
			others = append(others, prefixes(o)...)
		}
	}
	within := func(p netip.Prefix) bool {
		return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
	}
	own := prefixes(c)
	if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return !within(p) }) {
		return true
	}
	return !slices.ContainsFunc(used, func(a netip.Addr) bool {
		contains := func(p netip.Prefix) bool { return p.Contains(a) }
		return slices.ContainsFunc(own, contains) && !slices.ContainsFunc(others, contains)
	})
}

func prefixes(c *networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range c.Spec.CIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

type controller struct {
	env   loop.Env
	cidrs registry.Client[*networkingv1.ServiceCIDR]
	ips   registry.Client[*networkingv1.IPAddress]
	own   []string
}

// Run is the controller; own are the ranges that the cluster was made with.
func Run(own []netip.Prefix) loop.Run {
	return func(ctx context.Context, env loop.Env) error {
		c := &controller{env: env, cidrs: registry.For[*networkingv1.ServiceCIDR](env.Registry), ips: registry.For[*networkingv1.IPAddress](env.Registry)}
		for _, p := range own {
			c.own = append(c.own, p.Masked().String())
		}
		q := loop.NewQueue(loop.Config{Name: "servicecidr", Reconcile: c.sync, Logger: env.Logger})
		ending := func() { // what waits for others' addresses and ranges
			for _, o := range c.cidrs.List("") {
				if o.DeletionTimestamp != nil {
					q.Add(o.Name)
				}
			}
		}
		defer c.cidrs.Subscribe(func(e registry.Event[*networkingv1.ServiceCIDR]) {
			q.Add(e.Object.Name)
			ending()
		})()
		defer c.ips.Subscribe(func(e registry.Event[*networkingv1.IPAddress]) {
			if e.Type == watch.Deleted {
				ending()
			}
		})()
		q.Add(defaultName)
		return q.Run(ctx)
	}
}

func (c *controller) sync(ctx context.Context, name string) (time.Duration, error) {
	cidr, ok := c.cidrs.Get("", name)
	if !ok {
		if name == defaultName && len(c.own) > 0 {
			_, err := c.cidrs.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: c.own}})
			if !apierrors.IsAlreadyExists(err) {
				return 0, err
			}
		}
		return 0, nil
	}
	ready := metav1.Condition{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready"}
	if cidr.DeletionTimestamp == nil {
		if err := c.finalizer(ctx, cidr, true); err != nil {
			return 0, err
		}
		return 0, c.setReady(ctx, cidr, ready)
	}
	if c.removable(cidr) {
		return 0, c.finalizer(ctx, cidr, false)
	}
	ready.Status, ready.Reason = metav1.ConditionFalse, networkingv1.ServiceCIDRReasonTerminating
	ready.Message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
	return 0, c.setReady(ctx, cidr, ready)
}

func (c *controller) removable(cidr *networkingv1.ServiceCIDR) bool {
	var used []netip.Addr
	for _, ip := range c.ips.List("") {
		if a, err := netip.ParseAddr(ip.Name); err == nil {
			used = append(used, a)
		}
	}
	return Removable(cidr, c.cidrs.List(""), used)
}

// finalizer puts ours on or takes it off.
func (c *controller) finalizer(ctx context.Context, cidr *networkingv1.ServiceCIDR, on bool) error {
	if slices.Contains(cidr.Finalizers, finalizer) == on {
		return nil
	}
	_, err := c.cidrs.Update(ctx, "", cidr.Name, func(cur *networkingv1.ServiceCIDR) error {
		if cur.UID != cidr.UID {
			return nil
		}
		cur.Finalizers = slices.DeleteFunc(cur.Finalizers, func(f string) bool { return f == finalizer })
		if on && cur.DeletionTimestamp == nil {
			cur.Finalizers = append(cur.Finalizers, finalizer)
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *controller) setReady(ctx context.Context, cidr *networkingv1.ServiceCIDR, ready metav1.Condition) error {
	if have := meta.FindStatusCondition(cidr.Status.Conditions, ready.Type); have != nil && have.Status == ready.Status && have.Message == ready.Message {
		return nil
	}
	_, err := c.cidrs.UpdateStatus(ctx, "", cidr.Name, func(cur *networkingv1.ServiceCIDR) error {
		ready.LastTransitionTime = metav1.NewTime(c.env.Now()).Rfc3339Copy()
		meta.SetStatusCondition(&cur.Status.Conditions, ready)
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
