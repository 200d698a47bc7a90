package registry

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/rest"

	"edged/apiserver/codec"
	"edged/apiserver/objcache"
)

// Strategy is what a kind decides about its objects: upstream's interfaces, so
// that upstream's strategies fit as they are. It sees internal versions. A
// strategy that also has CheckGracefulDelete deletes gracefully.
type Strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

// Verbs that a kind may serve.
var allVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// Kind is a row of the table of kinds.
type Kind struct {
	// GVK is the storage version: what is stored, cached and handed around.
	GVK schema.GroupVersionKind
	// Served are the versions that the API offers, preferred first in each
	// group; GVK's own if empty. A kind may be served in several groups.
	Served     []schema.GroupVersion
	Resource   string
	Singular   string
	ListKind   string // the kind's name and "List" if empty
	ShortNames []string
	Categories []string
	Namespaced bool
	// Verbs are the verbs served; all if nil.
	Verbs []string

	// New and NewList make empty objects of the storage version.
	New, NewList func() runtime.Object
	// Prefix is the path of the kind's keys below /registry/ if it is not
	// Resource.
	Prefix string

	Strategy Strategy
	// Subresources by name ("status"). "scale" and others with an object of
	// their own have a Projection.
	Subresources map[string]*Subresource

	// Fields gives the selectable fields of an object of the storage version
	// beyond metadata.name and metadata.namespace.
	Fields func(obj runtime.Object) fields.Set
	// SelectableFields are the names that Fields knows.
	SelectableFields []string
	// Indexes beyond "namespace" and "owner".
	Indexes map[string]func(obj runtime.Object) []string

	// TTL gives the seconds after which a stored object vanishes; nil: never.
	TTL func(obj runtime.Object) int64
	// Transact adds to the transaction that writes an object, and fills in what
	// the object gets from it (addresses, ports). It runs before the strategy
	// prepares and validates, sees internal versions and may change obj; old is
	// nil on create, obj on delete.
	Transact func(tx *Tx, old, obj runtime.Object) error
	// Hidden keeps the kind out of the API: its objects are for Tx only.
	Hidden bool
	// ReturnDeleted makes Delete return the object instead of a Status, as
	// upstream does for the kind.
	ReturnDeleted bool
	// ShouldDelete refuses, if it returns false, the deletion of an object
	// whose last finalizer an update removed.
	ShouldDelete func(obj runtime.Object) bool
	// Keeps is an error for a name that nobody may delete; nil if there is none.
	Keeps func(name string) error
	// BeforeDelete says how a deletion goes on; it sees a private copy of the
	// object, which it changes for DeleteMark. nil: DeleteGo.
	BeforeDelete func(obj runtime.Object, now metav1.Time) DeleteStep
	// Custom makes the kind's objects if their type is not in the scheme; New,
	// NewList and Fields are then not set.
	Custom Custom
	// TypeConverter knows for server-side apply how the kind's fields merge, if
	// client-go's schema does not.
	TypeConverter func() (managedfields.TypeConverter, error)
	// NoGarbageCollection keeps deletion from setting the garbage collector's
	// finalizers, as upstream does for events.
	NoGarbageCollection bool

	codec   objectCodec
	set     *objcache.Set
	virtual func() []runtime.Object // see SetVirtual
}

// DeleteStep is what a deletion does next.
type DeleteStep int

const (
	DeleteGo   DeleteStep = iota // go on as for every kind
	DeleteMark                   // write the changed object, which stays
	DeleteWait                   // do nothing: somebody else has to finish first
)

// Subresource is a part of a kind that is written on its own.
type Subresource struct {
	// Strategy for updates; nil if it cannot be updated.
	Strategy rest.RESTUpdateStrategy
	// Projection, if the subresource has an object of its own.
	Projection *Projection
	// Create runs a POST to the subresource of the named object; nil if there
	// is none.
	Create func(ctx context.Context, r *Registry, ns, name string, obj runtime.Object, opts CreateOptions) (runtime.Object, error)
	// GVK of the object sent and returned, if not the kind's.
	GVK schema.GroupVersionKind
	// New makes an empty object of GVK; nil if it is the kind's.
	New func() runtime.Object
	// Verbs served.
	Verbs []string
}

