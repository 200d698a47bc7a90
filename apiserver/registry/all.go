package registry

import (
	"slices"
	"sync"

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

// everything is who subscribed to all kinds.
type everything struct {
	mu    sync.Mutex
	kinds []*Kind
	subs  map[*anySubscription]struct{}
}

type anySubscription struct {
	fn      func(AnyEvent)
	cancels map[*Kind]func()
}

// SubscribeAll is Client.Subscribe for every kind at once, those that come
// later too. The order of changes holds within a kind; objects that exist are
// told kind by kind, and again when their kind is described anew.
func (r *Registry) SubscribeAll(fn func(AnyEvent)) (cancel func()) {
	a := &r.all
	a.mu.Lock()
	defer a.mu.Unlock()
	sub := &anySubscription{fn: fn, cancels: map[*Kind]func(){}}
	for _, k := range a.kinds {
		sub.begin(k)
	}
	if a.subs == nil {
		a.subs = map[*anySubscription]struct{}{}
	}
	a.subs[sub] = struct{}{}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.subs, sub)
		for _, c := range sub.cancels {
			c()
		}
	}
}

func (s *anySubscription) begin(k *Kind) {
	s.cancels[k] = k.set.Subscribe(func(e objcache.Event) {
		s.fn(AnyEvent{Kind: k, Type: e.Type, Object: e.Object, Old: e.Old})
	})
}

// begin takes a kind in, in place of old.
func (a *everything) begin(k, old *Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(old)
	a.kinds = append(a.kinds, k)
	for s := range a.subs {
		s.begin(k)
	}
}

func (a *everything) end(k *Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(k)
}

func (a *everything) remove(k *Kind) {
	a.kinds = slices.DeleteFunc(a.kinds, func(have *Kind) bool { return have == k })
	for s := range a.subs {
		if c := s.cancels[k]; c != nil {
			c()
			delete(s.cancels, k)
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
