package gc_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/apiserver/registry/registrytest"
	"edged/controller/gc"
	"edged/controller/loop"
)

func TestJudge(t *testing.T) {
	ref := func(uid string) metav1.OwnerReference { return metav1.OwnerReference{UID: types.UID(uid)} }
	owners := map[types.UID]gc.Owner{"present": gc.Present, "absent": gc.Absent, "waiting": gc.Waiting, "unknown": gc.Unknown}
	for _, tt := range []struct {
		name string
		refs []string
		dep  gc.Dependents
		fin  []string
		want string
	}{
		{"no owner", nil, gc.Dependents{}, nil, "keep"},
		{"owner there", []string{"present"}, gc.Dependents{}, nil, "keep"},
		{"owner gone", []string{"absent"}, gc.Dependents{}, nil, "delete Background"},
		{"owner gone, wants to orphan", []string{"absent"}, gc.Dependents{}, []string{"orphan"}, "delete Orphan"},
		{"one of two gone", []string{"absent", "present"}, gc.Dependents{}, nil, "drop 1"},
		{"owner cannot be looked up", []string{"absent", "unknown"}, gc.Dependents{}, nil, "drop 1"},
		{"owner waits", []string{"waiting"}, gc.Dependents{}, nil, "delete Background"},
		{"owner waits, with dependents", []string{"waiting"}, gc.Dependents{Any: true}, nil, "delete Foreground"},
		{"a circle", []string{"waiting"}, gc.Dependents{Any: true, Waiting: true}, nil, "unblock, delete Foreground"},
		{"waits, but another is there", []string{"waiting", "present"}, gc.Dependents{}, nil, "drop 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			obj := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Finalizers: tt.fin}}
			for _, r := range tt.refs {
				obj.OwnerReferences = append(obj.OwnerReferences, ref(r))
			}
			v := gc.Judge(obj, func(r metav1.OwnerReference) gc.Owner { return owners[r.UID] }, tt.dep)
			got := "keep"
			switch {
			case len(v.Drop) > 0:
				got = fmt.Sprintf("drop %d", len(v.Drop))
			case v.Unblock:
				got = "unblock, delete " + string(v.Propagation)
			case v.Delete:
				got = "delete " + string(v.Propagation)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

type cluster struct {
	t    *testing.T
	maps registry.Client[*corev1.ConfigMap]
}

func start(t *testing.T) cluster {
	reg := registrytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- gc.Run(ctx, loop.Env{Registry: reg, Events: recorder.New(reg, "test", "", nil), Now: time.Now})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return cluster{t, registry.For[*corev1.ConfigMap](reg)}
}

func (c cluster) create(name string, owners ...*corev1.ConfigMap) *corev1.ConfigMap {
	c.t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	for _, o := range owners {
		cm.OwnerReferences = append(cm.OwnerReferences, refTo(o))
	}
	out, err := c.maps.Create(c.t.Context(), cm)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func refTo(o *corev1.ConfigMap) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: o.UID, BlockOwnerDeletion: ptr.To(true)}
}

func (c cluster) delete(name string, p metav1.DeletionPropagation) {
	c.t.Helper()
	if err := c.maps.Delete(c.t.Context(), "default", name, metav1.DeleteOptions{PropagationPolicy: &p}); err != nil {
		c.t.Fatal(err)
	}
}

func (c cluster) await(what string, cond func() bool) {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("timed out waiting until %s: %v", what, c.maps.List("default"))
		}
	}
}

func (c cluster) gone(names ...string) func() bool {
	return func() bool {
		for _, n := range names {
			if _, ok := c.maps.Get("default", n); ok {
				return false
			}
		}
		return true
	}
}

func TestBackground(t *testing.T) {
	c := start(t)
	a := c.create("a")
	b := c.create("b", a)
	c.create("c", b)
	keep := c.create("keep")
	c.create("shared", a, keep)
	c.delete("a", metav1.DeletePropagationBackground)
	c.await("the chain is gone", c.gone("a", "b", "c"))
	c.await("the shared one has lost its owner", func() bool {
		s, ok := c.maps.Get("default", "shared")
		return ok && len(s.OwnerReferences) == 1
	})
}

func TestForeground(t *testing.T) {
	c := start(t)
	a := c.create("a")
	b := c.create("b", a)
	if _, err := c.maps.Update(t.Context(), "default", "b", func(cm *corev1.ConfigMap) error { cm.Finalizers = []string{"x.io/hold"}; return nil }); err != nil {
		t.Fatal(err)
	}
	c.delete("a", metav1.DeletePropagationForeground)
	c.await("b is being deleted", func() bool { b, ok := c.maps.Get("default", "b"); return ok && b.DeletionTimestamp != nil })
	if c.gone("a")() {
		t.Error("the owner went before its dependent")
	}
	if _, err := c.maps.Update(t.Context(), "default", b.Name, func(cm *corev1.ConfigMap) error { cm.Finalizers = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	c.await("both are gone", c.gone("a", "b"))
}

func TestOrphan(t *testing.T) {
	c := start(t)
	a := c.create("a")
	c.create("b", a)
	c.delete("a", metav1.DeletePropagationOrphan)
	c.await("the owner is gone", c.gone("a"))
	if b, ok := c.maps.Get("default", "b"); !ok || len(b.OwnerReferences) != 0 {
		t.Errorf("the orphan: %v", b)
	}
}

func TestCircle(t *testing.T) {
	c := start(t)
	a := c.create("a")
	b := c.create("b", a)
	d := c.create("c", b)
	if _, err := c.maps.Update(t.Context(), "default", "a", func(cm *corev1.ConfigMap) error {
		cm.OwnerReferences = []metav1.OwnerReference{refTo(d)}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	c.delete("a", metav1.DeletePropagationForeground)
	c.await("the circle is gone", c.gone("a", "b", "c"))
}

func TestAbsentOwner(t *testing.T) {
	c := start(t)
	c.create("b", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "never", UID: "never"}})
	c.await("it is collected", c.gone("b"))
}
