package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/scheduler"
)

func start(t *testing.T) *registry.Registry {
	t.Helper()
	reg := registrytest.New(t)
	run(t, reg)
	return reg
}

func run(t *testing.T, reg *registry.Registry) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- scheduler.Run(ctx, scheduler.Config{Registry: reg}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler.Run: %v", err)
		}
	})
}

func await(t *testing.T, what string, cond func() string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		last := cond()
		if last == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s: %s", what, last)
		}
	}
}

func makeNode(t *testing.T, reg *registry.Registry, name, cpu string) {
	t.Helper()
	_, err := registry.For[*corev1.Node](reg).Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("200"),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func makePod(t *testing.T, reg *registry.Registry, name, cpu string, priority int32) *corev1.Pod {
	t.Helper()
	p, err := registry.For[*corev1.Pod](reg).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{{
			Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func bound(reg *registry.Registry, name string) func() string {
	return func() string {
		p, ok := registry.For[*corev1.Pod](reg).Get("default", name)
		if !ok || p.Spec.NodeName == "" {
			return fmt.Sprintf("%v", p)
		}
		return ""
	}
}

func TestManyPods(t *testing.T) {
	reg := start(t)
	makeNode(t, reg, "n1", "64")
	for i := range 100 {
		makePod(t, reg, fmt.Sprintf("p%d", i), "100m", 0)
	}
	await(t, "100 pods on the node", func() string {
		if n := len(registry.For[*corev1.Pod](reg).ByIndex(registry.IndexNode, "n1")); n != 100 {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// A Pod that fits nowhere says so once, costs nothing while it waits, and is
// scheduled when a node comes.
func TestWaitsForWhatHelps(t *testing.T) {
	reg := start(t)
	makeNode(t, reg, "small", "1")
	makePod(t, reg, "big", "2", 0)
	pods := registry.For[*corev1.Pod](reg)
	await(t, "the reason", func() string {
		p, _ := pods.Get("default", "big")
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == "Unschedulable" && len(registry.For[*corev1.Event](reg).List("default")) == 1 {
				if want := "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."; c.Message != want {
					t.Fatalf("got  %s\nwant %s", c.Message, want)
				}
				return ""
			}
		}
		return fmt.Sprintf("%+v", p.Status)
	})
	rev := reg.Revision()
	time.Sleep(100 * time.Millisecond)
	if now := reg.Revision(); now != rev {
		t.Errorf("revision went from %d to %d while nothing happened", rev, now)
	}
	makeNode(t, reg, "large", "4")
	await(t, "the pod to be bound", bound(reg, "big"))
	if p, _ := pods.Get("default", "big"); p.Spec.NodeName != "large" {
		t.Errorf("bound to %s", p.Spec.NodeName)
	}
}

func TestPreemption(t *testing.T) {
	reg := start(t)
	makeNode(t, reg, "n1", "2")
	makePod(t, reg, "low", "2", 1)
	await(t, "the first pod", bound(reg, "low"))
	makePod(t, reg, "high", "2", 10)
	pods := registry.For[*corev1.Pod](reg)
	await(t, "the victim to be marked and deleted", func() string {
		p, ok := pods.Get("default", "low")
		if !ok {
			return "it is gone without a mark"
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.DisruptionTarget && p.DeletionTimestamp != nil {
				return ""
			}
		}
		return fmt.Sprintf("%+v", p.Status)
	})
	await(t, "the nomination", func() string {
		if p, _ := pods.Get("default", "high"); p.Status.NominatedNodeName != "n1" {
			return fmt.Sprintf("%+v", p.Status)
		}
		return ""
	})
	if err := pods.Delete(t.Context(), "default", "low", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	await(t, "the preemptor", bound(reg, "high"))
}

// refusing lets no Pod be deleted the first times.
type refusing struct{ left atomic.Int32 }

func (r *refusing) Admit(context.Context, *registry.Attributes) error { return nil }
func (r *refusing) Validate(_ context.Context, a *registry.Attributes) error {
	if a.Operation == admission.Delete && r.left.Add(-1) >= 0 {
		return errors.New("not now")
	}
	return nil
}

// TestPreemptionIsTriedAgain: a victim that could not be removed does not leave the Pod
// waiting for an end that nobody brings about.
func TestPreemptionIsTriedAgain(t *testing.T) {
	reg := registrytest.New(t)
	refuses := &refusing{}
	refuses.left.Store(1)
	reg.SetAdmission(refuses)
	run(t, reg)
	makeNode(t, reg, "n1", "2")
	makePod(t, reg, "low", "2", 1)
	await(t, "the first pod", bound(reg, "low"))
	makePod(t, reg, "high", "2", 10)
	await(t, "the victim to be deleted", func() string {
		if p, ok := registry.For[*corev1.Pod](reg).Get("default", "low"); ok && p.DeletionTimestamp == nil {
			return fmt.Sprintf("%+v", p.Status)
		}
		return ""
	})
}

func TestSchedulingGates(t *testing.T) {
	reg := start(t)
	makeNode(t, reg, "n1", "2")
	pods := registry.For[*corev1.Pod](reg)
	_, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "gated", Namespace: "default"},
		Spec:       corev1.PodSpec{SchedulingGates: []corev1.PodSchedulingGate{{Name: "x.io/wait"}}, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	makePod(t, reg, "free", "1", 0)
	await(t, "the pod without a gate", bound(reg, "free"))
	if p, _ := pods.Get("default", "gated"); p.Spec.NodeName != "" {
		t.Fatal("a gated pod was bound")
	}
	if _, err := pods.Update(t.Context(), "default", "gated", func(p *corev1.Pod) error { p.Spec.SchedulingGates = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	await(t, "the gate to open", bound(reg, "gated"))
}

// A Pod whose claims wait for it is bound once they are: a volume that is there is
// reserved on the node that has it, one that is not is asked for on the node that the
// Pod gets, which keeps room for it.
func TestWaitsForItsVolumes(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	claims, volumes := registry.For[*corev1.PersistentVolumeClaim](reg), registry.For[*corev1.PersistentVolume](reg)
	for _, name := range []string{"n", "m"} {
		makeNode(t, reg, name, "1")
		if _, err := registry.For[*corev1.Node](reg).Update(ctx, "", name, func(n *corev1.Node) error {
			n.Labels = map[string]string{corev1.LabelHostname: name}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	mode := storagev1.VolumeBindingWaitForFirstConsumer
	for name, provisioner := range map[string]string{"makes": "example.com/p", "finds": "kubernetes.io/no-provisioner"} {
		if _, err := registry.For[*storagev1.StorageClass](reg).Create(ctx, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}); err != nil {
			t.Fatal(err)
		}
	}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	once := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	if _, err := volumes.Create(ctx, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "there"}, Spec: corev1.PersistentVolumeSpec{
		StorageClassName: "finds", Capacity: size, AccessModes: once,
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/there"}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"m"}}},
		}}}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.UpdateStatus(ctx, "", "there", func(pv *corev1.PersistentVolume) error { pv.Status.Phase = corev1.VolumeAvailable; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, class := range map[string]string{"made": "makes", "found": "finds"} {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: once, Resources: corev1.VolumeResourceRequirements{Requests: size},
		}}
		if _, err := claims.Create(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	pods := registry.For[*corev1.Pod](reg)
	template := func(name string, of ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}},
		}}}}
		for _, name := range of {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
		}
		return p
	}
	if _, err := pods.Create(ctx, template("p", "made", "found")); err != nil {
		t.Fatal(err)
	}
	await(t, "both claims to be decided", func() string {
		made, _ := claims.Get("default", "made")
		pv, _ := volumes.Get("", "there")
		if made.Annotations["volume.kubernetes.io/selected-node"] != "m" || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Name != "found" {
			return fmt.Sprintf("%v, %v", made.Annotations, pv.Spec.ClaimRef)
		}
		return ""
	})
	// Nobody else gets the room that p will need.
	if _, err := pods.Create(ctx, template("other")); err != nil {
		t.Fatal(err)
	}
	await(t, "the other Pod to be bound", bound(reg, "other"))
	if p, _ := pods.Get("default", "other"); p.Spec.NodeName != "n" {
		t.Errorf("the other Pod is on %s", p.Spec.NodeName)
	}
	if p, _ := pods.Get("default", "p"); p.Spec.NodeName != "" {
		t.Errorf("bound to %s before its claims were", p.Spec.NodeName)
	}
	for name, volume := range map[string]string{"found": "there", "made": "new"} {
		if volume == "new" {
			pv, _ := volumes.Get("", "there")
			pv = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: *pv.Spec.DeepCopy()}
			pv.Spec.ClaimRef = nil
			if _, err := volumes.Create(ctx, pv); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := claims.Update(ctx, "default", name, func(c *corev1.PersistentVolumeClaim) error {
			c.Spec.VolumeName = volume
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the Pod to be bound", bound(reg, "p"))
	if p, _ := pods.Get("default", "p"); p.Spec.NodeName != "m" {
		t.Errorf("bound to %s", p.Spec.NodeName)
	}
	for _, e := range registry.For[*corev1.Event](reg).List("default") {
		if e.Reason == "FailedScheduling" {
			t.Errorf("told of a failure: %s", e.Message)
		}
	}
}
