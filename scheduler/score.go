package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// maxScore is what the best node gets from one scorer.
const maxScore = 100

// scorer rates nodes. A raw rating is normalized over the nodes that fit.
type scorer struct {
	weight int64 // upstream's default
	rate   func(c *cycle, nodes []*nodeInfo) []int64
}

var scorers = []scorer{
	{1, each(scoreLeastAllocated)},
	{1, each(scoreBalanced)},
	{1, each(scoreImages)},
	{2, scoreNodeAffinity},
	{3, scoreTaints},
	{2, scorePodAffinity},
	{2, scoreSpread},
}

// each rates nodes one by one, from 0 to maxScore.
func each(f func(c *cycle, n *nodeInfo) int64) func(*cycle, []*nodeInfo) []int64 {
	return func(c *cycle, nodes []*nodeInfo) []int64 {
		out := make([]int64, len(nodes))
		for i, n := range nodes {
			out[i] = f(c, n)
		}
		return out
	}
}

// normalize scales ratings so that the largest is maxScore.
func normalize(raw []int64, reverse bool) []int64 {
	most := int64(0)
	for _, r := range raw {
		most = max(most, r)
	}
	for i, r := range raw {
		switch {
		case most == 0 && reverse:
			raw[i] = maxScore
		case most == 0:
			raw[i] = 0
		case reverse:
			raw[i] = maxScore - r*maxScore/most
		default:
			raw[i] = r * maxScore / most
		}
	}
	return raw
}

// spreadOut scales ratings so that the smallest is 0 and the largest maxScore.
func spreadOut(raw []int64) []int64 {
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	for _, r := range raw {
		least, most = min(least, r), max(most, r)
	}
	for i, r := range raw {
		if most == least {
			raw[i] = 0
		} else {
			raw[i] = (r - least) * maxScore / (most - least)
		}
	}
	return raw
}

// scoreLeastAllocated prefers the node with the most room.
func scoreLeastAllocated(c *cycle, n *nodeInfo) int64 {
	score, parts := int64(0), int64(0)
	room := func(used, total int64) {
		if total <= 0 {
			return
		}
		parts++
		if used <= total {
			score += (total - used) * maxScore / total
		}
	}
	room(n.weightCPU+c.pod.weightCPU, n.allocatable.milliCPU)
	room(n.weightMem+c.pod.weightMem, n.allocatable.memoryBytes)
	if parts == 0 {
		return 0
	}
	return score / parts
}

// scoreBalanced prefers the node whose CPU and memory fill up evenly.
func scoreBalanced(c *cycle, n *nodeInfo) int64 {
	fraction := func(used, total int64) float64 {
		if total <= 0 {
			return 1
		}
		return math.Min(1, float64(used)/float64(total))
	}
	cpu := fraction(n.requested.milliCPU+c.pod.requests.milliCPU, n.allocatable.milliCPU)
	mem := fraction(n.requested.memoryBytes+c.pod.requests.memoryBytes, n.allocatable.memoryBytes)
	return int64((1 - math.Abs(cpu-mem)/2) * maxScore)
}

// Sizes between which the presence of an image counts, as upstream.
const (
	smallImageBytes = 23 << 20
	largeImageBytes = 1000 << 20
)

// scoreImages prefers nodes that have the images already, counting an image
// less if only this node has it, so that the first node does not attract all.
func scoreImages(c *cycle, n *nodeInfo) int64 {
	containers := c.pod.pod.Spec.Containers
	sum := int64(0)
	for i := range containers {
		if size, ok := imageSize(n.node, containers[i].Image); ok {
			sum += int64(float64(size) * float64(holders(c, containers[i].Image)) / float64(len(c.snap.nodes)))
		}
	}
	most := int64(largeImageBytes * len(containers))
	sum = max(smallImageBytes, min(sum, most))
	return maxScore * (sum - smallImageBytes) / (most - smallImageBytes)
}

func holders(c *cycle, image string) int {
	n := 0
	for _, node := range c.snap.nodes {
		if _, ok := imageSize(node.node, image); ok {
			n++
		}
	}
	return n
}

