package admission_test

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiadmission "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"edged/apiserver/admission"
	"edged/apiserver/authz"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// cluster is a registry behind the chain, with the namespace "ns".
type cluster struct {
	t     *testing.T
	reg   *registry.Registry
	chain *admission.Chain
}

func newCluster(t *testing.T, labels map[string]string) *cluster {
	t.Helper()
	c := &cluster{t: t, reg: registrytest.New(t)}
	decide, err := authz.New(authz.FromRegistry(c.reg))
	must(t, err)
	c.chain, err = admission.New(admission.Config{Registry: c.reg, Escalation: decide, Authorizer: decide})
	must(t, err)
	c.reg.SetAdmission(c.chain)
	_, err = registry.For[*corev1.Namespace](c.reg).Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: labels}})
	must(t, err)
	_, err = registry.For[*corev1.ServiceAccount](c.reg).Create(context.Background(), &corev1.ServiceAccount{
		ObjectMeta:       metav1.ObjectMeta{Namespace: "ns", Name: "default"},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
	})
	must(t, err)
	return c
}

func (c *cluster) pod(change func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if change != nil {
		change(pod)
	}
	return registry.For[*corev1.Pod](c.reg).Create(context.Background(), pod)
}

func TestPodIsCompleted(t *testing.T) {
	c := newCluster(t, nil)
	pod, err := c.pod(nil)
	must(t, err)
	if pod.Spec.ServiceAccountName != "default" || pod.Spec.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("account %q, pull secrets %v", pod.Spec.ServiceAccountName, pod.Spec.ImagePullSecrets)
	}
	if len(pod.Spec.Volumes) != 1 || !strings.HasPrefix(pod.Spec.Volumes[0].Name, "kube-api-access-") || len(pod.Spec.Volumes[0].Projected.Sources) != 3 {
		t.Errorf("volumes %v", pod.Spec.Volumes)
	}
	if m := pod.Spec.Containers[0].VolumeMounts; len(m) != 1 || m[0].Name != pod.Spec.Volumes[0].Name || !m[0].ReadOnly {
		t.Errorf("mounts %v", m)
	}
	if len(pod.Spec.Tolerations) != 2 || *pod.Spec.Tolerations[0].TolerationSeconds != 10 {
		t.Errorf("tolerations %v", pod.Spec.Tolerations)
	}
	if *pod.Spec.Priority != 0 || *pod.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("priority %v, preemption %v", *pod.Spec.Priority, *pod.Spec.PreemptionPolicy)
	}
}

func TestAutomountOff(t *testing.T) {
	c := newCluster(t, nil)
	off := false
	pod, err := c.pod(func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = &off })
	must(t, err)
	if len(pod.Spec.Volumes) != 0 || len(pod.Spec.Containers[0].VolumeMounts) != 0 {
		t.Errorf("a token was mounted: %v", pod.Spec.Volumes)
	}
}

// TestRefused lists what must not get in, with upstream's words.
func TestRefused(t *testing.T) {
	restricted := map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	for name, tt := range map[string]struct {
		labels map[string]string
		change func(*corev1.Pod)
		want   string
	}{
		"namespace missing": {nil, func(p *corev1.Pod) { p.Namespace = "other" }, `namespaces "other" not found`},
		"account missing": {nil, func(p *corev1.Pod) { p.Spec.ServiceAccountName = "robot" },
			`pods "p" is forbidden: error looking up service account ns/robot: serviceaccount "robot" not found`},
		"class missing": {nil, func(p *corev1.Pod) { p.Spec.PriorityClassName = "gold" },
			`pods "p" is forbidden: no PriorityClass with name gold was found`},
		"restricted": {restricted, nil, `pods "p" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false)`},
		"mirror with account": {nil, func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			p.Spec.ServiceAccountName, p.Spec.NodeName = "default", "n"
		}, `a mirror pod may not reference service accounts`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newCluster(t, tt.labels).pod(tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestPriorityClass(t *testing.T) {
	c := newCluster(t, nil)
	classes := registry.For[*schedulingv1.PriorityClass](c.reg)
	_, err := classes.Create(context.Background(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, Value: 7, GlobalDefault: true})
	must(t, err)
	pod, err := c.pod(nil)
	must(t, err)
	if pod.Spec.PriorityClassName != "gold" || *pod.Spec.Priority != 7 {
		t.Errorf("class %q, priority %d", pod.Spec.PriorityClassName, *pod.Spec.Priority)
	}
	_, err = classes.Create(context.Background(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "other"}, GlobalDefault: true})
	if err == nil || !strings.Contains(err.Error(), "PriorityClass gold is already marked as default") {
		t.Errorf("two defaults: %v", err)
	}
}

func TestLimitRange(t *testing.T) {
	c := newCluster(t, nil)
	list := func(cpu string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	_, err := registry.For[*corev1.LimitRange](c.reg).Create(context.Background(), &corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "l"},
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypeContainer, Default: list("500m"), DefaultRequest: list("100m"), Max: list("1"), Min: list("50m"),
		}}},
	})
	must(t, err)
	pod, err := c.pod(nil)
	must(t, err)
	r := pod.Spec.Containers[0].Resources
	if r.Requests.Cpu().String() != "100m" || r.Limits.Cpu().String() != "500m" ||
		pod.Annotations["kubernetes.io/limit-ranger"] != "LimitRanger plugin set: cpu request for container c; cpu limit for container c" {
		t.Errorf("resources %v, annotations %v", r, pod.Annotations)
	}
	_, err = c.pod(func(p *corev1.Pod) {
		p.Name, p.Spec.Containers[0].Resources.Limits = "big", list("2")
	})
	if err == nil || !strings.Contains(err.Error(), `pods "big" is forbidden: maximum cpu usage per Container is 1, but limit is 2`) {
		t.Errorf("above the maximum: %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	c := newCluster(t, nil)
	ctx := context.Background()
	namespaces := registry.For[*corev1.Namespace](c.reg)
	_, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	must(t, err)
	if err := namespaces.Delete(ctx, "", "default", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("deleting the default namespace: %v", err)
	}
	must(t, namespaces.Delete(ctx, "", "ns", metav1.DeleteOptions{}))
	if _, err := c.pod(nil); !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("creating in an ending namespace: %v", err)
	}
	_, err = namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bad", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "lax"}}})
	if !apierrors.IsInvalid(err) {
		t.Errorf("a label that names no level: %v", err)
	}
}

