package statefulset

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// Owners is a claim and the owners that it should have.
type Owners struct {
	Claim *corev1.PersistentVolumeClaim
	Refs  []metav1.OwnerReference
}

// retention says what the set wants of its claims when it is deleted and when it
// is scaled down.
func retention(set *appsv1.StatefulSet) (deletedWithSet, deletedWithPod bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType, p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// newClaims are the claims of the Pod with the number.
func newClaims(set *appsv1.StatefulSet, ordinal int) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	withSet, _ := retention(set)
	for i := range set.Spec.VolumeClaimTemplates {
		claim := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		claim.Name, claim.Namespace = claimName(set, claim, ordinal), set.Namespace
		if claim.Labels == nil {
			claim.Labels = map[string]string{}
		}
		if set.Spec.Selector != nil {
			maps.Copy(claim.Labels, set.Spec.Selector.MatchLabels)
		}
		if withSet && inRange(set, ordinal) {
			claim.OwnerReferences = append(claim.OwnerReferences, *metav1.NewControllerRef(set, Kind))
		}
		out = append(out, claim)
	}
	return out
}

// names reports whether the reference is to an object of that kind and name,
// whatever its UID.
func names(ref metav1.OwnerReference, o metav1.Object, gvk schema.GroupVersionKind) bool {
	return ref.APIVersion == gvk.GroupVersion().String() && ref.Kind == gvk.Kind && ref.Name == o.GetName()
}

// isStale reports whether the claim belongs to an earlier object of that name,
// with which it will go.
func isStale(claim *corev1.PersistentVolumeClaim, o metav1.Object, gvk schema.GroupVersionKind) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool { return names(ref, o, gvk) && ref.UID != o.GetUID() })
}

// owners are the owners that a Pod's claim should have: the Pod once it is to go
// with a scale down, the set while it is to go with the set. conflict says that
// somebody else controls the claim, so that the policy does not hold.
func owners(set *appsv1.StatefulSet, pod *corev1.Pod, ordinal int, claim *corev1.PersistentVolumeClaim) (refs []metav1.OwnerReference, conflict bool) {
	if isStale(claim, set, Kind) || isStale(claim, pod, podKind) {
		return claim.OwnerReferences, false
	}
	for _, ref := range claim.OwnerReferences {
		if names(ref, set, Kind) || names(ref, pod, podKind) {
			continue
		}
		refs = append(refs, ref)
		conflict = conflict || ref.Controller != nil && *ref.Controller
	}
	withSet, withPod := retention(set)
	if !withSet && !withPod {
		return refs, false
	}
	switch scaledDown := !inRange(set, ordinal); {
	case conflict:
	case withPod && scaledDown:
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	case withSet && !(withPod && scaledDown):
		refs = append(refs, *metav1.NewControllerRef(set, Kind))
	}
	return refs, conflict
}

// claims plans the claims of a Pod that is there: missing ones are made for a
// Pod that waits for them, and all get the owners that the policy says.
func (r *round) claims(pod *corev1.Pod, ordinal int) {
	for _, want := range newClaims(r.Set, ordinal) {
		claim := r.Claim(want.Name)
		if claim == nil {
			if pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil {
				r.plan.Claims = append(r.plan.Claims, want)
			}
			continue
		}
		refs, conflict := owners(r.Set, pod, ordinal, claim)
		if conflict {
			r.plan.Conflicts = append(r.plan.Conflicts, claim.Name)
		}
		if !equality.Semantic.DeepEqual(refs, claim.OwnerReferences) {
			r.plan.Own = append(r.plan.Own, Owners{claim, refs})
		}
	}
}

// claimsAreStale reports whether a Pod has to wait for the claims of its
// predecessor to go.
func (r *round) claimsAreStale(pod *corev1.Pod, ordinal int) bool {
	if _, withPod := retention(r.Set); !withPod {
		return false
	}
	return slices.ContainsFunc(newClaims(r.Set, ordinal), func(want *corev1.PersistentVolumeClaim) bool {
		claim := r.Claim(want.Name)
		return claim != nil && isStale(claim, pod, podKind)
	})
}
