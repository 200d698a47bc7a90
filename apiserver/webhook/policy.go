package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	v1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/warning"

	"edged/apiserver/codec"
	"edged/apiserver/codec/fieldschema"
	"edged/apiserver/registry"
)

// policies are the policies and their bindings in the cache.
type policies struct {
	reg                *registry.Registry
	validating         registry.Client[*v1.ValidatingAdmissionPolicy]
	validatingBindings registry.Client[*v1.ValidatingAdmissionPolicyBinding]
	mutating           registry.Client[*v1.MutatingAdmissionPolicy]
	mutatingBindings   registry.Client[*v1.MutatingAdmissionPolicyBinding]
}

func newPolicies(r *registry.Registry) policies {
	return policies{
		reg: r, validating: registry.For[*v1.ValidatingAdmissionPolicy](r), validatingBindings: registry.For[*v1.ValidatingAdmissionPolicyBinding](r),
		mutating: registry.For[*v1.MutatingAdmissionPolicy](r), mutatingBindings: registry.For[*v1.MutatingAdmissionPolicyBinding](r),
	}
}

// bound is a policy with one of its bindings.
type bound[P, B any] struct {
	policy  P
	binding B
}

func (p *policies) validatingFor() []bound[*v1.ValidatingAdmissionPolicy, *v1.ValidatingAdmissionPolicyBinding] {
	var out []bound[*v1.ValidatingAdmissionPolicy, *v1.ValidatingAdmissionPolicyBinding]
	for _, b := range p.validatingBindings.List("") {
		if policy, ok := p.validating.Get("", b.Spec.PolicyName); ok {
			out = append(out, bound[*v1.ValidatingAdmissionPolicy, *v1.ValidatingAdmissionPolicyBinding]{policy, b})
		}
	}
	return out
}

func (p *policies) mutatingFor() []bound[*v1.MutatingAdmissionPolicy, *v1.MutatingAdmissionPolicyBinding] {
	var out []bound[*v1.MutatingAdmissionPolicy, *v1.MutatingAdmissionPolicyBinding]
	for _, b := range p.mutatingBindings.List("") {
		if policy, ok := p.mutating.Get("", b.Spec.PolicyName); ok {
			out = append(out, bound[*v1.MutatingAdmissionPolicy, *v1.MutatingAdmissionPolicyBinding]{policy, b})
		}
	}
	slices.SortStableFunc(out, func(a, b bound[*v1.MutatingAdmissionPolicy, *v1.MutatingAdmissionPolicyBinding]) int {
		return strings.Compare(a.policy.Name, b.policy.Name)
	})
	return out
}

// matchResources decides about a policy's constraints, or a binding's, which
// may leave everything open.
func (w *write) matchResources(ctx context.Context, r *v1.MatchResources, isBinding bool) (meaning, bool, error) {
	if r == nil {
		return w.asRequested(), isBinding, nil
	}
	ok, err := w.selected(ctx, r.NamespaceSelector, r.ObjectSelector)
	if err != nil || !ok {
		return meaning{}, false, err
	}
	if _, excluded := w.matchNamed(r.ExcludeResourceRules, r.MatchPolicy); excluded {
		return meaning{}, false, nil
	}
	if isBinding && len(r.ResourceRules) == 0 {
		return w.asRequested(), true, nil
	}
	m, ok := w.matchNamed(r.ResourceRules, r.MatchPolicy)
	return m, ok, nil
}

// matchNamed is match of rules that may name objects.
func (w *write) matchNamed(rules []v1.NamedRuleWithOperations, policy *v1.MatchPolicyType) (meaning, bool) {
	var plain []v1.RuleWithOperations
	for _, r := range rules {
		if len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, w.a.Name) {
			plain = append(plain, r.RuleWithOperations)
		}
	}
	return w.match(plain, policy)
}

