package kinds

import (
	"context"
	"crypto/tls"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// secretStrategy follows pkg/registry/core/secret.
type secretStrategy struct{ base }

func newSecretStrategy() secretStrategy { return secretStrategy{newBase(true)} }

// PrepareForUpdate keeps the type when an update leaves it out.
func (secretStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	if secret := obj.(*api.Secret); secret.Type == "" {
		secret.Type = old.(*api.Secret).Type
	}
}

func (secretStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateSecret(obj.(*api.Secret))
}

func (secretStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateSecretUpdate(obj.(*api.Secret), old.(*api.Secret))
}

func (secretStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return secretWarnings(obj.(*api.Secret))
}

func (secretStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return secretWarnings(obj.(*api.Secret))
}

func secretWarnings(s *api.Secret) []string {
	if s.Type != api.SecretTypeTLS {
		return nil
	}
	if _, err := tls.X509KeyPair(s.Data[api.TLSCertKey], s.Data[api.TLSPrivateKeyKey]); err != nil {
		return []string{err.Error()}
	}
	return nil
}
