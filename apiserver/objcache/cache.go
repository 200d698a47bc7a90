package objcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

// Root is the prefix of every key that holds an object.
const Root = "/registry/"

// loadPage bounds the memory that loading the store takes beside the objects.
const loadPage = 500

// resyncPause keeps a store that refuses watches from being hammered.
const resyncPause = 100 * time.Millisecond

// Kind tells a Set how to hold the objects of one kind.
type Kind struct {
	// Prefix of the kind's keys, with the slash at its end.
	Prefix string
	// Decode makes an object of a stored value. The cache sets its
	// resourceVersion.
	Decode func(value []byte) (runtime.Object, error)
	// Indexes give the values under which an object is found by ByIndex.
	Indexes map[string]func(obj runtime.Object) []string
}

// Config is what New needs.
type Config struct {
	Store  Store
	Kinds  []Kind
	Logger *slog.Logger
	// Verify checks that nobody changes cached objects, at the cost of
	// encoding each twice.
	Verify bool
}

// Cache follows the store. See the package comment.
type Cache struct {
	store  Store
	logger *slog.Logger
	verify bool
	ready  chan struct{} // closed when the first load is done

	// followMu is held while the store is read and while its events become
	// changes, so that no set comes or goes in between. It is taken first.
	followMu sync.Mutex

	// applyMu is held while a batch is applied and subscribers are called.
	applyMu sync.Mutex

	// mu guards what follows, and every Set's state. It is taken after
	// applyMu.
	mu       sync.RWMutex
	revision int64           // of the objects in the sets
	sets     map[string]*Set // by prefix; written with followMu held as well

	// waitMu guards what follows. published <= revision: it moves after the
	// subscribers were called.
	waitMu    sync.Mutex
	published int64
	waiters   []waiter
}

type waiter struct {
	revision int64
	done     chan struct{}
}

// New returns a cache that is empty until Run.
func New(cfg Config) *Cache {
	c := &Cache{
		store:  cfg.Store,
		logger: cfg.Logger,
		verify: cfg.Verify,
		sets:   make(map[string]*Set, len(cfg.Kinds)),
		ready:  make(chan struct{}),
	}
	for _, k := range cfg.Kinds {
		c.sets[k.Prefix] = newSet(c, k)
	}
	return c
}

// Set returns the objects below prefix; nil if the cache has no such kind.
func (c *Cache) Set(prefix string) *Set {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sets[prefix]
}

// Add begins to hold the objects of another kind and returns when they are
// there. It must not be called before the cache is ready, nor by a subscriber.
func (c *Cache) Add(ctx context.Context, k Kind) (*Set, error) {
	for {
		set, err := c.add(ctx, k)
		if !errors.Is(err, ErrCompacted) {
			return set, err
		}
		select { // the cache is far behind the store
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(resyncPause):
		}
	}
}

func (c *Cache) add(ctx context.Context, k Kind) (*Set, error) {
	c.followMu.Lock()
	defer c.followMu.Unlock()
	if c.Set(k.Prefix) != nil {
		return nil, fmt.Errorf("holding the objects below %s: they are held already", k.Prefix)
	}
	set := newSet(c, k)
	revision := c.Revision()
	var changes []change
	for key := []byte(k.Prefix); ; {
		resp, err := c.store.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: PrefixEnd([]byte(k.Prefix)), Limit: loadPage, Revision: revision, Serializable: true})
		if err != nil {
			return nil, fmt.Errorf("reading the objects below %s: %w", k.Prefix, err)
		}
		for _, kv := range resp.Kvs {
			e, err := set.Decode(kv)
			if err != nil {
				c.logUnreadable(kv, err)
				continue
			}
			changes = append(changes, update(set, nil, e))
		}
		if !resp.More || len(resp.Kvs) == 0 {
			break
		}
		key = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range changes {
		set.apply(&changes[i])
	}
	set.feed.restart(revision)
	c.sets[k.Prefix] = set
	return set, nil
}

