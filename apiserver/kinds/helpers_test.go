package kinds_test

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"

	"edged/apiserver/registry"
)

func asUser(ctx context.Context) context.Context {
	return registry.WithUser(ctx, &user.DefaultInfo{Name: "jane", Groups: []string{user.SystemPrivilegedGroup}})
}

func clearNamespace(obj runtime.Object) { obj.(*corev1.Namespace).Spec.Finalizers = nil }
