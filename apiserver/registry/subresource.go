package registry

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
)

// CreateSubresource is a POST to a subresource of the named object, such as
// pods/binding and pods/eviction.
func (r *Registry) CreateSubresource(ctx context.Context, gr schema.GroupResource, ns, name, subresource string, obj runtime.Object, opts CreateOptions) (runtime.Object, error) {
	c, err := r.begin(ctx, "create", gr, ns, name, subresource)
	if err != nil {
		return nil, err
	}
	s := c.kind.Subresources[subresource]
	switch {
	case s == nil:
		return nil, subresourceNotFound(c.gr, name)
	case s.Create == nil:
		return nil, methodNotAllowed(c.gr, "create")
	}
	attrs := r.attributes(c, admission.Create, nil, obj, &opts, opts.DryRun)
	attrs.Name = name
	if err := r.admit(c.ctx, attrs); err != nil {
		return nil, err
	}
	if err := r.validate(c.ctx, attrs); err != nil {
		return nil, err
	}
	return s.Create(c.ctx, r, c.ns, name, attrs.Object, opts)
}
