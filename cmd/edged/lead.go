package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/authz"
	"edged/apiserver/registry"
	"edged/controller"
	"edged/controller/node"
	"edged/net/announce"
	"edged/raftstore"
	"edged/runtime/nodestatus"
	"edged/scheduler"
)

// lead runs scheduler and controllers whenever this device leads. One that
// fails ends the daemon: a cluster without it would look healthy and do
// nothing.
func (d *device) lead(ctx context.Context) error {
	bootstrap, err := authz.BootstrapObjects()
	if err != nil {
		return fmt.Errorf("read the bootstrap roles: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.store.RunWhileLeader(ctx, func(ctx context.Context) {
		if d.cfg.role == roleWitness {
			d.handOver(ctx)
			return
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return d.balanceVoters(ctx) })
		g.Go(func() error { return d.leadRollout(ctx) })
		g.Go(func() error {
			return controller.Run(ctx, controller.Config{
				Registry: d.registry, ClusterDomain: d.cfg.clusterDomain, APIAddresses: d.apiAddresses,
				ServiceIP: firstOf(d.cfg.parsed.serviceCIDRs[0]), BootstrapObjects: bootstrap, RootCA: d.identity, Logger: d.log,
				Liveness: d.liveness(time.Now()),
			})
		})
		if d.backups != nil {
			g.Go(func() error { d.backups.Run(ctx); return nil })
		}
		if pool := d.cfg.parsed.lbPool; len(pool) > 0 {
			g.Go(func() error { return announce.RunPool(ctx, d.registry, pool, d.log) })
		}
		if vip := d.cfg.parsed.apiVIP; vip.IsValid() {
			d.announcer.Hold("api", []netip.Addr{vip})
			defer d.announcer.Hold("api", nil)
		}
		g.Go(func() error {
			return scheduler.Run(ctx, scheduler.Config{Registry: d.registry, Logger: d.log})
		})
		g.Go(func() error {
			d.registry.RunCompaction(ctx, d.store, registry.CompactionInterval)
			return nil
		})
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			cancel(err)
		}
	})
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

const (
	// voterGrace is how long a voter may be silent before another takes its place.
	voterGrace = 45 * time.Second
	// lookAtVoters is how often the leader of several devices looks.
	lookAtVoters = 5 * time.Second
)

// balanceVoters keeps the number of voters, until ctx ends. It sleeps on a lone
// device.
func (d *device) balanceVoters(ctx context.Context) error {
	many := make(chan struct{}, 1)
	defer registry.For[*corev1.Node](d.registry).Subscribe(func(registry.Event[*corev1.Node]) {
		select {
		case many <- struct{}{}:
		default:
		}
	})()
	for ctx.Err() == nil {
		peers, err := d.store.Peers(ctx)
		if err != nil || len(peers) < 2 {
			select {
			case <-ctx.Done():
			case <-many:
			case <-time.After(time.Hour): // a witness has no Node
			}
			continue
		}
		c, changed, err := d.store.Rebalance(ctx, d.cfg.voters, voterGrace, d.witnesses(ctx)...)
		switch {
		case err != nil && ctx.Err() == nil && !errors.Is(err, raftstore.ErrLearnerNotReady):
			d.log.Warn("the voters were not changed", "err", err)
		case changed && c.Promote != 0:
			d.log.Info("a device has a vote now", "member", fmt.Sprintf("%x", c.Promote))
			continue
		case changed:
			d.log.Warn("a silent device has no vote any more", "member", fmt.Sprintf("%x", c.Demote))
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAtVoters):
		}
	}
	return nil
}

// liveness tells when a device was last heard of: in Raft's own traffic. Devices
// talk with their leader only, so that a new one has heard of nobody before it
// led, but of the old leader: that one's silence began an election ago at most.
func (d *device) liveness(began time.Time) node.Liveness {
	return func(name string) (time.Time, bool) {
		last, led, ok := d.store.Heard(name)
		since := began
		if led {
			since = began.Add(-electionTime)
		}
		if last.Before(since) {
			last = since
		}
		return last, ok
	}
}

// apiAddresses are where the Service "kubernetes" leads to: every device that is
// there. An endpoint may not be a loopback address: a device that has no other is
// reached at its bridge.
func (d *device) apiAddresses() []netip.AddrPort {
	var out []netip.AddrPort
	port := d.cfg.parsed.api.Port()
	for _, n := range registry.For[*corev1.Node](d.registry).List("") {
		if n.Name == d.cfg.nodeName || !d.isReady(n.Name) {
			continue
		}
		if _, ours := n.Labels[nodestatus.LabelControlPlane]; !ours {
			continue
		}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP && !ip.IsLoopback() {
				out = append(out, netip.AddrPortFrom(ip, port))
			}
		}
	}
	own := d.nodeIP
	if own.IsLoopback() {
		own = firstOf(d.cfg.parsed.clusterCIDRs[0])
	}
	return append(out, netip.AddrPortFrom(own, port))
}
