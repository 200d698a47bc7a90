package objcache

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/google/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// Entry is an object in a Set. Neither it nor its object ever changes.
type Entry struct {
	// Key is "namespace/name", or "name" for a kind without namespaces.
	Key      string
	Object   runtime.Object
	Revision int64 // that wrote the object

	image []byte // with Config.Verify: what the object was
}

// Event is one change of one object.
type Event struct {
	Type watch.EventType // Added, Modified, Deleted
	Key  string
	// Object after the change; if deleted, its last state with the deletion's
	// resourceVersion.
	Object runtime.Object
	// Old is the object before the change; nil if added.
	Old      runtime.Object
	Revision int64
}

// Set holds the objects of one kind.
type Set struct {
	cache *Cache
	kind  Kind

	// Guarded by cache.mu. tree and indexes are written with cache.applyMu
	// held as well, which is therefore enough to read them.
	tree    *btree.BTreeG[*Entry]
	indexes map[string]map[string][]*Entry
	feed    feed
	gone    bool // no longer one of the cache's

	subs []*subscription // guarded by cache.applyMu
}

type subscription struct {
	fn       func(Event)
	canceled atomic.Bool
}

func newSet(c *Cache, k Kind) *Set {
	s := &Set{
		cache:   c,
		kind:    k,
		tree:    btree.NewG(32, func(a, b *Entry) bool { return a.Key < b.Key }),
		indexes: make(map[string]map[string][]*Entry, len(k.Indexes)),
	}
	for name := range k.Indexes {
		s.indexes[name] = make(map[string][]*Entry)
	}
	return s
}

// Get returns the object under key.
func (s *Set) Get(key string) (*Entry, bool) {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	e := s.lookup(key)
	return e, e != nil
}

// List returns the entries whose keys begin with prefix, in order of their
// keys, and the revision they belong to.
func (s *Set) List(prefix string) ([]*Entry, int64) {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	var out []*Entry
	if prefix == "" {
		out = make([]*Entry, 0, s.tree.Len())
	}
	s.tree.AscendGreaterOrEqual(&Entry{Key: prefix}, func(e *Entry) bool {
		if !strings.HasPrefix(e.Key, prefix) {
			return false
		}
		out = append(out, e)
		return true
	})
	return out, s.cache.revision
}

// ByIndex returns the entries that the index function maps to value, in no
// particular order, and the revision they belong to.
func (s *Set) ByIndex(index, value string) ([]*Entry, int64) {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	return slices.Clone(s.indexes[index][value]), s.cache.revision
}

// GetAll is List for the one key.
func (s *Set) GetAll(key string) ([]*Entry, int64) {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	if e := s.lookup(key); e != nil {
		return []*Entry{e}, s.cache.revision
	}
	return nil, s.cache.revision
}