var device = &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup, user.AllAuthenticated}}

// TestNodeRestriction asks the chain what a device may write.
func TestNodeRestriction(t *testing.T) {
	c := newCluster(t, nil)
	mine, err := c.pod(func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	must(t, err)
	theirs, err := c.pod(func(p *corev1.Pod) { p.Name, p.Spec.NodeName = "q", "n2" })
	must(t, err)
	node := func(labels map[string]string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: labels}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	nodes := schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	accounts := schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	token := func(pod *corev1.Pod) *authenticationv1.TokenRequest {
		return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}}
	}
	for name, tt := range map[string]struct {
		a    registry.Attributes
		want string
	}{
		"own node":     {registry.Attributes{Operation: apiadmission.Create, Resource: nodes, Name: "n1", Object: node(map[string]string{"kubernetes.io/hostname": "n1", "mine": "x"})}, ""},
		"other's node": {registry.Attributes{Operation: apiadmission.Update, Resource: nodes, Name: "n2", Object: node(nil), OldObject: node(nil)}, `node "n1" is not allowed to modify node "n2"`},
		"taint":        {registry.Attributes{Operation: apiadmission.Update, Resource: nodes, Name: "n1", Object: node(nil), OldObject: node(nil, corev1.Taint{Key: "k"})}, `not allowed to modify taints`},
		"label":        {registry.Attributes{Operation: apiadmission.Update, Resource: nodes, Name: "n1", Object: node(map[string]string{"node-restriction.kubernetes.io/x": "1"}), OldObject: node(nil)}, `not allowed to modify labels: node-restriction.kubernetes.io/x`},
		"own status":   {registry.Attributes{Operation: apiadmission.Update, Resource: pods, Subresource: "status", Namespace: "ns", Name: "p", Object: mine, OldObject: mine}, ""},
		"other status": {registry.Attributes{Operation: apiadmission.Update, Resource: pods, Subresource: "status", Namespace: "ns", Name: "q", Object: theirs, OldObject: theirs}, `can only update pod status for pods with spec.nodeName set to itself`},
		"any pod":      {registry.Attributes{Operation: apiadmission.Create, Resource: pods, Namespace: "ns", Name: "z", Object: mine}, `can only create mirror pods`},
		"own token":    {registry.Attributes{Operation: apiadmission.Create, Resource: accounts, Subresource: "token", Namespace: "ns", Name: "default", Object: token(mine)}, ""},
		"other token":  {registry.Attributes{Operation: apiadmission.Create, Resource: accounts, Subresource: "token", Namespace: "ns", Name: "default", Object: token(theirs)}, `bound to a pod scheduled on a different node`},
	} {
		t.Run(name, func(t *testing.T) {
			tt.a.User = device
			err := c.chain.Validate(context.Background(), &tt.a)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestEscalation: who may write roles may not thereby become what they are not.
func TestEscalation(t *testing.T) {
	c := newCluster(t, nil)
	ctx := context.Background()
	rules := []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles"}, ResourceNames: []string{"none"}},
		{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}},
	}
	_, err := registry.For[*rbacv1.ClusterRole](c.reg).Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Rules: rules})
	must(t, err)
	_, err = registry.For[*rbacv1.ClusterRoleBinding](c.reg).Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "writer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "writer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "eve"}},
	})
	must(t, err)
	as := registry.WithUser(ctx, &user.DefaultInfo{Name: "eve", Groups: []string{user.AllAuthenticated}})
	roles := registry.For[*rbacv1.Role](c.reg)
	_, err = roles.Create(as, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "same"}, Rules: rules[1:]})
	must(t, err)
	_, err = roles.Create(as, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "more"},
		Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}}}})
	const want = `roles.rbac.authorization.k8s.io "more" is forbidden: user "eve" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:` +
		"\n" + `{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = registry.For[*rbacv1.RoleBinding](c.reg).Create(as, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "writer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "eve"}},
	})
	must(t, err) // binds what she holds
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestQuotaIsCharged: a quota takes what it has room for and refuses the rest,
// in upstream's words.
func TestQuotaIsCharged(t *testing.T) {
	c := newCluster(t, nil)
	quotas := registry.For[*corev1.ResourceQuota](c.reg)
	hard := corev1.ResourceList{"count/pods": resource.MustParse("2"), "pods": resource.MustParse("1")}
	_, err := quotas.Create(context.Background(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}})
	must(t, err)
	_, err = quotas.UpdateStatus(context.Background(), "ns", "q", func(q *corev1.ResourceQuota) error {
		q.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{"count/pods": resource.MustParse("0"), "pods": resource.MustParse("0")}}
		return nil
	})
	must(t, err)
	_, err = c.pod(nil)
	must(t, err)
	_, err = c.pod(func(p *corev1.Pod) { p.Name = "second" })
	if want := `pods "second" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	q, _ := quotas.Get("ns", "q")
	if n := q.Status.Used["count/pods"]; n.Value() != 1 {
		t.Errorf("used %v", q.Status.Used)
	}
}

