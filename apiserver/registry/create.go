package registry

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// maxNameAttempts is upstream's: with eight tries a million names of one
// prefix collide once in a thousand.
const maxNameAttempts = 8

// maxRaces bounds how often a write that lost a race runs again before the
// caller is told to.
const maxRaces = 32

// Create writes a new object and returns it as stored. The registry owns obj
// from here on; what it returns is shared.
func (r *Registry) Create(ctx context.Context, gr schema.GroupResource, ns string, obj runtime.Object, opts CreateOptions) (runtime.Object, error) {
	c, err := r.begin(ctx, "create", gr, ns, "", "")
	if err != nil {
		return nil, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if m.GetGenerateName() == "" || m.GetName() != "" {
		return r.create(c, obj, opts)
	}
	var out runtime.Object
	for range maxNameAttempts {
		out, err = r.create(c, obj.DeepCopyObject(), opts)
		if err == nil || !apierrors.IsAlreadyExists(err) {
			return out, err
		}
	}
	return nil, err
}

func (r *Registry) create(c *call, obj runtime.Object, opts CreateOptions) (runtime.Object, error) {
	name := ""
	for range maxRaces {
		attempt := obj
		if c.kind.Transact != nil { // what it fills in must not survive a lost race
			attempt = obj.DeepCopyObject()
		}
		prepared, tx, err := r.prepareCreate(c, attempt, &opts)
		if err != nil {
			return nil, err
		}
		m, err := meta.Accessor(prepared)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		name = m.GetName()
		key := c.kind.key(c.ns, name)
		out, won, err := r.insert(c, tx, key, prepared, len(opts.DryRun) > 0)
		if err != nil || won {
			return out, err
		}
		if err := r.fresh(c.ctx); err != nil {
			return nil, err
		}
		if e, exists := c.kind.set.Get(key); exists {
			return nil, alreadyExists(c, prepared, e.Object)
		}
	}
	return nil, apierrors.NewConflict(c.gr, name, errOptimisticLock)
}

// prepareCreate takes a new object through defaulting, admission, the kind's
// transaction, preparation and validation, and returns its storage version.
func (r *Registry) prepareCreate(c *call, obj runtime.Object, opts *CreateOptions) (runtime.Object, *Tx, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(c.ns, m); err != nil {
		return nil, nil, err
	}
	if m.GetResourceVersion() != "" {
		return nil, nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	m.SetDeletionTimestamp(nil)
	m.SetDeletionGracePeriodSeconds(nil)
	rest.FillObjectMetaSystemFields(m)
	m.SetCreationTimestamp(metav1.NewTime(r.now()).Rfc3339Copy())
	if m.GetGenerateName() != "" && m.GetName() == "" {
		m.SetName(c.kind.Strategy.GenerateName(m.GetGenerateName()))
	}
	c.kind.SetDefaults(obj)
	if obj, err = c.kind.toStorage(obj); err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if err := r.trackCreate(obj); err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	attrs := r.attributes(c, admission.Create, nil, obj, opts, opts.DryRun)
	if err := r.admit(c.ctx, attrs); err != nil {
		return nil, nil, err
	}
	internal, err := c.kind.toInternal(attrs.Object)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	tx := newTx(r)
	if c.kind.Transact != nil {
		if err := c.kind.Transact(tx, nil, internal); err != nil {
			return nil, nil, err
		}
	}
	if err := rest.BeforeCreate(c.kind.Strategy, c.ctx, internal); err != nil {
		return nil, nil, err
	}
	if obj, err = c.kind.toStorage(internal); err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	attrs.Object = obj
	return obj, tx, r.validate(c.ctx, attrs)
}

// insert writes obj if nothing is stored under key.
func (r *Registry) insert(c *call, tx *Tx, key string, obj runtime.Object, dryRun bool) (runtime.Object, bool, error) {
	if dryRun {
		if err := r.fresh(c.ctx); err != nil {
			return nil, false, err
		}
		_, exists := c.kind.set.Get(key)
		return obj, !exists, nil
	}
	value, err := c.kind.encode(obj)
	if err != nil {
		return nil, false, apierrors.NewInternalError(err)
	}
	lease, err := r.lease(c, obj)
	if err != nil {
		return nil, false, err
	}
	full := c.kind.keyPrefix() + key
	tx.compare(full, 0)
	tx.put(full, value, lease)
	revision, won, err := tx.commit(c.ctx)
	if err != nil || !won {
		return nil, false, err
	}
	r.waitFor(c.ctx, revision)
	out, err := c.kind.stored(key, value, revision)
	return out, true, err
}

func alreadyExists(c *call, obj, existing runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	out := apierrors.NewAlreadyExists(c.gr, m.GetName())
	if m.GetGenerateName() != "" {
		out = apierrors.NewGenerateNameConflict(c.gr, m.GetName(), 1)
	}
	if old, err := meta.Accessor(existing); err == nil && old.GetDeletionTimestamp() != nil {
		out.ErrStatus.Message = fmt.Sprintf("object is being deleted: %s", out.ErrStatus.Message)
	}
	return out
}

func (r *Registry) attributes(c *call, op admission.Operation, old, obj runtime.Object, opts runtime.Object, dryRun []string) *Attributes {
	a := &Attributes{
		Operation: op, Kind: c.kind, Subresource: c.sub, Namespace: c.ns,
		Object: obj, OldObject: old, Options: opts, DryRun: len(dryRun) > 0,
		Resource: c.gr.WithVersion(c.kind.versionIn(c.gr.Group)),
	}
	if info, ok := request.RequestInfoFrom(c.ctx); ok {
		a.Resource.Version = info.APIVersion
	}
	if u, ok := UserFrom(c.ctx); ok {
		a.User = u
	}
	named := obj
	if named == nil {
		named = old
	}
	if m, err := meta.Accessor(named); err == nil {
		a.Name = m.GetName()
	}
	return a
}

func (r *Registry) admit(ctx context.Context, a *Attributes) error {
	if r.admission == nil {
		return nil
	}
	if err := r.admission.Admit(ctx, a); err != nil {
		return err
	}
	if a.Object != nil {
		a.Kind.SetDefaults(a.Object)
	}
	return nil
}

func (r *Registry) validate(ctx context.Context, a *Attributes) error {
	if r.admission == nil {
		return nil
	}
	return r.admission.Validate(ctx, a)
}
