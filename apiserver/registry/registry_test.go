package registry_test

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/codec"
	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

var (
	configMaps  = schema.GroupResource{Resource: "configmaps"}
	podsRes     = schema.GroupResource{Resource: "pods"}
	deployments = schema.GroupResource{Group: "apps", Resource: "deployments"}
)

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Data: map[string]string{"n": "0"}}
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "a"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i:1"}}},
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func names(items []runtime.Object) string {
	var out []string
	for _, o := range items {
		out = append(out, o.(metav1.Object).GetName())
	}
	return strings.Join(out, " ")
}

// TestPagesShowOneRevision: pages of a list are of the revision of the first,
// whatever is written meanwhile, and count what is left.
func TestPagesShowOneRevision(t *testing.T) {
	store := registrytest.NewMemStore()
	now := time.Unix(1_700_000_000, 0)
	r := registrytest.NewWith(t, registry.Config{Store: store, Clock: func() time.Time { return now }})
	cm := registry.For[*corev1.ConfigMap](r)
	for i := range 5 {
		must(cm.Create(t.Context(), configMap(fmt.Sprintf("c%d", i))))(t)
	}
	first := must(r.List(t.Context(), configMaps, "ns", registry.ListOptions{Limit: 2}))(t)
	if names(first.Items) != "c0 c1" || first.Continue == "" || first.Remaining == nil || *first.Remaining != 3 {
		t.Fatalf("first page: %s, remaining %v, continue %q", names(first.Items), first.Remaining, first.Continue)
	}
	must(cm.Create(t.Context(), configMap("c2a")))(t)
	if err := cm.Delete(t.Context(), "ns", "c3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second := must(r.List(t.Context(), configMaps, "ns", registry.ListOptions{Limit: 2, Continue: first.Continue}))(t)
	if names(second.Items) != "c2 c3" || second.Revision != first.Revision || *second.Remaining != 1 {
		t.Errorf("second page: %s at %d, want c2 c3 at %d", names(second.Items), second.Revision, first.Revision)
	}
	third := must(r.List(t.Context(), configMaps, "ns", registry.ListOptions{Limit: 2, Continue: second.Continue}))(t)
	if names(third.Items) != "c4" || third.Continue != "" || third.Remaining != nil {
		t.Errorf("third page: %s, continue %q", names(third.Items), third.Continue)
	}

	expired := func(what string) {
		t.Helper()
		_, err := r.List(t.Context(), configMaps, "ns", registry.ListOptions{Limit: 2, Continue: first.Continue})
		if !apierrors.IsResourceExpired(err) || !strings.Contains(err.Error(), "use the continue token in this response") {
			t.Fatalf("%s: %v, want 410", what, err)
		}
		token := err.(*apierrors.StatusError).ErrStatus.ListMeta.Continue
		rest := must(r.List(t.Context(), configMaps, "ns", registry.ListOptions{Continue: token}))(t)
		if names(rest.Items) != "c2 c2a c4" {
			t.Errorf("%s: the inconsistent rest is %s", what, names(rest.Items))
		}
	}
	now = now.Add(6 * time.Minute)
	expired("an old token")
	now = now.Add(-6 * time.Minute)
	store.Compact(r.Revision())
	expired("a token of compacted history")
}

func TestResourceVersionsOfReads(t *testing.T) {
	store := registrytest.NewMemStore()
	r := registrytest.NewWith(t, registry.Config{Store: store})
	cm := registry.For[*corev1.ConfigMap](r)
	a := must(cm.Create(t.Context(), configMap("a")))(t)
	must(cm.Create(t.Context(), configMap("b")))(t)
	list := func(o registry.ListOptions) (string, error) {
		l, err := r.List(t.Context(), configMaps, "ns", o)
		if err != nil {
			return "", err
		}
		return names(l.Items), nil
	}
	exact := registry.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}
	if got, err := list(exact); got != "a" {
		t.Errorf("exact: %q, %v", got, err)
	}
	if got, err := list(registry.ListOptions{ResourceVersion: a.ResourceVersion}); got != "a b" {
		t.Errorf("not older than: %q, %v", got, err)
	}
	if got, err := list(registry.ListOptions{ResourceVersion: a.ResourceVersion, Limit: 5}); got != "a" {
		t.Errorf("a limit makes a version exact: %q, %v", got, err)
	}
	_, err := list(registry.ListOptions{ResourceVersion: strconv.FormatInt(r.Revision()+100, 10)})
	if !apierrors.IsTimeout(err) || !strings.Contains(err.Error(), "Too large resource version") || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("the future: %v", err)
	}
	if _, err := list(registry.ListOptions{ResourceVersion: "x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := list(registry.ListOptions{ResourceVersionMatch: metav1.ResourceVersionMatchExact}); !apierrors.IsInvalid(err) {
		t.Errorf("a match without a version: %v", err)
	}
	store.Compact(r.Revision())
	if _, err := list(exact); !apierrors.IsResourceExpired(err) {
		t.Errorf("compacted: %v, want 410", err)
	}
}

