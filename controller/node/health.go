package node

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// Grace is how long a device may be silent and still count as there, unless a
// controller is told otherwise. A user sees
// it NotReady, and its Pods gone from their Services, within 5 s: half a second
// for the last heartbeat, and the rest for writing it down.
const Grace = 4 * time.Second

// Health returns the conditions of a Node whose device was last heard of at
// heard, and when to look again; changed says whether they differ.
func Health(conditions []corev1.NodeCondition, heard, now time.Time, grace time.Duration) (out []corev1.NodeCondition, changed bool, again time.Duration) {
	if silent := now.Sub(heard); silent < grace {
		return conditions, false, grace - silent
	}
	out = slices.Clone(conditions)
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		unknown := corev1.NodeCondition{
			Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown", Message: "Kubelet stopped posting node status.",
			LastHeartbeatTime: metav1.NewTime(heard).Rfc3339Copy(), LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
		}
		i := slices.IndexFunc(out, func(c corev1.NodeCondition) bool { return c.Type == t })
		switch {
		case i < 0:
			unknown.Reason, unknown.Message = "NodeStatusNeverUpdated", "Kubelet never posted node status."
			out, changed = append(out, unknown), true
		case out[i].Status != corev1.ConditionUnknown:
			unknown.LastHeartbeatTime = out[i].LastHeartbeatTime
			out[i], changed = unknown, true
		}
	}
	return out, changed, 0
}

// managed are the taints that follow from a Node's state.
var managed = []string{
	corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable, corev1.TaintNodeMemoryPressure,
	corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable,
}

// Taints returns the taints that the Node should have: those that follow from
// its conditions, and the others that it has. changed says whether they differ.
func Taints(n *corev1.Node, now time.Time) (out []corev1.Taint, changed bool) {
	want := map[string][]corev1.TaintEffect{}
	noSchedule := []corev1.TaintEffect{corev1.TaintEffectNoSchedule}
	for _, c := range n.Status.Conditions {
		bad := c.Status == corev1.ConditionTrue
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse:
			want[corev1.TaintNodeNotReady] = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute}
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
			want[corev1.TaintNodeUnreachable] = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute}
		case c.Type == corev1.NodeMemoryPressure && bad:
			want[corev1.TaintNodeMemoryPressure] = noSchedule
		case c.Type == corev1.NodeDiskPressure && bad:
			want[corev1.TaintNodeDiskPressure] = noSchedule
		case c.Type == corev1.NodePIDPressure && bad:
			want[corev1.TaintNodePIDPressure] = noSchedule
		case c.Type == corev1.NodeNetworkUnavailable && bad:
			want[corev1.TaintNodeNetworkUnavailable] = noSchedule
		}
	}
	if n.Spec.Unschedulable {
		want[corev1.TaintNodeUnschedulable] = noSchedule
	}
	for _, t := range n.Spec.Taints {
		if !slices.Contains(managed, t.Key) {
			out = append(out, t)
			continue
		}
		i := slices.Index(want[t.Key], t.Effect)
		if i < 0 {
			changed = true
			continue
		}
		out = append(out, t)
		want[t.Key] = slices.Delete(slices.Clone(want[t.Key]), i, i+1)
	}
	for _, key := range managed {
		for _, effect := range want[key] {
			out = append(out, corev1.Taint{Key: key, Effect: effect, TimeAdded: &metav1.Time{Time: now.Truncate(time.Second)}})
			changed = true
		}
	}
	return out, changed
}

// Exact returns taints of which the one for a device that is lost since then says so
// to the nanosecond: in an object times are cut to seconds, which would take up to one
// of those that a Pod tolerates. A taint of another time, as another leader counted, is
// left as it is.
func Exact(taints []corev1.Taint, since time.Time) []corev1.Taint {
	// since is computed anew each time, from two clocks that are read one after the
	// other.
	const read = 10 * time.Millisecond
	out := slices.Clone(taints)
	for i := range out {
		t := &out[i]
		if t.Key != corev1.TaintNodeUnreachable || t.TimeAdded == nil {
			continue
		}
		if cut := since.Sub(t.TimeAdded.Time); -read < cut && cut < time.Second+read {
			t.TimeAdded = &metav1.Time{Time: since}
		}
	}
	return out
}

// Eviction tells whether a Pod may stay on a Node with these taints: for ever
// (evict false, after 0), until after is over, or not any longer.
func Eviction(pod *corev1.Pod, taints []corev1.Taint, now time.Time) (evict bool, after time.Duration) {
	if pod.DeletionTimestamp != nil {
		return false, 0
	}
	after = -1
	for _, t := range taints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		stays, until := tolerates(pod, t)
		if !stays {
			return true, 0
		}
		if until < 0 {
			continue
		}
		added := now
		if t.TimeAdded != nil {
			added = t.TimeAdded.Time
		}
		if start := pod.Status.StartTime; start != nil && start.After(added) {
			added = start.Time // it came later
		}
		left := until - now.Sub(added)
		if left <= 0 {
			return true, 0
		}
		if after < 0 || left < after {
			after = left
		}
	}
	return false, max(after, 0)
}

// tolerates says whether a Pod bears a taint, and for how long; negative is for
// ever.
func tolerates(pod *corev1.Pod, taint corev1.Taint) (stays bool, until time.Duration) {
	until = -1
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if !t.ToleratesTaint(klog.Background(), &taint, false) {
			continue
		}
		stays = true
		if t.TolerationSeconds == nil {
			continue
		}
		if d := time.Duration(max(*t.TolerationSeconds, 0)) * time.Second; until < 0 || d < until {
			until = d
		}
	}
	return stays, until
}
