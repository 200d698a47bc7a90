package registry

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"edged/apiserver/objcache"
)

// SetVirtual has reads of a kind show objects that are in no store, as they are
// when they are read: gets and lists of now, and what a watch begins with, not what
// becomes of them after that, nor lists of an earlier revision. A stored object of the same name is shown in their place. It must be
// called before anything is read.
func (r *Registry) SetVirtual(gr schema.GroupResource, objects func() []runtime.Object) {
	if k := r.rows().byResource[gr]; k != nil {
		k.virtual = objects
	}
}

// withVirtual adds a kind's virtual objects to sorted entries of a selection.
func (s *selection) withVirtual(entries []*objcache.Entry) []*objcache.Entry {
	if s.kind.virtual == nil {
		return entries
	}
	var more []*objcache.Entry
	for _, o := range s.kind.virtual() {
		m, err := meta.Accessor(o)
		if err != nil {
			continue
		}
		key := s.kind.key(m.GetNamespace(), m.GetName())
		byKey := func(e *objcache.Entry, key string) int { return strings.Compare(e.Key, key) }
		if _, stored := slices.BinarySearchFunc(entries, key, byKey); !stored && s.holds(key) {
			more = append(more, &objcache.Entry{Key: key, Object: o})
		}
	}
	if len(more) == 0 {
		return entries
	}
	all := slices.Concat(entries, more)
	slices.SortFunc(all, func(a, b *objcache.Entry) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// getVirtual finds a virtual object.
func (k *Kind) getVirtual(key string) (runtime.Object, bool) {
	if k.virtual == nil {
		return nil, false
	}
	for _, o := range k.virtual() {
		if m, err := meta.Accessor(o); err == nil && k.key(m.GetNamespace(), m.GetName()) == key {
			return o, true
		}
	}
	return nil, false
}
