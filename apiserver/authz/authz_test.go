package authz_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"edged/apiserver/authz"
)

// state is a Source of literals.
type state struct {
	roles               []*rbacv1.Role
	clusterRoles        []*rbacv1.ClusterRole
	roleBindings        []*rbacv1.RoleBinding
	clusterRoleBindings []*rbacv1.ClusterRoleBinding
	pods                []*corev1.Pod
}

func (s *state) Role(ns, name string) (*rbacv1.Role, bool) {
	for _, r := range s.roles {
		if r.Namespace == ns && r.Name == name {
			return r, true
		}
	}
	return nil, false
}

func (s *state) ClusterRole(name string) (*rbacv1.ClusterRole, bool) {
	for _, r := range s.clusterRoles {
		if r.Name == name {
			return r, true
		}
	}
	return nil, false
}

func (s *state) RoleBindings(ns string) (out []*rbacv1.RoleBinding) {
	for _, b := range s.roleBindings {
		if b.Namespace == ns {
			out = append(out, b)
		}
	}
	return out
}

func (s *state) ClusterRoleBindings() []*rbacv1.ClusterRoleBinding { return s.clusterRoleBindings }

func (s *state) ClaimOf(volume string) (namespace, name string, ok bool) {
	name, ok = strings.CutPrefix(volume, "pv-of-")
	return "ns", name, ok
}

func (s *state) PodsOn(node string) (out []*corev1.Pod) {
	for _, p := range s.pods {
		if p.Spec.NodeName == node {
			out = append(out, p)
		}
	}
	return out
}

// fresh is the state of a new cluster.
func fresh(t *testing.T) *state {
	t.Helper()
	objs, err := authz.BootstrapObjects()
	if err != nil {
		t.Fatal(err)
	}
	s := &state{}
	for _, o := range objs {
		switch o := o.(type) {
		case *rbacv1.Role:
			s.roles = append(s.roles, o)
		case *rbacv1.ClusterRole:
			s.clusterRoles = append(s.clusterRoles, o)
		case *rbacv1.RoleBinding:
			s.roleBindings = append(s.roleBindings, o)
		case *rbacv1.ClusterRoleBinding:
			s.clusterRoleBindings = append(s.clusterRoleBindings, o)
		}
	}
	return s
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func roleRef(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
}

// request is one line of a table: who does what.
type request struct {
	user  user.Info
	attrs authorizer.AttributesRecord
	allow bool
}

func get(resource, ns, name string) authorizer.AttributesRecord {
	return verb("get", resource, ns, name)
}

func verb(v, resource, ns, name string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{Verb: v, Resource: resource, Namespace: ns, Name: name, APIVersion: "v1", ResourceRequest: true}
}

func path(v, p string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{Verb: v, Path: p}
}

func check(t *testing.T, s *state, table map[string]request) {
	t.Helper()
	a, err := authz.New(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range table {
		r.attrs.User = r.user
		decision, reason, err := a.Authorize(context.Background(), r.attrs)
		if err != nil || (decision == authorizer.DecisionAllow) != r.allow {
			t.Errorf("%s: %v (%s) %v, want allow=%v", name, decision, reason, err, r.allow)
		}
	}
}

func person(name string, groups ...string) user.Info {
	return &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)}
}

func TestFreshCluster(t *testing.T) {
	anonymous := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	check(t, fresh(t), map[string]request{
		"master":               {person("root", user.SystemPrivilegedGroup), verb("delete", "secrets", "kube-system", "x"), true},
		"anybody":              {person("bob"), get("pods", "default", "p"), false},
		"anybody's discovery":  {person("bob"), path("get", "/apis/apps/v1"), true},
		"anybody's review":     {person("bob"), authorizer.AttributesRecord{Verb: "create", APIGroup: "authorization.k8s.io", Resource: "selfsubjectaccessreviews", ResourceRequest: true}, true},
		"anonymous version":    {anonymous, path("get", "/version"), true},
		"anonymous health":     {anonymous, path("get", "/readyz"), true},
		"anonymous discovery":  {anonymous, path("get", "/apis"), false},
		"anonymous pods":       {anonymous, get("pods", "default", "p"), false},
		"scheduler":            {person("system:kube-scheduler"), verb("create", "bindings", "default", ""), true},
		"scheduler's secrets":  {person("system:kube-scheduler"), get("secrets", "default", "s"), false},
		"account reads issuer": {person("system:serviceaccount:ns:a", "system:serviceaccounts"), path("get", "/.well-known/openid-configuration"), true},
	})
}

