package registry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/objcache"
)

// bookmarkInterval is upstream's: so far at most does a client have to go back
// when its watch ends.
const bookmarkInterval = time.Minute

// watchBuffer lets the watch's goroutine decode ahead of the connection a
// little; what does not fit waits in the cache's ring, then in the store.
const watchBuffer = 16

// Watch is a stream of changes. Its objects are shared.
type Watch struct {
	events chan watch.Event
	cancel context.CancelFunc
}

// C yields the events. It is closed when the watch ends: because its context
// did, after an Error event, or because the device lost its place in the
// history; the client watches again from the last resourceVersion it saw.
func (w *Watch) C() <-chan watch.Event { return w.events }

// Stop ends the watch.
func (w *Watch) Stop() { w.cancel() }

// Watch streams changes of the selected objects, until ctx ends. Without a
// resourceVersion it begins with the objects that exist.
func (r *Registry) Watch(ctx context.Context, gr schema.GroupResource, ns string, opts ListOptions) (*Watch, error) {
	c, err := r.begin(ctx, "watch", gr, ns, "", "")
	if err != nil {
		return nil, err
	}
	opts.Watch = true
	if errs := metainternalvalidation.ValidateListOptions(&opts, true); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	sel, err := newSelection(c, &opts)
	if err != nil {
		return nil, err
	}
	after, err := parseVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	p := &pump{r: r, sel: sel, after: after, bookmarks: opts.AllowWatchBookmarks}
	if p.initial = after == 0; opts.SendInitialEvents != nil {
		p.initial = *opts.SendInitialEvents
		p.initialEnd = p.initial && opts.AllowWatchBookmarks
	}
	if p.initial || after == 0 {
		if err := r.atLeast(c.ctx, opts.ResourceVersion); err != nil {
			return nil, err
		}
	}
	if !p.initial && after == 0 {
		p.after = r.cache.Revision()
	}
	p.ctx, p.cancel = context.WithCancel(c.ctx)
	p.out = make(chan watch.Event, watchBuffer)
	go p.run()
	return &Watch{events: p.out, cancel: p.cancel}, nil
}

// pump feeds one Watch.
type pump struct {
	r          *Registry
	sel        *selection
	initial    bool  // begin with the objects that exist
	initialEnd bool  // and tell where they end
	bookmarks  bool  // from time to time
	after      int64 // every event up to this revision was sent
	ctx        context.Context
	cancel     context.CancelFunc
	out        chan watch.Event
}

func (p *pump) run() {
	defer close(p.out)
	defer p.cancel()
	err := p.stream()
	if err == nil || p.ctx.Err() != nil || errors.Is(err, objcache.ErrLost) {
		return
	}
	status := apierrors.NewInternalError(err).ErrStatus
	if errors.Is(err, objcache.ErrCompacted) {
		status = apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", p.after, p.r.cache.Revision())).ErrStatus
	}
	_ = p.send(watch.Event{Type: watch.Error, Object: &status})
}

// stream goes from the objects that exist to the events in memory, and by way
// of the store's history whenever those do not reach back far enough.
func (p *pump) stream() error {
	if p.initial {
		if err := p.sendInitial(); err != nil {
			return err
		}
	}
	for {
		f, err := p.sel.kind.set.Follow(p.after)
		if err == nil {
			err = p.follow(f)
			f.Close()
		}
		if !errors.Is(err, objcache.ErrBehind) {
			return err
		}
		p.after, err = p.sel.kind.set.Replay(p.ctx, p.after, p.emit)
		if err != nil {
			return err
		}
	}
}

func (p *pump) sendInitial() error {
	entries, revision := p.sel.entries()
	for _, e := range p.sel.withVirtual(entries) {
		if p.sel.all() || p.sel.matches(e.Object) {
			if err := p.send(watch.Event{Type: watch.Added, Object: e.Object}); err != nil {
				return err
			}
		}
	}
	p.after = revision
	if p.initialEnd {
		return p.bookmark(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return nil
}

func (p *pump) follow(f *objcache.Follower) error {
	var tick <-chan time.Time
	if p.bookmarks {
		t := time.NewTicker(bookmarkInterval)
		defer t.Stop()
		tick = t.C
	}
	var buf []objcache.Event
	for {
		events, revision, err := f.Take(buf[:0])
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := p.emit(e); err != nil {
				return err
			}
		}
		clear(events) // keep no old objects while waiting
		buf = events
		p.after = max(p.after, revision)
		select {
		case <-f.Bell():
		case <-tick:
			if err := p.bookmark(nil); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}

// emit sends what an event means to this watch: an object that begins or
// ceases to match the selector is added or deleted.
func (p *pump) emit(e objcache.Event) error {
	if !p.sel.holds(e.Key) {
		return nil
	}
	was := e.Old != nil && (p.sel.all() || p.sel.matches(e.Old))
	is := e.Type != watch.Deleted && (p.sel.all() || p.sel.matches(e.Object))
	var out watch.Event
	switch {
	case is && was:
		out = watch.Event{Type: watch.Modified, Object: e.Object}
	case is:
		out = watch.Event{Type: watch.Added, Object: e.Object}
	case was && e.Type == watch.Deleted:
		out = watch.Event{Type: watch.Deleted, Object: e.Object}
	case was:
		last := objcache.ShallowCopy(e.Old)
		if err := setVersion(last, e.Revision); err != nil {
			return err
		}
		out = watch.Event{Type: watch.Deleted, Object: last}
	default:
		return nil
	}
	if err := p.send(out); err != nil {
		return err
	}
	p.after = max(p.after, e.Revision-1) // its revision may have further events
	return nil
}

func (p *pump) bookmark(annotations map[string]string) error {
	obj := p.sel.kind.New()
	obj.GetObjectKind().SetGroupVersionKind(p.sel.kind.GVK)
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	m.SetResourceVersion(strconv.FormatInt(p.after, 10))
	m.SetAnnotations(annotations)
	return p.send(watch.Event{Type: watch.Bookmark, Object: obj})
}

func (p *pump) send(ev watch.Event) error {
	select {
	case p.out <- ev:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}
