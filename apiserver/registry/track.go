package registry

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"edged/apiserver/codec"
	"edged/apiserver/codec/fieldschema"
)

// trackerIdle is how long the schemas of applied kinds stay in memory after
// the last use: applies come in bursts.
const trackerIdle = 5 * time.Minute

// deviceManager owns the fields that the device itself writes.
const deviceManager = "edged"

// tracker makes the field managers of kinds. It is empty until the first
// server-side apply, and again some time after the last one.
type tracker struct {
	mu       sync.Mutex
	managers map[managerKey]*managedfields.FieldManager
	idle     *time.Timer
}

type managerKey struct {
	kind *Kind
	gvk  schema.GroupVersionKind
	sub  string
}

// manager returns the field manager for requests of this version of the kind
// or subresource.
func (t *tracker) manager(c *call, gvk schema.GroupVersionKind) (*managedfields.FieldManager, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = time.AfterFunc(trackerIdle, t.forget)
	} else {
		t.idle.Reset(trackerIdle)
	}
	key := managerKey{kind: c.kind, gvk: gvk, sub: c.sub}
	if m := t.managers[key]; m != nil {
		return m, nil
	}
	m, err := newFieldManager(c, gvk)
	if err != nil {
		return nil, err
	}
	if t.managers == nil {
		t.managers = map[managerKey]*managedfields.FieldManager{}
	}
	t.managers[key] = m
	return m, nil
}

func (t *tracker) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.managers = nil
}

func newFieldManager(c *call, gvk schema.GroupVersionKind) (*managedfields.FieldManager, error) {
	if c.kind.Custom != nil && gvk.GroupKind() == c.kind.GVK.GroupKind() {
		return c.kind.Custom.FieldManager(gvk, c.sub, c.resetFilter())
	}
	scheme := codec.Scheme()
	hub := schema.GroupVersion{Group: gvk.Group, Version: runtime.APIVersionInternal}
	if c.kind.TypeConverter != nil && gvk.GroupKind() == c.kind.GVK.GroupKind() {
		converter, err := c.kind.TypeConverter()
		if err != nil {
			return nil, err
		}
		return managedfields.NewDefaultFieldManager(converter, scheme, scheme, scheme, gvk, hub, c.sub, c.resetFilter())
	}
	gvks := []schema.GroupVersionKind{gvk}
	if gvk.Kind == c.kind.GVK.Kind {
		for _, gv := range c.kind.ServedVersions() {
			gvks = append(gvks, gv.WithKind(gvk.Kind))
		}
	}
	var names []string
	for _, v := range gvks {
		name, err := scheme.ToOpenAPIDefinitionName(v)
		if err != nil {
			return nil, fmt.Errorf("tracking fields of %s: %w", v, err)
		}
		names = append(names, name)
	}
	parser, err := fieldschema.Parser(names...)
	if err != nil {
		return nil, err
	}
	converter := managedfields.NewSchemeTypeConverter(scheme, parser)
	return managedfields.NewDefaultFieldManager(converter, scheme, scheme, scheme, gvk, hub, c.sub, c.resetFilter())
}

// resetFilter are the fields that the strategy resets, which therefore nobody
// comes to own.
func (c *call) resetFilter() map[fieldpath.APIVersion]fieldpath.Filter {
	var strategy any = c.kind.Strategy
	if s := c.kind.Subresources[c.sub]; s != nil && s.Strategy != nil {
		strategy = s.Strategy
	}
	switch s := strategy.(type) {
	case interface {
		GetResetFieldsFilter() map[fieldpath.APIVersion]fieldpath.Filter
	}:
		return s.GetResetFieldsFilter()
	case interface {
		GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set
	}:
		return fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	}
	return nil
}

// trackCreate sets the managedFields of a new object: none. They are kept only
// from an object's first server-side apply on: tracking every writer of every
// object costs as much memory and flash as the objects themselves.
func (r *Registry) trackCreate(obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	m.SetManagedFields(nil)
	return nil
}

// trackUpdate sets the managedFields of a changed object, of the storage
// version, if the old one has them.
func (r *Registry) trackUpdate(c *call, old, obj runtime.Object, manager string) (runtime.Object, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	was, err := meta.Accessor(old)
	if err != nil {
		return nil, err
	}
	given := m.GetManagedFields()
	reset := len(given) == 1 && equality.Semantic.DeepEqual(given[0], metav1.ManagedFieldsEntry{})
	if len(was.GetManagedFields()) == 0 || reset {
		m.SetManagedFields(nil)
		return obj, nil
	}
	if manager == "" {
		manager = deviceManager
	}
	gvk := c.gvk()
	if c.projected() {
		gvk = c.kind.GVK
	}
	fm, err := r.tracker.manager(c, gvk)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	live, err := c.kind.toHub(old.DeepCopyObject(), gvk)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	internal, err := c.kind.toHub(obj, gvk)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out, err := c.kind.toStorage(fm.UpdateNoErrors(live, internal, manager))
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return out, keepTimestamps(old, out)
}

// keepTimestamps keeps the times of managedFields if nothing else has changed,
// so that applying the same again writes nothing.
func keepTimestamps(old, obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	was, err := meta.Accessor(old)
	if err != nil {
		return err
	}
	now := m.GetManagedFields()
	if !slices.EqualFunc(now, was.GetManagedFields(), func(a, b metav1.ManagedFieldsEntry) bool {
		a.Time, b.Time = nil, nil
		return equality.Semantic.DeepEqual(a, b)
	}) {
		return nil
	}
	m.SetManagedFields(was.GetManagedFields())
	if !equality.Semantic.DeepEqual(old, obj) {
		m.SetManagedFields(now)
	}
	return nil
}

// apply is the mutation of a server-side apply.
func (r *Registry) apply(p *patcher, cur runtime.Object, opts PatchOptions) (runtime.Object, error) {
	applied := &unstructured.Unstructured{Object: map[string]any{}}
	if err := yaml.Unmarshal(p.patch, &applied.Object); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	fm, err := r.tracker.manager(p.c, p.gvk)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	m, err := meta.Accessor(cur)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	creating := m.GetUID() == ""
	var live runtime.Object
	if creating {
		// Not the internal version, in which fields without a pointer would
		// count as set by somebody.
		live, err = p.c.kind.newObject(p.gvk)
	} else {
		live, err = p.c.kind.toHub(cur, p.gvk)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out, err := fm.Apply(live, applied, opts.FieldManager, opts.Force)
	if err != nil {
		return nil, err // that of a wrong field is upstream's, without a reason, too
	}
	if err := p.strictApply(opts); err != nil {
		return nil, err
	}
	if out == nil { // nothing changed
		return cur, nil
	}
	storage, err := p.c.kind.toStorage(out)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if creating {
		if m, err = meta.Accessor(storage); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		if m.GetUID() != "" {
			return nil, apierrors.NewConflict(p.c.gr, m.GetName(), fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", m.GetUID()))
		}
	}
	return storage, nil
}

// strictApply looks for duplicate keys; unknown fields are refused by the
// schema already.
func (p *patcher) strictApply(opts PatchOptions) error {
	if !p.strict() {
		return nil
	}
	err := yaml.UnmarshalStrict(p.patch, &map[string]any{})
	switch {
	case err == nil:
		return nil
	case opts.FieldValidation == metav1.FieldValidationStrict:
		return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", err))
	}
	return p.judge([]error{err}, "")
}
