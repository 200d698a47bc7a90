package persistentvolume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry/claims"
)

// World is what decisions look up. What it returns is not changed.
type World interface {
	Claim(namespace, name string) *corev1.PersistentVolumeClaim // nil: none
	Volume(name string) *corev1.PersistentVolume                // nil: none
	Volumes() []*corev1.PersistentVolume
	Classes() []*storagev1.StorageClass
	Nodes() []*corev1.Node
	Pods(namespace string) []*corev1.Pod
}

// Event is what is to be told of a claim or a volume.
type Event struct{ Type, Reason, Message string }

func normal(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...)}
}

func warning(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)}
}

// ClaimStep is what is to be done about a claim; nothing, if all is zero.
type ClaimStep struct {
	// Unprotect removes the finalizer: no Pod uses the claim.
	Unprotect bool
	// Class is the StorageClass to give it, Ask the provisioner to name in it.
	Class, Ask string
	// Unselect takes back the choice of a node.
	Unselect bool
	// Bind is the volume to bind it to.
	Bind *corev1.PersistentVolume
	// Phase is the one to set for a claim without a volume.
	Phase corev1.PersistentVolumeClaimPhase
	// Event is told once while it is the same; with Lost only as the phase is set.
	Event *Event
}

// Claim decides on one claim.
func Claim(w World, claim *corev1.PersistentVolumeClaim) ClaimStep {
	if claim.DeletionTimestamp != nil && slices.Contains(claim.Finalizers, claims.ProtectionFinalizer) && !used(w, claim) {
		return ClaimStep{Unprotect: true}
	}
	if metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted) {
		return bound(w, claim)
	}
	return unbound(w, claim)
}

// used reports whether a Pod has the claim. One without a node does not count, since
// no device starts a Pod with a claim that is being deleted.
func used(w World, claim *corev1.PersistentVolumeClaim) bool {
	return slices.ContainsFunc(w.Pods(claim.Namespace), func(p *corev1.Pod) bool {
		return p.Spec.NodeName != "" && claims.Uses(p, claim) && !(isShutDown(p) && metav1.IsControlledBy(claim, p))
	})
}

// isShutDown reports whether the device is done with the Pod, which finalizers may keep.
func isShutDown(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0
}

