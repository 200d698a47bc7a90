package authz

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"edged/apiserver/registry"
)

// FromRegistry reads roles, bindings and Pods from the registry's cache.
func FromRegistry(r *registry.Registry) Source {
	return cached{
		roles:               registry.For[*rbacv1.Role](r),
		clusterRoles:        registry.For[*rbacv1.ClusterRole](r),
		roleBindings:        registry.For[*rbacv1.RoleBinding](r),
		clusterRoleBindings: registry.For[*rbacv1.ClusterRoleBinding](r),
		pods:                registry.For[*corev1.Pod](r),
		volumes:             registry.For[*corev1.PersistentVolume](r),
	}
}

type cached struct {
	roles               registry.Client[*rbacv1.Role]
	clusterRoles        registry.Client[*rbacv1.ClusterRole]
	roleBindings        registry.Client[*rbacv1.RoleBinding]
	clusterRoleBindings registry.Client[*rbacv1.ClusterRoleBinding]
	pods                registry.Client[*corev1.Pod]
	volumes             registry.Client[*corev1.PersistentVolume]
}

func (c cached) Role(namespace, name string) (*rbacv1.Role, bool) {
	return c.roles.Get(namespace, name)
}

func (c cached) ClusterRole(name string) (*rbacv1.ClusterRole, bool) {
	return c.clusterRoles.Get("", name)
}

// RoleBindings of no namespace are none, not all.
func (c cached) RoleBindings(namespace string) []*rbacv1.RoleBinding {
	if namespace == "" {
		return nil
	}
	return c.roleBindings.List(namespace)
}

func (c cached) ClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	return c.clusterRoleBindings.List("")
}

func (c cached) PodsOn(node string) []*corev1.Pod {
	return c.pods.ByIndex(registry.IndexNode, node)
}

func (c cached) ClaimOf(volume string) (namespace, name string, ok bool) {
	pv, ok := c.volumes.Get("", volume)
	if !ok || pv.Spec.ClaimRef == nil {
		return "", "", false
	}
	return pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name, true
}
