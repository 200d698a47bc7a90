package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"

	"edged/apiserver/objcache"
)

// errRace says that the state a write was made from is not the newest.
var errRace = errors.New("lost a race")

// Update changes an object: mutate gets a private copy of the newest state (an
// empty object if there is none and the kind may be created by an update) and
// returns the wanted state, in any version; it runs again when somebody else
// was faster. A result that equals the stored object writes nothing. If the
// result has a resourceVersion other than the stored one, that is a conflict.
// What Update returns is shared.
func (r *Registry) Update(ctx context.Context, gr schema.GroupResource, ns, name, subresource string, mutate func(current runtime.Object) (runtime.Object, error), opts UpdateOptions) (obj runtime.Object, created bool, err error) {
	return r.update(ctx, gr, ns, name, subresource, mutate, updateOptions{UpdateOptions: opts})
}

// updateOptions are UpdateOptions and what apply adds to them.
type updateOptions struct {
	UpdateOptions
	// allowCreate makes a missing object be created though the kind does not
	// offer that: a server-side apply.
	allowCreate bool
	// raw skips admission: a subresource's own check stands for it.
	raw bool
	// tracked says that mutate has set managedFields itself.
	tracked bool
	// through says that mutate works on the object itself, though a subresource with an
	// object of its own was asked for.
	through bool
	verb    string
}

func (r *Registry) update(ctx context.Context, gr schema.GroupResource, ns, name, sub string, mutate func(runtime.Object) (runtime.Object, error), opts updateOptions) (runtime.Object, bool, error) {
	if opts.verb == "" {
		opts.verb = "update"
	}
	c, err := r.begin(ctx, opts.verb, gr, ns, name, sub)
	if err != nil {
		return nil, false, err
	}
	strategy, err := c.updateStrategy(name)
	if err != nil {
		return nil, false, err
	}
	var projection *Projection
	if sub != "" {
		projection = c.kind.Subresources[sub].Projection
	}
	if projection != nil && !opts.through {
		mutate = projection.mutator(c, name, mutate)
	}
	out, created, err := r.guaranteedUpdate(c, strategy, name, mutate, opts)
	if err != nil || projection == nil {
		return out, created, err
	}
	out, err = projection.Get(out)
	return out, created, err
}

func (c *call) updateStrategy(name string) (rest.RESTUpdateStrategy, error) {
	if c.sub == "" {
		return c.kind.Strategy, nil
	}
	s := c.kind.Subresources[c.sub]
	switch {
	case s == nil:
		return nil, subresourceNotFound(c.gr, name)
	case s.Strategy != nil:
		return s.Strategy, nil
	case s.Projection != nil:
		return c.kind.Strategy, nil
	}
	return nil, methodNotAllowed(c.gr, "update")
}

// mutator lets mutate work on the projection of the object.
func (p *Projection) mutator(c *call, name string, mutate func(runtime.Object) (runtime.Object, error)) func(runtime.Object) (runtime.Object, error) {
	return func(cur runtime.Object) (runtime.Object, error) {
		was, err := meta.Accessor(cur)
		if err != nil {
			return nil, err
		}
		if was.GetUID() == "" {
			return nil, apierrors.NewNotFound(c.gr, name)
		}
		proj, err := p.Get(cur)
		if err != nil {
			return nil, err
		}
		want, err := mutate(proj)
		if err != nil {
			return nil, err
		}
		if m, err := meta.Accessor(want); err == nil {
			if m.GetUID() != "" && m.GetUID() != was.GetUID() {
				return nil, uidConflict(c, name, m.GetUID(), was.GetUID())
			}
			was.SetResourceVersion(m.GetResourceVersion())
		}
		return cur, p.Set(c.ctx, cur, want)
	}
}

// guaranteedUpdate tries until the object was written from its newest state.
// It starts from the cache, and reads the store's index only when that may
// have been too old for the answer it got.
func (r *Registry) guaranteedUpdate(c *call, strategy rest.RESTUpdateStrategy, name string, mutate func(runtime.Object) (runtime.Object, error), opts updateOptions) (runtime.Object, bool, error) {
	key := c.kind.key(c.ns, name)
	isFresh := false
	for races := 0; races < maxRaces; {
		e, _ := c.kind.set.Get(key)
		out, created, err := r.tryUpdate(c, strategy, name, e, mutate, opts)
		switch {
		case err == nil:
			return out, created, nil
		case errors.Is(err, errRace):
			races++
			if err := r.fresh(c.ctx); err != nil {
				return nil, false, err
			}
			isFresh = true
		case isFresh:
			return nil, false, err
		default:
			if freshErr := r.fresh(c.ctx); freshErr != nil {
				return nil, false, freshErr
			}
			isFresh = true
			if now, _ := c.kind.set.Get(key); now == e {
				return nil, false, err
			}
		}
	}
	return nil, false, apierrors.NewConflict(c.gr, name, errOptimisticLock)
}

