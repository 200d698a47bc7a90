package registry

import (
	"context"
	"fmt"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/objcache"
)

// Client is the typed view of one kind for users in this process. Reads come
// from the cache and are shared: what they return must not be changed.
type Client[T runtime.Object] struct {
	r    *Registry
	kind *Kind
}

// Event is a change of an object of type T. For Deleted, Object is the last
// state; Old is the state before, the zero T for Added.
type Event[T runtime.Object] struct {
	Type        watch.EventType
	Object, Old T
}

// For returns the client of T's kind. It panics if the table has no such kind:
// that is a bug in the caller.
func For[T runtime.Object](r *Registry) Client[T] {
	typ := reflect.TypeFor[T]()
	k := r.rows().byType[typ]
	if k == nil {
		panic(fmt.Sprintf("registry: no kind has type %v", typ))
	}
	return Client[T]{r: r, kind: k}
}

// Get returns the cached object.
func (c Client[T]) Get(ns, name string) (T, bool) {
	e, ok := c.kind.set.Get(c.kind.key(ns, name))
	if !ok {
		var zero T
		return zero, false
	}
	return e.Object.(T), true
}

// List returns the cached objects of a namespace in order of their names; all
// of them if ns is empty.
func (c Client[T]) List(ns string) []T {
	prefix := ""
	if ns != "" && c.kind.Namespaced {
		prefix = ns + "/"
	}
	entries, _ := c.kind.set.List(prefix)
	return objects[T](entries)
}

// ByIndex returns the cached objects that an index maps to value.
func (c Client[T]) ByIndex(index, value string) []T {
	if index == IndexNamespace {
		return c.List(value)
	}
	entries, _ := c.kind.set.ByIndex(index, value)
	return objects[T](entries)
}

func objects[T runtime.Object](entries []*objcache.Entry) []T {
	out := make([]T, len(entries))
	for i, e := range entries {
		out[i] = e.Object.(T)
	}
	return out
}

// Create writes a new object and returns it as stored. obj is not changed.
func (c Client[T]) Create(ctx context.Context, obj T) (T, error) {
	ns := namespaceOf(obj)
	out, err := c.r.Create(ctx, c.kind.GroupResource(), ns, obj.DeepCopyObject(), CreateOptions{})
	return typed[T](out, err)
}

// Update changes an object: fn changes a private copy of the newest state, and
// runs again if somebody else was faster. An error of fn aborts. A copy left
// as it was writes nothing.
func (c Client[T]) Update(ctx context.Context, ns, name string, fn func(T) error) (T, error) {
	return c.update(ctx, ns, name, "", fn)
}

// UpdateStatus is Update of the status subresource: only status changes.
func (c Client[T]) UpdateStatus(ctx context.Context, ns, name string, fn func(T) error) (T, error) {
	return c.update(ctx, ns, name, "status", fn)
}

func (c Client[T]) update(ctx context.Context, ns, name, sub string, fn func(T) error) (T, error) {
	out, _, err := c.r.Update(ctx, c.kind.GroupResource(), ns, name, sub, func(cur runtime.Object) (runtime.Object, error) {
		if err := fn(cur.(T)); err != nil {
			return nil, err
		}
		return cur, nil
	}, UpdateOptions{})
	return typed[T](out, err)
}

// Delete deletes an object as the API does: gracefully, minding finalizers.
func (c Client[T]) Delete(ctx context.Context, ns, name string, opts metav1.DeleteOptions) error {
	_, _, err := c.r.Delete(ctx, c.kind.GroupResource(), ns, name, opts)
	return err
}

// Subscribe calls fn for every cached object, as Added, before it returns, and
// then for every change in revision order on the cache's goroutine. fn must
// not block, write or subscribe: it is meant to put a key into a queue. After
// cancel returned no further call begins.
func (c Client[T]) Subscribe(fn func(Event[T])) (cancel func()) {
	return c.kind.set.Subscribe(func(e objcache.Event) {
		ev := Event[T]{Type: e.Type, Object: e.Object.(T)}
		if e.Old != nil {
			ev.Old = e.Old.(T)
		}
		fn(ev)
	})
}

// Registry returns the registry that the client reads and writes.
func (c Client[T]) Registry() *Registry { return c.r }

// Kind returns the row of T.
func (c Client[T]) Kind() *Kind { return c.kind }

func typed[T runtime.Object](obj runtime.Object, err error) (T, error) {
	if err != nil || obj == nil {
		var zero T
		return zero, err
	}
	return obj.(T), nil
}

func namespaceOf(obj any) string {
	if m, ok := obj.(metav1.Object); ok {
		return m.GetNamespace()
	}
	return ""
}
