package controller_test

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/controller"
)

// start runs all controllers over an empty cluster; they have ended when the
// test has.
func start(t *testing.T) *registry.Registry {
	t.Helper()
	reg := registrytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- controller.Run(ctx, controller.Config{
			Registry: reg, RootCA: oneCA{}, Tokens: tokenOf{}, ClusterDomain: "cluster.local", ServiceIP: netip.MustParseAddr("10.43.0.1"),
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			APIAddresses: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")} },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller.Run: %v", err)
		}
	})
	return reg
}

// await waits for a state, not for a change.
func await(t *testing.T, what string, cond func() string) {
	t.Helper()
	var last string
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if last = cond(); last == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s: %s", what, last)
		}
	}
}

// quiet fails if anything is written once the controllers had time to.
func quiet(t *testing.T, reg *registry.Registry) {
	t.Helper()
	var rev int64
	await(t, "the controllers to come to rest", func() string {
		was := reg.Revision()
		time.Sleep(150 * time.Millisecond) // longer than any gathering
		if rev = reg.Revision(); rev != was {
			return fmt.Sprintf("revision went from %d to %d", was, rev)
		}
		return ""
	})
}

func newDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "one"}}},
			},
		},
	}
}

// kubelet makes every Pod of the registry run and be ready, and removes what is
// being deleted.
func kubelet(t *testing.T, reg *registry.Registry) {
	t.Helper()
	pods := registry.For[*corev1.Pod](reg)
	ctx, cancel := context.WithCancel(t.Context())
	work := make(chan *corev1.Pod, 10000)
	done := make(chan struct{})
	stop := pods.Subscribe(func(e registry.Event[*corev1.Pod]) { work <- e.Object })
	go func() {
		defer close(done)
		n := 0
		for {
			select {
			case <-ctx.Done():
				return
			case p := <-work:
				cur, ok := pods.Get(p.Namespace, p.Name)
				switch {
				case !ok:
				case cur.DeletionTimestamp != nil:
					_ = pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
				case cur.Status.Phase == corev1.PodPending:
					n++
					_, _ = pods.UpdateStatus(ctx, p.Namespace, p.Name, func(pod *corev1.Pod) error {
						pod.Status.Phase = corev1.PodRunning
						pod.Status.PodIP = fmt.Sprintf("10.42.%d.%d", n/250, n%250+1)
						pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
						pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
						return nil
					})
				}
			}
		}
	}()
	t.Cleanup(func() { stop(); cancel(); <-done })
}

func TestClusterBegins(t *testing.T) {
	reg := start(t)
	await(t, "the namespaces and what is in them", func() string {
		for _, ns := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
			if _, ok := registry.For[*corev1.ServiceAccount](reg).Get(ns, "default"); !ok {
				return "no ServiceAccount in " + ns
			}
			if _, ok := registry.For[*corev1.ConfigMap](reg).Get(ns, "kube-root-ca.crt"); !ok {
				return "no CA in " + ns
			}
		}
		if _, ok := registry.For[*discoveryv1.EndpointSlice](reg).Get("default", "kubernetes"); !ok {
			return "no slice of default/kubernetes"
		}
		return ""
	})
	svc, _ := registry.For[*corev1.Service](reg).Get("default", "kubernetes")
	if svc == nil || svc.Spec.ClusterIP != "10.43.0.1" {
		t.Errorf("default/kubernetes: %+v", svc)
	}
	quiet(t, reg)
	if err := registry.For[*corev1.ConfigMap](reg).Delete(t.Context(), "default", "kube-root-ca.crt", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the CA to come back", func() string {
		if _, ok := registry.For[*corev1.ConfigMap](reg).Get("default", "kube-root-ca.crt"); !ok {
			return "not there"
		}
		return ""
	})
}

