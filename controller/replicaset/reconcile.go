package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edged/controller/podset"
)

// Plan is what brings a ReplicaSet's Pods to their number.
type Plan struct {
	Create int
	Delete []*corev1.Pod
}

// Reconcile compares the number of active Pods with the number wanted. related
// are the Pods of all ReplicaSets of the same Deployment, which tell where a
// Pod is least missed.
func Reconcile(rs *appsv1.ReplicaSet, pods, related []*corev1.Pod, now time.Time) Plan {
	if rs.DeletionTimestamp != nil {
		return Plan{}
	}
	active := podset.Filter(pods, podset.IsActive)
	diff := int(*rs.Spec.Replicas) - len(active)
	if diff >= 0 {
		return Plan{Create: min(diff, podset.Burst)}
	}
	return Plan{Delete: podset.Doomed(active, related, min(-diff, podset.Burst), now)}
}

// Status is the status of a ReplicaSet with these Pods after a round that
// ended with failure (nil if all went well). again is the time until the next
// Pod becomes available.
func Status(rs *appsv1.ReplicaSet, pods []*corev1.Pod, failure error, now time.Time) (status appsv1.ReplicaSetStatus, again time.Duration) {
	active := podset.Filter(pods, podset.IsActive)
	status = *rs.Status.DeepCopy()
	labeled := labels.SelectorFromSet(rs.Spec.Template.Labels)
	status.ObservedGeneration = rs.Generation
	status.Replicas = int32(len(active))
	status.FullyLabeledReplicas = podset.Count(active, func(p *corev1.Pod) bool { return labeled.Matches(labels.Set(p.Labels)) })
	status.ReadyReplicas = podset.Count(active, podset.IsReady)
	status.AvailableReplicas = podset.Count(active, func(p *corev1.Pod) bool { return podset.IsAvailable(p, rs.Spec.MinReadySeconds, now) })
	terminating := podset.Count(pods, podset.IsTerminating)
	status.TerminatingReplicas = &terminating
	setFailure(&status, len(active)-int(*rs.Spec.Replicas), failure, now)
	return status, podset.NextAvailable(active, rs.Spec.MinReadySeconds, now)
}

// setFailure sets or removes the condition ReplicaFailure. As upstream, a
// condition that is there already is kept as it is.
func setFailure(status *appsv1.ReplicaSetStatus, excess int, failure error, now time.Time) {
	i := slices.IndexFunc(status.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure
	})
	switch {
	case failure == nil && i >= 0:
		status.Conditions = slices.Delete(status.Conditions, i, i+1)
	case failure != nil && i < 0:
		reason := ""
		if excess < 0 {
			reason = "FailedCreate"
		} else if excess > 0 {
			reason = "FailedDelete"
		}
		status.Conditions = append(status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason,
			Message: failure.Error(), LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
		})
	}
}