func watchFrom(t *testing.T, r *registry.Registry, o registry.ListOptions) *registry.Watch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return must(r.Watch(ctx, configMaps, "ns", o))(t)
}

func next(t *testing.T, w *registry.Watch) watch.Event {
	t.Helper()
	ev, ok := <-w.C()
	if !ok {
		t.Fatal("the watch ended")
	}
	return ev
}

// TestSlowWatchMissesNothing: a watch that nobody reads while thousands of
// changes happen gets them all from the store, in order, and then goes on live.
func TestSlowWatchMissesNothing(t *testing.T) {
	r := registrytest.New(t)
	cm := registry.For[*corev1.ConfigMap](r)
	must(cm.Create(t.Context(), configMap("a")))(t)
	w := watchFrom(t, r, registry.ListOptions{})
	next(t, w)
	const changes = 1500
	change := func(i int) {
		must(cm.Update(t.Context(), "ns", "a", func(c *corev1.ConfigMap) error { c.Data["n"] = strconv.Itoa(i); return nil }))(t)
	}
	for i := 1; i <= changes; i++ {
		change(i)
	}
	last := int64(0)
	for i := 1; i <= changes; i++ {
		ev := next(t, w)
		c := ev.Object.(*corev1.ConfigMap)
		if ev.Type != watch.Modified || c.Data["n"] != strconv.Itoa(i) || registry.ResourceVersion(c) <= last {
			t.Fatalf("change %d: %s n=%s at %s after %d", i, ev.Type, c.Data["n"], c.ResourceVersion, last)
		}
		last = registry.ResourceVersion(c)
	}
	change(changes + 1)
	if ev := next(t, w); ev.Object.(*corev1.ConfigMap).Data["n"] != strconv.Itoa(changes+1) {
		t.Errorf("live again: %v", ev)
	}
}