// A Deployment is rolled out, changed, scaled and served, and then nothing is
// written any more.
func TestDeploymentLife(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	deployments, sets := registry.For[*appsv1.Deployment](reg), registry.For[*appsv1.ReplicaSet](reg)
	_, err := registry.For[*corev1.Service](reg).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deployments.Create(ctx, newDeployment("web", 10)); err != nil {
		t.Fatal(err)
	}
	complete := func(updated int32) func() string {
		return func() string {
			d, _ := deployments.Get("default", "web")
			s := d.Status
			if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != updated || s.Replicas != updated || s.AvailableReplicas != updated {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}
	}
	await(t, "the first rollout", complete(10))
	_, err = deployments.Update(ctx, "default", "web", func(d *appsv1.Deployment) error {
		d.Spec.Template.Spec.Containers[0].Image = "two"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the second rollout", complete(10))
	if n := len(sets.List("default")); n != 2 {
		t.Errorf("%d ReplicaSets, want 2", n)
	}
	d, _ := deployments.Get("default", "web")
	if rev := d.Annotations["deployment.kubernetes.io/revision"]; rev != "2" {
		t.Errorf("revision %s, want 2", rev)
	}
	if _, err = deployments.Update(ctx, "default", "web", func(d *appsv1.Deployment) error { d.Spec.Replicas = ptr.To[int32](3); return nil }); err != nil {
		t.Fatal(err)
	}
	await(t, "scaling down", complete(3))
	await(t, "three endpoints", func() string {
		e, ok := registry.For[*corev1.Endpoints](reg).Get("default", "web")
		if !ok || len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 3 {
			return fmt.Sprintf("%+v", e)
		}
		for _, s := range registry.For[*discoveryv1.EndpointSlice](reg).List("default") {
			if s.Labels[discoveryv1.LabelServiceName] == "web" && len(s.Endpoints) == 3 {
				return ""
			}
		}
		return "no slice with three endpoints"
	})
	quiet(t, reg)
}

// A Service without a selector has the slices of the Endpoints that somebody made
// for it, as long as both are there.
func TestEndpointsAreMirrored(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	services, endpoints := registry.For[*corev1.Service](reg), registry.For[*corev1.Endpoints](reg)
	mirrored := func(want string) func() string {
		return func() string {
			got := ""
			for _, s := range registry.For[*discoveryv1.EndpointSlice](reg).List("default") {
				if s.Labels[discoveryv1.LabelServiceName] == "db" {
					for _, e := range s.Endpoints {
						got += e.Addresses[0] + " "
					}
				}
			}
			if got != want {
				return fmt.Sprintf("%q, want %q", got, want)
			}
			return ""
		}
	}
	custom := func() *corev1.Endpoints {
		return &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default"}, Subsets: []corev1.EndpointSubset{{
			Ports: []corev1.EndpointPort{{Port: 5432}}, Addresses: []corev1.EndpointAddress{{IP: "10.1.2.3"}},
		}}}
	}
	if _, err := endpoints.Create(ctx, custom()); err != nil {
		t.Fatal(err)
	}
	quiet(t, reg)
	if got := mirrored("")(); got != "" {
		t.Errorf("without a Service: %s", got)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 5432}}}}
	if _, err := services.Create(ctx, svc); err != nil {
		t.Fatal(err)
	}
	await(t, "a slice", mirrored("10.1.2.3 "))
	_, err := endpoints.Update(ctx, "default", "db", func(e *corev1.Endpoints) error { e.Subsets[0].Addresses[0].IP = "10.2.3.4"; return nil })
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the change", mirrored("10.2.3.4 "))
	if err := endpoints.Delete(ctx, "default", "db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the slice to go", mirrored(""))
	if _, err := endpoints.Create(ctx, custom()); err != nil {
		t.Fatal(err)
	}
	await(t, "a slice again", mirrored("10.1.2.3 "))
	_, err = services.Update(ctx, "default", "db", func(s *corev1.Service) error { s.Spec.Selector = map[string]string{"app": "db"}; return nil })
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the slice to go with a selector", mirrored(""))
	quiet(t, reg)
}

func TestNamespaceIsEmptied(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	namespaces := registry.For[*corev1.Namespace](reg)
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gone"}}); err != nil {
		t.Fatal(err)
	}
	d := newDeployment("web", 3)
	d.Namespace = "gone"
	if _, err := registry.For[*appsv1.Deployment](reg).Create(ctx, d); err != nil {
		t.Fatal(err)
	}
	await(t, "pods", func() string {
		return map[bool]string{false: "too few"}[len(registry.For[*corev1.Pod](reg).List("gone")) == 3]
	})
	if err := namespaces.Delete(ctx, "", "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the namespace to go", func() string {
		ns, ok := namespaces.Get("", "gone")
		if ok {
			return fmt.Sprintf("%+v", ns.Status)
		}
		return ""
	})
}

// A ReplicationController keeps its number of Pods, takes in orphans that match,
// and its status can be read.
func TestReplicationController(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	pods, rcs := registry.For[*corev1.Pod](reg), registry.For[*corev1.ReplicationController](reg)
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "old"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "one"}}}}
	await(t, "the ServiceAccount", func() string {
		if _, ok := registry.For[*corev1.ServiceAccount](reg).Get("default", "default"); !ok {
			return "not there"
		}
		return ""
	})
	if _, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "orphan", Namespace: "default", Labels: template.Labels}, Spec: template.Spec}); err != nil {
		t.Fatal(err)
	}
	_, err := rcs.Create(ctx, &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "old", Namespace: "default"},
		Spec:       corev1.ReplicationControllerSpec{Replicas: ptr.To[int32](3), Selector: template.Labels, Template: &template},
	})
	if err != nil {
		t.Fatal(err)
	}
	size := func(n int32) func() string {
		return func() string {
			rc, _ := rcs.Get("default", "old")
			if s := rc.Status; s.Replicas != n || s.AvailableReplicas != n || s.ObservedGeneration != rc.Generation {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}
	}
	await(t, "three Pods", size(3))
	if p, ok := pods.Get("default", "orphan"); !ok || metav1.GetControllerOfNoCopy(p) == nil || metav1.GetControllerOfNoCopy(p).Kind != "ReplicationController" {
		t.Error("the orphan was not taken in")
	}
	if _, err := rcs.Update(ctx, "default", "old", func(rc *corev1.ReplicationController) error { rc.Spec.Replicas = ptr.To[int32](1); return nil }); err != nil {
		t.Fatal(err)
	}
	await(t, "one Pod", size(1))
	quiet(t, reg)
}

// oneCA is a CA that is never replaced.
type oneCA struct{}

func (oneCA) CAPEM() []byte              { return []byte("CA") }
func (oneCA) FrontProxyName() string     { return "front" }
func (oneCA) CAChanged() <-chan struct{} { return nil }
