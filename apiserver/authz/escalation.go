package authz

import (
	"context"
	"errors"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
)

// fullAuthority is what a ClusterRole with an aggregation rule may come to
// hold.
var fullAuthority = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

// ConfirmNoEscalation refuses a write of a role or binding by which user would
// gain, or hand out, rights that user does not hold: unless user may
// "escalate" the role, or "bind" the role that is referred to. old is nil on
// create; objects of other kinds pass. Errors are Forbidden statuses.
func (a *Authorizer) ConfirmNoEscalation(ctx context.Context, u user.Info, obj, old runtime.Object) error {
	if superuser(u) || onlyGarbageCollectorFields(obj, old) {
		return nil
	}
	switch o := obj.(type) {
	case *rbacv1.Role:
		return a.confirmRole(ctx, u, "roles", o.Namespace, o.Name, o.Rules)
	case *rbacv1.ClusterRole:
		oldRole, _ := old.(*rbacv1.ClusterRole)
		return a.confirmClusterRole(ctx, u, o, oldRole)
	case *rbacv1.RoleBinding:
		return a.confirmBinding(ctx, u, "rolebindings", o.Namespace, o.Name, o.RoleRef)
	case *rbacv1.ClusterRoleBinding:
		return a.confirmBinding(ctx, u, "clusterrolebindings", "", o.Name, o.RoleRef)
	}
	return nil
}

func superuser(u user.Info) bool {
	return slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup)
}

func (a *Authorizer) confirmRole(ctx context.Context, u user.Info, resource, namespace, name string, rules []rbacv1.PolicyRule) error {
	if a.may(ctx, u, "escalate", resource, namespace, name) {
		return nil
	}
	if err := a.covers(ctx, u, namespace, rules); err != nil {
		return forbidden(resource, name, err)
	}
	return nil
}

func (a *Authorizer) confirmClusterRole(ctx context.Context, u user.Info, obj, old *rbacv1.ClusterRole) error {
	const resource = "clusterroles"
	if a.may(ctx, u, "escalate", resource, "", obj.Name) {
		return nil
	}
	if err := a.covers(ctx, u, "", obj.Rules); err != nil {
		return forbidden(resource, obj.Name, err)
	}
	if !aggregates(obj) && !aggregates(old) {
		return nil
	}
	if a.covers(ctx, u, "", fullAuthority) != nil {
		return forbidden(resource, obj.Name, errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	return nil
}

func aggregates(r *rbacv1.ClusterRole) bool {
	return r != nil && r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
}

func (a *Authorizer) confirmBinding(ctx context.Context, u user.Info, resource, namespace, name string, to rbacv1.RoleRef) error {
	switch to.Kind {
	case "ClusterRole":
		if a.may(ctx, u, "bind", "clusterroles", namespace, to.Name) {
			return nil
		}
	case "Role":
		if a.may(ctx, u, "bind", "roles", namespace, to.Name) {
			return nil
		}
	}
	rules, err := a.rules.GetRoleReferenceRules(ctx, to, namespace)
	if err != nil {
		return err
	}
	if err := a.covers(ctx, u, namespace, rules); err != nil {
		return forbidden(resource, name, err)
	}
	return nil
}

// covers returns upstream's error when user does not hold all of rules.
func (a *Authorizer) covers(ctx context.Context, u user.Info, namespace string, rules []rbacv1.PolicyRule) error {
	ctx = request.WithNamespace(request.WithUser(ctx, u), namespace)
	return validation.ConfirmNoEscalation(ctx, a.rules, rules)
}

func (a *Authorizer) may(ctx context.Context, u user.Info, verb, resource, namespace, name string) bool {
	decision, _, _ := a.Authorize(ctx, authorizer.AttributesRecord{
		User: u, Verb: verb, APIGroup: rbacv1.GroupName, APIVersion: "*",
		Resource: resource, Namespace: namespace, Name: name, ResourceRequest: true,
	})
	return decision == authorizer.DecisionAllow
}

func forbidden(resource, name string, err error) error {
	return apierrors.NewForbidden(schema.GroupResource{Group: rbacv1.GroupName, Resource: resource}, name, err)
}

// onlyGarbageCollectorFields tells whether an update changes nothing but owner
// references and finalizers, as the garbage collector does.
func onlyGarbageCollectorFields(obj, old runtime.Object) bool {
	if old == nil {
		return false
	}
	next, ok1 := obj.DeepCopyObject().(metav1.Object)
	prev, ok2 := old.(metav1.Object)
	if !ok1 || !ok2 {
		return false
	}
	next.SetOwnerReferences(prev.GetOwnerReferences())
	next.SetFinalizers(prev.GetFinalizers())
	next.SetResourceVersion(prev.GetResourceVersion())
	next.SetManagedFields(prev.GetManagedFields())
	return equality.Semantic.DeepEqual(next, prev)
}
