package persistentvolume

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry/claims"
)

// VolumeStep is what is to be done about a volume; nothing, if all is zero.
type VolumeStep struct {
	// Unprotect removes the finalizer: the volume is not bound.
	Unprotect bool
	// Unbind gives the volume back: its claim has another one.
	Unbind bool
	// Phase is the one to set, with its message.
	Phase   corev1.PersistentVolumePhase
	Message string
	// Forget deletes the object of a volume whose device is gone with what was on it.
	Forget bool
	// Event is told as the phase is set.
	Event *Event
}

// Volume decides on one volume.
func Volume(w World, pv *corev1.PersistentVolume) VolumeStep {
	step := phaseOf(w, pv)
	if step.Phase == pv.Status.Phase {
		step.Phase, step.Message, step.Event = "", "", nil
	}
	now := step.Phase
	if now == "" {
		now = pv.Status.Phase
	}
	step.Unprotect = pv.DeletionTimestamp != nil && now != corev1.VolumeBound && slices.Contains(pv.Finalizers, claims.VolumeProtectionFinalizer)
	return step
}

func phaseOf(w World, pv *corev1.PersistentVolume) VolumeStep {
	ref := pv.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return VolumeStep{Phase: corev1.VolumeAvailable}
	}
	claim := w.Claim(ref.Namespace, ref.Name)
	switch {
	case claim == nil || claim.UID != ref.UID:
		return reclaim(w, pv)
	case claim.Spec.VolumeName == "":
		return VolumeStep{Phase: pv.Status.Phase} // binding the claim goes on with it
	case claim.Spec.VolumeName == pv.Name:
		return VolumeStep{Phase: corev1.VolumeBound}
	case metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned) && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return reclaim(w, pv) // made for the claim, which got another one
	}
	return VolumeStep{Unbind: true}
}

// reclaim is for a volume whose claim is gone. One that somebody has to delete stays
// Released until its provisioner, or the device that it is on, has done so.
func reclaim(w World, pv *corev1.PersistentVolume) VolumeStep {
	step := VolumeStep{Phase: corev1.VolumeReleased}
	if pv.Status.Phase == corev1.VolumeFailed {
		step.Phase = corev1.VolumeFailed
	}
	failed := func(reason, message string) VolumeStep {
		return VolumeStep{Phase: corev1.VolumeFailed, Message: message, Event: warning(reason, "%s", message)}
	}
	switch pv.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
	case corev1.PersistentVolumeReclaimRecycle:
		return failed("VolumeFailedRecycle", "No recycler plugin found for the volume!")
	case corev1.PersistentVolumeReclaimDelete:
		if claims.IsLocalVolume(pv) {
			step.Forget = !slices.ContainsFunc(w.Nodes(), func(n *corev1.Node) bool { return storagehelpers.CheckNodeAffinity(pv, n.Labels) == nil })
			return step
		}
		if pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] == "" {
			return failed("VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", pv.Name))
		}
	default:
		return failed("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy")
	}
	return step
}
