package authz

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// bootstrapData is upstream's bootstrap policy, made by
//
//	go test ./apiserver/authz -run Bootstrap -update
//
// from the package bootstrappolicy, which itself would bring 168 packages and
// their memory into the daemon. A test compares the two.
//
//go:embed bootstrap.json.gz
var bootstrapData []byte

// bootstrapPolicy is the form of bootstrapData.
type bootstrapPolicy struct {
	ClusterRoles        []rbacv1.ClusterRole        `json:"clusterRoles"`
	ClusterRoleBindings []rbacv1.ClusterRoleBinding `json:"clusterRoleBindings"`
	Roles               []rbacv1.Role               `json:"roles"`
	RoleBindings        []rbacv1.RoleBinding        `json:"roleBindings"`
}

// BootstrapObjects returns the roles and bindings that every cluster begins
// with, upstream's, in an order in which they can be created. The aggregated
// roles (admin, edit, view) come with the rules already gathered, and after what
// these are of: who is made before gathers less meanwhile. They are decoded anew for
// each call and belong to the caller.
func BootstrapObjects() ([]runtime.Object, error) {
	p, err := readBootstrapPolicy()
	if err != nil {
		return nil, err
	}
	var out, aggregated []runtime.Object
	for i := range p.ClusterRoles {
		if p.ClusterRoles[i].AggregationRule == nil {
			out = append(out, &p.ClusterRoles[i])
		} else {
			aggregated = append(aggregated, &p.ClusterRoles[i])
		}
	}
	slices.Reverse(aggregated) // upstream names admin, which has edit, which has view
	out = append(out, aggregated...)
	for i := range p.ClusterRoleBindings {
		out = append(out, &p.ClusterRoleBindings[i])
	}
	for i := range p.Roles {
		out = append(out, &p.Roles[i])
	}
	for i := range p.RoleBindings {
		out = append(out, &p.RoleBindings[i])
	}
	return out, nil
}

func readBootstrapPolicy() (*bootstrapPolicy, error) {
	z, err := gzip.NewReader(bytes.NewReader(bootstrapData))
	if err != nil {
		return nil, fmt.Errorf("reading the embedded bootstrap policy: %w", err)
	}
	p := &bootstrapPolicy{}
	if err := json.NewDecoder(z).Decode(p); err != nil {
		return nil, fmt.Errorf("reading the embedded bootstrap policy: %w", err)
	}
	return p, nil
}

// nodeRules are the rules of the role system:node, by which the Node
// authorizer decides whatever it does not subdivide.
func nodeRules() ([]rbacv1.PolicyRule, error) {
	p, err := readBootstrapPolicy()
	if err != nil {
		return nil, err
	}
	for _, r := range p.ClusterRoles {
		if r.Name == "system:node" {
			return r.Rules, nil
		}
	}
	return nil, fmt.Errorf("the embedded bootstrap policy has no role system:node")
}
