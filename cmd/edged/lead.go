package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"edged/apiserver/authz"
	"edged/apiserver/registry"
	"edged/controller"
	"edged/net/announce"
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
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			return controller.Run(ctx, controller.Config{
				Registry: d.registry, ClusterDomain: d.cfg.clusterDomain, APIAddresses: d.apiAddresses,
				ServiceIP: firstOf(d.cfg.parsed.serviceCIDRs[0]), BootstrapObjects: bootstrap, RootCA: d.identity.CAPEM(), Logger: d.log,
			})
		})
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

// apiAddresses are where the Service "kubernetes" leads to. An endpoint may not
// be a loopback address: a device that has no other is reached at its bridge.
func (d *device) apiAddresses() []netip.AddrPort {
	a := d.nodeIP
	if a.IsLoopback() {
		a = firstOf(d.cfg.parsed.clusterCIDRs[0])
	}
	return []netip.AddrPort{netip.AddrPortFrom(a, d.cfg.parsed.api.Port())}
}
