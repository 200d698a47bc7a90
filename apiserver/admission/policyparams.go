package admission

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"edged/apiserver/registry"
)

// policyParams holds what upstream's strategies of policies check: who writes
// one may read the objects that its expressions will see.
type policyParams struct {
	validateOnly
	reg   *registry.Registry
	authz authorizer.UnconditionalAuthorizer
}

func (p policyParams) Validate(ctx context.Context, a *registry.Attributes) error {
	if p.authz == nil || a.User == nil || a.Subresource != "" || a.Operation != create && a.Operation != update {
		return nil
	}
	switch now := a.Object.(type) {
	case *v1.ValidatingAdmissionPolicy:
		was, _ := a.OldObject.(*v1.ValidatingAdmissionPolicy)
		if now.Spec.ParamKind == nil || was != nil && equality.Semantic.DeepEqual(was.Spec.ParamKind, now.Spec.ParamKind) {
			return nil
		}
		return p.mayRead(ctx, a, now.Spec.ParamKind, "*", "*")
	case *v1.MutatingAdmissionPolicy:
		was, _ := a.OldObject.(*v1.MutatingAdmissionPolicy)
		if now.Spec.ParamKind == nil || was != nil && equality.Semantic.DeepEqual(was.Spec.ParamKind, now.Spec.ParamKind) {
			return nil
		}
		return p.mayRead(ctx, a, now.Spec.ParamKind, "*", "*")
	case *v1.ValidatingAdmissionPolicyBinding:
		was, _ := a.OldObject.(*v1.ValidatingAdmissionPolicyBinding)
		if was != nil && equality.Semantic.DeepEqual(was.Spec, now.Spec) {
			return nil
		}
		policy, ok := registry.For[*v1.ValidatingAdmissionPolicy](p.reg).Get("", now.Spec.PolicyName)
		if !ok {
			return p.mayReadRef(ctx, a, nil, now.Spec.ParamRef)
		}
		return p.mayReadRef(ctx, a, policy.Spec.ParamKind, now.Spec.ParamRef)
	case *v1.MutatingAdmissionPolicyBinding:
		was, _ := a.OldObject.(*v1.MutatingAdmissionPolicyBinding)
		if was != nil && equality.Semantic.DeepEqual(was.Spec, now.Spec) {
			return nil
		}
		policy, ok := registry.For[*v1.MutatingAdmissionPolicy](p.reg).Get("", now.Spec.PolicyName)
		if !ok {
			return p.mayReadRef(ctx, a, nil, now.Spec.ParamRef)
		}
		return p.mayReadRef(ctx, a, policy.Spec.ParamKind, now.Spec.ParamRef)
	}
	return nil
}

// mayReadRef is for a binding's parameters. Of a policy that is not there, or
// that takes none yet, nothing is known: they may be anything.
func (p policyParams) mayReadRef(ctx context.Context, a *registry.Attributes, kind *v1.ParamKind, ref *v1.ParamRef) error {
	if ref == nil {
		return nil
	}
	name, ns := ref.Name, ref.Namespace
	if name == "" {
		name = "*"
	}
	if ns == "" {
		ns = "*"
	}
	return p.mayRead(ctx, a, kind, ns, name)
}

func (p policyParams) mayRead(ctx context.Context, a *registry.Attributes, kind *v1.ParamKind, ns, name string) error {
	attrs := authorizer.AttributesRecord{
		User: a.User, Verb: "get", ResourceRequest: true, Namespace: ns, Name: name, APIGroup: "*", APIVersion: "*", Resource: "*",
	}
	what := "any kind"
	if kind != nil {
		what = fmt.Sprintf("kind=%s, apiVersion=%s", kind.Kind, kind.APIVersion)
		if gv, err := schema.ParseGroupVersion(kind.APIVersion); err == nil {
			attrs.APIGroup, attrs.APIVersion = gv.Group, gv.Version
			for _, k := range p.reg.Kinds() {
				if k.GVK.Kind == kind.Kind && slices.Contains(k.ServedVersions(), gv) {
					attrs.Resource = k.Resource
					if !k.Namespaced && ns == "*" {
						attrs.Namespace = ""
					}
				}
			}
		}
	}
	if decision, _, err := p.authz.Authorize(ctx, attrs); decision == authorizer.DecisionAllow {
		return nil
	} else if err != nil {
		return err
	}
	return forbidden(a, fmt.Errorf(`user %q must have "get" permission on the objects that are its parameters (%s)`, a.User.GetName(), what))
}