// Projection maps an object to its subresource's object and back.
type Projection struct {
	Get func(obj runtime.Object) (runtime.Object, error)
	// Set writes the projected object into obj, a private copy. It validates.
	Set func(ctx context.Context, obj, projected runtime.Object) error
	// Path is where a version of the object has the replicas; nil for spec.replicas.
	Path func(version string) ([]string, error)
}

// GroupResource names the kind's resource in its storage group.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.GVK.Group, Resource: k.Resource}
}

// ServedVersions are the group versions under which the kind is offered.
func (k *Kind) ServedVersions() []schema.GroupVersion {
	if len(k.Served) > 0 || k.Custom != nil {
		return k.Served
	}
	return []schema.GroupVersion{k.GVK.GroupVersion()}
}

// ServedVerbs are the verbs of the kind itself, sorted.
func (k *Kind) ServedVerbs() []string {
	if k.Verbs != nil {
		return k.Verbs
	}
	return allVerbs
}

// Serves reports whether the kind has the verb.
func (k *Kind) Serves(verb string) bool { return slices.Contains(k.ServedVerbs(), verb) }

// keyPrefix is the prefix of the kind's keys in the store.
func (k *Kind) keyPrefix() string {
	if k.Prefix != "" {
		return objcache.Root + k.Prefix + "/"
	}
	return objcache.Root + k.Resource + "/"
}

// key is the object's key within the kind's prefix.
func (k *Kind) key(ns, name string) string {
	if k.Namespaced {
		return ns + "/" + name
	}
	return name
}

// fieldSet are all selectable fields of obj as of the given version.
func (k *Kind) fieldSet(obj runtime.Object, gvk schema.GroupVersionKind) fields.Set {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	set := fields.Set{"metadata.name": m.GetName()}
	if k.Namespaced {
		set["metadata.namespace"] = m.GetNamespace()
	}
	var own fields.Set
	switch {
	case k.Custom != nil:
		own = k.Custom.Fields(obj, gvk)
	case k.Fields != nil:
		own = k.Fields(obj)
	}
	maps.Copy(set, own)
	return set
}

// table finds kinds.
type table struct {
	kinds      []*Kind
	byResource map[schema.GroupResource]*Kind
	byType     map[reflect.Type]*Kind
}

func newTable(kinds []*Kind) (*table, error) {
	t := &table{
		kinds:      kinds,
		byResource: make(map[schema.GroupResource]*Kind, len(kinds)),
		byType:     make(map[reflect.Type]*Kind, len(kinds)),
	}
	for _, k := range kinds {
		groups := k.ServedVersions()
		if k.Custom != nil {
			k.New, k.codec = k.newCustom, k.Custom
			groups = append(groups, k.GVK.GroupVersion())
		} else {
			if k.codec == nil {
				k.codec = codec.NewKind(k.GVK, k.New)
			}
			typ := reflect.TypeOf(k.New())
			if t.byType[typ] != nil {
				return nil, fmt.Errorf("table of kinds: %v has two rows", typ)
			}
			t.byType[typ] = k
		}
		for _, gv := range groups {
			gr := schema.GroupResource{Group: gv.Group, Resource: k.Resource}
			if other := t.byResource[gr]; other != nil && other != k {
				return nil, fmt.Errorf("table of kinds: %s has two rows", gr)
			}
			t.byResource[gr] = k
		}
	}
	return t, nil
}

// indexes are the index functions of every kind plus the kind's own.
func (k *Kind) indexes() map[string]func(runtime.Object) []string {
	m := map[string]func(runtime.Object) []string{IndexOwner: ownerUIDs}
	for name, fn := range k.Indexes {
		m[name] = fn
	}
	return m
}

// Names of indexes for Client.ByIndex.
const (
	// IndexOwner finds objects by the UID of any of their owners.
	IndexOwner = "owner"
	// IndexNamespace finds objects by their namespace.
	IndexNamespace = "namespace"
	// IndexNode finds Pods by the name of the node they are bound to.
	IndexNode = "node"
)

func ownerUIDs(obj runtime.Object) []string {
	m, err := meta.Accessor(obj)
	if err != nil || len(m.GetOwnerReferences()) == 0 {
		return nil
	}
	var out []string
	for _, ref := range m.GetOwnerReferences() {
		out = append(out, string(ref.UID))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
