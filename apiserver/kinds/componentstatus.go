package kinds

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edged/apiserver/registry"
)

// componentStatuses is a kind that is in no store: its objects are virtual
// (apiserver/components.go), and read only.
func componentStatuses() *registry.Kind {
	k := row[corev1.ComponentStatus, corev1.ComponentStatusList](corev1.SchemeGroupVersion, "componentstatuses", componentStatusStrategy{newBase(false)}, "cs")
	k.Verbs = []string{"get", "list"}
	return k
}

type componentStatusStrategy struct{ base }

func (componentStatusStrategy) Validate(context.Context, runtime.Object) field.ErrorList { return nil }

func (componentStatusStrategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}
