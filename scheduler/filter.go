package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// cause is a set of kinds of change that may make a Pod fit.
type cause uint32

// Kinds of change. What failed is remembered with a Pod, so that only changes
// of those kinds bring it back.
const (
	nodeAdded         cause = 1 << iota // a node came
	nodeResources                       // a node's allocatable grew
	nodeLabels                          // labels changed
	nodeTaints                          // taints or unschedulable changed
	podGone                             // a Pod left its node, or asks for less
	podAdded                            // a Pod came to a node or changed its labels
	volumesChanged                      // a claim, volume or class changed
	namespacesChanged                   // the labels of a namespace changed
	claimsSettled                       // a claim was bound, or will not be as was decided
	anything          cause = 1<<iota - 1
)

// verdict is why a Pod does not fit on a node; no reasons if it does.
type verdict struct {
	reasons []string
	// unresolvable says that no Pod that is removed from the node would help.
	unresolvable bool
	helps        cause
}

func (v verdict) ok() bool { return len(v.reasons) == 0 }

func reject(helps cause, reasons ...string) verdict { return verdict{reasons: reasons, helps: helps} }
func rejectFinally(helps cause, reasons ...string) verdict {
	return verdict{reasons: reasons, unresolvable: true, helps: helps}
}

// filters in upstream's order. The first that rejects a node is the reason.
var filters = []func(c *cycle, n *nodeInfo) verdict{
	filterUnschedulable,
	filterName,
	filterTaints,
	filterAffinity,
	filterPorts,
	filterResources,
	filterVolumes,
	filterSpread,
	filterPodAffinity,
}

// cycle is one decision: a Pod, a snapshot, and what was computed once for all
// nodes.
type cycle struct {
	snap     *Snapshot
	pod      *podInfo
	required nodeaffinity.RequiredNodeAffinity
	spread   *spreadState
	affinity *affinityState
	volumes  *volumeState
}

func newCycle(snap *Snapshot, pod *podInfo) *cycle {
	c := &cycle{snap: snap, pod: pod, required: nodeaffinity.GetRequiredNodeAffinity(pod.pod)}
	c.spread = newSpreadState(c)
	c.affinity = newAffinityState(c)
	c.volumes = newVolumeState(c)
	return c
}

func (c *cycle) fits(n *nodeInfo) verdict {
	for _, f := range filters {
		if v := f(c, n); !v.ok() {
			return v
		}
	}
	return verdict{}
}

// FitError says why a Pod fits on no node, in upstream's words.
type FitError struct {
	nodes    int
	pre      string // a reason that holds for all nodes at once
	verdicts map[string]verdict
	post     string // what came of preemption
	quiet    bool   // it will pass at once: not worth a word
	helps    cause
}

func (e *FitError) Error() string {
	if e.nodes == 0 {
		return "no nodes available to schedule pods"
	}
	msg := fmt.Sprintf("0/%d nodes are available:", e.nodes)
	if e.pre != "" {
		msg += " " + e.pre + "."
	} else {
		msg += " " + histogram(slices.Collect(maps.Values(e.verdicts)))
	}
	if e.post != "" {
		msg += " " + e.post
	}
	return msg
}

// histogram counts reasons: "2 Insufficient cpu, 1 Too many pods."
func histogram(verdicts []verdict) string {
	counts := map[string]int{}
	for _, v := range verdicts {
		for _, r := range v.reasons {
			counts[r]++
		}
	}
	var out []string
	for r, n := range counts {
		out = append(out, fmt.Sprintf("%d %s", n, r))
	}
	slices.Sort(out)
	return strings.Join(out, ", ") + "."
}

func filterUnschedulable(c *cycle, n *nodeInfo) verdict {
	if !n.node.Spec.Unschedulable || tolerates(c.pod.pod, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return verdict{}
	}
	return rejectFinally(nodeAdded|nodeTaints, "node(s) were unschedulable")
}

func filterName(c *cycle, n *nodeInfo) verdict {
	if name := c.pod.pod.Spec.NodeName; name == "" || name == n.node.Name {
		return verdict{}
	}
	return rejectFinally(nodeAdded, "node(s) didn't match the requested node name")
}

func filterTaints(c *cycle, n *nodeInfo) verdict {
	for i := range n.node.Spec.Taints {
		t := &n.node.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(c.pod.pod, t) {
			return rejectFinally(nodeAdded|nodeTaints, "node(s) had untolerated taint(s)")
		}
	}
	return verdict{}
}

func tolerates(pod *corev1.Pod, taint *corev1.Taint) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return tolerate(&t, taint) })
}

// tolerate is upstream's rule of tolerations.
func tolerate(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", corev1.TolerationOpEqual:
		return t.Value == taint.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}

func filterAffinity(c *cycle, n *nodeInfo) verdict {
	if match, err := c.required.Match(n.node); match && err == nil {
		return verdict{}
	}
	return rejectFinally(nodeAdded|nodeLabels, "node(s) didn't match Pod's node affinity/selector")
}

func filterPorts(c *cycle, n *nodeInfo) verdict {
	if len(c.pod.ports) == 0 {
		return verdict{}
	}
	for _, p := range n.pods {
		for i := range p.ports {
			if slices.ContainsFunc(c.pod.ports, func(want corev1.ContainerPort) bool { return portsConflict(&p.ports[i], &want) }) {
				return reject(nodeAdded|podGone, "node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return verdict{}
}

func portsConflict(a, b *corev1.ContainerPort) bool {
	if a.HostPort != b.HostPort || protocol(a) != protocol(b) {
		return false
	}
	return isWildcard(a.HostIP) || isWildcard(b.HostIP) || a.HostIP == b.HostIP
}

func protocol(p *corev1.ContainerPort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func isWildcard(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }

// filterResources gives every resource that is short as a reason.
func filterResources(c *cycle, n *nodeInfo) verdict {
	var reasons []string
	final := false
	short := func(name string, want, used, total int64) {
		if want > 0 && want > total-used {
			reasons = append(reasons, name)
			final = final || want > total // no Pod that goes makes the node larger
		}
	}
	want, used, total := &c.pod.requests, &n.requested, &n.allocatable
	short("Too many pods", 1, used.pods, total.pods)
	short("Insufficient cpu", want.milliCPU, used.milliCPU, total.milliCPU)
	short("Insufficient memory", want.memoryBytes, used.memoryBytes, total.memoryBytes)
	short("Insufficient ephemeral-storage", want.ephemeralBytes, used.ephemeralBytes, total.ephemeralBytes)
	for _, name := range slices.Sorted(maps.Keys(want.scalar)) {
		short("Insufficient "+string(name), want.scalar[name], used.scalar[name], total.scalar[name])
	}
	if reasons == nil {
		return verdict{}
	}
	return verdict{reasons: reasons, unresolvable: final, helps: nodeAdded | nodeResources | podGone}
}
