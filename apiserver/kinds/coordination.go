package kinds

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"

	"edged/apiserver/registry"
)

func coordination() []*registry.Kind {
	return []*registry.Kind{
		row[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases", lease.Strategy),
	}
}
