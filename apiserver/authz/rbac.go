package authz

import (
	"context"
	"errors"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	rbachelpers "k8s.io/kubernetes/pkg/apis/rbac/v1"
)

var errNoUser = errors.New("no user on request")

func (a *Authorizer) authorizeRBAC(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	var allowedBy fmt.Stringer
	var errs []error
	a.rules.VisitRulesFor(ctx, attrs.GetUser(), attrs.GetNamespace(), func(source fmt.Stringer, rule *rbacv1.PolicyRule, err error) bool {
		if rule != nil && ruleAllows(attrs, rule) {
			allowedBy = source
			return false
		}
		if err != nil {
			errs = append(errs, err)
		}
		return true
	})
	if allowedBy != nil {
		return authorizer.DecisionAllow, "RBAC: allowed by " + allowedBy.String(), nil
	}
	if len(errs) > 0 {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(errs)), nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func ruleAllows(attrs authorizer.Attributes, rule *rbacv1.PolicyRule) bool {
	if !attrs.IsResourceRequest() {
		return rbachelpers.VerbMatches(rule, attrs.GetVerb()) &&
			rbachelpers.NonResourceURLMatches(rule, attrs.GetPath())
	}
	combined := attrs.GetResource()
	if sub := attrs.GetSubresource(); sub != "" {
		combined += "/" + sub
	}
	return rbachelpers.VerbMatches(rule, attrs.GetVerb()) &&
		rbachelpers.APIGroupMatches(rule, attrs.GetAPIGroup()) &&
		rbachelpers.ResourceMatches(rule, combined, attrs.GetSubresource()) &&
		rbachelpers.ResourceNameMatches(rule, attrs.GetName())
}

// RulesFor lists what a user may do, for SelfSubjectRulesReview.
func (a *Authorizer) RulesFor(ctx context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	var resources []authorizer.ResourceRuleInfo
	var nonResources []authorizer.NonResourceRuleInfo
	if superuser(u) {
		resources = append(resources, &authorizer.DefaultResourceRuleInfo{
			Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}})
		nonResources = append(nonResources, &authorizer.DefaultNonResourceRuleInfo{
			Verbs: []string{"*"}, NonResourceURLs: []string{"*"}})
	}
	rules, err := a.rules.RulesFor(ctx, u, namespace)
	for _, r := range rules {
		if len(r.Resources) > 0 {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
		}
		if len(r.NonResourceURLs) > 0 {
			nonResources = append(nonResources, &authorizer.DefaultNonResourceRuleInfo{
				Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	_, isNode := nodeName(u)
	if isNode && err == nil {
		err = errors.New("node authorizer does not support user rule resolution")
	}
	return resources, nonResources, isNode, err
}

// getters gives upstream's rule resolver its view of a Source.
type getters struct{ source Source }

func (g getters) GetRole(_ context.Context, namespace, name string) (*rbacv1.Role, error) {
	if r, ok := g.source.Role(namespace, name); ok {
		return r, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "role"}, name)
}

func (g getters) GetClusterRole(_ context.Context, name string) (*rbacv1.ClusterRole, error) {
	if r, ok := g.source.ClusterRole(name); ok {
		return r, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrole"}, name)
}

func (g getters) ListRoleBindings(_ context.Context, namespace string) ([]*rbacv1.RoleBinding, error) {
	return g.source.RoleBindings(namespace), nil
}

func (g getters) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	return g.source.ClusterRoleBindings(), nil
}
