package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// volumeState is what the Pod's claims ask of a node.
type volumeState struct {
	// pre is why the Pod fits nowhere at all.
	pre string
	// bound are the volumes of bound claims; missing says that one of them does
	// not exist, unbound that a claim waits for a volume.
	bound            []*corev1.PersistentVolume
	missing, unbound bool
	// exclusive are claims that one Pod alone may use.
	exclusive []string
}

func newVolumeState(c *cycle) *volumeState {
	s := &volumeState{}
	for i := range c.pod.pod.Spec.Volumes {
		v := &c.pod.pod.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			s.add(c, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			s.add(c, c.pod.pod.Name+"-"+v.Name)
		}
	}
	return s
}

func (s *volumeState) add(c *cycle, name string) {
	claim, ok := c.snap.objects.Claim(c.pod.pod.Namespace, name)
	switch {
	case !ok:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q not found", name)
		return
	case claim.DeletionTimestamp != nil:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		return
	case claim.Status.Phase == corev1.ClaimLost:
		s.pre = fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		return
	}
	if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
		s.exclusive = append(s.exclusive, name)
	}
	if claim.Spec.VolumeName != "" {
		if pv, ok := c.snap.objects.Volume(claim.Spec.VolumeName); ok {
			s.bound = append(s.bound, pv)
		} else {
			s.missing = true
		}
		return
	}
	if class := claim.Spec.StorageClassName; class != nil {
		if sc, ok := c.snap.objects.Class(*class); ok && sc.VolumeBindingMode != nil && *sc.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer {
			s.unbound = true
			return
		}
	}
	s.pre = "pod has unbound immediate PersistentVolumeClaims"
}

func filterVolumes(c *cycle, n *nodeInfo) verdict {
	s := c.volumes
	switch {
	case s.missing:
		return rejectFinally(volumesChanged, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
	case s.unbound:
		return rejectFinally(volumesChanged|nodeAdded|nodeLabels, "node(s) didn't find available persistent volumes to bind")
	}
	for _, pv := range s.bound {
		if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
			continue
		}
		if match, err := nodeaffinity.NewLazyErrorNodeSelector(pv.Spec.NodeAffinity.Required).Match(n.node); !match || err != nil {
			return rejectFinally(volumesChanged|nodeAdded|nodeLabels, "node(s) didn't match PersistentVolume's node affinity")
		}
	}
	for _, claim := range s.exclusive {
		if usesClaim(n, c.pod.pod.Namespace, claim) {
			return reject(podGone, "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")
		}
	}
	return verdict{}
}

func usesClaim(n *nodeInfo, ns, claim string) bool {
	return slices.ContainsFunc(n.pods, func(p *podInfo) bool {
		return p.pod.Namespace == ns && slices.ContainsFunc(p.pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim
		})
	})
}