func TestWatchResumesFromHistory(t *testing.T) {
	store := registrytest.NewMemStore()
	r := registrytest.NewWith(t, registry.Config{Store: store})
	cm := registry.For[*corev1.ConfigMap](r)
	a := must(cm.Create(t.Context(), configMap("a")))(t)
	must(cm.Create(t.Context(), configMap("b")))(t)
	if err := cm.Delete(t.Context(), "ns", "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w := watchFrom(t, r, registry.ListOptions{ResourceVersion: a.ResourceVersion})
	for _, want := range []string{"ADDED b", "DELETED a"} {
		ev := next(t, w)
		if got := fmt.Sprintf("%s %s", ev.Type, ev.Object.(*corev1.ConfigMap).Name); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	must(cm.Create(t.Context(), configMap("c")))(t)
	if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*corev1.ConfigMap).Name != "c" {
		t.Errorf("live: %v", ev)
	}
	store.Compact(r.Revision())
	w = watchFrom(t, r, registry.ListOptions{ResourceVersion: a.ResourceVersion})
	ev := next(t, w)
	status, ok := ev.Object.(*metav1.Status)
	if ev.Type != watch.Error || !ok || status.Code != 410 || !strings.Contains(status.Message, "too old resource version") {
		t.Errorf("compacted: %v", ev)
	}
}

func TestWatchWithInitialEvents(t *testing.T) {
	r := registrytest.New(t)
	cm := registry.For[*corev1.ConfigMap](r)
	must(cm.Create(t.Context(), configMap("a")))(t)
	yes := true
	w := watchFrom(t, r, registry.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
	if ev := next(t, w); ev.Type != watch.Added {
		t.Fatalf("%v", ev)
	}
	ev := next(t, w)
	bookmark := ev.Object.(*corev1.ConfigMap)
	if ev.Type != watch.Bookmark || bookmark.Annotations[metav1.InitialEventsAnnotationKey] != "true" || bookmark.ResourceVersion != strconv.FormatInt(r.Revision(), 10) {
		t.Errorf("%v", ev)
	}
	_, err := r.Watch(t.Context(), configMaps, "ns", registry.ListOptions{SendInitialEvents: &yes})
	if !apierrors.IsInvalid(err) {
		t.Errorf("initial events without a match: %v, want 422", err)
	}
}

// TestWatchSelectorTransitions: an object that comes to match, or ceases to,
// is added and deleted.
func TestWatchSelectorTransitions(t *testing.T) {
	r := registrytest.New(t)
	cm := registry.For[*corev1.ConfigMap](r)
	w := must(r.Watch(t.Context(), configMaps, "", registry.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "a")}))(t)
	defer w.Stop()
	must(cm.Create(t.Context(), configMap("b")))(t)
	must(cm.Create(t.Context(), configMap("a")))(t)
	if ev := next(t, w); ev.Object.(*corev1.ConfigMap).Name != "a" {
		t.Errorf("%v", ev)
	}
}

// TestCacheSurvivesALostWatch: after the store's watch broke, the cache is
// right again, subscribers learn the difference, and API watches end so that
// clients resume.
func TestCacheSurvivesALostWatch(t *testing.T) {
	store := registrytest.NewMemStore()
	r := registrytest.NewWith(t, registry.Config{Store: store})
	cm := registry.For[*corev1.ConfigMap](r)
	must(cm.Create(t.Context(), configMap("a")))(t)
	var mu sync.Mutex
	var seen []string
	cancel := cm.Subscribe(func(e registry.Event[*corev1.ConfigMap]) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprintf("%s %s", e.Type, e.Object.Name))
	})
	defer cancel()
	w := watchFrom(t, r, registry.ListOptions{})
	next(t, w)
	store.BreakWatches()
	for range w.C() { // until it is closed
	}
	must(cm.Create(t.Context(), configMap("b")))(t)
	if _, ok := cm.Get("ns", "b"); !ok {
		t.Error("a write after the break is not in the cache")
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(seen, ", "); got != "ADDED a, ADDED b" {
		t.Errorf("subscriber saw %s", got)
	}
}

