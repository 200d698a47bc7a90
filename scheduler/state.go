package scheduler

import (
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edged/apiserver/registry"
)

// state follows nodes and the Pods on them, so that a snapshot costs only what
// changed since the last one.
type state struct {
	objects objects

	mu    sync.Mutex
	nodes map[string]*nodeEntry
	// at is the node that each known Pod is counted on.
	at map[string]string
	// assumed are Pods whose binding is under way; the cache does not show them
	// on their node yet.
	assumed   map[string]bool
	nominated map[string]string // Pod to the node it waits for
	snap      *Snapshot         // nil: something changed
}

// nodeEntry is a node, or what is known of one before it is seen.
type nodeEntry struct {
	node      *corev1.Node
	pods      map[string]*podInfo
	nominated map[string]*podInfo
	info      *nodeInfo // nil: something changed
}

func newState(o objects) *state {
	return &state{objects: o, nodes: map[string]*nodeEntry{}, at: map[string]string{}, assumed: map[string]bool{}, nominated: map[string]string{}}
}

// entry is called with mu held and the intent to change it.
func (s *state) entry(name string) *nodeEntry {
	e := s.nodes[name]
	if e == nil {
		e = &nodeEntry{pods: map[string]*podInfo{}, nominated: map[string]*podInfo{}}
		s.nodes[name] = e
	}
	e.info, s.snap = nil, nil
	return e
}

// prune is called with mu held.
func (s *state) prune(name string) {
	if e := s.nodes[name]; e.node == nil && len(e.pods) == 0 && len(e.nominated) == 0 {
		delete(s.nodes, name)
	}
}

func (s *state) setNode(node *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry(node.Name).node = node
}

func (s *state) removeNode(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entry(name).node = nil
	s.prune(name)
}

// setPod counts a Pod on its node.
func (s *state) setPod(p *podInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.assumed, p.key)
	s.put(p, p.pod.Spec.NodeName)
}

// put is called with mu held.
func (s *state) put(p *podInfo, node string) {
	if was, ok := s.at[p.key]; ok && was != node {
		delete(s.entry(was).pods, p.key)
		s.prune(was)
	}
	s.entry(node).pods[p.key] = p
	s.at[p.key] = node
}

// assume counts a Pod on a node before the cache shows it there.
func (s *state) assume(p *podInfo, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assumed[p.key] = true
	s.put(p, node)
}

// forget takes an assumption back, unless it has come true.
func (s *state) forget(p *podInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.assumed[p.key] {
		s.remove(p.key)
	}
}

// removePod reports whether the Pod was counted on a node.
func (s *state) removePod(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(key)
}

// remove is called with mu held.
func (s *state) remove(key string) bool {
	delete(s.assumed, key)
	node, ok := s.at[key]
	if !ok {
		return false
	}
	delete(s.at, key)
	delete(s.entry(node).pods, key)
	s.prune(node)
	return true
}

// isAssumed reports whether the Pod's binding is under way.
func (s *state) isAssumed(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assumed[key]
}

// nominate notes the node that a Pod waits for; none if node is empty.
func (s *state) nominate(p *podInfo, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, ok := s.nominated[p.key]; ok && was != node {
		delete(s.entry(was).nominated, p.key)
		s.prune(was)
		delete(s.nominated, p.key)
	}
	if node != "" {
		s.entry(node).nominated[p.key] = p
		s.nominated[p.key] = node
	}
}

// snapshot is the state as it is now.
func (s *state) snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snap != nil {
		return s.snap
	}
	var nodes []*nodeInfo
	for _, e := range s.nodes {
		if e.node == nil {
			continue
		}
		if e.info == nil {
			e.info = newNodeInfo(e.node, sorted(e.pods), sorted(e.nominated))
		}
		nodes = append(nodes, e.info)
	}
	slices.SortFunc(nodes, func(a, b *nodeInfo) int { return strings.Compare(a.node.Name, b.node.Name) })
	s.snap = newSnapshot(nodes, s.objects)
	return s.snap
}

func sorted(pods map[string]*podInfo) []*podInfo {
	return slices.SortedFunc(maps.Values(pods), func(a, b *podInfo) int { return strings.Compare(a.key, b.key) })
}

// cached looks objects up in the registry's cache.
type cached struct {
	namespaces registry.Client[*corev1.Namespace]
	claims     registry.Client[*corev1.PersistentVolumeClaim]
	volumes    registry.Client[*corev1.PersistentVolume]
	classes    registry.Client[*storagev1.StorageClass]
	budgets    registry.Client[*policyv1.PodDisruptionBudget]
}

func newCached(r *registry.Registry) cached {
	return cached{
		namespaces: registry.For[*corev1.Namespace](r),
		claims:     registry.For[*corev1.PersistentVolumeClaim](r),
		volumes:    registry.For[*corev1.PersistentVolume](r),
		classes:    registry.For[*storagev1.StorageClass](r),
		budgets:    registry.For[*policyv1.PodDisruptionBudget](r),
	}
}

func (c cached) NamespaceLabels(name string) labels.Set {
	if ns, ok := c.namespaces.Get("", name); ok {
		return ns.Labels
	}
	return nil
}

func (c cached) Claim(ns, name string) (*corev1.PersistentVolumeClaim, bool) {
	return c.claims.Get(ns, name)
}

func (c cached) Volume(name string) (*corev1.PersistentVolume, bool) { return c.volumes.Get("", name) }

func (c cached) Volumes() []*corev1.PersistentVolume { return c.volumes.List("") }

func (c cached) Class(name string) (*storagev1.StorageClass, bool) { return c.classes.Get("", name) }

func (c cached) Budgets(ns string) []*policyv1.PodDisruptionBudget { return c.budgets.List(ns) }

// refresh replaces the object of a Pod that takes the same room as before.
func (s *state) refresh(key string, pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, ok := s.at[key]
	if !ok {
		return
	}
	if old := s.nodes[node].pods[key]; old != nil {
		p := *old
		p.pod = pod
		s.entry(node).pods[key] = &p
	}
}
