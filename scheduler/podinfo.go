package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	schedhelper "k8s.io/component-helpers/scheduling/corev1"
)

// podInfo is a Pod with what the scheduler asks of it often. It never changes.
type podInfo struct {
	pod       *corev1.Pod
	key       string
	priority  int32
	requests  resources
	weightCPU int64 // milli
	weightMem int64 // bytes
	ports     []corev1.ContainerPort

	affinity, antiAffinity []term // required
	preferred              []weightedTerm
}

// term is a parsed PodAffinityTerm.
type term struct {
	namespaces map[string]bool
	nsSelector labels.Selector
	selector   labels.Selector
	key        string
}

// weightedTerm is preferred; against if it is anti-affinity.
type weightedTerm struct {
	term
	weight int64 // negative for anti-affinity
}

func newPodInfo(pod *corev1.Pod) *podInfo {
	p := &podInfo{pod: pod, key: pod.Namespace + "/" + pod.Name, priority: schedhelper.PodPriority(pod), requests: podRequests(pod)}
	p.weightCPU, p.weightMem = podWeight(pod)
	p.ports = hostPorts(pod)
	a := pod.Spec.Affinity
	if a == nil {
		return p
	}
	if a.PodAffinity != nil {
		p.affinity = terms(pod, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.prefer(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, 1)
	}
	if a.PodAntiAffinity != nil {
		p.antiAffinity = terms(pod, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		p.prefer(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
	return p
}

func (p *podInfo) prefer(list []corev1.WeightedPodAffinityTerm, sign int64) {
	for i := range list {
		p.preferred = append(p.preferred, weightedTerm{newTerm(p.pod, &list[i].PodAffinityTerm), sign * int64(list[i].Weight)})
	}
}

func terms(pod *corev1.Pod, list []corev1.PodAffinityTerm) []term {
	var out []term
	for i := range list {
		out = append(out, newTerm(pod, &list[i]))
	}
	return out
}

func newTerm(pod *corev1.Pod, t *corev1.PodAffinityTerm) term {
	out := term{selector: parse(t.LabelSelector), nsSelector: parse(t.NamespaceSelector), key: t.TopologyKey, namespaces: map[string]bool{}}
	for _, ns := range t.Namespaces {
		out.namespaces[ns] = true
	}
	if len(t.Namespaces) == 0 && t.NamespaceSelector == nil {
		out.namespaces[pod.Namespace] = true
	}
	return out
}

// parse returns a selector that matches nothing for one that is absent or not
// valid.
func parse(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// matches reports whether the term speaks of pod.
func (t *term) matches(pod *corev1.Pod, namespaceLabels func(string) labels.Set) bool {
	if !t.selector.Matches(labels.Set(pod.Labels)) {
		return false
	}
	if t.namespaces[pod.Namespace] {
		return true
	}
	return t.nsSelector.String() != "" && t.nsSelector.Matches(namespaceLabels(pod.Namespace)) || isEverything(t.nsSelector)
}

func isEverything(s labels.Selector) bool {
	requirements, selectable := s.Requirements()
	return selectable && len(requirements) == 0
}

// hostPorts are the ports of the node that the Pod wants. Those of init containers that
// have ended by the time others run do not count, as upstream.
func hostPorts(pod *corev1.Pod) []corev1.ContainerPort {
	var out []corev1.ContainerPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				out = append(out, p)
			}
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}