// TestUpdatesLoseNothing: counters incremented by many at once end at the sum.
func TestUpdatesLoseNothing(t *testing.T) {
	r := registrytest.New(t)
	cm := registry.For[*corev1.ConfigMap](r)
	must(cm.Create(t.Context(), configMap("a")))(t)
	const workers, each = 4, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				_, err := cm.Update(t.Context(), "ns", "a", func(c *corev1.ConfigMap) error {
					n, err := strconv.Atoi(c.Data["n"])
					c.Data["n"] = strconv.Itoa(n + 1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if c, _ := cm.Get("ns", "a"); c.Data["n"] != strconv.Itoa(workers*each) {
		t.Errorf("n = %s after %d increments", c.Data["n"], workers*each)
	}
}

func TestPodDeletionIsGraceful(t *testing.T) {
	r := registrytest.New(t)
	pods := registry.For[*corev1.Pod](r)
	must(pods.Create(t.Context(), pod("p", "n1")))(t)
	obj, gone, err := r.Delete(t.Context(), podsRes, "ns", "p", metav1.DeleteOptions{})
	if err != nil || gone {
		t.Fatalf("gone %v, %v", gone, err)
	}
	p := obj.(*corev1.Pod)
	if p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 || p.Generation != 2 {
		t.Errorf("marked: %v %v, generation %d", p.DeletionTimestamp, p.DeletionGracePeriodSeconds, p.Generation)
	}
	if _, gone, err = r.Delete(t.Context(), podsRes, "ns", "p", metav1.DeleteOptions{}); err != nil || gone {
		t.Errorf("again: gone %v, %v", gone, err)
	}
	zero := int64(0)
	if _, gone, err = r.Delete(t.Context(), podsRes, "ns", "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil || !gone {
		t.Errorf("by the agent: gone %v, %v", gone, err)
	}
	if got := pods.ByIndex(registry.IndexNode, "n1"); len(got) != 0 {
		t.Errorf("still on the node: %v", got)
	}
}

func TestPropagationFinalizers(t *testing.T) {
	r := registrytest.New(t)
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationForeground: metav1.FinalizerDeleteDependents,
		metav1.DeletePropagationOrphan:     metav1.FinalizerOrphanDependents,
	} {
		name := strings.ToLower(string(policy))
		must(registry.For[*corev1.ConfigMap](r).Create(t.Context(), configMap(name)))(t)
		obj, gone, err := r.Delete(t.Context(), configMaps, "ns", name, metav1.DeleteOptions{PropagationPolicy: &policy})
		if err != nil || gone {
			t.Fatalf("%s: gone %v, %v", policy, gone, err)
		}
		if f := obj.(*corev1.ConfigMap).Finalizers; len(f) != 1 || f[0] != want {
			t.Errorf("%s: finalizers %v", policy, f)
		}
	}
}

func TestBinding(t *testing.T) {
	r := registrytest.New(t)
	pods := registry.For[*corev1.Pod](r)
	must(pods.Create(t.Context(), pod("p", "")))(t)
	bind := func(node string) error {
		_, err := r.CreateSubresource(t.Context(), podsRes, "ns", "p", "binding", &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
		}, registry.CreateOptions{})
		return err
	}
	if err := bind("n1"); err != nil {
		t.Fatal(err)
	}
	if p, _ := pods.Get("ns", "p"); p.Spec.NodeName != "n1" || len(pods.ByIndex(registry.IndexNode, "n1")) != 1 {
		t.Errorf("bound to %q", p.Spec.NodeName)
	}
	if err := bind("n2"); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `already assigned to node "n1"`) {
		t.Errorf("second binding: %v", err)
	}
}

func TestEvictionMindsTheBudget(t *testing.T) {
	r := registrytest.New(t)
	pods, budgets := registry.For[*corev1.Pod](r), registry.For[*policyv1.PodDisruptionBudget](r)
	for _, name := range []string{"p1", "p2"} {
		must(pods.Create(t.Context(), pod(name, "n1")))(t)
		must(pods.UpdateStatus(t.Context(), "ns", name, func(p *corev1.Pod) error {
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			return nil
		}))(t)
	}
	one := intstr.FromInt32(1)
	must(budgets.Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "ns"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}},
	}))(t)
	must(budgets.UpdateStatus(t.Context(), "ns", "b", func(b *policyv1.PodDisruptionBudget) error {
		b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
		return nil
	}))(t)
	evict := func(name string) error {
		_, err := r.CreateSubresource(t.Context(), podsRes, "ns", name, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}}, registry.CreateOptions{})
		return err
	}
	if err := evict("p1"); err != nil {
		t.Fatal(err)
	}
	if p, ok := pods.Get("ns", "p1"); !ok || p.DeletionTimestamp == nil {
		t.Error("p1 is not being deleted")
	}
	if err := evict("p2"); !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), "would violate the pod's disruption budget") {
		t.Errorf("beyond the budget: %v, want 429", err)
	}
}

