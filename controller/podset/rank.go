package podset

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Doomed returns the n Pods that go first, in upstream's order: not assigned,
// pending, not ready, cheaper to delete, on a node with more of related, ready
// for a shorter time, restarted more often, younger. related are all active
// Pods of the same kind of work; among Pods equal otherwise the time of being
// ready and the age count by their order of magnitude only, and the UID
// decides.
func Doomed(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	perNode := map[string]int{}
	for _, pod := range related {
		if IsActive(pod) {
			perNode[pod.Spec.NodeName]++
		}
	}
	out := slices.Clone(pods)
	slices.SortStableFunc(out, func(a, b *corev1.Pod) int { return compare(a, b, perNode, now) })
	return out[:n]
}

func compare(a, b *corev1.Pod, perNode map[string]int, now time.Time) int {
	if d := boolFirst(a.Spec.NodeName == "", b.Spec.NodeName == ""); d != 0 {
		return d
	}
	if d := cmp.Compare(phaseRank(a), phaseRank(b)); d != 0 {
		return d
	}
	ready := IsReady(a)
	if d := boolFirst(!ready, !IsReady(b)); d != 0 {
		return d
	}
	if d := cmp.Compare(deletionCost(a), deletionCost(b)); d != 0 {
		return d
	}
	if d := cmp.Compare(perNode[b.Spec.NodeName], perNode[a.Spec.NodeName]); d != 0 {
		return d
	}
	if ready {
		if d := youngerFirst(Condition(a, corev1.PodReady).LastTransitionTime.Time, Condition(b, corev1.PodReady).LastTransitionTime.Time, now); d != 0 {
			return d
		}
	}
	if d := compareRestarts(a, b); d != 0 {
		return d
	}
	if d := youngerFirst(a.CreationTimestamp.Time, b.CreationTimestamp.Time, now); d != 0 {
		return d
	}
	return cmp.Compare(a.UID, b.UID)
}

func boolFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodPending:
		return 0
	case corev1.PodRunning:
		return 2
	}
	return 1
}

func deletionCost(pod *corev1.Pod) int64 {
	cost, err := strconv.ParseInt(pod.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return cost
}

// youngerFirst compares times on a logarithmic scale; an unknown time is the
// youngest.
func youngerFirst(a, b, now time.Time) int {
	switch {
	case a.Equal(b):
		return 0
	case a.IsZero():
		return -1
	case b.IsZero():
		return 1
	}
	return cmp.Compare(magnitude(a, now), magnitude(b, now))
}

func magnitude(t, now time.Time) int {
	age := now.Sub(t)
	if age <= 0 {
		return -1
	}
	return int(math.Log2(float64(age)))
}

// compareRestarts puts the Pod whose container restarted most first; restarts
// of sidecars count when those of the containers are equal.
func compareRestarts(a, b *corev1.Pod) int {
	aMost, aSidecar := restarts(a)
	bMost, bSidecar := restarts(b)
	if d := cmp.Compare(bMost, aMost); d != 0 {
		return d
	}
	return cmp.Compare(bSidecar, aSidecar)
}

func restarts(pod *corev1.Pod) (containers, sidecars int32) {
	for _, s := range pod.Status.ContainerStatuses {
		containers = max(containers, s.RestartCount)
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		for _, s := range pod.Status.InitContainerStatuses {
			if s.Name == c.Name {
				sidecars = max(sidecars, s.RestartCount)
			}
		}
	}
	return containers, sidecars
}
