package kinds

import (
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"

	"edged/apiserver/registry"
)

// node are the kinds of the group node.k8s.io; Node itself is in the core.
func node() []*registry.Kind {
	return []*registry.Kind{
		row[nodev1.RuntimeClass, nodev1.RuntimeClassList](nodev1.SchemeGroupVersion, "runtimeclasses", runtimeclass.Strategy),
	}
}
