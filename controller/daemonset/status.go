package daemonset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"edged/controller/podset"
)

// Status counts. again is the time until the next Pod becomes available.
func Status(w World) (status appsv1.DaemonSetStatus, again time.Duration) {
	r := newRound(w)
	status = *w.Set.Status.DeepCopy()
	status.DesiredNumberScheduled, status.CurrentNumberScheduled, status.NumberMisscheduled = 0, 0, 0
	status.NumberReady, status.NumberAvailable, status.UpdatedNumberScheduled = 0, 0, 0
	var counted []*corev1.Pod
	for _, n := range w.Nodes {
		run, _ := r.on(n)
		pods := r.byNode[n.Name]
		switch {
		case !run:
			if len(pods) > 0 {
				status.NumberMisscheduled++
			}
			continue
		case len(pods) == 0:
			status.DesiredNumberScheduled++
			continue
		}
		status.DesiredNumberScheduled++
		status.CurrentNumberScheduled++
		pod := pods[0]
		counted = append(counted, pod)
		if podset.IsReady(pod) {
			status.NumberReady++
			if r.available(pod) {
				status.NumberAvailable++
			}
		}
		if r.isUpdated(pod) {
			status.UpdatedNumberScheduled++
		}
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	status.ObservedGeneration = w.Set.Generation
	return status, podset.NextAvailable(counted, w.Set.Spec.MinReadySeconds, w.Now)
}