func imageSize(node *corev1.Node, image string) (int64, bool) {
	for i := range node.Status.Images {
		for _, name := range node.Status.Images[i].Names {
			if name == image || name == image+":latest" {
				return node.Status.Images[i].SizeBytes, true
			}
		}
	}
	return 0, false
}

func scoreNodeAffinity(c *cycle, nodes []*nodeInfo) []int64 {
	raw := make([]int64, len(nodes))
	a := c.pod.pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil {
		return raw
	}
	preferred, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		return raw
	}
	for i, n := range nodes {
		raw[i] = preferred.Score(n.node)
	}
	return normalize(raw, false)
}

// scoreTaints prefers nodes with fewer PreferNoSchedule taints that the Pod
// does not tolerate.
func scoreTaints(c *cycle, nodes []*nodeInfo) []int64 {
	raw := make([]int64, len(nodes))
	for i, n := range nodes {
		for j := range n.node.Spec.Taints {
			if t := &n.node.Spec.Taints[j]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(c.pod.pod, t) {
				raw[i]++
			}
		}
	}
	return normalize(raw, true)
}

// scorePodAffinity adds the weights of preferred terms per domain: the Pod's
// own that match others, and others' that match the Pod. Others' required
// affinity counts 1, as upstream's hardPodAffinityWeight.
func scorePodAffinity(c *cycle, nodes []*nodeInfo) []int64 {
	weights := map[pair]int64{}
	for _, n := range c.snap.nodes {
		add := func(t *term, w int64, pod *corev1.Pod) {
			if v, ok := n.node.Labels[t.key]; ok && t.matches(pod, c.snap.objects.NamespaceLabels) {
				weights[pair{t.key, v}] += w
			}
		}
		for _, p := range n.pods {
			for i := range c.pod.preferred {
				add(&c.pod.preferred[i].term, c.pod.preferred[i].weight, p.pod)
			}
			for i := range p.preferred {
				add(&p.preferred[i].term, p.preferred[i].weight, c.pod.pod)
			}
			for i := range p.affinity {
				add(&p.affinity[i], 1, c.pod.pod)
			}
		}
	}
	raw := make([]int64, len(nodes))
	if len(weights) == 0 {
		return raw
	}
	for i, n := range nodes {
		for p, w := range weights {
			if n.node.Labels[p.key] == p.value {
				raw[i] += w
			}
		}
	}
	return spreadOut(raw)
}

// scoreSpread prefers domains with fewer Pods of the same kind: by the Pod's
// soft constraints, or else over nodes and zones by its controller.
func scoreSpread(c *cycle, nodes []*nodeInfo) []int64 {
	raw := make([]int64, len(nodes))
	soft := constraints(c.pod.pod, corev1.ScheduleAnyway)
	if len(c.pod.pod.Spec.TopologySpreadConstraints) == 0 {
		return c.spreadByOwner(raw, nodes)
	}
	if len(soft) == 0 {
		return raw
	}
	counts := countDomains(c, soft)
	for i, n := range nodes {
		for j := range soft {
			if domain, ok := n.node.Labels[soft[j].key]; ok {
				raw[i] += counts[j][domain] * 10 / max(1, soft[j].maxSkew)
			}
		}
	}
	return normalize(raw, true)
}

func (c *cycle) spreadByOwner(raw []int64, nodes []*nodeInfo) []int64 {
	ref := metav1.GetControllerOfNoCopy(c.pod.pod)
	if ref == nil {
		return raw
	}
	zones := map[string]int64{}
	for i, n := range nodes {
		for _, p := range n.pods {
			if other := metav1.GetControllerOfNoCopy(p.pod); other != nil && other.UID == ref.UID {
				raw[i]++
			}
		}
		zones[n.node.Labels[corev1.LabelTopologyZone]] += raw[i]
	}
	for i, n := range nodes {
		raw[i] = raw[i]*2 + zones[n.node.Labels[corev1.LabelTopologyZone]]
	}
	return normalize(raw, true)
}
