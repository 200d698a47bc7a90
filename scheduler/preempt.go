package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// candidate is a node that has room once its victims are gone.
type candidate struct {
	node       *nodeInfo
	victims    []*podInfo
	violations int // of disruption budgets
}

// preempt finds the node on which removing Pods of lower priority makes room
// for pod at the least cost. message says why there is none.
func preempt(snap *Snapshot, pod *podInfo, fail *FitError) (c *candidate, message string) {
	if message := ineligible(snap, pod, fail); message != "" {
		return nil, "preemption: " + message
	}
	budgets := snap.objects.Budgets
	var found []*candidate
	why := map[string]verdict{}
	for _, n := range snap.nodes {
		if v, ok := fail.verdicts[n.node.Name]; !ok || v.unresolvable {
			why[n.node.Name] = verdict{reasons: []string{"Preemption is not helpful for scheduling"}}
			continue
		}
		c, v := victims(snap, n, pod, budgets)
		if c == nil {
			why[n.node.Name] = v
			continue
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, fmt.Sprintf("preemption: 0/%d nodes are available: %s", len(snap.nodes), histogram(slices.Collect(maps.Values(why))))
	}
	return slices.MinFunc(found, cheaper), ""
}

// ineligible says why the Pod may not preempt now.
func ineligible(snap *Snapshot, pod *podInfo, fail *FitError) string {
	if p := pod.pod.Spec.PreemptionPolicy; p != nil && *p == corev1.PreemptNever {
		return "not eligible due to preemptionPolicy=Never."
	}
	name := pod.pod.Status.NominatedNodeName
	if name == "" || fail.verdicts[name].unresolvable {
		return ""
	}
	for _, n := range snap.nodes {
		if n.node.Name != name {
			continue
		}
		for _, p := range n.pods {
			if p.priority < pod.priority && p.pod.DeletionTimestamp != nil && isVictim(p.pod) {
				return "not eligible due to a terminating pod on the nominated node."
			}
		}
	}
	return ""
}

// isVictim reports whether the Pod is being deleted to make room.
func isVictim(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler {
			return true
		}
	}
	return false
}

// victims removes every Pod of lower priority from the node and then spares as
// many as still fit: first those whose budget would be violated, of each kind
// the most important first.
func victims(snap *Snapshot, n *nodeInfo, pod *podInfo, budgets func(string) []*policyv1.PodDisruptionBudget) (*candidate, verdict) {
	lower := map[string]bool{}
	var potential []*podInfo
	for _, p := range n.pods {
		if p.priority < pod.priority {
			lower[p.key] = true
			potential = append(potential, p)
		}
	}
	if len(potential) == 0 {
		return nil, verdict{reasons: []string{"No preemption victims found for incoming pod"}}
	}
	left := n.without(lower)
	fits := func(n *nodeInfo) verdict { return newCycle(snap.replace(n), pod).fitsWithNominated(n) }
	if v := fits(left); !v.ok() {
		return nil, v
	}
	slices.SortStableFunc(potential, moreImportant)
	violating, others := splitByBudget(potential, budgets)
	c := &candidate{node: n}
	spare := func(p *podInfo) bool {
		if with := left.with(p); fits(with).ok() {
			left = with
			return true
		}
		c.victims = append(c.victims, p)
		return false
	}
	for _, p := range violating {
		if !spare(p) {
			c.violations++
		}
	}
	for _, p := range others {
		spare(p)
	}
	slices.SortStableFunc(c.victims, moreImportant)
	return c, verdict{}
}

// moreImportant orders by priority, then by who has run longer.
func moreImportant(a, b *podInfo) int {
	if d := cmp.Compare(b.priority, a.priority); d != 0 {
		return d
	}
	return started(a.pod).Compare(started(b.pod))
}

// started is when the Pod started; one that has not is the youngest.
func started(pod *corev1.Pod) time.Time {
	if pod.Status.StartTime != nil {
		return pod.Status.StartTime.Time
	}
	return time.Unix(math.MaxInt32, 0)
}

// splitByBudget takes the Pods from their budgets in order and tells apart
// those for which a budget has nothing left.
func splitByBudget(pods []*podInfo, budgets func(string) []*policyv1.PodDisruptionBudget) (violating, others []*podInfo) {
	allowed := map[string]int32{}
	for _, p := range pods {
		violates := false
		for _, b := range budgets(p.pod.Namespace) {
			selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(p.pod.Labels)) {
				continue
			}
			if _, done := b.Status.DisruptedPods[p.pod.Name]; done {
				continue
			}
			key := b.Namespace + "/" + b.Name
			if _, ok := allowed[key]; !ok {
				allowed[key] = b.Status.DisruptionsAllowed
			}
			allowed[key]--
			violates = violates || allowed[key] < 0
		}
		if violates {
			violating = append(violating, p)
		} else {
			others = append(others, p)
		}
	}
	return violating, others
}

// cheaper orders candidates as upstream: fewer violated budgets, a less
// important most important victim, a smaller sum of priorities, fewer victims,
// and of those the one whose most important victim started last.
func cheaper(a, b *candidate) int {
	if d := cmp.Compare(a.violations, b.violations); d != 0 {
		return d
	}
	if d := cmp.Compare(a.highest(), b.highest()); d != 0 {
		return d
	}
	if d := cmp.Compare(a.sum(), b.sum()); d != 0 {
		return d
	}
	if d := cmp.Compare(len(a.victims), len(b.victims)); d != 0 {
		return d
	}
	if d := b.earliest().Compare(a.earliest()); d != 0 {
		return d
	}
	return cmp.Compare(a.node.node.Name, b.node.node.Name)
}

func (c *candidate) highest() int32 {
	if len(c.victims) == 0 {
		return math.MinInt32
	}
	return c.victims[0].priority
}

// sum adds priorities moved to be positive, so that many victims of negative
// priority do not look cheap.
func (c *candidate) sum() int64 {
	n := int64(0)
	for _, v := range c.victims {
		n += int64(v.priority) + math.MaxInt32 + 1
	}
	return n
}

// earliest is when the first of the most important victims started.
func (c *candidate) earliest() time.Time {
	if len(c.victims) == 0 {
		return time.Time{}
	}
	return started(c.victims[0].pod)
}
