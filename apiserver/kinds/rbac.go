package kinds

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"

	"edged/apiserver/registry"
)

// rbac are the kinds of access control. That nobody grants more than he has is
// checked by admission, which knows the authorizer.
func rbac() []*registry.Kind {
	v1 := rbacv1.SchemeGroupVersion
	return []*registry.Kind{
		row[rbacv1.Role, rbacv1.RoleList](v1, "roles", role.Strategy),
		row[rbacv1.RoleBinding, rbacv1.RoleBindingList](v1, "rolebindings", rolebinding.Strategy),
		row[rbacv1.ClusterRole, rbacv1.ClusterRoleList](v1, "clusterroles", clusterrole.Strategy),
		row[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](v1, "clusterrolebindings", clusterrolebinding.Strategy),
	}
}
