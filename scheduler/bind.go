package scheduler

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
)

func reference(pod *corev1.Pod) corev1.ObjectReference {
	return recorder.Reference("v1", "Pod", pod, "")
}

// bind writes the decision. The registry refuses it if the Pod has a node
// already, is being deleted or is another one.
func (s *scheduler) bind(ctx context.Context, w *waiting, p *podInfo, node string) {
	_, err := s.cfg.Registry.CreateSubresource(ctx, s.pods.Kind().GroupResource(), p.pod.Namespace, p.pod.Name, "binding", &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.pod.Namespace, Name: p.pod.Name, UID: p.pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, registry.CreateOptions{})
	if err == nil {
		s.events.Eventf(reference(p.pod), corev1.EventTypeNormal, "Scheduled", "Successfully assigned %v/%v to %v", p.pod.Namespace, p.pod.Name, node)
		return
	}
	s.state.forget(p)
	s.queue.happened(podGone, s.cfg.Now())
	cur, ok := s.pods.Get(p.pod.Namespace, p.pod.Name)
	switch {
	case !ok || cur.Spec.NodeName != "" || cur.DeletionTimestamp != nil:
		s.queue.remove(p.key)
	default:
		s.queue.add(newPodInfo(cur), s.cfg.Now(), false)
		s.queue.retry(w, s.cfg.Now())
	}
	if ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.cfg.Logger.Warn("binding failed", "pod", p.key, "node", node, "err", err)
	}
}

// report tells in the Pod's status and, if that was not known, in an Event why
// it fits nowhere.
func (s *scheduler) report(ctx context.Context, p *podInfo, message, nominate string) {
	news := false
	_, err := s.pods.UpdateStatus(ctx, p.pod.Namespace, p.pod.Name, func(pod *corev1.Pod) error {
		if pod.UID != p.pod.UID || pod.Spec.NodeName != "" {
			news = false
			return nil
		}
		c := corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
			Message: message, ObservedGeneration: pod.Generation,
		}
		news = setCondition(&pod.Status, c, metav1.NewTime(s.cfg.Registry.Now()).Rfc3339Copy())
		pod.Status.NominatedNodeName = nominate
		return nil
	})
	switch {
	case err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err):
		s.cfg.Logger.Warn("the reason why a pod waits was not written", "pod", p.key, "err", err)
	case err == nil && news:
		s.events.Event(reference(p.pod), corev1.EventTypeWarning, "FailedScheduling", message)
	}
}

// setCondition reports whether the condition was news. Its time moves with its
// status only.
func setCondition(status *corev1.PodStatus, c corev1.PodCondition, now metav1.Time) bool {
	c.LastTransitionTime = now
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		news := old.Status != c.Status || old.Reason != c.Reason || old.Message != c.Message
		*old = c
		return news
	}
	status.Conditions = append(status.Conditions, c)
	return true
}

// evict makes room: it marks the victims and deletes them. It is false if one of them
// stays.
func (s *scheduler) evict(ctx context.Context, p *podInfo, c *candidate) (done bool) {
	done = true
	for _, v := range c.victims {
		if v.pod.DeletionTimestamp != nil {
			continue
		}
		_, err := s.pods.UpdateStatus(ctx, v.pod.Namespace, v.pod.Name, func(pod *corev1.Pod) error {
			if pod.UID == v.pod.UID {
				setCondition(&pod.Status, corev1.PodCondition{
					Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
					Message: name + ": preempting to accommodate a higher priority pod", ObservedGeneration: pod.Generation,
				}, metav1.NewTime(s.cfg.Registry.Now()).Rfc3339Copy())
			}
			return nil
		})
		if err == nil {
			err = s.pods.Delete(ctx, v.pod.Namespace, v.pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(v.pod.UID))})
		}
		switch {
		case err == nil:
			s.events.Eventf(reference(v.pod), corev1.EventTypeNormal, "Preempted", "Preempted by pod %v on node %v", p.pod.UID, c.node.node.Name)
		case ctx.Err() == nil && !apierrors.IsNotFound(err):
			done = false
			s.cfg.Logger.Warn("a victim of preemption was not removed", "pod", v.key, "err", err)
		}
	}
	return done
}

// clearNominations lets Pods of lower priority look for another node.
func (s *scheduler) clearNominations(ctx context.Context, pods []*podInfo) {
	for _, p := range pods {
		_, err := s.pods.UpdateStatus(ctx, p.pod.Namespace, p.pod.Name, func(pod *corev1.Pod) error {
			if pod.UID == p.pod.UID {
				pod.Status.NominatedNodeName = ""
			}
			return nil
		})
		if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) {
			s.cfg.Logger.Warn("a nomination was not cleared", "pod", p.key, "err", err)
		}
	}
}
