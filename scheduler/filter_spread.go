package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// constraint is a parsed topology spread constraint.
type constraint struct {
	key        string
	selector   labels.Selector
	maxSkew    int64
	minDomains int64
	affinity   bool // count only nodes that the Pod's node affinity allows
	taints     bool // count only nodes whose taints the Pod tolerates
}

// spreadState counts, for each hard constraint, the matching Pods per domain.
type spreadState struct {
	hard   []constraint
	counts []map[string]int64
}

func constraints(pod *corev1.Pod, action corev1.UnsatisfiableConstraintAction) []constraint {
	var out []constraint
	for i := range pod.Spec.TopologySpreadConstraints {
		t := &pod.Spec.TopologySpreadConstraints[i]
		if t.WhenUnsatisfiable != action {
			continue
		}
		c := constraint{key: t.TopologyKey, selector: parse(t.LabelSelector), maxSkew: int64(t.MaxSkew), minDomains: 1, affinity: true}
		if t.MinDomains != nil {
			c.minDomains = int64(*t.MinDomains)
		}
		c.affinity = t.NodeAffinityPolicy == nil || *t.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor
		c.taints = t.NodeTaintsPolicy != nil && *t.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor
		out = append(out, c)
	}
	return out
}

func newSpreadState(c *cycle) *spreadState {
	hard := constraints(c.pod.pod, corev1.DoNotSchedule)
	if len(hard) == 0 {
		return nil
	}
	return &spreadState{hard: hard, counts: countDomains(c, hard)}
}

// countDomains counts per constraint the Pods of the same namespace that its
// selector matches, by the domain of their node. Nodes that lack one of the
// keys, or that the constraint leaves out, do not count.
func countDomains(c *cycle, list []constraint) []map[string]int64 {
	counts := make([]map[string]int64, len(list))
	for i := range counts {
		counts[i] = map[string]int64{}
	}
	for _, n := range c.snap.nodes {
		if !hasKeys(n.node, list) {
			continue
		}
		for i := range list {
			if list[i].counts(c, n) {
				counts[i][n.node.Labels[list[i].key]] += matching(n, c.pod.pod.Namespace, list[i].selector)
			}
		}
	}
	return counts
}

func hasKeys(node *corev1.Node, list []constraint) bool {
	for i := range list {
		if _, ok := node.Labels[list[i].key]; !ok {
			return false
		}
	}
	return true
}

func (t *constraint) counts(c *cycle, n *nodeInfo) bool {
	if t.affinity && !filterAffinity(c, n).ok() {
		return false
	}
	return !t.taints || filterTaints(c, n).ok()
}

func matching(n *nodeInfo, ns string, selector labels.Selector) int64 {
	count := int64(0)
	for _, p := range n.pods {
		if p.pod.Namespace == ns && p.pod.DeletionTimestamp == nil && selector.Matches(labels.Set(p.pod.Labels)) {
			count++
		}
	}
	return count
}

func filterSpread(c *cycle, n *nodeInfo) verdict {
	s := c.spread
	if s == nil {
		return verdict{}
	}
	const reason = "node(s) didn't match pod topology spread constraints"
	helps := nodeAdded | nodeLabels | nodeTaints | podGone | podAdded
	for i := range s.hard {
		t := &s.hard[i]
		domain, ok := n.node.Labels[t.key]
		if !ok {
			return rejectFinally(helps, reason+" (missing required label)")
		}
		least := int64(math.MaxInt64)
		for _, count := range s.counts[i] {
			least = min(least, count)
		}
		if int64(len(s.counts[i])) < t.minDomains || least == math.MaxInt64 {
			least = 0
		}
		self := int64(0)
		if t.selector.Matches(labels.Set(c.pod.pod.Labels)) {
			self = 1
		}
		if s.counts[i][domain]+self-least > t.maxSkew {
			return reject(helps, reason)
		}
	}
	return verdict{}
}