// Remove forgets a set. Its followers end as lost, its subscribers are told
// that its objects are gone if tell is true: the kind is, and not only its
// reading.
func (c *Cache) Remove(set *Set, tell bool) {
	c.followMu.Lock()
	defer c.followMu.Unlock()
	if c.Set(set.kind.Prefix) != set {
		return
	}
	c.applyMu.Lock()
	defer c.applyMu.Unlock()
	if tell {
		for _, ch := range set.difference(nil, c.Revision()) {
			set.tell(ch.event)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sets, set.kind.Prefix)
	set.gone = true
	set.feed.restart(c.revision)
}

// Run loads the store and follows it until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	defer c.restartFeeds()
	for {
		next, err := c.load(ctx)
		if err == nil {
			err = c.follow(ctx, next)
		}
		if ctx.Err() != nil {
			if c.verify {
				c.Verify()
			}
			return ctx.Err()
		}
		// What the watch missed cannot be told to followers: they start over.
		c.restartFeeds()
		if !errors.Is(err, ErrCompacted) {
			c.logger.Warn("object cache lost the store, reading it again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(resyncPause):
		}
	}
}

// WaitReady waits until the cache holds the store's objects.
func (c *Cache) WaitReady(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Revision is the store's revision that the sets show.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// WaitFor waits until the sets show revision and subscribers were told.
func (c *Cache) WaitFor(ctx context.Context, revision int64) error {
	c.waitMu.Lock()
	if c.published >= revision {
		c.waitMu.Unlock()
		return nil
	}
	w := waiter{revision: revision, done: make(chan struct{})}
	c.waiters = append(c.waiters, w)
	c.waitMu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		c.forget(w)
		return ctx.Err()
	}
}

func (c *Cache) forget(w waiter) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	for i := range c.waiters {
		if c.waiters[i].done == w.done {
			c.waiters = append(c.waiters[:i], c.waiters[i+1:]...)
			return
		}
	}
}

func (c *Cache) publish(revision int64) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	c.published = revision
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.revision <= revision {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.waiters[len(kept):])
	c.waiters = kept
}

// load reads all objects at one revision and makes the sets equal to it. It
// returns the revision from which to follow.
func (c *Cache) load(ctx context.Context) (next int64, err error) {
	c.followMu.Lock()
	defer c.followMu.Unlock()
	var (
		revision int64
		found    = make(map[*Set][]*Entry, len(c.sets))
		key      = []byte(Root)
		end      = PrefixEnd([]byte(Root))
	)
	for {
		resp, err := c.store.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Limit: loadPage, Revision: revision, Serializable: true})
		if err != nil {
			return 0, fmt.Errorf("reading the store: %w", err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if e, set := c.decode(kv); e != nil {
				found[set] = append(found[set], e)
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			break
		}
		key = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
	c.replace(revision, found)
	return revision + 1, nil
}

// replace makes the sets hold exactly what was found and tells subscribers
// the difference.
func (c *Cache) replace(revision int64, found map[*Set][]*Entry) {
	var changes []change
	for _, set := range c.sets { // only the cache's goroutine changes trees: reading needs no lock
		changes = append(changes, set.difference(found[set], revision)...)
	}
	c.restartFeeds()
	c.apply(revision, changes)
	c.restartFeeds()
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

// follow applies the store's events until the watch breaks.
func (c *Cache) follow(ctx context.Context, next int64) error {
	// All keys, not only Root: the revision must advance with every write.
	w, err := c.store.Watch(ctx, WatchRequest{Key: []byte{0}, End: []byte{0}, Start: next})
	if err != nil {
		return fmt.Errorf("watching the store: %w", err)
	}
	defer w.Close()
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return err
		}
		c.take(b)
	}
}

