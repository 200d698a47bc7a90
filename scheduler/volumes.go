package scheduler

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
)

// volumesOn is what the Pod's claims get on the node that was chosen; ok is false if
// all of them are bound already.
func volumesOn(snap *Snapshot, p *podInfo, node string) (c choice, ok bool) {
	unbound := newVolumeState(&cycle{snap: snap, pod: p}).unbound
	if len(unbound) == 0 {
		return c, false
	}
	for _, n := range snap.nodes {
		if n.node.Name == node {
			return chooseVolumes(snap.objects, unbound, n.node)
		}
	}
	return c, false
}

// bindVolumes writes down what claims get, for whoever makes and binds volumes. The Pod
// keeps its room on the node and is decided on again when its claims are bound.
func (s *scheduler) bindVolumes(ctx context.Context, w *waiting, p *podInfo, node string, c choice) {
	for claim, pv := range c.volumes {
		var err error
		if pv != nil {
			err = s.reserve(ctx, pv, claim)
		} else {
			err = s.selectNode(ctx, claim, node)
		}
		if err == nil {
			continue
		}
		s.state.forget(p)
		s.queue.retry(w, s.cfg.Now())
		if ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			s.cfg.Logger.Warn("a volume was not chosen", "pod", p.key, "node", node, "err", err)
		}
		return
	}
	s.queue.await(w, claimsSettled)
}

// reserve gives a volume to a claim, unless somebody else has.
func (s *scheduler) reserve(ctx context.Context, pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	want, dirty, err := storagehelpers.GetBindVolumeToClaim(pv, claim)
	if err != nil || !dirty {
		return err
	}
	_, err = registry.For[*corev1.PersistentVolume](s.cfg.Registry).Update(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
		if cur.UID != pv.UID || cur.ResourceVersion != pv.ResourceVersion {
			return apierrors.NewConflict(corev1.Resource("persistentvolumes"), pv.Name, errors.New("it was changed after it was read"))
		}
		cur.Spec.ClaimRef, cur.Annotations = want.Spec.ClaimRef, want.Annotations
		return nil
	})
	if err != nil {
		return fmt.Errorf("reserve volume %s: %w", pv.Name, err)
	}
	return nil
}

// selectNode tells a claim's provisioner where its volume is to be, unless that was
// decided for another Pod.
func (s *scheduler) selectNode(ctx context.Context, claim *corev1.PersistentVolumeClaim, node string) error {
	if claim.Annotations[storagehelpers.AnnSelectedNode] == node {
		return nil
	}
	_, err := registry.For[*corev1.PersistentVolumeClaim](s.cfg.Registry).Update(ctx, claim.Namespace, claim.Name, func(cur *corev1.PersistentVolumeClaim) error {
		if was := cur.Annotations[storagehelpers.AnnSelectedNode]; cur.UID != claim.UID || cur.Spec.VolumeName != "" || was != "" && was != node {
			return apierrors.NewConflict(corev1.Resource("persistentvolumeclaims"), cur.Name, errors.New("another node was selected"))
		}
		metav1.SetMetaDataAnnotation(&cur.ObjectMeta, storagehelpers.AnnSelectedNode, node)
		return nil
	})
	if err != nil {
		return fmt.Errorf("select the node of claim %s: %w", claim.Name, err)
	}
	return nil
}

func (s *scheduler) onClaim(e registry.Event[*corev1.PersistentVolumeClaim]) {
	c := volumesChanged
	unselected := e.Old != nil && metav1.HasAnnotation(e.Old.ObjectMeta, storagehelpers.AnnSelectedNode) && !metav1.HasAnnotation(e.Object.ObjectMeta, storagehelpers.AnnSelectedNode)
	if e.Type == watch.Deleted || e.Object.DeletionTimestamp != nil || claims.Bound(e.Object) || unselected {
		c |= claimsSettled
	}
	s.queue.happened(c, s.cfg.Now())
}
