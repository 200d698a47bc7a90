package crd

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"edged/apiserver/registry"
)

// Converter converts objects for definitions that say so; see
// apiextensionsv1.WebhookConverter.
type Converter interface {
	// Convert returns objs, which it does not change, in version gv, in the
	// same order.
	Convert(crd *apiextensionsv1.CustomResourceDefinition, objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error)
}

// Config is what New needs.
type Config struct {
	Registry  *registry.Registry
	Converter Converter // nil: such conversions fail
	Logger    *slog.Logger
}

// Manager keeps the registry's table in step with the definitions.
type Manager struct {
	cfg         Config
	definitions registry.Client[*apiextensionsv1.CustomResourceDefinition]
	bell        chan struct{} // one slot: "look at changed"

	mu      sync.Mutex // guards what follows
	changed map[string]bool
	busy    bool
	settled chan struct{} // closed when nothing is left to do; nil: nobody waits
	rows    map[string]*row
}

// row is what a definition has in the registry's table.
type row struct {
	uid   types.UID
	spec  *apiextensionsv1.CustomResourceDefinitionSpec
	names apiextensionsv1.CustomResourceDefinitionNames
	kind  *registry.Kind
	model *model
}

// New returns a Manager that does nothing until Run.
func New(cfg Config) *Manager {
	return &Manager{
		cfg: cfg, definitions: registry.For[*apiextensionsv1.CustomResourceDefinition](cfg.Registry),
		bell: make(chan struct{}, 1), changed: map[string]bool{}, rows: map[string]*row{}, busy: true,
	}
}

// Run follows the definitions until ctx ends. The registry must be ready.
func (m *Manager) Run(ctx context.Context) error {
	cancel := m.definitions.Subscribe(func(e registry.Event[*apiextensionsv1.CustomResourceDefinition]) { m.note(e.Object.Name) })
	defer cancel()
	for {
		for name, ok := m.next(); ok; name, ok = m.next() {
			m.sync(ctx, name)
		}
		select {
		case <-m.bell:
		case <-ctx.Done():
			m.close()
			return ctx.Err()
		}
	}
}

func (m *Manager) note(name string) {
	m.mu.Lock()
	m.changed[name] = true
	m.mu.Unlock()
	select {
	case m.bell <- struct{}{}:
	default:
	}
}

// next takes a definition that changed; none left settles those who wait.
func (m *Manager) next() (name string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name = range m.changed {
		delete(m.changed, name)
		m.busy = true
		return name, true
	}
	m.busy = false
	if m.settled != nil {
		close(m.settled)
		m.settled = nil
	}
	return "", false
}

// Settled waits until the table shows every definition that the cache shows;
// before Run, until it has begun.
func (m *Manager) Settled(ctx context.Context) {
	m.mu.Lock()
	if !m.busy && len(m.changed) == 0 {
		m.mu.Unlock()
		return
	}
	if m.settled == nil {
		m.settled = make(chan struct{})
	}
	wait := m.settled
	m.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
	}
}

// sync brings one row in line with its definition.
func (m *Manager) sync(ctx context.Context, name string) {
	crd, ok := m.definitions.Get("", name)
	have := m.rows[name] // only this goroutine writes rows
	if !ok || !isServed(crd) {
		if have != nil {
			m.cfg.Registry.RemoveKind(have.kind)
			m.set(name, nil)
			have.model.forget()
		}
		return
	}
	if have != nil && have.uid == crd.UID && equality.Semantic.DeepEqual(have.spec, &crd.Spec) && equality.Semantic.DeepEqual(have.names, crd.Status.AcceptedNames) {
		return
	}
	if have != nil && have.kind.GroupResource() != (schema.GroupResource{Group: crd.Spec.Group, Resource: crd.Status.AcceptedNames.Plural}) {
		m.cfg.Registry.RemoveKind(have.kind)
	}
	r := newRow(crd, m.cfg.Converter, m.cfg.Logger)
	if err := m.cfg.Registry.AddKind(ctx, r.kind); err != nil {
		if ctx.Err() == nil {
			m.cfg.Logger.Error("a custom resource cannot be served", "crd", name, "err", err)
		}
		r = nil
	}
	if have != nil {
		have.model.forget()
	}
	m.set(name, r)
}

func (m *Manager) set(name string, r *row) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r == nil {
		delete(m.rows, name)
		return
	}
	m.rows[name] = r
}

func (m *Manager) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		r.model.forget()
	}
	if m.settled != nil {
		close(m.settled)
		m.settled = nil
	}
}

// isServed reports whether the definition's names are its own; once it was, it
// stays so until it is gone.
func isServed(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}

func newRow(crd *apiextensionsv1.CustomResourceDefinition, c Converter, log *slog.Logger) *row {
	names := crd.Status.AcceptedNames
	m := newModel(crd, c, log)
	k := &registry.Kind{
		GVK:      schema.GroupVersionKind{Group: crd.Spec.Group, Version: m.storage, Kind: names.Kind},
		Resource: names.Plural, Singular: names.Singular, ShortNames: names.ShortNames, Categories: names.Categories,
		ListKind:   names.ListKind,
		Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		Prefix:     crd.Spec.Group + "/" + names.Plural,
		Custom:     m, TypeConverter: m.types, Strategy: &strategy{model: m},
		Transact: onlyWhileDefined(crd),
	}
	for _, v := range crd.Spec.Versions {
		if v.Served {
			k.Served = append(k.Served, schema.GroupVersion{Group: crd.Spec.Group, Version: v.Name})
		}
		if v.Subresources == nil {
			continue
		}
		if k.Subresources == nil {
			k.Subresources = map[string]*registry.Subresource{}
		}
		if v.Subresources.Status != nil {
			k.Subresources["status"] = &registry.Subresource{Strategy: &statusStrategy{strategy{model: m}}, Verbs: []string{"get", "patch", "update"}}
		}
		if v.Subresources.Scale != nil {
			k.Subresources["scale"] = scaleSubresource(m)
		}
	}
	return &row{uid: crd.UID, spec: &crd.Spec, names: names, kind: k, model: m}
}
