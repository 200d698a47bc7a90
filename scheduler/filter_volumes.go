package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry/claims"
)

// volumeState is what the Pod's claims ask of a node.
type volumeState struct {
	// pre is why the Pod fits nowhere at all; quiet says that this is so for a moment
	// only, in which the claim is made.
	pre   string
	quiet bool
	// bound are the volumes of bound claims; missing says that one of them does
	// not exist.
	bound   []*corev1.PersistentVolume
	missing bool
	// unbound are claims whose volume is chosen with the node, the smallest first.
	unbound []*corev1.PersistentVolumeClaim
	// exclusive are claims that one Pod alone may use.
	exclusive []string
}

func newVolumeState(c *cycle) *volumeState {
	s := &volumeState{}
	for i := range c.pod.pod.Spec.Volumes {
		if v := &c.pod.pod.Spec.Volumes[i]; claims.Name(c.pod.pod, v) != "" && s.pre == "" {
			s.add(c, v)
		}
	}
	slices.SortStableFunc(s.unbound, func(a, b *corev1.PersistentVolumeClaim) int {
		return a.Spec.Resources.Requests.Storage().Cmp(*b.Spec.Resources.Requests.Storage())
	})
	return s
}

func (s *volumeState) add(c *cycle, v *corev1.Volume) {
	name := claims.Name(c.pod.pod, v)
	claim, ok := c.snap.objects.Claim(c.pod.pod.Namespace, name)
	switch {
	case !ok && v.Ephemeral != nil:
		s.pre, s.quiet = fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name), true
		return
	case !ok:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q not found", name)
		return
	case claim.Status.Phase == corev1.ClaimLost:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		return
	case claim.DeletionTimestamp != nil:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		return
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(c.pod.pod, claim); err != nil {
			s.pre = err.Error()
			return
		}
	}
	if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
		s.exclusive = append(s.exclusive, name)
	}
	if claims.Bound(claim) {
		if pv, ok := c.snap.objects.Volume(claim.Spec.VolumeName); ok {
			s.bound = append(s.bound, pv)
		} else {
			s.missing = true
		}
		return
	}
	if class, ok := c.snap.objects.Class(storagehelpers.GetPersistentVolumeClaimClass(claim)); ok && claims.WaitsForConsumer(class) && claim.Spec.VolumeName == "" {
		s.unbound = append(s.unbound, claim)
		return
	}
	s.pre = "pod has unbound immediate PersistentVolumeClaims"
}

func filterVolumes(c *cycle, n *nodeInfo) verdict {
	s := c.volumes
	if s.missing {
		return rejectFinally(volumesChanged, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
	}
	for _, pv := range s.bound {
		if storagehelpers.CheckNodeAffinity(pv, n.node.Labels) != nil {
			return rejectFinally(volumesChanged|nodeAdded|nodeLabels, "node(s) didn't match PersistentVolume's node affinity")
		}
	}
	if _, ok := chooseVolumes(c.snap.objects, s.unbound, n.node); !ok {
		return rejectFinally(volumesChanged|nodeAdded|nodeLabels, "node(s) didn't find available persistent volumes to bind")
	}
	for _, claim := range s.exclusive {
		for _, other := range c.snap.nodes {
			here := other.node.Name == n.node.Name
			if here {
				other = n // with or without Pods that are only thought of
			}
			if usesClaim(other, c.pod.pod.Namespace, claim) {
				v := reject(podGone, "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")
				v.unresolvable = !here
				return v
			}
		}
	}
	return verdict{}
}

func usesClaim(n *nodeInfo, ns, claim string) bool {
	return slices.ContainsFunc(n.pods, func(p *podInfo) bool {
		return p.pod.Namespace == ns && slices.Contains(claims.Names(p.pod), claim)
	})
}

// choice is what claims get if their Pod gets a node: a volume that is there, or one
// that is made.
type choice struct {
	volumes map[*corev1.PersistentVolumeClaim]*corev1.PersistentVolume // nil: to be made
}

// chooseVolumes finds volumes on the node for claims that wait for their Pod's; it is
// false if there are none and none can be made.
func chooseVolumes(o objects, unbound []*corev1.PersistentVolumeClaim, node *corev1.Node) (choice, bool) {
	c := choice{map[*corev1.PersistentVolumeClaim]*corev1.PersistentVolume{}}
	taken := map[string]*corev1.PersistentVolume{}
	for _, claim := range unbound {
		name := storagehelpers.GetPersistentVolumeClaimClass(claim)
		if selected, ok := claim.Annotations[storagehelpers.AnnSelectedNode]; !ok {
			var all []*corev1.PersistentVolume
			for _, pv := range o.Volumes() {
				if storagehelpers.GetPersistentVolumeClass(pv) == name {
					all = append(all, pv)
				}
			}
			pv, err := storagehelpers.FindMatchingVolume(claim, all, node, taken, true, true)
			if err != nil {
				return c, false
			}
			if pv != nil {
				taken[pv.Name], c.volumes[claim] = pv, pv
				continue
			}
		} else if selected != node.Name {
			return c, false
		}
		if class, ok := o.Class(name); !ok || !provisions(class, node) {
			return c, false
		}
		c.volumes[claim] = nil
	}
	return c, true
}

// provisions reports whether volumes of the class can be made for the node.
func provisions(class *storagev1.StorageClass, node *corev1.Node) bool {
	return class.Provisioner != "" && class.Provisioner != storagehelpers.NotSupportedProvisioner &&
		(len(class.AllowedTopologies) == 0 || slices.ContainsFunc(class.AllowedTopologies, func(t corev1.TopologySelectorTerm) bool {
			return len(t.MatchLabelExpressions) > 0 && !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
				value, ok := node.Labels[r.Key]
				return !ok || !slices.Contains(r.Values, value)
			})
		}))
}