// ByIndexSorted is ByIndex in order of the keys.
func (s *Set) ByIndexSorted(index, value string) ([]*Entry, int64) {
	entries, revision := s.ByIndex(index, value)
	slices.SortFunc(entries, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
	return entries, revision
}

// Len is the number of objects.
func (s *Set) Len() int {
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	return s.tree.Len()
}

// Subscribe calls fn for every object, as Added, before it returns, and then
// for every change in revision order, on the cache's goroutine; calls never
// overlap. fn must not block, subscribe or write. After cancel returns no
// further call begins; cancel may be called from fn.
func (s *Set) Subscribe(fn func(Event)) (cancel func()) {
	sub := &subscription{fn: fn}
	s.cache.applyMu.Lock()
	defer s.cache.applyMu.Unlock()
	s.tree.Ascend(func(e *Entry) bool {
		fn(Event{Type: watch.Added, Key: e.Key, Object: e.Object, Revision: e.Revision})
		return !sub.canceled.Load()
	})
	s.subs = append(s.subs, sub)
	return func() { sub.canceled.Store(true) }
}

// tell is called with cache.applyMu held.
func (s *Set) tell(ev Event) {
	for _, sub := range s.subs {
		if !sub.canceled.Load() {
			sub.fn(ev)
		}
	}
	s.subs = slices.DeleteFunc(s.subs, func(sub *subscription) bool { return sub.canceled.Load() })
}

func (s *Set) lookup(key string) *Entry {
	e, _ := s.tree.Get(&Entry{Key: key})
	return e
}

// Decode makes an entry, private to the caller, of a key of this kind that was
// read from the store's history.
func (s *Set) Decode(kv *mvccpb.KeyValue) (*Entry, error) {
	key, ok := strings.CutPrefix(string(kv.Key), s.kind.Prefix)
	if !ok {
		return nil, fmt.Errorf("key %q is not below %s", kv.Key, s.kind.Prefix)
	}
	return s.decode(key, kv)
}

func (s *Set) decode(key string, kv *mvccpb.KeyValue) (*Entry, error) {
	obj, err := s.kind.Decode(kv.Value)
	if err != nil {
		return nil, err
	}
	_, setVersion := accessor(obj)
	setVersion(strconv.FormatInt(kv.ModRevision, 10))
	e := &Entry{Key: key, Object: obj, Revision: kv.ModRevision}
	if s.cache.verify {
		e.image = image(obj)
	}
	return e, nil
}

// difference is what must change for the set to hold found, sorted by
// revision.
func (s *Set) difference(found []*Entry, revision int64) []change {
	var out []change
	seen := make(map[string]bool, len(found))
	for _, e := range found {
		seen[e.Key] = true
		old := s.lookup(e.Key)
		if old == nil || old.Revision != e.Revision {
			out = append(out, update(s, old, e))
		}
	}
	s.tree.Ascend(func(e *Entry) bool {
		if !seen[e.Key] {
			out = append(out, deletion(s, e, revision))
		}
		return true
	})
	slices.SortStableFunc(out, func(a, b change) int { return int(a.event.Revision - b.event.Revision) })
	return out
}

func update(s *Set, old, e *Entry) change {
	ev := Event{Type: watch.Added, Key: e.Key, Object: e.Object, Revision: e.Revision}
	if old != nil {
		ev.Type, ev.Old = watch.Modified, old.Object
	}
	return change{set: s, key: e.Key, old: old, new: e, event: ev}
}

func deletion(s *Set, old *Entry, revision int64) change {
	return change{set: s, key: old.Key, old: old, event: deleted(old.Key, old.Object, revision)}
}

func deleted(key string, old runtime.Object, revision int64) Event {
	last := ShallowCopy(old)
	_, setVersion := accessor(last)
	setVersion(strconv.FormatInt(revision, 10))
	return Event{Type: watch.Deleted, Key: key, Object: last, Old: old, Revision: revision}
}

// ShallowCopy copies the object's struct: its top-level fields and its metadata
// can be set, what they point to is shared.
func ShallowCopy(obj runtime.Object) runtime.Object {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		top := maps.Clone(u.Object)
		if m, ok := top["metadata"].(map[string]any); ok {
			top["metadata"] = maps.Clone(m)
		}
		return &unstructured.Unstructured{Object: top}
	}
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	return v.Interface().(runtime.Object)
}

// apply is called with cache.mu held for writing.
func (s *Set) apply(ch *change) {
	if ch.old != nil {
		ch.old.check()
		s.unindex(ch.old)
	}
	if ch.new != nil {
		s.tree.ReplaceOrInsert(ch.new)
		s.index(ch.new)
	} else {
		s.tree.Delete(ch.old)
	}
	s.feed.append(ch.event)
}

func (s *Set) index(e *Entry) {
	for name, fn := range s.kind.Indexes {
		for _, v := range fn(e.Object) {
			s.indexes[name][v] = append(s.indexes[name][v], e)
		}
	}
}

func (s *Set) unindex(e *Entry) {
	for name, fn := range s.kind.Indexes {
		for _, v := range fn(e.Object) {
			left := slices.DeleteFunc(s.indexes[name][v], func(x *Entry) bool { return x.Key == e.Key })
			if len(left) == 0 {
				delete(s.indexes[name], v)
			} else {
				s.indexes[name][v] = left
			}
		}
	}
}

// check panics if somebody changed the object: a bug that would otherwise show
// up far from its cause.
func (e *Entry) check() {
	if e.image != nil && !bytes.Equal(e.image, image(e.Object)) {
		panic(fmt.Sprintf("objcache: the cached %T %s of revision %d was changed in place", e.Object, e.Key, e.Revision))
	}
}

func image(obj runtime.Object) []byte {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		data, err := u.MarshalJSON()
		if err != nil {
			return nil
		}
		return data
	}
	m, ok := obj.(runtime.ProtobufMarshaller)
	if !ok {
		return nil
	}
	buf := make([]byte, m.Size())
	n, err := m.MarshalTo(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// Verify panics if a cached object was changed. Without Config.Verify it does
// nothing.
func (c *Cache) Verify() {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.sets {
		s.tree.Ascend(func(e *Entry) bool { e.check(); return true })
	}
}