// refusal admits everything but POSTs to a subresource.
type refusal struct{ saw map[string]string }

func (refusal) Admit(context.Context, *registry.Attributes) error { return nil }

func (f refusal) Validate(_ context.Context, a *registry.Attributes) error {
	if a.Subresource == "" || a.Operation != "CREATE" {
		return nil
	}
	f.saw[a.Subresource] = fmt.Sprintf("%T %s/%s", a.Object, a.Namespace, a.Name)
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, errors.New("refused"))
}

// TestAdmissionOfSubresources: who may refuse a write may refuse an eviction and a
// binding, too.
func TestAdmissionOfSubresources(t *testing.T) {
	f := refusal{map[string]string{}}
	r := registrytest.NewWith(t, registry.Config{Store: registrytest.NewMemStore(), Admission: f})
	pods := registry.For[*corev1.Pod](r)
	must(pods.Create(t.Context(), pod("p", "")))(t)
	meta := metav1.ObjectMeta{Name: "p", Namespace: "ns"}
	for sub, obj := range map[string]runtime.Object{
		"binding":  &corev1.Binding{ObjectMeta: meta, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}},
		"eviction": &policyv1.Eviction{ObjectMeta: meta},
	} {
		want := fmt.Sprintf("%T ns/p", obj)
		if _, err := r.CreateSubresource(t.Context(), podsRes, "ns", "p", sub, obj, registry.CreateOptions{}); !apierrors.IsForbidden(err) || f.saw[sub] != want {
			t.Errorf("%s: %v; admission saw %q, want %q", sub, err, f.saw[sub], want)
		}
	}
	if p, ok := pods.Get("ns", "p"); !ok || p.Spec.NodeName != "" || p.DeletionTimestamp != nil {
		t.Errorf("the Pod was changed: %v", p)
	}
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

