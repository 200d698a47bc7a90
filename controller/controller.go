// Package controller runs all controllers: what brings the cluster's objects
// from what they are to what they should be.
//
// It decides nothing itself: each controller is a package below, with a pure
// Reconcile and a thin loop around it (controller/loop). The scheduler is a
// package of its own.
//
// Types: Config is what they need from outside; Run starts them all.
//
// Promises: Run is called while this device leads and everything it started has
// ended when it returns. A leader that lost its office without knowing can do
// no harm: each write is a compare-and-swap. At rest nothing runs but timers
// that are due for a reason, and nothing is written.
//
// Dangers: Run's context must end with leadership.
//
// Goroutines: one per controller, one that writes Events, and up to four per
// controller while there is work; Run waits for all.
//
// May be imported by: cmd/edged.
//
// Sources: k8s.io/kubernetes/cmd/kube-controller-manager, for the list.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/bootstrap"
	"edged/controller/clusterrole"
	"edged/controller/cronjob"
	"edged/controller/customresource"
	"edged/controller/daemonset"
	"edged/controller/deployment"
	"edged/controller/disruption"
	"edged/controller/endpoints"
	"edged/controller/endpointslice"
	"edged/controller/endpointslicemirroring"
	"edged/controller/ephemeralvolume"
	"edged/controller/foreign"
	"edged/controller/gc"
	"edged/controller/job"
	"edged/controller/loop"
	"edged/controller/namespace"
	"edged/controller/node"
	"edged/controller/persistentvolume"
	"edged/controller/podautoscaler"
	"edged/controller/podcertificate"
	"edged/controller/podgc"
	"edged/controller/replicaset"
	"edged/controller/replicationcontroller"
	"edged/controller/resourcequota"
	"edged/controller/rootca"
	"edged/controller/serviceaccount"
	"edged/controller/serviceaccounttoken"
	"edged/controller/servicecidr"
	"edged/controller/signing"
	"edged/controller/statefulset"
)

// Config is what the controllers need from outside.
type Config struct {
	Registry *registry.Registry
	// APIAddresses are where the API is served: the endpoints of
	// default/kubernetes. It is asked again when a node changes.
	APIAddresses func() []netip.AddrPort
	// ServiceIP is the address of default/kubernetes, by convention the first of
	// the Service range; one is chosen if it is not valid.
	ServiceIP netip.Addr
	// ServiceCIDRs are the ranges of Services' addresses that the cluster was made with.
	ServiceCIDRs []netip.Prefix
	// BootstrapObjects are made if they are missing: RBAC's roles and bindings.
	BootstrapObjects []runtime.Object
	// RootCA is the cluster's CA, published in every namespace.
	RootCA rootca.Source
	// Tokens signs those that Secrets hold.
	Tokens serviceaccounttoken.Issuer
	// Signer certifies users whose requests were approved.
	Signer signing.Signer
	// ClusterDomain is the DNS domain of Services.
	ClusterDomain string
	// Liveness tells when a device was last heard of; nil for a lone device.
	Liveness node.Liveness
	// Grace is how long a device may be silent; nil is node.Grace.
	Grace func() time.Duration
	// Witnesses are members without a Node; may be nil.
	Witnesses node.Witnesses
	// Foreign is the way to the servers of aggregated APIs; nil: there are none.
	Foreign foreign.Servers
	Logger  *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// controllers is the table of what runs.
func controllers(cfg Config) map[string]loop.Run {
	return map[string]loop.Run{
		"bootstrap":              bootstrap.Run(bootstrap.Config{Objects: cfg.BootstrapObjects, ServiceIP: cfg.ServiceIP, APIAddresses: cfg.APIAddresses}),
		"clusterrole":            clusterrole.Run,
		"cronjob":                cronjob.Run,
		"customresource":         customresource.Run,
		"daemonset":              daemonset.Run,
		"deployment":             deployment.Run,
		"disruption":             disruption.Run,
		"endpoints":              endpoints.Run,
		"endpointslice":          endpointslice.Run,
		"endpointslicemirroring": endpointslicemirroring.Run,
		"ephemeralvolume":        ephemeralvolume.Run,
		"gc":                     gc.Run,
		"job":                    job.Run,
		"node":                   node.Run(cfg.Liveness, cfg.Grace, cfg.Witnesses),
		"persistentvolume":       persistentvolume.Run,
		"podautoscaler":          podautoscaler.Run,
		"podcertificate":         podcertificate.Run,
		"podgc":                  podgc.Run,
		"namespace":              namespace.Run,
		"replicaset":             replicaset.Run,
		"replicationcontroller":  replicationcontroller.Run,
		"resourcequota":          resourcequota.Run,
		"rootca":                 rootca.Run(cfg.RootCA),
		"serviceaccount":         serviceaccount.Run,
		"serviceaccounttoken":    serviceaccounttoken.Run(cfg.Tokens, cfg.RootCA),
		"servicecidr":            servicecidr.Run(cfg.ServiceCIDRs),
		"signing":                signing.Run(cfg.Signer),
		"statefulset":            statefulset.Run,
	}
}

// Run runs all controllers until ctx ends. It returns nil then.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	env := loop.Env{
		Registry: cfg.Registry,
		Events:   recorder.New(cfg.Registry, "controller", "", cfg.Logger),
		Logger:   cfg.Logger,
		Foreign:  cfg.Foreign,
		Now:      cfg.Now,
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return env.Events.Run(ctx) })
	for name, run := range controllers(cfg) {
		group.Go(func() error {
			if err := run(ctx, env); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("controller %s: %w", name, err)
			}
			return nil
		})
	}
	return group.Wait()
}
