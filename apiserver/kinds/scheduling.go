package kinds

import (
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"

	"edged/apiserver/registry"
)

func scheduling() []*registry.Kind {
	return []*registry.Kind{
		row[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", priorityclass.Strategy, "pc"),
	}
}
