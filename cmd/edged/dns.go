package main

import (
	"context"
	"fmt"
	"slices"

	"edged/net/dns"
	"edged/net/proxy"
)

// runDNS answers the cluster's names on this device until ctx ends.
func (d *device) runDNS(ctx context.Context, px *proxy.Proxier) error {
	c := d.cfg
	srv, err := dns.New(dns.Config{
		Domain: c.clusterDomain, Addrs: c.parsed.clusterDNS, Inside: slices.Concat(c.parsed.clusterCIDRs, c.parsed.serviceCIDRs),
		ResolvConf: hostResolvConf, Redirect: px.Redirect, Logger: d.log,
	})
	if err != nil {
		return fmt.Errorf("--cluster-dns: %w", err)
	}
	return srv.Run(ctx, d.registry)
}
