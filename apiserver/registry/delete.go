package registry

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/utils/ptr"

	"edged/apiserver/objcache"
)

// Delete deletes an object, or marks it as being deleted when it has a grace
// period or finalizers. gone says whether it was removed; then obj is a Status
// with its name and UID, or the object for kinds for which upstream returns
// that. Otherwise obj is the marked object. Objects are shared.
func (r *Registry) Delete(ctx context.Context, gr schema.GroupResource, ns, name string, opts metav1.DeleteOptions) (obj runtime.Object, gone bool, err error) {
	c, err := r.begin(ctx, "delete", gr, ns, name, "")
	if err != nil {
		return nil, false, err
	}
	if c.kind.Keeps != nil {
		if err := c.kind.Keeps(name); err != nil {
			return nil, false, err
		}
	}
	key := c.kind.key(c.ns, name)
	isFresh := false
	for races := 0; races < maxRaces; {
		e, ok := c.kind.set.Get(key)
		if ok {
			obj, gone, err = r.tryDelete(c, e, *opts.DeepCopy())
		} else {
			err = apierrors.NewNotFound(c.gr, name)
		}
		switch {
		case err == nil:
			return obj, gone, nil
		case errors.Is(err, errRace):
			races++
		case isFresh:
			return nil, false, err
		}
		if freshErr := r.fresh(c.ctx); freshErr != nil {
			return nil, false, freshErr
		}
		isFresh = true
		if now, _ := c.kind.set.Get(key); now == e && !errors.Is(err, errRace) {
			return nil, false, err
		}
	}
	return nil, false, apierrors.NewConflict(c.gr, name, errOptimisticLock)
}

// deletionWarner is a strategy that has something to say about how an object is
// deleted.
type deletionWarner interface {
	WarningsOnDelete(opts *metav1.DeleteOptions) []string
}

// tryDelete makes one attempt from the state e. It owns opts.
func (r *Registry) tryDelete(c *call, e *objcache.Entry, opts metav1.DeleteOptions) (runtime.Object, bool, error) {
	if w, ok := c.kind.Strategy.(deletionWarner); ok {
		for _, text := range w.WarningsOnDelete(&opts) {
			warning.AddWarning(c.ctx, "", text)
		}
	}
	attrs := r.attributes(c, admission.Delete, e.Object, nil, &opts, opts.DryRun)
	if err := r.admit(c.ctx, attrs); err != nil {
		return nil, false, err
	}
	if err := r.validate(c.ctx, attrs); err != nil {
		return nil, false, err
	}
	internal, err := c.kind.toInternal(e.Object.DeepCopyObject())
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	graceful, pending, err := rest.BeforeDelete(c.kind.Strategy, c.ctx, internal, &opts)
	if err != nil {
		return nil, false, err
	}
	if pending {
		return c.deleted(e.Object), false, nil
	}
	obj, err := c.kind.toStorage(internal)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	dryRun := len(opts.DryRun) > 0
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	if ptr.Deref(opts.IgnoreStoreReadErrorWithClusterBreakingPotential, false) {
		// It was read: what is asked for is meant for objects that cannot be.
		return nil, false, invalidObject(c, m.GetName(), "unsafe deletion is not allowed because the object is decodable from storage")
	}
	if finalizers, changed := deletionFinalizers(c, m, &opts); changed {
		m.SetFinalizers(finalizers)
	}
	if c.kind.BeforeDelete != nil {
		switch c.kind.BeforeDelete(obj, metav1.NewTime(r.now()).Rfc3339Copy()) {
		case DeleteMark:
			out, _, err := r.replace(c, newTx(r), e, obj, dryRun)
			return out, false, err
		case DeleteWait:
			return e.Object, false, nil
		}
	}
	pendingFinalizers := len(m.GetFinalizers()) != 0
	switch {
	case graceful && (pendingFinalizers || *opts.GracePeriodSeconds > 0):
		out, _, err := r.replace(c, newTx(r), e, obj, dryRun)
		return out, false, err
	case pendingFinalizers:
		markAsDeleting(m, r.now())
		out, _, err := r.replace(c, newTx(r), e, obj, dryRun)
		return out, false, err
	}
	if dryRun {
		return c.deleted(obj), true, nil
	}
	revision, won, err := r.remove(c, e)
	if err == nil && !won {
		err = errRace
	}
	if err != nil {
		return nil, false, err
	}
	return c.deleted(obj), true, setVersion(obj, revision)
}

