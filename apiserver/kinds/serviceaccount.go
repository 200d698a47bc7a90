package kinds

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// mountableSecrets is the annotation that upstream warns of.
const mountableSecrets = "kubernetes.io/enforce-mountable-secrets"

// serviceAccountStrategy follows pkg/registry/core/serviceaccount.
type serviceAccountStrategy struct{ base }

// PrepareForCreate keeps the names of secrets only.
func (serviceAccountStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	sa := obj.(*api.ServiceAccount)
	for i, secret := range sa.Secrets {
		sa.Secrets[i] = api.ObjectReference{Name: secret.Name}
	}
}

func (s serviceAccountStrategy) PrepareForUpdate(ctx context.Context, obj, _ runtime.Object) {
	s.PrepareForCreate(ctx, obj)
}

func (serviceAccountStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateServiceAccount(obj.(*api.ServiceAccount))
}

func (serviceAccountStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateServiceAccountUpdate(obj.(*api.ServiceAccount), old.(*api.ServiceAccount))
}

func (serviceAccountStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	if _, ok := obj.(*api.ServiceAccount).Annotations[mountableSecrets]; !ok {
		return nil
	}
	return []string{fmt.Sprintf("metadata.annotations[%s]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets", mountableSecrets)}
}

func (s serviceAccountStrategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	if _, had := old.(*api.ServiceAccount).Annotations[mountableSecrets]; had {
		return nil
	}
	return s.WarningsOnCreate(ctx, obj)
}