// take applies the events of a batch.
func (c *Cache) take(b Batch) {
	c.followMu.Lock()
	defer c.followMu.Unlock()
	changes := make([]change, 0, len(b.Events))
	for _, ev := range b.Events {
		if ch, ok := c.change(ev, changes); ok {
			changes = append(changes, ch)
		}
	}
	c.apply(b.Revision, changes)
}

// change is what one event does to a set.
type change struct {
	set      *Set
	key      string
	old, new *Entry // old nil: added; new nil: deleted
	event    Event
}

// change decodes ev. Earlier changes of the same batch are not in the set yet,
// so the newest of them for the key is what ev replaces.
func (c *Cache) change(ev *mvccpb.Event, earlier []change) (change, bool) {
	set, key := c.find(ev.Kv.Key)
	if set == nil {
		return change{}, false
	}
	old := set.lookup(key)
	for i := len(earlier) - 1; i >= 0; i-- {
		if earlier[i].set == set && earlier[i].key == key {
			old = earlier[i].new
			break
		}
	}
	if ev.Type == mvccpb.Event_DELETE {
		if old == nil {
			return change{}, false
		}
		return deletion(set, old, ev.Kv.ModRevision), true
	}
	e, _ := c.decode(ev.Kv)
	switch {
	case e == nil && old == nil:
		return change{}, false
	case e == nil: // it cannot be read any more: serving the old state would be a lie
		return deletion(set, old, ev.Kv.ModRevision), true
	}
	return update(set, old, e), true
}

// apply makes changes visible, tells subscribers, then releases waiters.
func (c *Cache) apply(revision int64, changes []change) {
	c.applyMu.Lock()
	defer c.applyMu.Unlock()
	c.mu.Lock()
	for i := range changes {
		changes[i].set.apply(&changes[i])
	}
	c.revision = revision
	c.mu.Unlock()
	for i := range changes {
		changes[i].set.tell(changes[i].event)
	}
	c.publish(revision)
}

// find returns the set that key belongs to, and the key within it. followMu is
// held.
func (c *Cache) find(key []byte) (*Set, string) {
	k := string(key)
	rest, ok := strings.CutPrefix(k, Root)
	if !ok {
		return nil, ""
	}
	first := strings.IndexByte(rest, '/')
	if first < 0 {
		return nil, ""
	}
	// Few kinds have a prefix of two segments (services/specs/): try that first.
	if second := strings.IndexByte(rest[first+1:], '/'); second >= 0 {
		n := len(Root) + first + 1 + second + 1
		if s := c.sets[k[:n]]; s != nil {
			return s, k[n:]
		}
	}
	n := len(Root) + first + 1
	return c.sets[k[:n]], k[n:]
}

// decode returns nil for a key of no kind, and for a value that cannot be
// read, which it logs: one bad value must not take the others away.
func (c *Cache) decode(kv *mvccpb.KeyValue) (*Entry, *Set) {
	set, key := c.find(kv.Key)
	if set == nil {
		return nil, nil
	}
	e, err := set.decode(key, kv)
	if err != nil {
		c.logUnreadable(kv, err)
		return nil, nil
	}
	return e, set
}

func (c *Cache) logUnreadable(kv *mvccpb.KeyValue, err error) {
	c.logger.Error("stored object cannot be read and is left out", "key", string(kv.Key), "rev", kv.ModRevision, "err", err)
}

// restartFeeds ends every follower with ErrLost: what happened between the
// revision they saw and the next load is not known one by one.
func (c *Cache) restartFeeds() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sets {
		s.feed.restart(c.revision)
	}
}

func accessor(obj runtime.Object) (name string, setVersion func(string)) {
	m, err := meta.Accessor(obj)
	if err != nil {
		panic(fmt.Sprintf("objcache: %T has no metadata", obj)) // a kind's New is wrong
	}
	return m.GetName(), m.SetResourceVersion
}

// PrefixEnd is the end of the range of all keys with the given prefix.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}