// tryUpdate makes one attempt from the state e, nil if there is no object.
func (r *Registry) tryUpdate(c *call, strategy rest.RESTUpdateStrategy, name string, e *objcache.Entry, mutate func(runtime.Object) (runtime.Object, error), opts updateOptions) (runtime.Object, bool, error) {
	if e == nil {
		if !opts.allowCreate && (c.sub != "" || !strategy.AllowCreateOnUpdate(c.ctx)) {
			return nil, false, apierrors.NewNotFound(c.gr, name)
		}
		return r.createOnUpdate(c, name, mutate, opts)
	}
	obj, err := mutate(e.Object.DeepCopyObject())
	if err != nil {
		return nil, false, err
	}
	if obj == nil {
		return nil, false, apierrors.NewInternalError(fmt.Errorf("updating %s %q: no object", c.gr, name))
	}
	if c.own && equality.Semantic.DeepEqual(obj, e.Object) {
		return e.Object, false, nil
	}
	obj, tx, err := r.prepareUpdate(c, strategy, name, e, obj, opts)
	if err != nil {
		return nil, false, err
	}
	return r.replace(c, tx, e, obj, len(opts.DryRun) > 0)
}

// prepareUpdate takes the wanted state through the checks of the version,
// defaulting, admission, the kind's preparation and validation.
func (r *Registry) prepareUpdate(c *call, strategy rest.RESTUpdateStrategy, name string, e *objcache.Entry, obj runtime.Object, opts updateOptions) (runtime.Object, *Tx, error) {
	if err := checkVersion(c, strategy, name, e, obj); err != nil {
		return nil, nil, err
	}
	c.kind.SetDefaults(obj)
	obj, err := c.kind.toStorage(obj)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if opts.tracked {
		if err := keepTimestamps(e.Object, obj); err != nil {
			return nil, nil, apierrors.NewInternalError(err)
		}
	} else {
		if obj, err = r.trackUpdate(c, e.Object, obj, opts.FieldManager); err != nil {
			return nil, nil, err
		}
	}
	attrs := r.attributes(c, admission.Update, e.Object, obj, &opts.UpdateOptions, opts.DryRun)
	attrs.Name = name
	if !opts.raw {
		if err := r.admit(c.ctx, attrs); err != nil {
			return nil, nil, err
		}
	}
	internal, err := c.kind.toInternal(attrs.Object)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	old, err := c.kind.toInternal(e.Object.DeepCopyObject())
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	tx := newTx(r)
	if c.kind.Transact != nil && c.sub == "" {
		if err := c.kind.Transact(tx, old, internal); err != nil {
			return nil, nil, err
		}
	}
	if err := rest.BeforeUpdate(strategy, c.ctx, internal, old); err != nil {
		return nil, nil, err
	}
	if obj, err = c.kind.toStorage(internal); err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	if opts.raw {
		return obj, tx, nil
	}
	attrs.Object = obj
	return obj, tx, r.validate(c.ctx, attrs)
}

// Rewrite changes an object past its strategy and past admission, for
// subresources whose own checks stand for both: a binding may set what no
// update may.
func (r *Registry) Rewrite(ctx context.Context, gr schema.GroupResource, ns, name string, mutate func(current runtime.Object) (runtime.Object, error), opts UpdateOptions) (runtime.Object, error) {
	c, err := r.begin(ctx, "update", gr, ns, name, "")
	if err != nil {
		return nil, err
	}
	out, _, err := r.guaranteedUpdate(c, rawStrategy{c.kind.Strategy}, name, mutate, updateOptions{UpdateOptions: opts, raw: true})
	return out, err
}

// rawStrategy lets everything through.
type rawStrategy struct{ scoped Strategy }