// deleted is what a deletion returns.
func (c *call) deleted(obj runtime.Object) runtime.Object {
	if c.kind.ReturnDeleted {
		return obj
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return obj
	}
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusSuccess,
		// Upstream, too, puts the resource where the kind belongs.
		Details: &metav1.StatusDetails{Name: m.GetName(), Group: c.gr.Group, Kind: c.gr.Resource, UID: m.GetUID()},
	}
}

// remove deletes the stored object if it still is e.
func (r *Registry) remove(c *call, e *objcache.Entry) (revision int64, won bool, err error) {
	tx := newTx(r)
	full := c.kind.keyPrefix() + e.Key
	tx.compare(full, e.Revision)
	if c.kind.Transact != nil {
		old, err := c.kind.toInternal(e.Object.DeepCopyObject())
		if err != nil {
			return 0, false, apierrors.NewInternalError(err)
		}
		if err := c.kind.Transact(tx, old, nil); err != nil {
			return 0, false, err
		}
	}
	tx.delete(full)
	revision, won, err = tx.commit(c.ctx)
	if err != nil || !won {
		return 0, false, err
	}
	r.waitFor(c.ctx, revision)
	return revision, true, nil
}

// deletionFinalizers are the object's finalizers with those that the garbage
// collector needs for the way of deleting asked for.
func deletionFinalizers(c *call, m metav1.Object, opts *metav1.DeleteOptions) (finalizers []string, changed bool) {
	if c.kind.NoGarbageCollection {
		return nil, false
	}
	policy := rest.GarbageCollectionPolicy("")
	if s, ok := c.kind.Strategy.(rest.GarbageCollectionDeleteStrategy); ok {
		policy = s.DefaultGarbageCollectionPolicy(c.ctx)
	}
	orphan, foreground := false, false
	if policy != rest.Unsupported {
		orphan, foreground = propagation(policy, m.GetFinalizers(), opts)
	}
	out := slices.DeleteFunc(slices.Clone(m.GetFinalizers()), func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	if orphan {
		out = append(out, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		out = append(out, metav1.FinalizerDeleteDependents)
	}
	was := slices.Sorted(slices.Values(m.GetFinalizers()))
	now := slices.Sorted(slices.Values(out))
	return out, !slices.Equal(slices.Compact(was), slices.Compact(now))
}

// propagation says what becomes of dependents: the request decides, else a
// finalizer that is there already, else the kind.
func propagation(policy rest.GarbageCollectionPolicy, finalizers []string, opts *metav1.DeleteOptions) (orphan, foreground bool) {
	//lint:ignore SA1019 OrphanDependents is deprecated and still honored.
	if o := opts.OrphanDependents; o != nil {
		return *o, false
	}
	if p := opts.PropagationPolicy; p != nil {
		return *p == metav1.DeletePropagationOrphan, *p == metav1.DeletePropagationForeground
	}
	for _, f := range finalizers {
		switch f {
		case metav1.FinalizerOrphanDependents:
			return true, false
		case metav1.FinalizerDeleteDependents:
			return false, true
		}
	}
	return policy == rest.OrphanDependents, false
}

// markAsDeleting is for objects without a grace period that have finalizers.
func markAsDeleting(m metav1.Object, now time.Time) {
	if m.GetDeletionTimestamp() == nil && m.GetGeneration() > 0 {
		m.SetGeneration(m.GetGeneration() + 1)
	}
	if t := m.GetDeletionTimestamp(); t == nil || t.After(now) {
		stamp := metav1.NewTime(now).Rfc3339Copy()
		m.SetDeletionTimestamp(&stamp)
	}
	zero := int64(0)
	m.SetDeletionGracePeriodSeconds(&zero)
}

// deleteWorkers is how many deletions of a collection are under way at once:
// the store commits what waits together, so that few workers suffice to hide
// the time of a disk's sync.
const deleteWorkers = 8

// DeleteCollection deletes every object that the list options select and
// returns them as they were. It is not atomic: after an error some are gone.
func (r *Registry) DeleteCollection(ctx context.Context, gr schema.GroupResource, ns string, opts metav1.DeleteOptions, list ListOptions) (*ListResult, error) {
	found, err := r.List(ctx, gr, ns, list)
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deleteWorkers)
	for _, obj := range found.Items {
		m, err := meta.Accessor(obj)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		g.Go(func() error {
			if _, _, err := r.Delete(ctx, gr, m.GetNamespace(), m.GetName(), opts); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return found, nil
}
