package scheduler

import corev1 "k8s.io/api/core/v1"

// pair is a topology domain.
type pair struct{ key, value string }

// affinityState counts, per domain, what the Pod's affinity and anti-affinity
// and that of others speak of.
type affinityState struct {
	// forbidden are the domains of Pods whose anti-affinity matches the Pod.
	forbidden map[pair]bool
	// affine counts Pods that all affinity terms match, by the domains of each
	// term; avoided counts Pods that an anti-affinity term matches.
	affine, avoided map[pair]int
}

func newAffinityState(c *cycle) *affinityState {
	if len(c.snap.withAntiAffinity) == 0 && len(c.pod.affinity) == 0 && len(c.pod.antiAffinity) == 0 {
		return nil
	}
	s := &affinityState{forbidden: map[pair]bool{}, affine: map[pair]int{}, avoided: map[pair]int{}}
	for _, n := range c.snap.withAntiAffinity {
		for _, p := range n.pods {
			for i := range p.antiAffinity {
				t := &p.antiAffinity[i]
				if v, ok := n.node.Labels[t.key]; ok && t.matches(c.pod.pod, c.snap.objects.NamespaceLabels) {
					s.forbidden[pair{t.key, v}] = true
				}
			}
		}
	}
	if len(c.pod.affinity) > 0 || len(c.pod.antiAffinity) > 0 {
		for _, n := range c.snap.nodes {
			for _, p := range n.pods {
				s.count(c, n.node, p.pod)
			}
		}
	}
	return s
}

func (s *affinityState) count(c *cycle, node *corev1.Node, pod *corev1.Pod) {
	if len(c.pod.affinity) > 0 && matchesAll(c, pod) {
		for i := range c.pod.affinity {
			if v, ok := node.Labels[c.pod.affinity[i].key]; ok {
				s.affine[pair{c.pod.affinity[i].key, v}]++
			}
		}
	}
	for i := range c.pod.antiAffinity {
		t := &c.pod.antiAffinity[i]
		if v, ok := node.Labels[t.key]; ok && t.matches(pod, c.snap.objects.NamespaceLabels) {
			s.avoided[pair{t.key, v}]++
		}
	}
}

func matchesAll(c *cycle, pod *corev1.Pod) bool {
	for i := range c.pod.affinity {
		if !c.pod.affinity[i].matches(pod, c.snap.objects.NamespaceLabels) {
			return false
		}
	}
	return true
}

func filterPodAffinity(c *cycle, n *nodeInfo) verdict {
	s := c.affinity
	if s == nil {
		return verdict{}
	}
	if !s.satisfied(c, n) {
		return rejectFinally(nodeAdded|nodeLabels|podAdded|namespacesChanged, "node(s) didn't match pod affinity rules")
	}
	helps := nodeAdded | nodeLabels | podGone | podAdded | namespacesChanged
	for i := range c.pod.antiAffinity {
		key := c.pod.antiAffinity[i].key
		if v, ok := n.node.Labels[key]; ok && s.avoided[pair{key, v}] > 0 {
			return reject(helps, "node(s) didn't match pod anti-affinity rules")
		}
	}
	for p := range s.forbidden {
		if n.node.Labels[p.key] == p.value {
			return reject(helps, "node(s) didn't satisfy existing pods anti-affinity rules")
		}
	}
	return verdict{}
}

// satisfied reports whether every affinity term has a Pod in the node's domain.
// The first Pod of a group that wants to be together has nobody to join: it may
// go anywhere that has the keys.
func (s *affinityState) satisfied(c *cycle, n *nodeInfo) bool {
	together := true
	for i := range c.pod.affinity {
		key := c.pod.affinity[i].key
		v, ok := n.node.Labels[key]
		if !ok {
			return false
		}
		together = together && s.affine[pair{key, v}] > 0
	}
	return together || len(s.affine) == 0 && matchesAll(c, c.pod.pod)
}