func bound(w World, claim *corev1.PersistentVolumeClaim) ClaimStep {
	lost := func(reason, message string) ClaimStep {
		return ClaimStep{Phase: corev1.ClaimLost, Event: warning(reason, "%s", message)}
	}
	if claim.Spec.VolumeName == "" {
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	pv := w.Volume(claim.Spec.VolumeName)
	switch {
	case pv == nil:
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case pv.Spec.ClaimRef == nil, pv.Spec.ClaimRef.UID == claim.UID:
		return ClaimStep{Bind: pv}
	}
	return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

func pending(e *Event) ClaimStep { return ClaimStep{Phase: corev1.ClaimPending, Event: e} }

func unbound(w World, claim *corev1.PersistentVolumeClaim) ClaimStep {
	if name := claim.Spec.VolumeName; name != "" {
		return prebound(claim, w.Volume(name), name)
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	class := classOf(w, name)
	waits := claims.WaitsForConsumer(class)
	pv, err := match(claim, w.Volumes(), waits)
	switch {
	case err != nil:
		return pending(warning("FailedBinding", "%v", err))
	case pv != nil:
		return ClaimStep{Bind: pv}
	}
	for _, pv := range w.Volumes() {
		if pv.Spec.ClaimRef != nil && storagehelpers.IsVolumeBoundToClaim(pv, claim) && storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec) {
			return pending(warning("VolumeMismatch", "Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", pv.Name))
		}
	}
	if !storagehelpers.PersistentVolumeClaimHasClass(claim) {
		if d := claims.Default(w.Classes()); d != nil {
			return ClaimStep{Class: d.Name}
		}
	}
	switch {
	case waits && !storagehelpers.IsDelayBindingProvisioning(claim):
		return pending(waitingForConsumer(w, claim))
	case name == "":
		return pending(normal("FailedBinding", "no persistent volumes available for this claim and no storage class is set"))
	case class == nil:
		return pending(warning("ProvisioningFailed", "storageclass.storage.k8s.io %q not found", name))
	}
	return provision(w, claim, class)
}

func prebound(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, name string) ClaimStep {
	switch {
	case pv == nil:
		return pending(nil)
	case pv.Spec.ClaimRef == nil:
		if reason := mismatch(pv, claim); reason != "" {
			return pending(warning("VolumeMismatch", "Cannot bind to requested volume %q: %s", name, reason))
		}
		return ClaimStep{Bind: pv}
	case storagehelpers.IsVolumeBoundToClaim(pv, claim):
		return ClaimStep{Bind: pv}
	}
	return pending(warning("FailedBinding", "volume %q already bound to a different claim.", name))
}

// mismatch says in upstream's words why the volume is not what the claim asks for.
func mismatch(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) string {
	switch {
	case pv.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", pv.Name)
	case pv.Spec.Capacity.Storage().Value() < claim.Spec.Resources.Requests.Storage().Value():
		return "requested PV is too small"
	case storagehelpers.GetPersistentVolumeClass(pv) != storagehelpers.GetPersistentVolumeClaimClass(claim):
		return "storageClassName does not match"
	case ptr.Deref(pv.Spec.VolumeAttributesClassName, "") != ptr.Deref(claim.Spec.VolumeAttributesClassName, ""):
		return "volumeAttributesClassName does not match"
	case storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec):
		return "incompatible volumeMode"
	case !storagehelpers.CheckAccessModes(claim, pv):
		return "incompatible accessMode"
	}
	return ""
}

// match finds the volume for a claim: of those with the fewest access modes that are
// enough the smallest.
func match(claim *corev1.PersistentVolumeClaim, all []*corev1.PersistentVolume, waits bool) (*corev1.PersistentVolume, error) {
	byModes := map[int][]*corev1.PersistentVolume{}
	var numbers []int
	for _, pv := range all {
		n := len(pv.Spec.AccessModes)
		if !storagehelpers.CheckAccessModes(claim, pv) {
			continue
		}
		if byModes[n] == nil {
			numbers = append(numbers, n)
		}
		byModes[n] = append(byModes[n], pv)
	}
	slices.SortFunc(numbers, cmp.Compare)
	for _, n := range numbers {
		if pv, err := storagehelpers.FindMatchingVolume(claim, byModes[n], nil, nil, waits, true); pv != nil || err != nil {
			return pv, err
		}
	}
	return nil, nil
}

func classOf(w World, name string) *storagev1.StorageClass {
	for _, c := range w.Classes() {
		if name != "" && c.Name == name {
			return c
		}
	}
	return nil
}

func waitingForConsumer(w World, claim *corev1.PersistentVolumeClaim) *Event {
	var names []string
	for _, p := range w.Pods(claim.Namespace) {
		if p.Spec.NodeName == "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && claims.Uses(p, claim) {
			names = append(names, p.Name)
		}
	}
	switch len(names) {
	case 0:
		return normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case 1:
		return normal("WaitForPodScheduled", "waiting for pod %s to be scheduled", names[0])
	}
	return normal("WaitForPodScheduled", "waiting for pods %s to be scheduled", strings.Join(names, ","))
}

// provision has somebody asked to make a volume.
func provision(w World, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) ClaimStep {
	step := pending(nil)
	node, chosen := claim.Annotations[storagehelpers.AnnSelectedNode]
	switch {
	case strings.HasPrefix(class.Provisioner, "kubernetes.io/"):
		step.Event = warning("ProvisioningFailed", "no volume plugin matched name: %s", class.Provisioner)
		return step
	case !claims.IsLocal(class.Provisioner):
		step.Event = normal("ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner '%s' "+
			"or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)
	default:
		reason := refusal(claim, class)
		switch {
		case reason != "":
		case !chosen:
			reason = "no node was chosen: the class must have volumeBindingMode WaitForFirstConsumer"
		case !slices.ContainsFunc(w.Nodes(), func(n *corev1.Node) bool { return n.Name == node }):
			reason, step.Unselect = fmt.Sprintf("Failed to get target node: node %q not found", node), true
		}
		if reason != "" {
			step.Event = warning("ProvisioningFailed", "Failed to provision volume with StorageClass %q: %s", class.Name, reason)
			return step
		}
	}
	if claim.Annotations[storagehelpers.AnnStorageProvisioner] != class.Provisioner {
		step.Ask = class.Provisioner
	}
	return step
}

// refusal says why a folder on a device is not what the claim asks for.
func refusal(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	for _, m := range claim.Spec.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			return fmt.Sprintf("a volume on one device has the access modes ReadWriteOnce and ReadWriteOncePod, not %s", m)
		}
	}
	switch {
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return "a volume on a device's file system has volumeMode Filesystem, not Block"
	case claim.Spec.Selector != nil:
		return "claim.Spec.Selector is not supported"
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return "claim.Spec.DataSource is not supported"
	case len(class.MountOptions) > 0:
		return fmt.Sprintf("Mount options are not supported by the provisioner but StorageClass %q has mount options %v", class.Name, class.MountOptions)
	}
	return ""
}
