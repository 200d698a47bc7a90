package kinds

import (
	"errors"
	"slices"

	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	schedulingapi "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"

	"edged/apiserver/registry"
)

func scheduling() []*registry.Kind {
	k := row[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", priorityclass.Strategy, "pc")
	k.Keeps = keepSystemClass
	return []*registry.Kind{k}
}

// keepSystemClass: what the system's own Pods name is not deleted.
func keepSystemClass(name string) error {
	if !slices.Contains(schedulingapi.SystemPriorityClassNames(), name) {
		return nil
	}
	return apierrors.NewForbidden(schedulingv1.Resource("priorityclasses"), name, errors.New("this is a system priority class and cannot be deleted"))
}
