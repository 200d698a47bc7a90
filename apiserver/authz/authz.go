package authz

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
)

// Source is what decisions are made from: the roles and bindings of the
// cluster and the Pods of a device. Objects that it returns are shared and not
// to be changed.
type Source interface {
	Role(namespace, name string) (*rbacv1.Role, bool)
	ClusterRole(name string) (*rbacv1.ClusterRole, bool)
	RoleBindings(namespace string) []*rbacv1.RoleBinding
	ClusterRoleBindings() []*rbacv1.ClusterRoleBinding
	PodsOn(node string) []*corev1.Pod
	// ClaimOf is the claim that a PersistentVolume is bound to, or is to be.
	ClaimOf(volume string) (namespace, name string, ok bool)
}

// Authorizer decides for all requests of the API server.
type Authorizer struct {
	source    Source
	rules     *validation.DefaultRuleResolver
	nodeRules []rbacv1.PolicyRule
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// New returns an Authorizer that decides from source.
func New(source Source) (*Authorizer, error) {
	nodeRules, err := nodeRules()
	if err != nil {
		return nil, err
	}
	g := getters{source}
	return &Authorizer{
		source:    source,
		rules:     validation.NewDefaultRuleResolver(g, g, g, g),
		nodeRules: nodeRules,
	}, nil
}

// Authorize decides about one request. The reason is upstream's text.
func (a *Authorizer) Authorize(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	u := attrs.GetUser()
	if u == nil {
		return authorizer.DecisionNoOpinion, "Error", errNoUser
	}
	if slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
		return authorizer.DecisionAllow, "", nil
	}
	decision, nodeReason := a.authorizeNode(u, attrs)
	if decision == authorizer.DecisionAllow {
		return decision, nodeReason, nil
	}
	decision, reason, err := a.authorizeRBAC(ctx, attrs)
	if decision == authorizer.DecisionAllow || nodeReason == "" {
		return decision, reason, err
	}
	if reason != "" {
		nodeReason += "\n" + reason
	}
	return decision, nodeReason, err
}

// ConditionsAwareAuthorize is Authorize: no decision here has conditions.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attrs authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attrs))
}

// EvaluateConditions refuses: no decision here has conditions.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}
