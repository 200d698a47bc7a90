package controller_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/controller"
	"edged/controller/foreign"
	"edged/controller/foreign/foreigntest"
)

func startWith(t *testing.T, others foreign.Servers) *registry.Registry {
	t.Helper()
	reg := registrytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- controller.Run(ctx, controller.Config{
			Registry: reg, RootCA: oneCA{}, Tokens: tokenOf{}, ClusterDomain: "cluster.local", ServiceIP: netip.MustParseAddr("10.43.0.1"), Foreign: others,
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

func named(others *foreigntest.Server, ns string, want ...string) func() string {
	return func() string {
		if got := others.Names(ns); !slices.Equal(got, want) {
			return fmt.Sprintf("it has %v, want %v", got, want)
		}
		return ""
	}
}

// What another server holds is collected with its owners here, and what is here with
// its owners there; in the foreground, too.
func TestForeignOwners(t *testing.T) {
	others := foreigntest.New()
	reg := startWith(t, others)
	maps := registry.For[*corev1.ConfigMap](reg)
	ctx := t.Context()
	create := func(name string, owners ...metav1.OwnerReference) metav1.OwnerReference {
		t.Helper()
		o, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, OwnerReferences: owners}})
		if err != nil {
			t.Fatal(err)
		}
		return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: name, UID: o.UID, BlockOwnerDeletion: ptr.To(true)}
	}
	flunder := func(name string, uid types.UID) metav1.OwnerReference {
		return metav1.OwnerReference{APIVersion: foreigntest.GroupVersion.String(), Kind: "Flunder", Name: name, UID: uid, BlockOwnerDeletion: ptr.To(true)}
	}
	gone := func(name string) func() string {
		return func() string {
			if o, ok := maps.Get("default", name); ok {
				return fmt.Sprintf("it is there: %v", o.ObjectMeta)
			}
			return ""
		}
	}
	deleteMap := func(name string, p metav1.DeletionPropagation) {
		t.Helper()
		if err := maps.Delete(ctx, "default", name, metav1.DeleteOptions{PropagationPolicy: &p}); err != nil {
			t.Fatal(err)
		}
	}

	owner := create("owner")
	others.Put("default", "dependent", owner)
	keeper := create("keeper")
	others.Put("default", "kept", keeper)
	deleteMap("owner", metav1.DeletePropagationBackground)
	await(t, "the dependent to go", named(others, "default", "kept"))

	deleteMap("keeper", metav1.DeletePropagationForeground)
	await(t, "the owner that waited to go", gone("keeper"))
	await(t, "its dependent to go", named(others, "default"))

	uid := others.Put("default", "theirs")
	create("ours", flunder("theirs", uid))
	create("never", flunder("never", "never-was"))
	await(t, "what has no owner to go", gone("never"))
	others.Remove("default", "theirs", metav1.DeletePropagationForeground)
	await(t, "what they owned to go", gone("ours"))
	await(t, "the owner to go after it", named(others, "default"))

	orphaner := others.Put("default", "orphaner")
	create("orphan", flunder("orphaner", orphaner))
	others.Remove("default", "orphaner", metav1.DeletePropagationOrphan)
	await(t, "the owner to go", named(others, "default"))
	if o, ok := maps.Get("default", "orphan"); !ok || len(o.OwnerReferences) != 0 {
		t.Errorf("the orphan is %v", o)
	}

	// Their server does not answer: nothing is concluded until it does.
	uid = others.Put("default", "away")
	others.SetDown(true)
	create("waits", flunder("away", uid))
	create("lost", flunder("lost", "lost"))
	probe := create("probe")
	create("probed", probe)
	deleteMap("probe", metav1.DeletePropagationBackground)
	await(t, "another to be collected", gone("probed"))
	if _, ok := maps.Get("default", "lost"); !ok {
		t.Error("an object was deleted whose owner nobody could be asked for")
	}
	others.SetDown(false)
	await(t, "the one without owner to go", gone("lost"))
	if _, ok := maps.Get("default", "waits"); !ok {
		t.Error("an object whose owner is there was deleted")
	}
	if !slices.Contains(others.Users(), "system:serviceaccount:kube-system:generic-garbage-collector") {
		t.Errorf("who asked: %v", others.Users())
	}
}

// A namespace goes when what others hold in it has gone, and waits for a server that
// does not answer.
func TestForeignInNamespaces(t *testing.T) {
	others := foreigntest.New()
	reg := startWith(t, others)
	namespaces := registry.For[*corev1.Namespace](reg)
	ctx := t.Context()
	for _, name := range []string{"one", "other"} {
		if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
		others.Put(name, "f-"+name)
	}
	others.SetDown(true)
	if err := namespaces.Delete(ctx, "", "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the condition", func() string {
		ns, ok := namespaces.Get("", "one")
		if !ok {
			t.Fatal("the namespace went while a server did not answer")
		}
		for _, c := range ns.Status.Conditions {
			if c.Type == corev1.NamespaceDeletionDiscoveryFailure && c.Status == corev1.ConditionTrue && c.Reason == "DiscoveryFailed" {
				if want := "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: wardle.example.com/v1alpha1: stale GroupVersion discovery: wardle.example.com/v1alpha1"; c.Message != want {
					t.Fatalf("%q, want %q", c.Message, want)
				}
				return ""
			}
		}
		return fmt.Sprint(ns.Status.Conditions)
	})
	others.SetDown(false)
	await(t, "the namespace to go", func() string {
		if ns, ok := namespaces.Get("", "one"); ok {
			return fmt.Sprint(ns.Status)
		}
		return ""
	})
	if got := strings.Join(append(others.Names("one"), others.Names("other")...), " "); got != "f-other" {
		t.Errorf("left: %q", got)
	}
}

func TestForeignInQuotas(t *testing.T) {
	others := foreigntest.New()
	reg := startWith(t, others)
	quotas := registry.For[*corev1.ResourceQuota](reg)
	others.Put("default", "a")
	others.Put("default", "b")
	const counted = corev1.ResourceName("count/flunders.wardle.example.com")
	_, err := quotas.Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "q"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{counted: resource.MustParse("5")}}})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "what is used", func() string {
		q, _ := quotas.Get("default", "q")
		if used := q.Status.Used[counted]; used.Value() != 2 {
			return fmt.Sprint(q.Status)
		}
		return ""
	})
}