// Claims get the default class, the newest of several, unless they name one or none;
// claims and volumes their finalizers; and only claims of classes that can grow do.
func TestClaims(t *testing.T) {
	c := newCluster(t, nil)
	ctx := context.Background()
	claims, classes := registry.For[*corev1.PersistentVolumeClaim](c.reg), registry.For[*storagev1.StorageClass](c.reg)
	claim := func(name string, class *string) *corev1.PersistentVolumeClaim {
		t.Helper()
		got, err := claims.Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			},
		})
		must(t, err)
		return got
	}
	if got := claim("before", nil); got.Spec.StorageClassName != nil || len(got.Finalizers) != 1 || got.Finalizers[0] != "kubernetes.io/pvc-protection" {
		t.Errorf("%+v", got)
	}
	grows := true
	for _, name := range []string{"b", "a", "other"} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "example.com/p"}
		if name != "other" {
			class.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
		}
		if name == "b" {
			class.AllowVolumeExpansion = &grows
		}
		_, err := classes.Create(ctx, class)
		must(t, err)
	}
	a, _ := classes.Get("", "a")
	b, _ := classes.Get("", "b")
	want := "a" // made in one second: the first by name
	if b.CreationTimestamp.After(a.CreationTimestamp.Time) {
		want = "b"
	}
	none, other, able := "", "other", "b"
	if got := claim("default", nil); got.Spec.StorageClassName == nil || *got.Spec.StorageClassName != want {
		t.Errorf("class %v, want %s", got.Spec.StorageClassName, want)
	}
	if got := claim("none", &none); *got.Spec.StorageClassName != "" {
		t.Errorf("class %q", *got.Spec.StorageClassName)
	}
	pv, err := registry.For[*corev1.PersistentVolume](c.reg).Create(ctx, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.PersistentVolumeSpec{
		Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}},
	}})
	must(t, err)
	if len(pv.Finalizers) != 1 || pv.Finalizers[0] != "kubernetes.io/pv-protection" {
		t.Errorf("finalizers %v", pv.Finalizers)
	}
	claim("fixed", &other)
	claim("able", &able)
	grow := func(name string) error {
		_, err := claims.Update(ctx, "ns", name, func(c *corev1.PersistentVolumeClaim) error {
			c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
			return nil
		})
		return err
	}
	for _, name := range []string{"fixed", "able"} {
		_, err := claims.UpdateStatus(ctx, "ns", name, func(c *corev1.PersistentVolumeClaim) error { c.Status.Phase = corev1.ClaimBound; return nil })
		must(t, err)
	}
	if err := grow("fixed"); err == nil || !strings.Contains(err.Error(), "the storageclass that provisions the pvc must support resize") {
		t.Errorf("a class that cannot grow: %v", err)
	}
	must(t, grow("able"))
}
