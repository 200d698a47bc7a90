package authz

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

var update = flag.Bool("update", false, "rewrite bootstrap.json.gz from upstream's bootstrap policy")

// TestBootstrapIsUpstreams compares the embedded policy with the package it
// was made from.
func TestBootstrapIsUpstreams(t *testing.T) {
	want := upstreamPolicy(t)
	if *update {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err := json.NewEncoder(z).Encode(want); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("bootstrap.json.gz", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		bootstrapData = b.Bytes()
	}
	got, err := readBootstrapPolicy()
	if err != nil {
		t.Fatal(err)
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Fatal("bootstrap.json.gz differs from upstream's bootstrappolicy: run go test ./apiserver/authz -run Bootstrap -update")
	}
}

func TestBootstrapObjects(t *testing.T) {
	objs, err := BootstrapObjects()
	if err != nil {
		t.Fatal(err)
	}
	var admin *rbacv1.ClusterRole
	var made []*rbacv1.ClusterRole // by name
	names := map[string]bool{}
	for _, o := range objs {
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			names["ClusterRole "+o.Name] = true
			if o.Name == "admin" {
				admin = o
			}
			if o.AggregationRule != nil && !equality.Semantic.DeepEqual(o.Rules, gather(o, made)) {
				t.Errorf("%s is made before what it gathers", o.Name)
			}
			at, _ := slices.BinarySearchFunc(made, o.Name, func(r *rbacv1.ClusterRole, name string) int { return strings.Compare(r.Name, name) })
			made = slices.Insert(made, at, o)
		case *rbacv1.ClusterRoleBinding:
			names["ClusterRoleBinding "+o.Name] = true
		case *rbacv1.Role:
			names["Role "+o.Namespace+"/"+o.Name] = true
		}
	}
	for _, want := range []string{
		"ClusterRole cluster-admin", "ClusterRoleBinding cluster-admin", "ClusterRole system:public-info-viewer",
		"ClusterRoleBinding system:discovery", "ClusterRole system:controller:deployment-controller",
		"Role kube-system/extension-apiserver-authentication-reader",
	} {
		if !names[want] {
			t.Errorf("%s is missing", want)
		}
	}
	if admin == nil || len(admin.Rules) == 0 {
		t.Error("the rules of the aggregated role admin are not gathered")
	}
}

// upstreamPolicy is what kube-apiserver's post-start hook writes, with the
// aggregated roles as its aggregation controller leaves them.
func upstreamPolicy(t *testing.T) *bootstrapPolicy {
	t.Helper()
	p := &bootstrapPolicy{
		ClusterRoles:        slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()),
		ClusterRoleBindings: slices.Concat(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()),
	}
	for _, ns := range slices.Sorted(maps.Keys(bootstrappolicy.NamespaceRoles())) {
		p.Roles = append(p.Roles, bootstrappolicy.NamespaceRoles()[ns]...)
	}
	for _, ns := range slices.Sorted(maps.Keys(bootstrappolicy.NamespaceRoleBindings())) {
		p.RoleBindings = append(p.RoleBindings, bootstrappolicy.NamespaceRoleBindings()[ns]...)
	}
	aggregate(p.ClusterRoles)
	typed(p)
	return p
}

// aggregate fills in the rules of roles with an aggregation rule, repeatedly,
// because admin gathers edit, which gathers view.
func aggregate(roles []rbacv1.ClusterRole) {
	sorted := make([]*rbacv1.ClusterRole, len(roles))
	for i := range roles {
		sorted[i] = &roles[i]
	}
	slices.SortFunc(sorted, func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	for range 4 {
		for i := range roles {
			if roles[i].AggregationRule != nil {
				roles[i].Rules = gather(&roles[i], sorted)
			}
		}
	}
}

func gather(into *rbacv1.ClusterRole, sorted []*rbacv1.ClusterRole) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, sel := range into.AggregationRule.ClusterRoleSelectors {
		for _, from := range sorted {
			if from.Name == into.Name || !matches(sel.MatchLabels, from.Labels) {
				continue
			}
			for _, r := range from.Rules {
				if !slices.ContainsFunc(rules, func(o rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(o, r) }) {
					rules = append(rules, r)
				}
			}
		}
	}
	return rules
}

func matches(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func typed(p *bootstrapPolicy) {
	gv := schema.GroupVersion{Group: rbacv1.GroupName, Version: "v1"}
	for i := range p.ClusterRoles {
		p.ClusterRoles[i].SetGroupVersionKind(gv.WithKind("ClusterRole"))
	}
	for i := range p.ClusterRoleBindings {
		p.ClusterRoleBindings[i].SetGroupVersionKind(gv.WithKind("ClusterRoleBinding"))
	}
	for i := range p.Roles {
		p.Roles[i].SetGroupVersionKind(gv.WithKind("Role"))
	}
	for i := range p.RoleBindings {
		p.RoleBindings[i].SetGroupVersionKind(gv.WithKind("RoleBinding"))
	}
}
