package admission

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"edged/apiserver/registry"
)

// Escalation refuses writes of roles and bindings by which a user would gain
// rights; *authz.Authorizer has it.
type Escalation interface {
	ConfirmNoEscalation(ctx context.Context, u user.Info, obj, old runtime.Object) error
}

// Config is what New needs.
type Config struct {
	Registry   *registry.Registry
	Escalation Escalation // nil leaves that guard out
	// Authorizer is asked for what a body needs beyond its verb; nil leaves
	// these guards out.
	Authorizer authorizer.UnconditionalAuthorizer
	// Configured are the webhooks and policies that users bring; nil: none.
	Configured Configured
}

// Configured is apiserver/webhook's Admission.
type Configured interface {
	// Admit may change the object, and runs again, the plugins before it once
	// more, if it did.
	Admit(ctx context.Context, a *registry.Attributes, again func() error) error
	Validate(ctx context.Context, a *registry.Attributes) error
}

// Chain asks its plugins in order.
type Chain struct {
	plugins    []registry.Admission
	configured Configured // asked after the plugins; nil: nobody
	quota      registry.Admission
	escalation Escalation
}

var _ registry.Admission = (*Chain)(nil)

// New returns the chain in upstream's order.
func New(cfg Config) (*Chain, error) {
	security, err := newPodSecurity(cfg.Registry)
	if err != nil {
		return nil, err
	}
	return &Chain{
		escalation: cfg.Escalation, configured: cfg.Configured, quota: newResourceQuota(cfg.Registry),
		plugins: []registry.Admission{
			newNamespaceLifecycle(cfg.Registry),
			newLimitRanger(cfg.Registry),
			newServiceAccount(cfg.Registry),
			newNodeRestriction(cfg.Registry),
			security,
			newPriority(cfg.Registry),
			defaultTolerations{},
			newRuntimeClass(cfg.Registry),
			newStorage(cfg.Registry),
			signers{authz: cfg.Authorizer},
			newDeviceClaims(cfg.Registry, cfg.Authorizer),
			policyParams{reg: cfg.Registry, authz: cfg.Authorizer},
		},
	}, nil
}

// Admit lets every plugin change the object.
func (c *Chain) Admit(ctx context.Context, a *registry.Attributes) error {
	if err := c.admit(ctx, a); err != nil || c.configured == nil {
		return err
	}
	return c.configured.Admit(ctx, a, func() error { return c.admit(ctx, a) })
}

func (c *Chain) admit(ctx context.Context, a *registry.Attributes) error {
	for _, p := range c.plugins {
		if err := p.Admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// Validate lets every plugin refuse the write.
func (c *Chain) Validate(ctx context.Context, a *registry.Attributes) error {
	if c.escalation != nil && a.Object != nil && a.User != nil && a.Subresource == "" {
		if err := c.escalation.ConfirmNoEscalation(ctx, a.User, a.Object, a.OldObject); err != nil {
			return err
		}
	}
	for _, p := range c.plugins {
		if err := p.Validate(ctx, a); err != nil {
			return err
		}
	}
	if c.configured != nil {
		if err := c.configured.Validate(ctx, a); err != nil {
			return err
		}
	}
	return c.quota.Validate(ctx, a)
}

// Operations by their short names.
const (
	create = admission.Create
	update = admission.Update
	remove = admission.Delete
)

var (
	podResource       = schema.GroupResource{Resource: "pods"}
	nodeResource      = schema.GroupResource{Resource: "nodes"}
	namespaceResource = schema.GroupResource{Resource: "namespaces"}
)

// forbidden is upstream's admission.NewForbidden.
func forbidden(a *registry.Attributes, err error) error {
	return apierrors.NewForbidden(a.Resource.GroupResource(), nameOf(a), err)
}

func nameOf(a *registry.Attributes) string {
	if a.Name != "" {
		return a.Name
	}
	if m, err := meta.Accessor(a.Object); err == nil && m.GetGenerateName() != "" {
		return m.GetGenerateName()
	}
	return "Unknown"
}

// validateOnly is embedded by plugins that change nothing.
type validateOnly struct{}

func (validateOnly) Admit(context.Context, *registry.Attributes) error { return nil }

// admitOnly is embedded by plugins that refuse nothing afterwards.
type admitOnly struct{}

func (admitOnly) Validate(context.Context, *registry.Attributes) error { return nil }
