// Package claims is what several parts of the daemon have to know alike of
// PersistentVolumeClaims: which of them a Pod has, whether one is bound, which
// StorageClass it gets, and the names by which edged's own provisioner is asked.
//
// It decides nothing of binding (controller/persistentvolume) and makes no volume
// (runtime/localpath). All functions are pure. May be imported by apiserver/...,
// controller/..., scheduler, runtime/... and cmd/edged.
//
// Sources: k8s.io/component-helpers/storage, k8s.io/kubernetes/pkg/volume/util.
package claims

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

const (
	// LocalPath is the provisioner of volumes that are folders on a device's own disk.
	LocalPath = "edged.dev/local-path"
	// localPathAlias is what StorageClasses written for k3s name.
	localPathAlias = "rancher.io/local-path"

	// ProtectionFinalizer keeps a claim while a Pod uses it, VolumeProtectionFinalizer
	// a volume while it is bound.
	ProtectionFinalizer       = "kubernetes.io/pvc-protection"
	VolumeProtectionFinalizer = "kubernetes.io/pv-protection"

	defaultClass     = "storageclass.kubernetes.io/is-default-class"
	betaDefaultClass = "storageclass.beta.kubernetes.io/is-default-class"
)

// IsLocal reports whether edged's own provisioner goes by that name.
func IsLocal(provisioner string) bool {
	return provisioner == LocalPath || provisioner == localPathAlias
}

// IsLocalVolume reports whether edged's own provisioner made the volume, which it then
// also removes.
func IsLocalVolume(pv *corev1.PersistentVolume) bool {
	return pv.Spec.Local != nil && IsLocal(pv.Annotations[storagehelpers.AnnDynamicallyProvisioned])
}

// LocalClass is the StorageClass that every cluster begins with.
func LocalClass() *storagev1.StorageClass {
	reclaim, mode := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "local-path", Annotations: map[string]string{defaultClass: "true"}},
		Provisioner: LocalPath, ReclaimPolicy: &reclaim, VolumeBindingMode: &mode,
	}
}

// Default is the StorageClass for claims that name none: of several the newest. It is
// nil if there is none.
func Default(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	classes = slices.DeleteFunc(slices.Clone(classes), func(c *storagev1.StorageClass) bool {
		return c.Annotations[defaultClass] != "true" && c.Annotations[betaDefaultClass] != "true"
	})
	if len(classes) == 0 {
		return nil
	}
	return slices.MinFunc(classes, func(a, b *storagev1.StorageClass) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

// Name is the name of the claim that a volume of a Pod refers to, "" if it is of
// another kind.
func Name(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	}
	return ""
}

// Names are those of all claims that the Pod refers to; nil for most Pods.
func Names(pod *corev1.Pod) []string {
	var out []string
	for i := range pod.Spec.Volumes {
		if name := Name(pod, &pod.Spec.Volumes[i]); name != "" {
			out = append(out, name)
		}
	}
	return out
}

// Uses reports whether the Pod has the claim, which for an ephemeral volume must have
// been made for the Pod.
func Uses(pod *corev1.Pod, claim *corev1.PersistentVolumeClaim) bool {
	return pod.Namespace == claim.Namespace && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return Name(pod, &v) == claim.Name && (v.Ephemeral == nil || ephemeral.VolumeIsForPod(pod, claim) == nil)
	})
}

// Bound reports whether binding the claim was completed.
func Bound(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted)
}

// WaitsForConsumer reports whether volumes of the class are bound once a Pod's node is
// known; nil is no class.
func WaitsForConsumer(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
