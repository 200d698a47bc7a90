package kinds

import (
	"context"
	"net/netip"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/kubernetes/pkg/capabilities"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// Config is what some kinds need to know about the cluster.
type Config struct {
	// ServiceCIDRs are the ranges of Service addresses, one per family, the
	// preferred family first; 10.43.0.0/16 if empty.
	ServiceCIDRs []netip.Prefix
	// ClusterCIDRs are the ranges that each Node gets its Pods' addresses from,
	// one per family; none are given if empty.
	ClusterCIDRs []netip.Prefix
	// NodePorts are the first and last port for Services of type NodePort;
	// 30000-32767 if zero.
	NodePortFirst, NodePortLast int
}

// All returns a new table of all kinds.
func All(cfg Config) []*registry.Kind {
	// Upstream's validation asks a variable of the process whether containers may
	// be privileged. Who may make such Pods is for admission to say, by namespace.
	capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true})
	var all []*registry.Kind
	all = append(all, core(cfg)...)
	all = append(all, apps()...)
	all = append(all, batch()...)
	all = append(all, autoscaling()...)
	all = append(all, policy()...)
	all = append(all, rbac()...)
	all = append(all, coordination()...)
	all = append(all, discovery()...)
	all = append(all, networking()...)
	all = append(all, node()...)
	all = append(all, scheduling()...)
	all = append(all, storage()...)
	all = append(all, certificates()...)
	all = append(all, flowControl()...)
	all = append(all, storageMigration()...)
	all = append(all, resources()...)
	all = append(all, extensions()...)
	all = append(all, admissionRegistration()...)
	all = append(all, registrations()...)
	return all
}

// row makes a row with what follows from the types.
func row[O, L any, PO interface {
	*O
	runtime.Object
}, PL interface {
	*L
	runtime.Object
}](gv schema.GroupVersion, resource string, s registry.Strategy, shortNames ...string) *registry.Kind {
	kind := reflect.TypeFor[O]().Name()
	return &registry.Kind{
		GVK:        gv.WithKind(kind),
		Resource:   resource,
		Singular:   strings.ToLower(kind),
		ShortNames: shortNames,
		Namespaced: s.NamespaceScoped(),
		New:        func() runtime.Object { return PO(new(O)) },
		NewList:    func() runtime.Object { return PL(new(L)) },
		Strategy:   s,
	}
}

// withStatus adds the status subresource.
func withStatus(k *registry.Kind, s rest.RESTUpdateStrategy) *registry.Kind {
	return withSubresource(k, "status", &registry.Subresource{Strategy: s, Verbs: []string{"get", "patch", "update"}})
}

func withSubresource(k *registry.Kind, name string, s *registry.Subresource) *registry.Kind {
	if k.Subresources == nil {
		k.Subresources = map[string]*registry.Subresource{}
	}
	k.Subresources[name] = s
	return k
}

// inAll puts the kind into "kubectl get all".
func inAll(k *registry.Kind) *registry.Kind {
	k.Categories = []string{"all"}
	return k
}

// returnsDeleted is set for the kinds for which upstream's storage sets
// ReturnDeletedObject.
func returnsDeleted(k *registry.Kind) *registry.Kind {
	k.ReturnDeleted = true
	return k
}

// base is what our own strategies share: names generated as everywhere,
// declarative validation, and the answers that most kinds give.
type base struct {
	rest.DeclarativeValidation
	names.NameGenerator
	namespaced bool
	// reset are the fields that PrepareForUpdate takes from the old object,
	// which therefore nobody comes to own by an apply.
	reset map[fieldpath.APIVersion]*fieldpath.Set
}

func newBase(namespaced bool) base {
	return base{DeclarativeValidation: rest.DeclarativeValidation{Scheme: codec.Scheme()}, NameGenerator: names.SimpleNameGenerator, namespaced: namespaced}
}

// resets returns a base whose updates reset the given top-level fields.
func (b base) resets(apiVersion string, names ...string) base {
	paths := make([][]string, len(names))
	for i, name := range names {
		paths[i] = []string{name}
	}
	return b.resetsPaths(apiVersion, paths...)
}

// resetsPaths is resets for fields further down.
func (b base) resetsPaths(apiVersion string, paths ...[]string) base {
	set := fieldpath.NewSet()
	for _, p := range paths {
		var path fieldpath.Path
		for _, name := range p {
			path = append(path, fieldpath.PathElement{FieldName: &name})
		}
		set.Insert(path)
	}
	b.reset = map[fieldpath.APIVersion]*fieldpath.Set{fieldpath.APIVersion(apiVersion): set}
	return b
}

func (b base) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set { return b.reset }

func (b base) NamespaceScoped() bool { return b.namespaced }

func (base) Canonicalize(runtime.Object) {}

func (base) AllowCreateOnUpdate(context.Context) bool { return false }

func (base) AllowUnconditionalUpdate(context.Context) bool { return true }

func (base) PrepareForCreate(context.Context, runtime.Object) {}

func (base) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}

func (base) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }

func (base) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string { return nil }
