package controller_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// A role that is made of others has the rules of those that its labels choose, follows
// them, and what somebody writes into it is gone.
func TestClusterRoleAggregation(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	roles := registry.For[*rbacv1.ClusterRole](reg)
	role := func(name string, labels map[string]string, resources ...string) *rbacv1.ClusterRole {
		r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		for _, res := range resources {
			r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{"example.org"}, Resources: []string{res}, Verbs: []string{"get"}})
		}
		return r
	}
	create := func(r *rbacv1.ClusterRole) {
		t.Helper()
		if _, err := roles.Create(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	gathers := func(r *rbacv1.ClusterRole, label string) *rbacv1.ClusterRole {
		r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{label: "true"}}}}
		return r
	}
	has := func(name string, want ...string) {
		t.Helper()
		await(t, "the rules of "+name, func() string {
			r, ok := roles.Get("", name)
			if !ok {
				return "not there"
			}
			var got []string
			for _, rule := range r.Rules {
				got = append(got, rule.Resources...)
			}
			if !slices.Equal(got, want) {
				return fmt.Sprintf("%v, want %v", got, want)
			}
			return ""
		})
	}
	create(role("b", map[string]string{"to-all": "true"}, "bees"))
	create(gathers(role("all", map[string]string{"to-more": "true"}), "to-all"))
	create(gathers(role("more", nil), "to-more"))
	has("all", "bees")
	has("more", "bees")
	create(role("a", map[string]string{"to-all": "true"}, "ants", "bees"))
	has("all", "ants", "bees")
	has("more", "ants", "bees")
	if _, err := roles.Update(ctx, "", "all", func(r *rbacv1.ClusterRole) error {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"*"}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	has("all", "ants", "bees")
	if _, err := roles.Update(ctx, "", "a", func(r *rbacv1.ClusterRole) error { r.Labels = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	has("all", "bees")
	if err := roles.Delete(ctx, "", "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	has("all")
	has("more")
	quiet(t, reg)
}

// tokenOf is an issuer that tells what it was asked for.
type tokenOf struct{}

func (tokenOf) SecretToken(sa *corev1.ServiceAccount, s *corev1.Secret) (string, error) {
	return fmt.Sprintf("%s of %s %s", s.Name, sa.Name, sa.UID), nil
}

// A Secret of the type for a ServiceAccount's token gets one, and goes with the account.
func TestServiceAccountTokens(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	secrets, accounts := registry.For[*corev1.Secret](reg), registry.For[*corev1.ServiceAccount](reg)
	create := func(name, account string) {
		t.Helper()
		if _, err := secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}},
			Type:       corev1.SecretTypeServiceAccountToken,
		}); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(name string) {
		t.Helper()
		await(t, name+" to go", func() string {
			if s, ok := secrets.Get("default", name); ok {
				return fmt.Sprint(s)
			}
			return ""
		})
	}
	sa, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}})
	if err != nil {
		t.Fatal(err)
	}
	create("key", "robot")
	filled := func() string {
		s, _ := secrets.Get("default", "key")
		want := map[string]string{"token": "key of robot " + string(sa.UID), "ca.crt": "CA", "namespace": "default"}
		for k, v := range want {
			if string(s.Data[k]) != v {
				return fmt.Sprintf("%s is %q, want %q", k, s.Data[k], v)
			}
		}
		if s.Annotations[corev1.ServiceAccountUIDKey] != string(sa.UID) {
			return fmt.Sprint(s.Annotations)
		}
		return ""
	}
	await(t, "the Secret to be filled", filled)
	if _, err := secrets.Update(ctx, "default", "key", func(s *corev1.Secret) error { delete(s.Data, "token"); s.Data["ca.crt"] = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	await(t, "the Secret to be filled again", filled)
	create("stray", "nobody")
	gone("stray")
	quiet(t, reg)
	if err := accounts.Delete(ctx, "default", "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone("key")
}
