package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Snapshot is an immutable view of the cluster for one decision.
type Snapshot struct {
	nodes []*nodeInfo // in order of their names
	// withAntiAffinity are the nodes that hold a Pod with required
	// anti-affinity: few, while the check is due for every Pod.
	withAntiAffinity []*nodeInfo
	objects          objects
}

// objects are what decisions look up by name; from the cache, or from a test.
type objects interface {
	NamespaceLabels(ns string) labels.Set
	Claim(ns, name string) (*corev1.PersistentVolumeClaim, bool)
	Volume(name string) (*corev1.PersistentVolume, bool)
	Volumes() []*corev1.PersistentVolume
	Class(name string) (*storagev1.StorageClass, bool)
	Budgets(ns string) []*policyv1.PodDisruptionBudget
}

// nodeInfo is a node and the Pods on it. It never changes: with and without
// return changed copies.
type nodeInfo struct {
	node        *corev1.Node
	allocatable resources
	pods        []*podInfo // bound, and assumed
	nominated   []*podInfo // expected once others have gone

	requested            resources
	weightCPU, weightMem int64
	antiAffinity         int // number of pods with required anti-affinity
}

func newNodeInfo(node *corev1.Node, pods, nominated []*podInfo) *nodeInfo {
	n := &nodeInfo{node: node, nominated: nominated, allocatable: toResources(node.Status.Allocatable)}
	n.pods = pods
	for _, p := range pods {
		n.count(p, 1)
	}
	return n
}

func (n *nodeInfo) count(p *podInfo, sign int64) {
	n.requested = n.requested.add(p.requests, sign)
	n.weightCPU += sign * p.weightCPU
	n.weightMem += sign * p.weightMem
	if len(p.antiAffinity) > 0 {
		n.antiAffinity += int(sign)
	}
}

// with returns the node with one more Pod.
func (n *nodeInfo) with(p *podInfo) *nodeInfo {
	c := *n
	c.pods = append(slices.Clip(slices.Clone(n.pods)), p)
	c.requested.scalar = maps.Clone(n.requested.scalar)
	c.count(p, 1)
	return &c
}

// without returns the node with the Pods of the given keys gone.
func (n *nodeInfo) without(gone map[string]bool) *nodeInfo {
	c := *n
	c.pods = nil
	c.requested.scalar = maps.Clone(n.requested.scalar)
	for _, p := range n.pods {
		if gone[p.key] {
			c.count(p, -1)
		} else {
			c.pods = append(c.pods, p)
		}
	}
	return &c
}

func newSnapshot(nodes []*nodeInfo, o objects) *Snapshot {
	s := &Snapshot{nodes: nodes, objects: o}
	for _, n := range nodes {
		if n.antiAffinity > 0 {
			s.withAntiAffinity = append(s.withAntiAffinity, n)
		}
	}
	return s
}

// replace returns the snapshot with one node changed.
func (s *Snapshot) replace(n *nodeInfo) *Snapshot {
	nodes := slices.Clone(s.nodes)
	for i := range nodes {
		if nodes[i].node.Name == n.node.Name {
			nodes[i] = n
		}
	}
	return newSnapshot(nodes, s.objects)
}
