package foreign

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// rediscover is upstream's for the garbage collector.
	rediscover = 30 * time.Second
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Follower is told what becomes of objects. Listed replaces all that was told of
// a resource. It is called for one resource at a time, and for several at once.
type Follower interface {
	Listed(r Resource, objects []metav1.PartialObjectMetadata)
	Changed(r Resource, t watch.EventType, obj *metav1.PartialObjectMetadata)
	// Gone: the resource is not served any more.
	Gone(r Resource)
}

// Monitor follows every resource that can be listed, watched and deleted, until ctx
// ends. bell says that there may be other resources now; without servers nothing
// runs between two rings. A resource whose server does not answer stays followed.
func (c *Client) Monitor(ctx context.Context, bell <-chan struct{}, f Follower, logger *slog.Logger) {
	running := map[schema.GroupVersionResource]func(){} // each waits for the end of what it stops
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	for {
		resources, err := c.Resources(ctx)
		if ctx.Err() != nil {
			return
		}
		served := map[schema.GroupVersionResource]bool{}
		for _, r := range resources {
			if !r.Can("list", "watch", "delete") {
				continue
			}
			served[r.GroupVersionResource] = true
			if running[r.GroupVersionResource] == nil {
				follow, cancel := context.WithCancel(ctx)
				ended := make(chan struct{})
				running[r.GroupVersionResource] = func() { cancel(); <-ended }
				go func() {
					defer close(ended)
					c.follow(follow, r, f, logger)
					f.Gone(r)
				}()
			}
		}
		for gvr, stop := range running {
			if !served[gvr] && !hasFailed(err, gvr.GroupVersion()) {
				stop()
				delete(running, gvr)
			}
		}
		var again <-chan time.Time
		if len(running) > 0 || err != nil {
			again = time.After(rediscover)
		}
		select {
		case <-ctx.Done():
			return
		case <-bell:
		case <-again:
		}
	}
}

func hasFailed(err error, gv schema.GroupVersion) bool {
	var failed *DiscoveryError
	return errors.As(err, &failed) && slices.Contains(failed.Failed, gv)
}

// follow lists and watches until ctx ends.
func (c *Client) follow(ctx context.Context, r Resource, f Follower, logger *slog.Logger) {
	wait := firstRetry
	for ctx.Err() == nil {
		begun := time.Now()
		objects, version, err := c.List(ctx, r, "")
		if err == nil {
			f.Listed(r, objects)
			err = c.Watch(ctx, r, version, func(t watch.EventType, obj *metav1.PartialObjectMetadata) {
				if t != watch.Bookmark {
					f.Changed(r, t, obj)
				}
			})
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > lastRetry {
			wait = firstRetry
		}
		logger.Debug("an aggregated resource is listed anew", "resource", r.GroupResource().String(), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
}
