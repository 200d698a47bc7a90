package deployment

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const timedOut = "ProgressDeadlineExceeded"

// noLimit in a limit or deadline means there is none.
const noLimit = 1<<31 - 1

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != noLimit
}

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition sets a condition unless it has this status and reason already.
func (r *round) setCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	now := metav1.NewTime(r.now).Rfc3339Copy()
	c := appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now}
	if cur := condition(&r.plan.Status, t); cur != nil {
		if cur.Status == status && cur.Reason == reason {
			return
		}
		if cur.Status == status {
			c.LastTransitionTime = cur.LastTransitionTime
		}
	}
	r.putCondition(c)
}

// putCondition replaces a condition; it goes to the end, as upstream.
func (r *round) putCondition(c appsv1.DeploymentCondition) {
	r.removeCondition(c.Type)
	r.plan.Status.Conditions = append(r.plan.Status.Conditions, c)
}

func (r *round) removeCondition(t appsv1.DeploymentConditionType) {
	r.plan.Status.Conditions = slices.DeleteFunc(r.plan.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// pausedCondition keeps the time of a pause out of the progress deadline.
func (r *round) pausedCondition() {
	if !hasDeadline(r.d) {
		return
	}
	c := condition(&r.plan.Status, appsv1.DeploymentProgressing)
	if c != nil && c.Reason == timedOut {
		return
	}
	was := c != nil && c.Reason == "DeploymentPaused"
	switch {
	case r.d.Spec.Paused && !was:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !r.d.Spec.Paused && was:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

// syncStatus counts.
func (r *round) syncStatus() {
	all := r.all()
	s := &r.plan.Status
	s.ObservedGeneration = r.d.Generation
	s.Replicas = sum(all, actualReplicas)
	s.UpdatedReplicas = 0
	if r.new != nil {
		s.UpdatedReplicas = r.new.Status.Replicas
	}
	s.ReadyReplicas = sum(all, func(rs *appsv1.ReplicaSet) int32 { return rs.Status.ReadyReplicas })
	s.AvailableReplicas = sum(all, availableReplicas)
	s.UnavailableReplicas = max(0, sum(all, specReplicas)-s.AvailableReplicas)
	s.TerminatingReplicas = terminating(all)
	if s.AvailableReplicas >= *r.d.Spec.Replicas-maxUnavailable(r.d) {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
}

// terminating is the sum over ReplicaSets, unknown if one of them is.
func terminating(sets []*appsv1.ReplicaSet) *int32 {
	n := int32(0)
	for _, rs := range sets {
		switch {
		case rs.Status.ObservedGeneration == 0: // its first status is to come
		case rs.Status.TerminatingReplicas == nil:
			return nil
		default:
			n += *rs.Status.TerminatingReplicas
		}
	}
	return &n
}

// complete reports whether status shows a finished rollout.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	want := *d.Spec.Replicas
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= d.Generation
}

// progressing reports whether something moved since the last status.
func progressing(was, now *appsv1.DeploymentStatus) bool {
	return now.UpdatedReplicas > was.UpdatedReplicas ||
		now.Replicas-now.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		now.ReadyReplicas > was.ReadyReplicas ||
		now.AvailableReplicas > was.AvailableReplicas
}

// syncRollout counts and says how the rollout goes.
func (r *round) syncRollout() {
	r.syncStatus()
	s := &r.plan.Status
	if !hasDeadline(r.d) {
		r.removeCondition(appsv1.DeploymentProgressing)
	}
	cur := condition(&r.d.Status, appsv1.DeploymentProgressing)
	done := s.Replicas == s.UpdatedReplicas && cur != nil && cur.Reason == "NewReplicaSetAvailable"
	if hasDeadline(r.d) && !done {
		r.progressCondition(cur)
	}
	if f := r.failure(); f != nil {
		r.setCondition(appsv1.DeploymentReplicaFailure, f.Status, f.Reason, f.Message)
	} else {
		r.removeCondition(appsv1.DeploymentReplicaFailure)
	}
	r.plan.Again = r.untilDeadline()
}

func (r *round) progressCondition(cur *appsv1.DeploymentCondition) {
	s := &r.plan.Status
	subject := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		subject = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	now := metav1.NewTime(r.now).Rfc3339Copy()
	switch {
	case complete(r.d, s):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable", subject+" has successfully progressed.")
	case progressing(&r.d.Status, s):
		c := appsv1.DeploymentCondition{
			Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: "ReplicaSetUpdated",
			Message: subject + " is progressing.", LastUpdateTime: now, LastTransitionTime: now,
		}
		if cur != nil && cur.Status == corev1.ConditionTrue {
			c.LastTransitionTime = cur.LastTransitionTime
		}
		r.putCondition(c)
	case r.expired(cur):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, timedOut, subject+" has timed out progressing.")
	}
}

// expired reports whether the deadline passed without progress.
func (r *round) expired(c *appsv1.DeploymentCondition) bool {
	switch {
	case c == nil || c.Reason == "NewReplicaSetAvailable":
		return false
	case c.Reason == timedOut:
		return true
	}
	return c.LastUpdateTime.Add(deadline(r.d)).Before(r.now)
}

func deadline(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// untilDeadline is when to look whether the rollout is stuck.
func (r *round) untilDeadline() time.Duration {
	c := condition(&r.plan.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(r.d) || c == nil || c.Reason == timedOut || complete(r.d, &r.plan.Status) {
		return 0
	}
	return max(0, c.LastUpdateTime.Add(deadline(r.d)).Sub(r.now)) + time.Second
}

// failure is the failure of a ReplicaSet to make its Pods, the new one's first.
func (r *round) failure() *appsv1.ReplicaSetCondition {
	sets := r.all()
	slices.Reverse(sets)
	for _, rs := range sets {
		for i := range rs.Status.Conditions {
			if c := &rs.Status.Conditions[i]; c.Type == appsv1.ReplicaSetReplicaFailure {
				return c
			}
		}
	}
	return nil
}
