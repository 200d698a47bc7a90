package registry

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/objcache"
)

// AnyEvent is a change of an object of whatever kind.
type AnyEvent struct {
	Kind *Kind
	Type watch.EventType
	// Object is the state after the change, the last one if Deleted; Old is the
	// state before, nil for Added.
	Object, Old runtime.Object
}

// SubscribeAll is Client.Subscribe for every kind at once. The order of
// changes holds within a kind; objects that exist are told kind by kind.
func (r *Registry) SubscribeAll(fn func(AnyEvent)) (cancel func()) {
	var cancels []func()
	for _, k := range r.Kinds() {
		cancels = append(cancels, k.set.Subscribe(func(e objcache.Event) {
			fn(AnyEvent{Kind: k, Type: e.Type, Object: e.Object, Old: e.Old})
		}))
	}
	return func() {
		for _, c := range cancels {
			c()
		}
	}
}

// Dependent is an object that names an owner.
type Dependent struct {
	Kind   *Kind
	Object runtime.Object
}

// Dependents returns the cached objects of every kind that name the UID among
// their owners.
func (r *Registry) Dependents(uid string) []Dependent {
	var out []Dependent
	for _, k := range r.Kinds() {
		entries, _ := k.set.ByIndex(IndexOwner, uid)
		for _, e := range entries {
			out = append(out, Dependent{Kind: k, Object: e.Object})
		}
	}
	return out
}

// Cached returns an object of a kind from the cache; it is shared.
func (r *Registry) Cached(k *Kind, ns, name string) (runtime.Object, bool) {
	e, ok := k.set.Get(k.key(ns, name))
	if !ok {
		return nil, false
	}
	return e.Object, true
}

// CachedIn returns the cached objects of a kind in a namespace, all if ns is
// empty.
func (r *Registry) CachedIn(k *Kind, ns string) []runtime.Object {
	prefix := ""
	if ns != "" && k.Namespaced {
		prefix = ns + "/"
	}
	entries, _ := k.set.List(prefix)
	return objects[runtime.Object](entries)
}
