package job

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

const (
	// firstBackoff and maxBackoff are upstream's pace of making Pods again.
	firstBackoff = 10 * time.Second
	maxBackoff   = 10 * time.Minute
)

// Backoff counts a Job's failures since its last success.
type Backoff struct {
	Failures int
	Last     time.Time // of the last failure
}

// after is the record with further ended Pods.
func (b Backoff) after(succeeded, failed []*corev1.Pod) Backoff {
	if len(failed) == 0 {
		if len(succeeded) > 0 {
			return Backoff{}
		}
		return b
	}
	var since time.Time
	for _, p := range succeeded {
		if t := ended(p); t.After(since) {
			since = t
		}
	}
	if len(succeeded) > 0 {
		b = Backoff{}
	}
	for _, p := range failed {
		t := ended(p)
		if len(succeeded) > 0 && !t.After(since) {
			continue
		}
		b.Failures++
		if t.After(b.Last) {
			b.Last = t
		}
	}
	return b
}

// left is how long the next Pod has to wait. A failure in the future, which a
// clock that was set back makes, delays no longer than one just now.
func (b Backoff) left(now time.Time) time.Duration {
	if b.Failures == 0 {
		return 0
	}
	delay := maxBackoff
	if b.Failures <= 6 { // 10 s × 2^6 is more than the most
		delay = min(firstBackoff<<(b.Failures-1), maxBackoff)
	}
	return min(max(0, b.Last.Add(delay).Sub(now)), delay)
}

// ended is when a Pod ended, as far as can be told: when its last container did,
// when it ceased to be ready, or when it was to be gone.
func ended(p *corev1.Pod) time.Time {
	if t, ok := lastExit(p); ok {
		return t
	}
	if c := podset.Condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if p.DeletionTimestamp != nil {
		return p.DeletionTimestamp.Add(-time.Duration(ptr.Deref(p.DeletionGracePeriodSeconds, 0)) * time.Second)
	}
	return p.CreationTimestamp.Time
}

// lastExit is the end of the last container, sidecars included, if all have one.
func lastExit(p *corev1.Pod) (last time.Time, ok bool) {
	statuses := slices.Clone(p.Status.ContainerStatuses)
	for _, s := range p.Status.InitContainerStatuses {
		i := slices.IndexFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == s.Name })
		if i >= 0 && ptr.Deref(p.Spec.InitContainers[i].RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			statuses = append(statuses, s)
		}
	}
	for _, s := range statuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}, false
		}
		if t := s.State.Terminated.FinishedAt.Time; t.After(last) {
			last = t
		}
	}
	return last, !last.IsZero()
}
