package statefulset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"edged/controller/podset"
)

// Status counts. When all Pods are of the update revision and ready, the update
// is over and that revision is the current one. again is the time until the next
// Pod becomes available.
func Status(w World, collisions int32) (status appsv1.StatefulSetStatus, again time.Duration) {
	status = appsv1.StatefulSetStatus{
		ObservedGeneration: w.Set.Generation, CurrentRevision: w.Current.Name, UpdateRevision: w.Update.Name,
		CollisionCount: &collisions, Conditions: w.Set.Status.Conditions,
	}
	var counted []*corev1.Pod
	for _, p := range w.Pods {
		if _, ok := ordinal(w.Set, p); !ok {
			continue
		}
		counted = append(counted, p)
		status.Replicas++
		if p.Status.Phase == corev1.PodRunning && podset.IsReady(p) {
			status.ReadyReplicas++
			if podset.IsAvailable(p, w.Set.Spec.MinReadySeconds, w.Now) {
				status.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(p) == w.Current.Name {
			status.CurrentReplicas++
		}
		if revisionOf(p) == w.Update.Name {
			status.UpdatedReplicas++
		}
	}
	want := *w.Set.Spec.Replicas
	if status.UpdatedReplicas == want && status.ReadyReplicas == want && status.Replicas == want {
		status.CurrentReplicas, status.CurrentRevision = status.UpdatedReplicas, status.UpdateRevision
	}
	return status, podset.NextAvailable(counted, w.Set.Spec.MinReadySeconds, w.Now)
}
