package kinds

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// configMapStrategy follows pkg/registry/core/configmap.
type configMapStrategy struct{ base }

func newConfigMapStrategy() configMapStrategy { return configMapStrategy{newBase(true)} }

func (configMapStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateConfigMap(obj.(*api.ConfigMap))
}

func (configMapStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateConfigMapUpdate(obj.(*api.ConfigMap), old.(*api.ConfigMap))
}