func TestBindings(t *testing.T) {
	s := fresh(t)
	s.roles = append(s.roles, &rbacv1.Role{ObjectMeta: meta("ns", "reader"), Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get", "list"}, APIGroups: []string{""}, Resources: []string{"pods", "pods/log"}},
		{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"mine"}},
	}})
	s.roleBindings = append(s.roleBindings,
		&rbacv1.RoleBinding{ObjectMeta: meta("ns", "r"), RoleRef: roleRef("Role", "reader"), Subjects: []rbacv1.Subject{
			{Kind: "User", Name: "bob"}, {Kind: "ServiceAccount", Name: "robot"}, {Kind: "Group", Name: "devs"}}},
		&rbacv1.RoleBinding{ObjectMeta: meta("ns", "v"), RoleRef: roleRef("ClusterRole", "view"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "eve"}}},
		&rbacv1.RoleBinding{ObjectMeta: meta("ns", "none"), RoleRef: roleRef("Role", "missing"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "lost"}}},
	)
	check(t, s, map[string]request{
		"user":              {person("bob"), get("pods", "ns", "p"), true},
		"other namespace":   {person("bob"), get("pods", "other", "p"), false},
		"all namespaces":    {person("bob"), verb("list", "pods", "", ""), false},
		"other verb":        {person("bob"), verb("delete", "pods", "ns", "p"), false},
		"account":           {person("system:serviceaccount:ns:robot"), get("pods", "ns", "p"), true},
		"alien account":     {person("system:serviceaccount:other:robot"), get("pods", "ns", "p"), false},
		"group":             {person("ann", "devs"), get("pods", "ns", "p"), true},
		"named":             {person("bob"), get("secrets", "ns", "mine"), true},
		"not named":         {person("bob"), get("secrets", "ns", "yours"), false},
		"aggregated role":   {person("eve"), verb("watch", "configmaps", "ns", ""), true},
		"view, not secrets": {person("eve"), get("secrets", "ns", "mine"), false},
		"missing role":      {person("lost"), get("pods", "ns", "p"), false},
		"subresource": {person("bob"), func() authorizer.AttributesRecord {
			a := get("pods", "ns", "p")
			a.Subresource = "log"
			return a
		}(), true},
		"other subresource": {person("bob"), func() authorizer.AttributesRecord {
			a := get("pods", "ns", "p")
			a.Subresource = "exec"
			return a
		}(), false},
	})
}

