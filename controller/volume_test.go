package controller_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
)

var storage1Gi = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}

func newClaim(name string) *corev1.PersistentVolumeClaim {
	class := ""
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Finalizers: []string{claims.ProtectionFinalizer}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: storage1Gi},
		},
	}
}

func newVolume(name string, policy corev1.PersistentVolumeReclaimPolicy) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{claims.VolumeProtectionFinalizer}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: storage1Gi, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: policy,
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp/x"}},
		},
	}
}

// A claim waits for a volume, is bound to one that comes, is kept while a Pod uses it,
// and leaves its volume behind; two claims never get one volume. Then all is quiet.
func TestClaimsAreBound(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	pvcs, pvs, pods := registry.For[*corev1.PersistentVolumeClaim](reg), registry.For[*corev1.PersistentVolume](reg), registry.For[*corev1.Pod](reg)
	claimIs := func(name string, phase corev1.PersistentVolumeClaimPhase) func() string {
		return func() string {
			if c, ok := pvcs.Get("default", name); !ok || c.Status.Phase != phase {
				return fmt.Sprintf("%v", c)
			}
			return ""
		}
	}
	volumeIs := func(name string, phase corev1.PersistentVolumePhase) func() string {
		return func() string {
			if v, ok := pvs.Get("", name); !ok || v.Status.Phase != phase {
				return fmt.Sprintf("%v", v)
			}
			return ""
		}
	}
	_, err := pvcs.Create(ctx, newClaim("a"))
	must(t, err)
	await(t, "the reason why it waits", func() string {
		for _, e := range registry.For[*corev1.Event](reg).List("default") {
			if e.InvolvedObject.Name == "a" && e.Message == "no persistent volumes available for this claim and no storage class is set" {
				return ""
			}
		}
		return "not told"
	})
	quiet(t, reg)
	_, err = pvs.Create(ctx, newVolume("v", corev1.PersistentVolumeReclaimRetain))
	must(t, err)
	await(t, "the claim to be bound", claimIs("a", corev1.ClaimBound))
	await(t, "the volume to be bound", volumeIs("v", corev1.VolumeBound))
	a, _ := pvcs.Get("default", "a")
	v, _ := pvs.Get("", "v")
	if a.Spec.VolumeName != "v" || v.Spec.ClaimRef.UID != a.UID || a.Status.Capacity.Storage().Cmp(*v.Spec.Capacity.Storage()) != 0 || len(a.Status.AccessModes) != 1 {
		t.Errorf("claim %+v\nvolume %+v", a, v)
	}
	for _, name := range []string{"pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller"} {
		if a.Annotations[name] != "yes" {
			t.Errorf("the claim is not annotated %s: %v", name, a.Annotations)
		}
	}
	if v.Annotations["pv.kubernetes.io/bound-by-controller"] != "yes" {
		t.Errorf("the volume's annotations: %v", v.Annotations)
	}
	_, err = pvcs.Create(ctx, newClaim("b"))
	must(t, err)
	quiet(t, reg)
	await(t, "the second to wait", claimIs("b", corev1.ClaimPending))

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: corev1.PodSpec{
		NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}},
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "a"}}}},
	}}
	_, err = registry.For[*corev1.Node](reg).Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	must(t, err)
	_, err = pods.Create(ctx, pod)
	must(t, err)
	must(t, pvcs.Delete(ctx, "default", "a", metav1.DeleteOptions{}))
	must(t, pvs.Delete(ctx, "", "v", metav1.DeleteOptions{}))
	quiet(t, reg)
	if _, ok := pvcs.Get("default", "a"); !ok {
		t.Error("a claim is gone while a Pod uses it")
	}
	if _, ok := pvs.Get("", "v"); !ok {
		t.Error("a volume is gone while it is bound")
	}
	now := int64(0)
	must(t, pods.Delete(ctx, "default", "p", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	await(t, "both to go", func() string {
		_, claim := pvcs.Get("default", "a")
		_, volume := pvs.Get("", "v")
		if claim || volume {
			return fmt.Sprintf("claim %v, volume %v", claim, volume)
		}
		return ""
	})
	_, err = pvs.Create(ctx, newVolume("w", corev1.PersistentVolumeReclaimDelete))
	must(t, err)
	await(t, "the second to be bound", claimIs("b", corev1.ClaimBound))
	must(t, pvcs.Delete(ctx, "default", "b", metav1.DeleteOptions{}))
	await(t, "that nobody deletes hostPaths", volumeIs("w", corev1.VolumeFailed))
	must(t, pvs.Delete(ctx, "", "w", metav1.DeleteOptions{}))
	quiet(t, reg)
}

// A class that is made the default is given to claims that have none, and its
// provisioner is asked; a node that goes takes the choice of it back.
func TestClaimsAsk(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	pvcs, classes := registry.For[*corev1.PersistentVolumeClaim](reg), registry.For[*storagev1.StorageClass](reg)
	await(t, "the class of every cluster", func() string {
		if c, ok := classes.Get("", "local-path"); !ok || claims.Default(classes.List("")) != c {
			return fmt.Sprintf("%v", c)
		}
		return ""
	})
	c := newClaim("c")
	c.Spec.StorageClassName = nil
	_, err := pvcs.Create(ctx, c)
	must(t, err)
	has := func(what string, ok func(*corev1.PersistentVolumeClaim) bool) {
		t.Helper()
		await(t, what, func() string {
			if c, _ := pvcs.Get("default", "c"); !ok(c) {
				return fmt.Sprintf("%+v", c)
			}
			return ""
		})
	}
	has("the default class", func(c *corev1.PersistentVolumeClaim) bool {
		return c.Spec.StorageClassName != nil && *c.Spec.StorageClassName == "local-path"
	})
	nodes := registry.For[*corev1.Node](reg)
	_, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	must(t, err)
	_, err = pvcs.Update(ctx, "default", "c", func(c *corev1.PersistentVolumeClaim) error {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, "volume.kubernetes.io/selected-node", "n")
		return nil
	})
	must(t, err)
	has("its provisioner to be asked", func(c *corev1.PersistentVolumeClaim) bool {
		return c.Annotations["volume.kubernetes.io/storage-provisioner"] == claims.LocalPath
	})
	must(t, nodes.Delete(ctx, "", "n", metav1.DeleteOptions{}))
	has("the choice to be taken back", func(c *corev1.PersistentVolumeClaim) bool {
		_, selected := c.Annotations["volume.kubernetes.io/selected-node"]
		return !selected
	})
	quiet(t, reg)
}

// The claim of an ephemeral volume is made for its Pod, and made again.
func TestEphemeralClaims(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	pvcs := registry.For[*corev1.PersistentVolumeClaim](reg)
	spec := newClaim("").Spec
	pod, err := registry.For[*corev1.Pod](reg).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "i"}},
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: spec},
		}}}},
	}})
	must(t, err)
	var first *corev1.PersistentVolumeClaim
	await(t, "the claim", func() string {
		var ok bool
		if first, ok = pvcs.Get("default", "p-v"); !ok || !metav1.IsControlledBy(first, pod) || first.Labels["a"] != "b" {
			return fmt.Sprintf("%v", first)
		}
		return ""
	})
	must(t, pvcs.Delete(ctx, "default", "p-v", metav1.DeleteOptions{}))
	await(t, "another one", func() string {
		if c, ok := pvcs.Get("default", "p-v"); !ok || c.UID == first.UID {
			return "not there"
		}
		return ""
	})
	quiet(t, reg)
}
