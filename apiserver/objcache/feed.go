package objcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// feedSize is how many events of a kind wait in memory for its slowest
// follower. A follower further behind reads the store: 256 events outlast a
// stalled connection of some seconds under a rolling update, and hold at most
// about 3 MB of old Pods.
const feedSize = 256

// ErrBehind says that a follower needs events that are no longer in memory.
var ErrBehind = errors.New("watch is behind the events in memory")

// ErrLost says that the cache had to read the store again and cannot tell a
// follower what it missed.
var ErrLost = errors.New("watch lost its place in the store's history")

// feed is the ring of a kind's newest events. It exists only while somebody
// follows. All of it is guarded by cache.mu.
//
//	floor < revision of ring[tail..head) <= cache.revision
type feed struct {
	ring       []Event
	tail, head uint64 // sequence numbers; the slot is seq % feedSize
	floor      int64  // every event of the kind newer than this is in the ring
	newest     int64  // revision of the kind's newest event, or of the load
	loaded     int64  // the store's revision when the objects were read
	followers  map[*Follower]struct{}
}

// Follower reads a Set's events in order. Its methods are for one goroutine.
type Follower struct {
	set  *Set
	next uint64        // guarded by cache.mu
	lost bool          // guarded by cache.mu
	bell chan struct{} // one slot: "look again"
}

// Follow returns a follower that yields every event after revision. It returns
// ErrBehind if not all of them are in memory; Replay has them.
func (s *Set) Follow(after int64) (*Follower, error) {
	c := s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &s.feed
	if s.gone {
		return nil, ErrLost
	}
	if after < f.floor {
		return nil, ErrBehind
	}
	if f.ring == nil {
		f.ring = make([]Event, feedSize)
		f.followers = make(map[*Follower]struct{})
	}
	w := &Follower{set: s, next: f.head, bell: make(chan struct{}, 1)}
	for w.next > f.tail && f.ring[(w.next-1)%feedSize].Revision > after {
		w.next--
	}
	f.followers[w] = struct{}{}
	return w, nil
}

// Bell rings when Take has something new to say.
func (w *Follower) Bell() <-chan struct{} { return w.bell }

// Take appends the events since the last call to buf; revision is how far the
// follower has come, also when there was no event. It returns ErrBehind when
// the ring has overtaken the follower.
func (w *Follower) Take(buf []Event) (events []Event, revision int64, err error) {
	c := w.set.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &w.set.feed
	if w.lost {
		return buf, 0, ErrLost
	}
	if w.next < f.tail {
		return buf, 0, ErrBehind
	}
	for ; w.next < f.head; w.next++ {
		buf = append(buf, f.ring[w.next%feedSize])
	}
	f.trim()
	return buf, c.revision, nil
}

// Close ends the follower.
func (w *Follower) Close() {
	c := w.set.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &w.set.feed
	delete(f.followers, w)
	f.trim()
}

func (f *feed) append(ev Event) {
	f.newest = ev.Revision
	if f.ring == nil {
		f.floor = ev.Revision
		return
	}
	if f.head-f.tail == feedSize {
		f.drop()
	}
	f.ring[f.head%feedSize] = ev
	f.head++
	f.wake()
}

// drop forgets the oldest event.
func (f *feed) drop() {
	slot := &f.ring[f.tail%feedSize]
	f.floor = slot.Revision
	*slot = Event{}
	f.tail++
}

// trim forgets what every follower has read, so that an idle cluster keeps no
// old objects, and the ring itself when nobody follows.
func (f *feed) trim() {
	least := f.head
	for w := range f.followers {
		least = min(least, w.next)
	}
	for f.tail < least {
		f.drop()
	}
	if len(f.followers) == 0 {
		f.ring, f.followers = nil, nil
	}
}

func (f *feed) wake() {
	for w := range f.followers {
		select {
		case w.bell <- struct{}{}:
		default:
		}
	}
}

// restart tells every follower that the thread is lost. The events up to
// revision are in the store only.
func (f *feed) restart(revision int64) {
	for w := range f.followers {
		w.lost = true
	}
	f.wake()
	*f = feed{floor: revision, newest: revision, loaded: revision}
}

// Replay calls emit for the kind's events after revision, from the store's
// history, and returns how far it came: a revision from which Follow may
// succeed. It returns ErrCompacted if the history is gone.
func (s *Set) Replay(ctx context.Context, after int64, emit func(Event) error) (int64, error) {
	s.cache.mu.RLock()
	upto, last, loaded := s.cache.revision, s.feed.newest, s.feed.loaded
	s.cache.mu.RUnlock()
	if after >= upto {
		return after, nil
	}
	req := WatchRequest{Key: []byte(s.kind.Prefix), End: PrefixEnd([]byte(s.kind.Prefix)), Start: after + 1, PrevKV: true}
	if after < loaded {
		// What the kind's last event before the load was is not known, so only
		// a watch of everything is sure to reach the end.
		req.Key, req.End, last = []byte{0}, []byte{0}, upto
	}
	w, err := s.cache.store.Watch(ctx, req)
	if err != nil {
		return after, err
	}
	defer w.Close()
	for done := after; done < last; {
		b, err := w.Next(ctx)
		if err != nil {
			return done, err
		}
		for _, ev := range b.Events {
			if !bytes.HasPrefix(ev.Kv.Key, []byte(s.kind.Prefix)) {
				continue
			}
			e, err := s.historic(ev)
			if err != nil {
				return done, fmt.Errorf("reading the history of %s: %w", ev.Kv.Key, err)
			}
			if err := emit(e); err != nil {
				return done, err
			}
		}
		done = max(done, b.Revision)
		upto = max(upto, done)
	}
	return upto, nil
}

func (s *Set) historic(ev *mvccpb.Event) (Event, error) {
	key := string(ev.Kv.Key[len(s.kind.Prefix):])
	var old *Entry
	if ev.PrevKv != nil {
		var err error
		if old, err = s.decode(key, ev.PrevKv); err != nil {
			return Event{}, err
		}
	}
	if ev.Type == mvccpb.Event_DELETE {
		if old == nil {
			return Event{}, ErrCompacted
		}
		return deleted(key, old.Object, ev.Kv.ModRevision), nil
	}
	e, err := s.decode(key, ev.Kv)
	if err != nil {
		return Event{}, err
	}
	return update(s, old, e).event, nil
}