// TestServicesShareNoAddress: Services made at the same time have addresses
// and node ports of their own, and give them back.
func TestServicesShareNoAddress(t *testing.T) {
	r := registrytest.New(t)
	svcs := registry.For[*corev1.Service](r)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 8 {
				if _, err := svcs.Create(t.Context(), service(fmt.Sprintf("s%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	ips, ports := map[string]bool{}, map[int32]bool{}
	for _, s := range svcs.List("") {
		ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = true, true
	}
	if len(ips) != 32 || len(ports) != 32 {
		t.Errorf("32 Services have %d addresses and %d node ports", len(ips), len(ports))
	}

	s := service("fixed")
	s.Spec.ClusterIP = svcs.List("")[0].Spec.ClusterIP
	if _, err := svcs.Create(t.Context(), s); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("a taken address: %v", err)
	}
	s = service("fixed")
	s.Spec.Ports[0].NodePort = svcs.List("")[0].Spec.Ports[0].NodePort
	if _, err := svcs.Create(t.Context(), s); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided port is already allocated") {
		t.Errorf("a taken node port: %v", err)
	}

	addresses := schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}
	for _, s := range svcs.List("") {
		if err := svcs.Delete(t.Context(), "ns", s.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.Objects(addresses); n != 0 {
		t.Errorf("%d addresses are still held", n)
	}
}

// TestServiceManifestCanBeSentAgain: a PUT without the allocated fields keeps
// them, and a change of type gives them back.
func TestServiceManifestCanBeSentAgain(t *testing.T) {
	r := registrytest.New(t)
	svcs := registry.For[*corev1.Service](r)
	first := must(svcs.Create(t.Context(), service("s")))(t)
	gr := schema.GroupResource{Resource: "services"}
	obj, _, err := r.Update(t.Context(), gr, "ns", "s", "", func(runtime.Object) (runtime.Object, error) { return service("s"), nil }, registry.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again := obj.(*corev1.Service)
	if again.Spec.ClusterIP != first.Spec.ClusterIP || again.Spec.Ports[0].NodePort != first.Spec.Ports[0].NodePort || again.ResourceVersion != first.ResourceVersion {
		t.Errorf("sent again: %v, was %v", again.Spec, first.Spec)
	}
	ext := must(svcs.Update(t.Context(), "ns", "s", func(s *corev1.Service) error {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
		return nil
	}))(t)
	if ext.Spec.ClusterIP != "" || ext.Spec.Ports[0].NodePort != 0 {
		t.Errorf("ExternalName keeps %v", ext.Spec)
	}
	if n := r.Objects(schema.GroupResource{Group: "networking.k8s.io", Resource: "ipaddresses"}); n != 0 {
		t.Errorf("%d addresses are still held", n)
	}
}

// TestEventsInBothGroups: core/v1 and events.k8s.io/v1 are the same objects.
func TestEventsInBothGroups(t *testing.T) {
	r := registrytest.New(t)
	newGroup := schema.GroupResource{Group: "events.k8s.io", Resource: "events"}
	_, err := r.Create(t.Context(), newGroup, "ns", &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "ns"}, EventTime: metav1.NewMicroTime(time.Unix(1_700_000_000, 0)),
		ReportingController: "example.com/c", ReportingInstance: "c-1", Action: "Testing", Reason: "Test", Type: "Normal",
		Regarding: corev1.ObjectReference{Namespace: "ns", Name: "p"},
	}, registry.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e, ok := registry.For[*corev1.Event](r).Get("ns", "e")
	if !ok || e.InvolvedObject.Name != "p" {
		t.Fatalf("as core/v1: %v", e)
	}
	back := must(codec.ToVersion(e.DeepCopy(), eventsv1.SchemeGroupVersion.WithKind("Event")))(t)
	if back.(*eventsv1.Event).Regarding.Name != "p" {
		t.Errorf("as events.k8s.io/v1: %v", back)
	}
	_, err = r.Create(t.Context(), newGroup, "ns", &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: "bad", Namespace: "ns"}}, registry.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("events.k8s.io/v1 requires more: %v", err)
	}
}

const applied = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":%d,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i:1"}]}}}}`

func apply(r *registry.Registry, ctx context.Context, manager string, replicas int, force bool) (*appsv1.Deployment, bool, error) {
	obj, created, err := r.Patch(ctx, deployments, "ns", "d", "", types.ApplyYAMLPatchType, fmt.Appendf(nil, applied, replicas), registry.PatchOptions{FieldManager: manager, Force: force})
	if err != nil {
		return nil, false, err
	}
	return obj.(*appsv1.Deployment), created, nil
}

// TestServerSideApply: an apply creates, owns its fields, is refused what
// another owns unless forced, and loses what an update takes.
func TestServerSideApply(t *testing.T) {
	r := registrytest.New(t)
	d, created, err := apply(r, t.Context(), "one", 1, false)
	if err != nil || !created || len(d.ManagedFields) != 1 || d.ManagedFields[0].Manager != "one" {
		t.Fatalf("created %v, %v: %v", created, err, d)
	}
	if _, _, err = apply(r, t.Context(), "two", 2, false); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one": .spec.replicas`) {
		t.Errorf("another's field: %v", err)
	}
	if d, _, err = apply(r, t.Context(), "two", 2, true); err != nil || *d.Spec.Replicas != 2 {
		t.Errorf("forced: %v", err)
	}
	// kubectl scale takes the field over.
	_, _, err = r.Patch(t.Context(), deployments, "ns", "d", "scale", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), registry.PatchOptions{FieldManager: "scaler"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = apply(r, t.Context(), "two", 2, false); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "scaler") {
		t.Errorf("after scaling: %v", err)
	}
	if plain := must(registry.For[*corev1.ConfigMap](r).Create(t.Context(), configMap("plain")))(t); plain.ManagedFields != nil {
		t.Errorf("an object that was never applied tracks %v", plain.ManagedFields)
	}
}

