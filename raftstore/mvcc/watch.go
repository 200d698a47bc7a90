package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// ErrClosed ends watchers of a store that was closed.
var ErrClosed = errors.New("mvcc: store is closed")

const (
	// ringRevisions and ringBytes bound the history kept in memory: enough for
	// a watcher that is a scheduling delay behind. One that is slower reads
	// from disk.
	ringRevisions = 1024
	ringBytes     = 1 << 20
	// catchUp and catchUpBytes bound what a watcher that reads from disk holds at
	// a time, but for a revision that is larger by itself.
	catchUp      = 512
	catchUpBytes = 1 << 20
)

// ring holds the newest revisions, ascending, without gaps.
type ring struct {
	batches []Batch
	bytes   int
}

func (r *ring) add(rev int64, events []*mvccpb.Event, bare bool) {
	r.batches = append(r.batches, Batch{Revision: rev, Events: events, bare: bare})
	r.bytes += sizeOf(events)
	drop := 0
	for ; len(r.batches)-drop > ringRevisions || r.bytes > ringBytes && len(r.batches)-drop > 1; drop++ {
		r.bytes -= sizeOf(r.batches[drop].Events)
	}
	// What is dropped stays in the array until that is full: watchers may be
	// reading it, and copying the rest each time would cost more than the put.
	r.batches = r.batches[drop:]
}

func sizeOf(events []*mvccpb.Event) (n int) {
	for _, e := range events {
		n += len(e.Kv.Key) + len(e.Kv.Value) + 128
		if e.PrevKv != nil {
			n += len(e.PrevKv.Value) + 64
		}
	}
	return n
}

// from returns the batches of revision start and later; ok is false when the
// ring no longer reaches back that far.
func (r *ring) from(start int64) (batches []Batch, ok bool) {
	if len(r.batches) == 0 || r.batches[0].Revision > start {
		return nil, false
	}
	i := sort.Search(len(r.batches), func(i int) bool { return r.batches[i].Revision >= start })
	return r.batches[i:], true
}

// signal wakes watchers; mu is held for writing.
func (db *DB) signal() {
	if db.watched.Swap(false) {
		close(db.changed)
		db.changed = make(chan struct{})
	}
}

// change is closed by the next signal; mu is held.
func (db *DB) change() <-chan struct{} {
	db.watched.Store(true)
	return db.changed
}

// Batch holds events; all events of a revision are in one batch. Revision is
// the newest one that the batch covers: nothing before Revision+1 is still to
// come.
type Batch struct {
	Revision int64
	Events   []*mvccpb.Event
	// bare says that the events lack what was before them, which nobody wanted.
	bare bool
}

// Watcher reads the history of the keys in [Key, End) from a revision on. It
// holds no buffer: a watcher that nobody reads costs its own few words.
type Watcher struct {
	db         *DB
	key, end   []byte
	next       int64 // the first revision not yet delivered
	withPrevKV bool
	late       bool // what it asked for was compacted before it came
}

// Watch starts at revision start, or after the newest if start is 0.
func (db *DB) Watch(key, end []byte, start int64, prevKV bool) *Watcher {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if start <= 0 {
		start = db.revision + 1
	}
	if prevKV {
		db.wantPrevious()
	}
	return &Watcher{db: db, key: bytes.Clone(key), end: bytes.Clone(end), next: start, withPrevKV: prevKV, late: start < db.compacted}
}

// wantPrevious has the next transactions keep what was before their changes; mu
// is held. A watcher that stays calls it again in time.
func (db *DB) wantPrevious() { db.wanted.Store(db.revision + ringRevisions) }

// Next waits for events and returns them. ErrCompacted says that revisions
// which the watcher still had to deliver are gone; a compaction that comes
// between a write and a watcher that follows takes nothing from it. A Watcher is
// used by one goroutine at a time.
func (w *Watcher) Next(ctx context.Context) (Batch, error) {
	for {
		batch, changed, err := w.Poll()
		if err != nil || len(batch.Events) > 0 {
			return batch, err
		}
		if changed == nil {
			continue // a stretch of history without our keys: on to the next
		}
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-changed:
		}
	}
}

// Follow moves w, if it wants the same as from and stands where that stood before,
// to where from is now: what from has read is what w would read. It reports
// whether w moved.
func (w *Watcher) Follow(before, from *Watcher) bool {
	if w.next != before.next || w.withPrevKV != from.withPrevKV || !bytes.Equal(w.key, from.key) || !bytes.Equal(w.end, from.end) {
		return false
	}
	w.next = from.next
	return true
}

// Position is the newest revision of which everything has been delivered.
func (w *Watcher) Position() int64 {
	w.db.mu.RLock()
	defer w.db.mu.RUnlock()
	return w.next - 1
}

