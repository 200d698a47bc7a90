// Package clusterrole gathers the rules of ClusterRoles that are made of others: admin,
// edit and view, to which charts and operators add what their own resources need, and
// those that users make of labels.
//
// It decides no access: apiserver/authz reads the rules that are gathered here.
//
// Rules is the decision. Goroutines: those of the loop.Queue. May be imported by:
// controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/clusterroleaggregation.
package clusterrole

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// Rules are those of the roles that a role's selectors choose, in order of selectors
// and names, each once.
func Rules(of *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *rbacv1.ClusterRole) int { return cmp.Compare(a.Name, b.Name) })
	out := []rbacv1.PolicyRule{}
	for i := range of.AggregationRule.ClusterRoleSelectors {
		selector, err := metav1.LabelSelectorAsSelector(&of.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, err
		}
		for _, r := range sorted {
			if r.Name == of.Name || !selector.Matches(labels.Set(r.Labels)) {
				continue
			}
			for _, rule := range r.Rules {
				if !slices.ContainsFunc(out, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
					out = append(out, rule)
				}
			}
		}
	}
	return out, nil
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	roles := registry.For[*rbacv1.ClusterRole](env.Registry)
	q := loop.NewQueue(loop.Config{Name: "clusterrole", Logger: env.Logger, Reconcile: func(ctx context.Context, name string) (time.Duration, error) {
		role, ok := roles.Get("", name)
		if !ok || role.AggregationRule == nil {
			return 0, nil
		}
		want, err := Rules(role, roles.List(""))
		if err != nil {
			return 0, fmt.Errorf("gather the rules of ClusterRole %s: %w", name, err)
		}
		if equality.Semantic.DeepEqual(want, role.Rules) {
			return 0, nil
		}
		_, err = roles.Update(ctx, "", name, func(cur *rbacv1.ClusterRole) error {
			if cur.UID == role.UID && cur.AggregationRule != nil {
				cur.Rules = want
			}
			return nil
		})
		if apierrors.IsNotFound(err) {
			return 0, nil
		}
		return 0, err
	}})
	defer roles.Subscribe(func(e registry.Event[*rbacv1.ClusterRole]) {
		if e.Type == watch.Modified && equality.Semantic.DeepEqual(e.Old.Rules, e.Object.Rules) && equality.Semantic.DeepEqual(e.Old.Labels, e.Object.Labels) &&
			equality.Semantic.DeepEqual(e.Old.AggregationRule, e.Object.AggregationRule) {
			return
		}
		if e.Object.AggregationRule != nil {
			q.Add(e.Object.Name)
		}
		for _, r := range roles.List("") {
			if r.AggregationRule != nil && (chooses(r, e.Object) || e.Type == watch.Modified && chooses(r, e.Old)) {
				q.Add(r.Name)
			}
		}
	})()
	return q.Run(ctx)
}

// chooses reports whether one of a role's selectors matches another role.
func chooses(r, other *rbacv1.ClusterRole) bool {
	return slices.ContainsFunc(r.AggregationRule.ClusterRoleSelectors, func(s metav1.LabelSelector) bool {
		selector, err := metav1.LabelSelectorAsSelector(&s)
		return err == nil && selector.Matches(labels.Set(other.Labels))
	})
}
