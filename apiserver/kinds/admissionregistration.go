package kinds

import (
	"context"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/admissionregistration"
	"k8s.io/kubernetes/pkg/apis/admissionregistration/validation"

	"edged/apiserver/registry"
)

// admissionRegistration are the kinds of the group admissionregistration.k8s.io,
// which apiserver/webhook acts on. That a policy's author may read its
// parameters is checked by admission.
func admissionRegistration() []*registry.Kind {
	const apiVersion = "admissionregistration.k8s.io/v1"
	v1 := admissionregistrationv1.SchemeGroupVersion
	policy := admissionStrategy[*api.ValidatingAdmissionPolicy]{
		base:   newBase(false).resets(apiVersion, "status"),
		create: validation.ValidateValidatingAdmissionPolicy, update: validation.ValidateValidatingAdmissionPolicyUpdate,
		body:  func(p *api.ValidatingAdmissionPolicy) any { return p.Spec },
		clear: func(p, was *api.ValidatingAdmissionPolicy) { p.Status = was.Status }, empty: &api.ValidatingAdmissionPolicy{},
	}
	rows := []*registry.Kind{
		row[admissionregistrationv1.ValidatingWebhookConfiguration, admissionregistrationv1.ValidatingWebhookConfigurationList](v1, "validatingwebhookconfigurations",
			admissionStrategy[*api.ValidatingWebhookConfiguration]{
				base:   newBase(false),
				create: validation.ValidateValidatingWebhookConfiguration, update: validation.ValidateValidatingWebhookConfigurationUpdate,
				body: func(c *api.ValidatingWebhookConfiguration) any { return c.Webhooks },
			}),
		row[admissionregistrationv1.MutatingWebhookConfiguration, admissionregistrationv1.MutatingWebhookConfigurationList](v1, "mutatingwebhookconfigurations",
			admissionStrategy[*api.MutatingWebhookConfiguration]{
				base:   newBase(false),
				create: validation.ValidateMutatingWebhookConfiguration, update: validation.ValidateMutatingWebhookConfigurationUpdate,
				body: func(c *api.MutatingWebhookConfiguration) any { return c.Webhooks },
			}),
		withStatus(row[admissionregistrationv1.ValidatingAdmissionPolicy, admissionregistrationv1.ValidatingAdmissionPolicyList](v1, "validatingadmissionpolicies", policy),
			admissionStatusStrategy{policy}),
		row[admissionregistrationv1.ValidatingAdmissionPolicyBinding, admissionregistrationv1.ValidatingAdmissionPolicyBindingList](v1, "validatingadmissionpolicybindings",
			admissionStrategy[*api.ValidatingAdmissionPolicyBinding]{
				base:   newBase(false),
				create: validation.ValidateValidatingAdmissionPolicyBinding, update: validation.ValidateValidatingAdmissionPolicyBindingUpdate,
				body: func(b *api.ValidatingAdmissionPolicyBinding) any { return b.Spec },
			}),
		row[admissionregistrationv1.MutatingAdmissionPolicy, admissionregistrationv1.MutatingAdmissionPolicyList](v1, "mutatingadmissionpolicies",
			admissionStrategy[*api.MutatingAdmissionPolicy]{
				base:   newBase(false),
				create: validation.ValidateMutatingAdmissionPolicy, update: validation.ValidateMutatingAdmissionPolicyUpdate,
				body: func(p *api.MutatingAdmissionPolicy) any { return p.Spec },
			}),
		row[admissionregistrationv1.MutatingAdmissionPolicyBinding, admissionregistrationv1.MutatingAdmissionPolicyBindingList](v1, "mutatingadmissionpolicybindings",
			admissionStrategy[*api.MutatingAdmissionPolicyBinding]{
				base:   newBase(false),
				create: validation.ValidateMutatingAdmissionPolicyBinding, update: validation.ValidateMutatingAdmissionPolicyBindingUpdate,
				body: func(b *api.MutatingAdmissionPolicyBinding) any { return b.Spec },
			}),
	}
	for _, k := range rows {
		k.Categories = []string{"api-extensions"}
	}
	return rows
}

// admissionStrategy follows pkg/registry/admissionregistration: the kinds differ
// in their validation and in what counts for the generation.
type admissionStrategy[T interface {
	runtime.Object
	SetGeneration(int64)
	GetGeneration() int64
	GetName() string
}] struct {
	base
	create func(T) field.ErrorList
	update func(now, was T) field.ErrorList
	// body is what the generation counts.
	body func(T) any
	// clear takes the status from was; empty is what a new object has. nil: the
	// kind has no status.
	clear func(now, was T)
	empty T
}

func (admissionStrategy[T]) AllowUnconditionalUpdate(context.Context) bool { return false }

func (s admissionStrategy[T]) PrepareForCreate(_ context.Context, obj runtime.Object) {
	now := obj.(T)
	if s.clear != nil {
		s.clear(now, s.empty)
	}
	now.SetGeneration(1)
}

func (s admissionStrategy[T]) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	now, was := obj.(T), old.(T)
	if s.clear != nil {
		s.clear(now, was)
	}
	if !equality.Semantic.DeepEqual(s.body(was), s.body(now)) {
		now.SetGeneration(was.GetGeneration() + 1)
	}
}

func (s admissionStrategy[T]) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return s.create(obj.(T))
}

func (s admissionStrategy[T]) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return s.update(obj.(T), old.(T))
}

func (s admissionStrategy[T]) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return validation.WarningsForStaticSuffix(obj.(T).GetName())
}

func (s admissionStrategy[T]) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return validation.WarningsForStaticSuffix(obj.(T).GetName())
}

type admissionStatusStrategy struct {
	admissionStrategy[*api.ValidatingAdmissionPolicy]
}

func (admissionStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.ValidatingAdmissionPolicy).Spec = old.(*api.ValidatingAdmissionPolicy).Spec
}

func (admissionStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateValidatingAdmissionPolicyStatusUpdate(obj.(*api.ValidatingAdmissionPolicy), old.(*api.ValidatingAdmissionPolicy))
}
