package scheduler

import (
	"hash/fnv"
)

// schedule chooses the node for pod, or says why there is none. It is a
// function of its arguments.
func schedule(snap *Snapshot, pod *podInfo) (node string, err *FitError) {
	c := newCycle(snap, pod)
	if c.volumes.pre != "" {
		return "", &FitError{nodes: len(snap.nodes), pre: c.volumes.pre, quiet: c.volumes.quiet, helps: volumesChanged | nodeAdded}
	}
	// A node that Pods were removed from for this one is taken if it fits.
	if name := pod.pod.Status.NominatedNodeName; name != "" {
		for _, n := range snap.nodes {
			if n.node.Name == name && c.fitsWithNominated(n).ok() {
				return name, nil
			}
		}
	}
	var fit []*nodeInfo
	fail := &FitError{nodes: len(snap.nodes), verdicts: map[string]verdict{}, helps: nodeAdded}
	for _, n := range snap.nodes {
		v := c.fitsWithNominated(n)
		if v.ok() {
			fit = append(fit, n)
			continue
		}
		fail.verdicts[n.node.Name] = v
		fail.helps |= v.helps
	}
	switch len(fit) {
	case 0:
		return "", fail
	case 1:
		return fit[0].node.Name, nil
	}
	return c.best(fit), nil
}

// fitsWithNominated asks twice if Pods of the same or higher priority are
// expected on the node: with them there, and, because they may end up
// elsewhere, without.
func (c *cycle) fitsWithNominated(n *nodeInfo) verdict {
	full := n
	for _, p := range n.nominated {
		if p.key != c.pod.key && p.priority >= c.pod.priority {
			full = full.with(p)
		}
	}
	if full != n {
		if v := newCycle(c.snap.replace(full), c.pod).fits(full); !v.ok() {
			return v
		}
	}
	return c.fits(n)
}

// best is the node with the highest score; ties are broken by a hash that
// differs from Pod to Pod.
func (c *cycle) best(nodes []*nodeInfo) string {
	total := make([]int64, len(nodes))
	for _, s := range scorers {
		for i, score := range s.rate(c, nodes) {
			total[i] += s.weight * score
		}
	}
	chosen := 0
	for i := range nodes {
		if total[i] > total[chosen] || total[i] == total[chosen] && c.lot(nodes[i]) > c.lot(nodes[chosen]) {
			chosen = i
		}
	}
	return nodes[chosen].node.Name
}

func (c *cycle) lot(n *nodeInfo) uint32 {
	h := fnv.New32a()
	h.Write([]byte(c.pod.pod.UID))
	h.Write([]byte(n.node.Name))
	return h.Sum32()
}
