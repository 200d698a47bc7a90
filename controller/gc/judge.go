package gc

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Owner is what became of an owner that an object names.
type Owner int

const (
	// Present owners keep their dependents.
	Present Owner = iota
	// Absent owners do not.
	Absent
	// Waiting owners are being deleted in the foreground.
	Waiting
	// Unknown owners cannot be looked up; they keep their dependents.
	Unknown
)

// Verdict is what to do with an object.
type Verdict struct {
	// Drop are owner references to take off.
	Drop []metav1.OwnerReference
	// Delete the object, with this propagation.
	Delete      bool
	Propagation metav1.DeletionPropagation
	// Unblock takes blockOwnerDeletion off first: the object and its dependents
	// wait for each other.
	Unblock bool
}

// Dependents tells of an object's own dependents.
type Dependents struct {
	Any bool
	// Waiting says that one of them waits for its dependents itself.
	Waiting bool
}

// Judge decides on an object whose owners became what the function says.
func Judge(obj metav1.Object, owner func(metav1.OwnerReference) Owner, dependents Dependents) Verdict {
	var gone, waiting []metav1.OwnerReference
	solid := 0
	for _, ref := range obj.GetOwnerReferences() {
		switch owner(ref) {
		case Absent:
			gone = append(gone, ref)
		case Waiting:
			waiting = append(waiting, ref)
		default:
			solid++
		}
	}
	switch {
	case len(gone) == 0 && len(waiting) == 0:
		return Verdict{}
	case solid > 0:
		return Verdict{Drop: append(gone, waiting...)}
	case obj.GetDeletionTimestamp() != nil:
		return Verdict{} // on its way, its finalizers decide
	case len(waiting) > 0 && dependents.Any:
		return Verdict{Delete: true, Propagation: metav1.DeletePropagationForeground, Unblock: dependents.Waiting}
	}
	return Verdict{Delete: true, Propagation: propagation(obj)}
}

// propagation is what the object's finalizers ask for.
func propagation(obj metav1.Object) metav1.DeletionPropagation {
	switch {
	case Orphans(obj):
		return metav1.DeletePropagationOrphan
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}

// Orphans reports whether the object leaves its dependents behind.
func Orphans(obj metav1.Object) bool {
	return slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents)
}

// WaitsForDependents reports whether the object is being deleted in the
// foreground.
func WaitsForDependents(obj metav1.Object) bool {
	return obj.GetDeletionTimestamp() != nil && slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents)
}

// Blocks reports whether a dependent keeps its owner from going.
func Blocks(dependent, owner metav1.Object) bool {
	return slices.ContainsFunc(dependent.GetOwnerReferences(), func(ref metav1.OwnerReference) bool {
		return ref.UID == owner.GetUID() && ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
	})
}
