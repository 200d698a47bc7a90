package kinds

import (
	policyv1 "k8s.io/api/policy/v1"
	pdb "k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"

	"edged/apiserver/registry"
)

func policy() []*registry.Kind {
	return []*registry.Kind{
		withStatus(
			row[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](
				policyv1.SchemeGroupVersion, "poddisruptionbudgets", pdb.Strategy, "pdb"),
			pdb.StatusStrategy),
	}
}