func TestInvalidIsUpstreams(t *testing.T) {
	r := registrytest.New(t)
	p := pod("p", "")
	p.Spec.Containers[0].Image = ""
	_, err := registry.For[*corev1.Pod](r).Create(t.Context(), p)
	if !apierrors.IsInvalid(err) || err.Error() != `Pod "p" is invalid: spec.containers[0].image: Required value` {
		t.Errorf("%v", err)
	}
	must(registry.For[*corev1.Pod](r).Create(t.Context(), pod("q", "")))(t)
	_, err = registry.For[*corev1.Pod](r).Update(t.Context(), "ns", "q", func(p *corev1.Pod) error { p.Spec.Containers[0].Name = "other"; return nil })
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "pod updates may not change fields other than") {
		t.Errorf("%v", err)
	}
	_, err = registry.For[*corev1.Pod](r).Update(t.Context(), "ns", "nobody", func(*corev1.Pod) error { return nil })
	if !apierrors.IsNotFound(err) || err.Error() != `pods "nobody" not found` {
		t.Errorf("%v", err)
	}
}

// TestCreateOnUpdate: an update creates an object of the kinds that allow it,
// under the name it was sent to.
func TestCreateOnUpdate(t *testing.T) {
	r := registrytest.New(t)
	endpoints := schema.GroupResource{Resource: "endpoints"}
	put := func(name, inBody string) (bool, error) {
		_, created, err := r.Update(t.Context(), endpoints, "ns", name, "", func(runtime.Object) (runtime.Object, error) {
			return &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: inBody}}, nil // a kind that allows it
		}, registry.UpdateOptions{})
		return created, err
	}
	if created, err := put("e", "e"); err != nil || !created {
		t.Errorf("created %v, %v", created, err)
	}
	if _, err := put("f", "g"); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "does not match the name on the URL") {
		t.Errorf("another name: %v", err)
	}
	if _, _, err := r.Update(t.Context(), configMaps, "ns", "c", "", func(runtime.Object) (runtime.Object, error) { return configMap("c"), nil }, registry.UpdateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a kind that does not: %v", err)
	}
}

// TestCompactionLeavesAnIdleStoreAlone counts what RunCompaction does.
func TestCompactionLeavesAnIdleStoreAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &compacter{MemStore: registrytest.NewMemStore()}
		r, err := registry.New(registry.Config{Store: s.MemStore, Kinds: kinds.All(kinds.Config{})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = r.Run(ctx) })
		running.Go(func() { _ = r.RunCompaction(ctx, s, time.Minute) })
		var written int
		step := func(what string, writes int, d time.Duration, want ...int64) {
			t.Helper()
			for range writes {
				written++
				cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("c", written)}}
				if _, err := registry.For[*corev1.ConfigMap](r).Create(ctx, cm); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(d)
			synctest.Wait()
			if !slices.Equal(s.compactions, want) {
				t.Errorf("%s: compacted at %v, want %v", what, s.compactions, want)
			}
			s.compactions = nil
		}
		step("a start that writes", 10, 90*time.Second)
		step("little history, nobody writes", 0, 10*time.Minute)
		step("a write is not followed by another", 1, 10*time.Minute)
		step("a write", 1, 70*time.Second)
		step("and one in the interval in which it is due", 1, time.Second, 12)
		step("much, and nobody writes", 1200, 10*time.Minute)
		step("much is not waited with", 1, time.Minute, 1214)
		cancel()
		running.Wait()
	})
}

// compacter counts compactions.
type compacter struct {
	*registrytest.MemStore
	compactions []int64
	compacted   int64
}

func (c *compacter) Revision() (current, compacted int64) { return 0, c.compacted }

func (c *compacter) Compact(_ context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	c.compactions = append(c.compactions, req.Revision)
	c.compacted = req.Revision
	return &pb.CompactionResponse{}, nil
}