func (s rawStrategy) NamespaceScoped() bool { return s.scoped.NamespaceScoped() }
func (s rawStrategy) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return s.scoped.ObjectKinds(obj)
}
func (s rawStrategy) Recognizes(gvk schema.GroupVersionKind) bool                    { return s.scoped.Recognizes(gvk) }
func (rawStrategy) AllowCreateOnUpdate(context.Context) bool                         { return false }
func (rawStrategy) AllowUnconditionalUpdate(context.Context) bool                    { return true }
func (rawStrategy) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}
func (rawStrategy) Canonicalize(runtime.Object)                                      {}
func (rawStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
func (rawStrategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}

// checkVersion compares what obj says it was made from with what is stored,
// and fills in what it leaves open.
func checkVersion(c *call, strategy rest.RESTUpdateStrategy, name string, e *objcache.Entry, obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	old, err := meta.Accessor(e.Object)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if uid := m.GetUID(); uid != "" && uid != old.GetUID() {
		return uidConflict(c, name, uid, old.GetUID())
	}
	rv, err := parseVersion(m.GetResourceVersion())
	if err != nil {
		return err
	}
	switch {
	case rv == 0 && strategy.AllowUnconditionalUpdate(c.ctx):
		return setVersion(obj, e.Revision)
	case rv == 0:
		errs := field.ErrorList{field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update")}
		return apierrors.NewInvalid(schema.GroupKind{Group: c.gr.Group, Kind: c.gr.Resource}, name, errs)
	case rv != e.Revision:
		return apierrors.NewConflict(c.gr, name, errOptimisticLock)
	}
	return nil
}

func uidConflict(c *call, name string, want, have types.UID) error {
	return invalidObject(c, name, fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", want, have))
}

// invalidObject is upstream's error of that name, of its storage.
func invalidObject(c *call, name, why string) error {
	key := c.kind.keyPrefix() + c.kind.key(c.ns, name)
	return apierrors.NewConflict(c.gr, name, fmt.Errorf("StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: %s", key, why))
}

// replace writes obj over e, or deletes e if obj has lost its last finalizer.
func (r *Registry) replace(c *call, tx *Tx, e *objcache.Entry, obj runtime.Object, dryRun bool) (runtime.Object, bool, error) {
	if shouldDelete(obj, e.Object) && (c.kind.ShouldDelete == nil || c.kind.ShouldDelete(obj)) {
		if dryRun {
			return obj, false, nil
		}
		_, won, err := r.remove(c, e)
		if err == nil && !won {
			err = errRace
		}
		return obj, false, err
	}
	value, err := c.kind.encode(obj)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	old, err := c.kind.encodeShared(e.Object)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	if bytes.Equal(value, old) && len(tx.ops) == 0 {
		return e.Object, false, nil
	}
	if dryRun {
		return obj, false, nil
	}
	lease, err := r.lease(c, obj)
	if err != nil {
		return nil, false, err
	}
	full := c.kind.keyPrefix() + e.Key
	tx.compare(full, e.Revision)
	tx.put(full, value, lease)
	revision, won, err := tx.commit(c.ctx)
	if err != nil {
		return nil, false, err
	}
	if !won {
		return nil, false, errRace
	}
	r.waitFor(c.ctx, revision)
	out, err := c.kind.stored(e.Key, value, revision)
	return out, false, err
}

// createOnUpdate is an update of an object that does not exist.
func (r *Registry) createOnUpdate(c *call, name string, mutate func(runtime.Object) (runtime.Object, error), opts updateOptions) (runtime.Object, bool, error) {
	obj, err := mutate(c.kind.New())
	if err != nil {
		return nil, false, err
	}
	if err := checkName(obj, c.ns, name, c); err != nil {
		return nil, false, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	if m.GetUID() != "" {
		return nil, false, uidConflict(c, name, m.GetUID(), "")
	}
	if rv, err := parseVersion(m.GetResourceVersion()); err != nil {
		return nil, false, err
	} else if rv != 0 {
		return nil, false, apierrors.NewConflict(c.gr, name, errOptimisticLock)
	}
	m.SetResourceVersion("")
	rest.WipeObjectMetaSystemFields(m)
	create := CreateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}
	managed := m.GetManagedFields()
	obj, tx, err := r.prepareCreate(c, obj, &create)
	if err != nil {
		return nil, false, err
	}
	if opts.tracked {
		if m, err = meta.Accessor(obj); err != nil {
			return nil, false, apierrors.NewInternalError(err)
		}
		m.SetManagedFields(managed)
	}
	out, won, err := r.insert(c, tx, c.kind.key(c.ns, name), obj, len(opts.DryRun) > 0)
	if err == nil && !won {
		err = errRace
	}
	return out, true, err
}

// shouldDelete is upstream's ShouldDeleteDuringUpdate: the object was waiting
// for finalizers only, and obj has none.
func shouldDelete(obj, existing runtime.Object) bool {
	m, err := meta.Accessor(obj)
	if err != nil || len(m.GetFinalizers()) > 0 {
		return false
	}
	old, err := meta.Accessor(existing)
	if err != nil || old.GetDeletionTimestamp() == nil {
		return false
	}
	grace := old.GetDeletionGracePeriodSeconds()
	return grace == nil || *grace == 0
}

// ResourceVersion parses an object's resourceVersion.
func ResourceVersion(obj metav1.Object) int64 {
	v, err := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return v
}
