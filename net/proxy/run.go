package proxy

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/registry"
)

const (
	// restBetween bounds the transactions of a burst: a hundred Pods that
	// become ready in a second cost fifty, each of few milliseconds.
	restBetween = 20 * time.Millisecond
	// checkEvery is how long a stranger's `nft flush ruleset` stays
	// unnoticed. A check is one small question to the kernel.
	checkEvery = 30 * time.Second
	// retryAfter an error; the kernel's answer rarely changes by itself.
	retryAfter = 5 * time.Second
)

// SetHostPorts replaces all host ports. It does not wait for them to work; Run
// applies them.
func (p *Proxier) SetHostPorts(list []HostPort) {
	p.hostMu.Lock()
	p.hostPorts = list
	p.hostMu.Unlock()
	p.poke()
}

// Redirect leads what comes to an address and port of the device itself to
// another port there, for TCP and UDP: net/dns asks for it where another process
// has its port. Run applies it.
func (p *Proxier) Redirect(from netip.AddrPort, to uint16) error {
	p.hostMu.Lock()
	for _, proto := range []string{"TCP", "UDP"} {
		p.redirects = append(p.redirects, HostPort{
			HostIP: from.Addr(), HostPort: from.Port(), Protocol: proto,
			PodIPs: []netip.Addr{from.Addr()}, PodPort: to,
		})
	}
	p.hostMu.Unlock()
	p.poke()
	return nil
}

func (p *Proxier) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // one is pending already
	}
}

// Run keeps the rules in step with the registry until ctx ends. The rules stay
// when it returns.
func (p *Proxier) Run(ctx context.Context, reg *registry.Registry) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	services, endpoints, nodes := registry.For[*corev1.Service](reg), registry.For[*discoveryv1.EndpointSlice](reg), registry.For[*corev1.Node](reg)
	defer subscribe(services, p.poke)()
	defer subscribe(endpoints, p.poke)()
	defer nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Object.Name == p.cfg.NodeName && (e.Old == nil || zoneOf(e.Old) != zoneOf(e.Object)) {
			p.poke()
		}
	})()
	read := func() State {
		s := State{Services: services.List(""), Slices: endpoints.List("")}
		if n, ok := nodes.Get("", p.cfg.NodeName); ok {
			s.Zone = zoneOf(n)
		}
		p.hostMu.Lock()
		s.HostPorts = append(slices.Clone(p.hostPorts), p.redirects...)
		p.hostMu.Unlock()
		return s
	}
	p.poke() // the first time without any event
	p.loop(ctx, read)
	return nil
}

// loop applies what read returns whenever poked.
func (p *Proxier) loop(ctx context.Context, read func() State) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	var retry <-chan time.Time
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			if ok, err := p.Intact(); ok || err != nil {
				continue
			}
			p.log.Warn("packet filter rules were removed by somebody else and are put back")
		case <-retry:
		case <-p.wake:
		}
		retry = nil
		if err := p.Apply(read()); err != nil {
			if !failing { // once, however often it is tried
				p.log.Error("Services not updated; trying again", "every", retryAfter, "err", err)
			}
			retry = time.After(retryAfter)
		} else if failing {
			p.log.Info("Services updated again")
		}
		failing = retry != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(restBetween):
		}
	}
}

func subscribe[T runtime.Object](c registry.Client[T], poke func()) (cancel func()) {
	return c.Subscribe(func(registry.Event[T]) { poke() })
}

func zoneOf(n *corev1.Node) string { return n.Labels[corev1.LabelTopologyZone] }
