package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

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
	bootstrap = append(bootstrap, d.serviceCIDR(), metricsReader())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.store.RunWhileLeader(ctx, func(ctx context.Context) {
		if d.cfg.role == roleWitness {
			d.handOver(ctx)
			return
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return d.leadSeals(ctx) })
		g.Go(func() error { return d.balanceVoters(ctx) })
		g.Go(func() error { return d.leadRollout(ctx) })
		g.Go(func() error {
			return controller.Run(ctx, controller.Config{
				Registry: d.registry, ClusterDomain: d.cfg.clusterDomain, APIAddresses: d.apiAddresses,
				ServiceIP: firstOf(d.cfg.parsed.serviceCIDRs[0]), ServiceCIDRs: d.cfg.parsed.serviceCIDRs, BootstrapObjects: bootstrap, RootCA: d.identity, Tokens: d.access.tokens, Signer: d.identity, Logger: d.log, Now: d.clock.Now,
				Liveness: d.liveness(time.Now()), Grace: d.grace, Foreign: d.api,
				Witnesses: func() []string { return d.witnessNames(ctx) },
			})
		})
		g.Go(func() error { return d.api.CheckServices(ctx) })
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

// serviceCIDR tells what the Service range is.
func (d *device) serviceCIDR() *networkingv1.ServiceCIDR {
	out := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
	for _, p := range d.cfg.parsed.serviceCIDRs {
		out.Spec.CIDRs = append(out.Spec.CIDRs, p.String())
	}
	return out
}

// metricsReader lets who may see Pods see what they use; whoever installs a
// metrics-server brings a role of his own.
func metricsReader() *rbacv1.ClusterRole {
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:edged-metrics-reader", Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}, Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"metrics.k8s.io"}, Resources: []string{"nodes", "pods"}, Verbs: []string{"get", "list"}}},
	}
	for _, to := range []string{"admin", "edit", "view"} {
		role.Labels["rbac.authorization.k8s.io/aggregate-to-"+to] = "true"
	}
	return role
}

const (
	// voterGrace is how long a voter may be silent before another takes its place.
	voterGrace = 45 * time.Second
	// leaderRemoves is how long the leader has to remove a device whose Node was
	// deleted; nodestatus makes the Node anew later than that.
	leaderRemoves = 3 * time.Second
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

// removeDeleted takes the devices of Nodes that are deleted out of the cluster,
// until ctx ends. A lone device stays, and makes its Node anew. The leader does it;
// the others do if it did not: it may be the one that goes, or have gone.
func (d *device) removeDeleted(ctx context.Context) error {
	names := make(chan string, 64) // beyond it the Node comes back, and can be deleted again
	nodes := registry.For[*corev1.Node](d.registry)
	defer nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Type != watch.Deleted {
			return
		}
		select {
		case names <- e.Object.Name:
		default:
		}
	})()
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-names:
			if d.store.Leader() != d.store.MemberID() {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(leaderRemoves):
				}
				if _, again := nodes.Get("", name); again {
					continue
				}
			}
			if err := d.removeDevice(ctx, name); err != nil && ctx.Err() == nil {
				d.log.Warn("a device whose Node was deleted is still a member of the cluster", "device", name, "err", err)
			}
		}
	}
}

func (d *device) removeDevice(ctx context.Context, name string) error {
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list.Members, func(m *pb.Member) bool { return m.Name == name })
	if i < 0 || len(list.Members) == 1 {
		return nil
	}
	return d.removeMember(ctx, list.Members[i])
}

// liveness tells when a device was last heard of: in Raft's own traffic. Devices
// talk with their leader only, so that a new one has heard of nobody before it
// led, but of the old leader: that one's silence began an election ago at most.
func (d *device) liveness(began time.Time) node.Liveness {
	return func(name string) (time.Time, bool) {
		last, led, ok := d.store.Heard(name)
		since := began
		if led {
			since = began.Add(-d.pace().election)
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
	own := d.address()
	if own.IsLoopback() {
		own = firstOf(d.cfg.parsed.clusterCIDRs[0])
	}
	return append(out, netip.AddrPortFrom(own, port))
}