// params are the objects that a binding gives its policy; one nil if the policy
// takes none.
func (p *policies) params(kind *v1.ParamKind, ref *v1.ParamRef, namespace string) ([]runtime.Object, error) {
	if kind == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	gv, err := schema.ParseGroupVersion(kind.APIVersion)
	if err != nil {
		return nil, err
	}
	var row *registry.Kind
	for _, k := range p.reg.Kinds() {
		if k.GVK.Kind == kind.Kind && slices.Contains(k.ServedVersions(), gv) {
			row = k
		}
	}
	if row == nil {
		return nil, fmt.Errorf("paramKind kind `%v` not known", gv.WithKind(kind.Kind))
	}
	switch {
	case !row.Namespaced && ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	case !row.Namespaced:
		namespace = ""
	case ref.Namespace != "":
		namespace = ref.Namespace
	case namespace == "":
		return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
	}
	var found []runtime.Object
	if ref.Name != "" {
		if obj, ok := p.reg.Cached(row, namespace, ref.Name); ok {
			found = append(found, obj)
		}
	} else if ref.Selector != nil {
		sel, err := metav1.LabelSelectorAsSelector(ref.Selector)
		if err != nil {
			return nil, err
		}
		for _, obj := range p.reg.CachedIn(row, namespace) {
			if m, err := meta.Accessor(obj); err == nil && sel.Matches(labels.Set(m.GetLabels())) {
				found = append(found, obj)
			}
		}
	}
	for i, obj := range found {
		if found[i], err = row.ToVersion(obj.DeepCopyObject(), gv.WithKind(kind.Kind)); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 && (ref.ParameterNotFoundAction == nil || *ref.ParameterNotFoundAction == v1.DenyAction) {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, nil
}

// validatePolicies evaluates what is bound, and refuses with the first denial.
func (d *Admission) validatePolicies(ctx context.Context, w *write, all []bound[*v1.ValidatingAdmissionPolicy, *v1.ValidatingAdmissionPolicyBinding]) error {
	for _, b := range all {
		decisions, err := d.evaluate(ctx, w, b.policy, b.binding)
		if err != nil {
			if status := apierrors.APIStatus(nil); errors.As(err, &status) {
				return err
			}
			if f := b.policy.Spec.FailurePolicy; f != nil && *f == v1.Ignore {
				continue
			}
			return w.denied(b.policy.Name, b.binding.Name, "failed to configure binding: "+err.Error(), metav1.StatusReasonInvalid)
		}
		for _, decision := range decisions {
			if decision.Action != validating.ActionDeny {
				continue
			}
			if slices.Contains(b.binding.Spec.ValidationActions, v1.Warn) {
				warning.AddWarning(ctx, "", fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", b.policy.Name, b.binding.Name, decision.Message))
			}
			if slices.Contains(b.binding.Spec.ValidationActions, v1.Audit) {
				d.logger.Info("a policy was violated", "policy", b.policy.Name, "binding", b.binding.Name, "resource", w.a.Resource.Resource, "namespace", w.a.Namespace, "name", w.a.Name, "message", decision.Message)
			}
			if slices.Contains(b.binding.Spec.ValidationActions, v1.Deny) {
				return w.denied(b.policy.Name, b.binding.Name, decision.Message, decision.Reason)
			}
		}
	}
	return nil
}

// evaluate is what a policy says about a write, by one of its bindings.
func (d *Admission) evaluate(ctx context.Context, w *write, policy *v1.ValidatingAdmissionPolicy, binding *v1.ValidatingAdmissionPolicyBinding) ([]validating.PolicyDecision, error) {
	m, ok, err := w.matchResources(ctx, policy.Spec.MatchConstraints, false)
	if err != nil || !ok {
		return nil, err
	}
	if _, ok, err = w.matchResources(ctx, binding.Spec.MatchResources, true); err != nil || !ok {
		return nil, err
	}
	params, err := d.policies.params(policy.Spec.ParamKind, binding.Spec.ParamRef, w.a.Namespace)
	if err != nil || len(params) == 0 {
		return nil, err
	}
	validator, err := d.programs.validator(policy)
	if err != nil {
		return nil, err
	}
	v, err := w.versioned(m)
	if err != nil {
		return nil, fmt.Errorf("failed to convert object version: %w", err)
	}
	ns, err := w.namespace(ctx)
	if err != nil && !(apierrors.IsNotFound(err) && w.a.Operation == admission.Delete) {
		return nil, err
	}
	var out []validating.PolicyDecision
	for _, p := range params {
		result := validator.Validate(ctx, m.resource, v, p, ns, celconfig.RuntimeCELCostBudget, d.authz)
		out = append(out, result.Decisions...)
		for _, a := range result.AuditAnnotations {
			if a.Action == validating.AuditAnnotationActionError {
				out = append(out, validating.PolicyDecision{Action: validating.ActionDeny, Evaluation: validating.EvalError, Message: a.Error})
			}
		}
	}
	return out, nil
}

// denied is upstream's refusal by a policy.
func (w *write) denied(policy, binding, message string, reason metav1.StatusReason) error {
	text := fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", policy, binding, message)
	return w.refusal(text, reason)
}

func (w *write) refusal(text string, reason metav1.StatusReason) *apierrors.StatusError {
	name := w.a.Name
	if name == "" {
		name = "Unknown"
	}
	err := apierrors.NewForbidden(w.a.Resource.GroupResource(), name, errors.New(text))
	if reason == "" {
		reason = metav1.StatusReasonInvalid
	}
	codes := map[metav1.StatusReason]int32{
		metav1.StatusReasonForbidden: http.StatusForbidden, metav1.StatusReasonUnauthorized: http.StatusUnauthorized,
		metav1.StatusReasonRequestEntityTooLarge: http.StatusRequestEntityTooLarge, metav1.StatusReasonInvalid: http.StatusUnprocessableEntity,
	}
	err.ErrStatus.Reason = reason
	if err.ErrStatus.Code = codes[reason]; err.ErrStatus.Code == 0 {
		err.ErrStatus.Code = http.StatusUnprocessableEntity
	}
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: text})
	return err
}

func (d *Admission) policyMutator(b bound[*v1.MutatingAdmissionPolicy, *v1.MutatingAdmissionPolicyBinding]) *mutator {
	return &mutator{
		reinvoke: b.policy.Spec.ReinvocationPolicy == v1.IfNeededReinvocationPolicy,
		run: func(ctx context.Context, w *write) error {
			err := d.mutate(ctx, w, b.policy, b.binding)
			if status := apierrors.APIStatus(nil); err == nil || errors.Is(err, errNoMatch) || errors.As(err, &status) {
				return err
			}
			if f := b.policy.Spec.FailurePolicy; f != nil && *f == v1.Ignore {
				return nil
			}
			text := fmt.Sprintf("policy '%s' with binding '%s' denied request: %v", b.policy.Name, b.binding.Name, err)
			refused := w.refusal(text, metav1.StatusReasonInvalid)
			refused.ErrStatus.Message, refused.ErrStatus.Code = text, http.StatusForbidden // as upstream answers of these
			return refused
		},
	}
}

// mutate applies a policy's mutations, once for each of its parameters.
func (d *Admission) mutate(ctx context.Context, w *write, policy *v1.MutatingAdmissionPolicy, binding *v1.MutatingAdmissionPolicyBinding) error {
	m, ok, err := w.matchResources(ctx, policy.Spec.MatchConstraints, false)
	if err == nil && ok {
		_, ok, err = w.matchResources(ctx, binding.Spec.MatchResources, true)
	}
	if err != nil {
		return err
	}
	if !ok || w.obj == nil || w.projected {
		return errNoMatch
	}
	params, err := d.policies.params(policy.Spec.ParamKind, binding.Spec.ParamRef, w.a.Namespace)
	if err != nil {
		return err
	}
	program, err := d.programs.mutation(policy)
	if err != nil {
		return err
	}
	ns, err := w.namespace(ctx)
	if err != nil {
		return err
	}
	ctx = program.compiler.CreateContext(ctx)
	for _, p := range params {
		v, err := w.versioned(m)
		if err != nil {
			return err
		}
		if program.matcher != nil {
			result := program.matcher.Match(ctx, v, p, d.authz)
			if result.Error != nil {
				return result.Error
			}
			if !result.Matches {
				continue
			}
		}
		types, err := d.programs.typesOf(w, m)
		if err != nil {
			return err
		}
		for _, patcher := range program.patchers {
			obj, err := patcher.Patch(ctx, patch.Request{
				MatchedResource: m.resource, VersionedAttributes: v, ObjectInterfaces: admission.NewObjectInterfacesFromScheme(codec.Scheme()),
				OptionalVariables: plugincel.OptionalVariableBindings{VersionedParams: p, Authorizer: d.authz}, Namespace: ns, TypeConverter: types,
			}, celconfig.RuntimeCELCostBudget)
			if err != nil {
				return err
			}
			if obj, err = w.typed(obj, m); err != nil {
				return err
			}
			if equality.Semantic.DeepEqual(obj, v.VersionedObject.Object()) {
				continue
			}
			if err := w.change(obj); err != nil {
				return err
			}
			if v, err = w.versioned(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// typed is the object that a patch made, as the kind's own type.
func (w *write) typed(obj runtime.Object, m meaning) (runtime.Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok || w.a.Kind.Custom != nil {
		return obj, nil
	}
	out, err := codec.Scheme().New(m.kind)
	if err != nil {
		return nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(m.kind)
	return out, nil
}

// typeConverter knows how the fields of a kind merge.
func typeConverter(k *registry.Kind, gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	if k.TypeConverter != nil {
		return k.TypeConverter()
	}
	name, err := codec.Scheme().ToOpenAPIDefinitionName(gvk)
	if err != nil {
		return nil, err
	}
	parser, err := fieldschema.Parser(name)
	if err != nil {
		return nil, err
	}
	return managedfields.NewSchemeTypeConverter(codec.Scheme(), parser), nil
}
