package kinds

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kube-aggregator/pkg/apis/apiregistration"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/validation"

	"edged/apiserver/registry"
)

// registrations is the kind of the group apiregistration.k8s.io: who serves a
// group version if this API server does not. The objects for what it serves itself
// are virtual (apiserver/localservices.go).
func registrations() []*registry.Kind {
	const apiVersion = "apiregistration.k8s.io/v1"
	k := row[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](apiregistrationv1.SchemeGroupVersion, "apiservices", apiServiceStrategy{newBase(false).resets(apiVersion, "status")})
	k.Categories = []string{"api-extensions"}
	k.Prefix = "apiregistration.k8s.io/apiservices"
	k.TypeConverter = converterOf("apis/" + apiVersion)
	return []*registry.Kind{withStatus(k, apiServiceStatusStrategy{apiServiceStrategy{newBase(false).resets(apiVersion, "spec", "metadata")}})}
}

// apiServiceStrategy follows k8s.io/kube-aggregator/pkg/registry/apiservice.
type apiServiceStrategy struct{ base }

func (apiServiceStrategy) AllowUnconditionalUpdate(context.Context) bool { return false }

func (apiServiceStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	s := obj.(*api.APIService)
	s.Status = api.APIServiceStatus{}
	if s.Spec.Service == nil {
		api.SetAPIServiceCondition(s, api.NewLocalAvailableAPIServiceCondition())
	}
}

func (apiServiceStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.APIService).Status = old.(*api.APIService).Status
}

func (apiServiceStrategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateAPIService(ctx, obj.(*api.APIService))
}

func (apiServiceStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateAPIServiceUpdate(ctx, obj.(*api.APIService), old.(*api.APIService))
}

type apiServiceStatusStrategy struct{ apiServiceStrategy }

func (apiServiceStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	s, was := obj.(*api.APIService), old.(*api.APIService)
	s.Spec = was.Spec
	s.Labels, s.Annotations, s.Finalizers, s.OwnerReferences = was.Labels, was.Annotations, was.Finalizers, was.OwnerReferences
}

func (apiServiceStatusStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateAPIServiceStatusUpdate(ctx, obj.(*api.APIService), old.(*api.APIService))
}