// Poll returns what there is now. With nothing more to read, changed is closed
// when there may be; a batch without events and without changed is a stretch of
// history that held none for this watcher.
func (w *Watcher) Poll() (batch Batch, changed <-chan struct{}, err error) {
	db := w.db
	db.mu.RLock()
	if db.closed {
		db.mu.RUnlock()
		return Batch{}, nil, ErrClosed
	}
	batches, ok := db.recent.from(w.next)
	ok = ok && !(w.withPrevKV && slices.ContainsFunc(batches, func(b Batch) bool { return b.bare }))
	if w.next < db.compacted && (w.late || !ok) {
		db.mu.RUnlock()
		return Batch{}, nil, ErrCompacted
	}
	if w.withPrevKV {
		db.wantPrevious()
	}
	if w.next > db.revision {
		changed := db.change()
		db.mu.RUnlock()
		return Batch{}, changed, nil
	}
	to := db.revision
	db.mu.RUnlock()
	if !ok {
		return w.fromDisk(to)
	}
	out := Batch{Revision: to}
	for _, b := range batches {
		for _, e := range b.Events {
			if w.wants(e.Kv.Key) {
				out.Events = append(out.Events, e)
			}
		}
	}
	w.next = to + 1
	return out, nil, nil
}

func (w *Watcher) wants(key []byte) bool {
	switch {
	case len(w.end) == 0:
		return bytes.Equal(key, w.key)
	case len(w.end) == 1 && w.end[0] == 0:
		return bytes.Compare(key, w.key) >= 0
	}
	return bytes.Compare(key, w.key) >= 0 && bytes.Compare(key, w.end) < 0
}

// fromDisk reads a stretch of history, ending with a whole revision not after
// to, and leaves the lock between stretches.
func (w *Watcher) fromDisk(to int64) (Batch, <-chan struct{}, error) {
	db := w.db
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.closed {
		return Batch{}, nil, ErrClosed
	}
	if w.next < db.compacted {
		return Batch{}, nil, ErrCompacted
	}
	r := reader{w: w, to: to, view: db.view(), out: Batch{Revision: to}, last: w.next - 1}
	defer r.view.close()
	if err := r.read(); err != nil {
		return Batch{}, nil, fmt.Errorf("read history from revision %d: %w", w.next, err)
	}
	w.next = r.out.Revision + 1
	return r.out, nil, nil
}

// reader collects a stretch of history for one watcher; mu is held.
type reader struct {
	w     *Watcher
	to    int64 // not beyond
	view  view
	out   Batch
	bytes int
	last  int64 // the main revision that was visited last
	full  bool
}

func (r *reader) read() error {
	pending := r.w.db.pending
	firstPending := Rev{math.MaxInt64, 0}
	if len(pending) > 0 {
		firstPending = pending[0].rev
	}
	b, err := r.view.bucket()
	if err != nil {
		return err
	}
	if b != nil {
		c := b.Cursor()
		for k, v := c.Seek(encodeRev(Rev{r.w.next, 0})); k != nil && !r.full; k, v = c.Next() {
			rev, deleted, err := decodeRev(k)
			if err != nil {
				return err
			}
			if !rev.less(firstPending) {
				break // being committed right now: read from memory below
			}
			if err := r.visit(rev, deleted, v); err != nil {
				return err
			}
		}
	}
	i := sort.Search(len(pending), func(i int) bool { return pending[i].rev.Main >= r.w.next })
	for ; i < len(pending) && !r.full; i++ {
		if err := r.visit(pending[i].rev, pending[i].deleted, pending[i].data); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) visit(rev Rev, deleted bool, data []byte) error {
	if rev.Main > r.to {
		r.full = true
		return nil
	}
	if (len(r.out.Events) >= catchUp || r.bytes > catchUpBytes) && rev.Main != r.last {
		r.out.Revision, r.full = r.last, true
		return nil
	}
	r.last = rev.Main
	kv, err := decodeKV(rev, data)
	if err != nil || !r.w.wants(kv.Key) {
		return err
	}
	if !r.w.db.index.holds(kv.Key, rev) {
		return nil // compacted, and not yet deleted from the file
	}
	e := &mvccpb.Event{Kv: kv}
	if deleted {
		e.Type, kv.ModRevision = mvccpb.Event_DELETE, rev.Main
	}
	if r.w.withPrevKV {
		if e.PrevKv, err = r.view.before(kv.Key, rev); err != nil {
			return err
		}
	}
	r.bytes += len(data) + len(e.PrevKv.GetValue())
	r.out.Events = append(r.out.Events, e)
	return nil
}

// before is the key's state just before rev, or nil if it did not exist or was
// compacted. mu is held.
func (v *view) before(key []byte, rev Rev) (*mvccpb.KeyValue, error) {
	e, ok := v.db.index.get(key)
	if !ok {
		return nil, nil
	}
	if found, before, ok := e.find(rev); found && ok {
		return v.read(before)
	}
	return nil, nil
}