// TestNode: a device sees what its own Pods use, and nothing else.
func TestNode(t *testing.T) {
	s := fresh(t)
	pod := func(name, node, secret string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta("ns", name), Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "sa-" + name,
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull-" + name}},
			Containers: []corev1.Container{{Name: "c", EnvFrom: []corev1.EnvFromSource{
				{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm-" + name}}}}}},
			Volumes: []corev1.Volume{
				{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}},
				{Name: "c", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "pvc-" + name}}},
			},
		}}
	}
	s.pods = []*corev1.Pod{pod("a", "n1", "sec-a"), pod("b", "n2", "sec-b")}
	n1 := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup, user.AllAuthenticated}}
	impostor := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.AllAuthenticated}}
	selected := func(v, node string) authorizer.AttributesRecord {
		a := verb(v, "pods", "", "")
		a.FieldSelectorRequirements = fields.OneTermEqualSelector("spec.nodeName", node).Requirements()
		return a
	}
	sub := func(v, resource, ns, name, sub string) authorizer.AttributesRecord {
		a := verb(v, resource, ns, name)
		a.Subresource = sub
		return a
	}
	lease := func(v, name string) authorizer.AttributesRecord {
		a := verb(v, "leases", "kube-node-lease", name)
		a.APIGroup = "coordination.k8s.io"
		return a
	}
	check(t, s, map[string]request{
		"own volume secret":     {n1, get("secrets", "ns", "sec-a"), true},
		"own pull secret":       {n1, get("secrets", "ns", "pull-a"), true},
		"watch own secret":      {n1, verb("watch", "secrets", "ns", "sec-a"), true},
		"alien secret":          {n1, get("secrets", "ns", "sec-b"), false},
		"same name elsewhere":   {n1, get("secrets", "other", "sec-a"), false},
		"all secrets":           {n1, verb("list", "secrets", "ns", ""), false},
		"write own secret":      {n1, verb("update", "secrets", "ns", "sec-a"), false},
		"own config":            {n1, get("configmaps", "ns", "cm-a"), true},
		"alien config":          {n1, get("configmaps", "ns", "cm-b"), false},
		"own claim":             {n1, get("persistentvolumeclaims", "ns", "pvc-a"), true},
		"alien claim":           {n1, get("persistentvolumeclaims", "ns", "pvc-b"), false},
		"own volume":            {n1, get("persistentvolumes", "", "pv-of-pvc-a"), true},
		"alien volume":          {n1, get("persistentvolumes", "", "pv-of-pvc-b"), false},
		"volume of nobody":      {n1, get("persistentvolumes", "", "free"), false},
		"all volumes":           {n1, verb("list", "persistentvolumes", "", ""), false},
		"own token":             {n1, sub("create", "serviceaccounts", "ns", "sa-a", "token"), true},
		"alien token":           {n1, sub("create", "serviceaccounts", "ns", "sa-b", "token"), false},
		"own pods":              {n1, selected("watch", "n1"), true},
		"alien pods":            {n1, selected("watch", "n2"), false},
		"all pods":              {n1, verb("list", "pods", "", ""), false},
		"own pod":               {n1, get("pods", "ns", "a"), true},
		"alien pod":             {n1, get("pods", "ns", "b"), false},
		"own node":              {n1, get("nodes", "", "n1"), true},
		"alien node":            {n1, get("nodes", "", "n2"), false},
		"delete node":           {n1, verb("delete", "nodes", "", "n1"), false},
		"pod status":            {n1, sub("update", "pods", "ns", "a", "status"), true}, // whose, admission decides
		"exec":                  {n1, sub("create", "pods", "ns", "a", "exec"), false},
		"own lease":             {n1, lease("update", "n1"), true},
		"alien lease":           {n1, lease("update", "n2"), false},
		"services by the role":  {n1, verb("list", "services", "", ""), true},
		"roles":                 {n1, verb("list", "clusterroles", "", ""), false},
		"name without group":    {impostor, get("secrets", "ns", "sec-a"), false},
		"person in place of it": {person("bob"), get("secrets", "ns", "sec-a"), false},
	})
}

// BenchmarkAuthorize measures a ServiceAccount's request in a fresh cluster.
func BenchmarkAuthorize(b *testing.B) {
	s := &state{}
	objs, err := authz.BootstrapObjects()
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range objs {
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			s.clusterRoles = append(s.clusterRoles, o)
		case *rbacv1.ClusterRoleBinding:
			s.clusterRoleBindings = append(s.clusterRoleBindings, o)
		}
	}
	a, err := authz.New(s)
	if err != nil {
		b.Fatal(err)
	}
	attrs := get("pods", "ns", "p")
	attrs.User = person("system:serviceaccount:ns:a", "system:serviceaccounts")
	b.ReportAllocs()
	for b.Loop() {
		a.Authorize(context.Background(), attrs)
	}
}
