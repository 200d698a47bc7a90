package persistentvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
)

// volumeKey before a name is a volume's key; a claim's is loop.Key.
const volumeKey = "volume "

type controller struct {
	claims  registry.Client[*corev1.PersistentVolumeClaim]
	volumes registry.Client[*corev1.PersistentVolume]
	events  *recorder.Recorder
	queue   *loop.Queue
	cached

	// told is what was last said of a claim that waits. It is the worker's.
	told map[types.UID]Event
}

// cached is World over the registry's cache.
type cached struct {
	claims  registry.Client[*corev1.PersistentVolumeClaim]
	volumes registry.Client[*corev1.PersistentVolume]
	classes registry.Client[*storagev1.StorageClass]
	nodes   registry.Client[*corev1.Node]
	pods    registry.Client[*corev1.Pod]
}

func (c cached) Claim(namespace, name string) *corev1.PersistentVolumeClaim {
	claim, _ := c.claims.Get(namespace, name)
	return claim
}

func (c cached) Volume(name string) *corev1.PersistentVolume {
	pv, _ := c.volumes.Get("", name)
	return pv
}

func (c cached) Volumes() []*corev1.PersistentVolume { return c.volumes.List("") }
func (c cached) Classes() []*storagev1.StorageClass  { return c.classes.List("") }
func (c cached) Nodes() []*corev1.Node               { return c.nodes.List("") }
func (c cached) Pods(namespace string) []*corev1.Pod { return c.pods.List(namespace) }

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	w := cached{
		claims:  registry.For[*corev1.PersistentVolumeClaim](env.Registry),
		volumes: registry.For[*corev1.PersistentVolume](env.Registry),
		classes: registry.For[*storagev1.StorageClass](env.Registry),
		nodes:   registry.For[*corev1.Node](env.Registry),
		pods:    registry.For[*corev1.Pod](env.Registry),
	}
	c := &controller{
		claims: w.claims, volumes: w.volumes, cached: w, told: map[types.UID]Event{},
		events: env.Events.Component("persistentvolume-controller"),
	}
	c.queue = loop.NewQueue(loop.Config{Name: "persistentvolume", Workers: 1, Reconcile: c.sync, Logger: env.Logger})
	defer c.claims.Subscribe(c.claimChanged)()
	defer c.volumes.Subscribe(c.volumeChanged)()
	defer w.classes.Subscribe(func(registry.Event[*storagev1.StorageClass]) { c.waiting() })()
	defer w.nodes.Subscribe(c.nodeChanged)()
	defer w.pods.Subscribe(c.podChanged)()
	return c.queue.Run(ctx)
}

func (c *controller) claimChanged(e registry.Event[*corev1.PersistentVolumeClaim]) {
	c.queue.Add(loop.KeyOf(e.Object))
	if e.Type == watch.Added || e.Type == watch.Modified && e.Old.Spec.VolumeName == e.Object.Spec.VolumeName {
		return
	}
	for _, pv := range c.volumes.List("") { // its own, and others that were meant for it
		if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID == e.Object.UID {
			c.queue.Add(volumeKey + pv.Name)
		}
	}
}

func (c *controller) volumeChanged(e registry.Event[*corev1.PersistentVolume]) {
	c.queue.Add(volumeKey + e.Object.Name)
	if ref := e.Object.Spec.ClaimRef; ref != nil {
		c.queue.Add(loop.Key(ref.Namespace, ref.Name))
	}
	if e.Type == watch.Deleted || e.Object.Status.Phase == corev1.VolumeAvailable {
		c.waiting()
	}
}

// waiting has the claims looked at that have no volume yet, or lost theirs.
func (c *controller) waiting() {
	for _, claim := range c.claims.List("") {
		if !claims.Bound(claim) {
			c.queue.Add(loop.KeyOf(claim))
		}
	}
}

// nodeChanged: what was on a device that is gone, or was to be made on it.
func (c *controller) nodeChanged(e registry.Event[*corev1.Node]) {
	if e.Type != watch.Deleted {
		return
	}
	c.waiting()
	for _, pv := range c.volumes.List("") {
		if pv.Status.Phase == corev1.VolumeReleased && claims.IsLocalVolume(pv) {
			c.queue.Add(volumeKey + pv.Name)
		}
	}
}

// podChanged has a claim looked at that its Pod may have kept, or waits for.
func (c *controller) podChanged(e registry.Event[*corev1.Pod]) {
	if e.Type == watch.Modified && e.Object.DeletionTimestamp == nil {
		return
	}
	for _, name := range claims.Names(e.Object) {
		claim, ok := c.claims.Get(e.Object.Namespace, name)
		if ok && claim.DeletionTimestamp != nil {
			c.queue.Add(loop.KeyOf(claim))
		}
	}
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if name, ok := strings.CutPrefix(key, volumeKey); ok {
		if pv := c.Volume(name); pv != nil {
			return 0, c.volume(ctx, pv, Volume(c, pv))
		}
		return 0, nil
	}
	claim := c.Claim(loop.SplitKey(key))
	if claim == nil {
		return 0, nil
	}
	return 0, c.claim(ctx, claim, Claim(c, claim))
}

func (c *controller) claim(ctx context.Context, claim *corev1.PersistentVolumeClaim, step ClaimStep) error {
	if step.Unprotect {
		delete(c.told, claim.UID)
		return c.update(ctx, claim, func(cur *corev1.PersistentVolumeClaim) { unprotect(cur, claims.ProtectionFinalizer) })
	}
	if step.Bind != nil {
		delete(c.told, claim.UID)
		return c.bind(ctx, step.Bind, claim)
	}
	if e := step.Event; e != nil && c.told[claim.UID] != *e && (step.Phase != corev1.ClaimLost || claim.Status.Phase != corev1.ClaimLost) {
		c.forgetGone()
		c.told[claim.UID] = *e
		c.events.Event(recorder.Reference("v1", "PersistentVolumeClaim", claim, ""), e.Type, e.Reason, e.Message)
	}
	if step.Class != "" || step.Ask != "" || step.Unselect {
		err := c.update(ctx, claim, func(cur *corev1.PersistentVolumeClaim) {
			if step.Class != "" {
				cur.Spec.StorageClassName = &step.Class
			}
			if step.Ask != "" {
				metav1.SetMetaDataAnnotation(&cur.ObjectMeta, storagehelpers.AnnStorageProvisioner, step.Ask)
				metav1.SetMetaDataAnnotation(&cur.ObjectMeta, storagehelpers.AnnBetaStorageProvisioner, step.Ask)
			}
			if step.Unselect {
				delete(cur.Annotations, storagehelpers.AnnSelectedNode)
			}
		})
		if err != nil {
			return err
		}
	}
	if step.Phase == "" {
		return nil
	}
	return c.claimPhase(ctx, claim, step.Phase, nil)
}

// forgetGone keeps told as small as the number of claims that wait.
func (c *controller) forgetGone() {
	if len(c.told) < 256 {
		return
	}
	there := map[types.UID]bool{}
	for _, claim := range c.claims.List("") {
		there[claim.UID] = true
	}
	for uid := range c.told {
		if !there[uid] {
			delete(c.told, uid)
		}
	}
}

func unprotect(o metav1.Object, finalizer string) {
	o.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }))
}

// update changes a claim that is as it was when it was decided on.
func (c *controller) update(ctx context.Context, claim *corev1.PersistentVolumeClaim, fn func(*corev1.PersistentVolumeClaim)) error {
	_, err := c.claims.Update(ctx, claim.Namespace, claim.Name, func(cur *corev1.PersistentVolumeClaim) error {
		if cur.UID != claim.UID || cur.ResourceVersion != claim.ResourceVersion {
			return apierrors.NewConflict(corev1.Resource("persistentvolumeclaims"), cur.Name, errors.New("it was changed after it was read"))
		}
		fn(cur)
		return nil
	})
	return ignoreGone("change claim "+loop.KeyOf(claim), err)
}

func ignoreGone(what string, err error) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// bind writes down on both sides that the volume is the claim's, as far as that is
// not there yet.
func (c *controller) bind(ctx context.Context, pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	want, dirty, err := storagehelpers.GetBindVolumeToClaim(pv, claim)
	if err != nil {
		return fmt.Errorf("bind volume %s: %w", pv.Name, err)
	}
	if dirty {
		pv, err = c.volumes.Update(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
			if cur.UID != pv.UID || cur.ResourceVersion != pv.ResourceVersion {
				return apierrors.NewConflict(corev1.Resource("persistentvolumes"), cur.Name, errors.New("it was changed after it was read"))
			}
			cur.Spec.ClaimRef, cur.Annotations = want.Spec.ClaimRef, want.Annotations
			return nil
		})
		if err != nil {
			return ignoreGone("bind volume "+want.Name, err)
		}
	}
	if err := c.volumePhase(ctx, pv, corev1.VolumeBound, ""); err != nil {
		return err
	}
	if claim.Spec.VolumeName != pv.Name || !metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted) {
		err := c.update(ctx, claim, func(cur *corev1.PersistentVolumeClaim) {
			if cur.Spec.VolumeName != pv.Name {
				cur.Spec.VolumeName = pv.Name
				metav1.SetMetaDataAnnotation(&cur.ObjectMeta, storagehelpers.AnnBoundByController, "yes")
			}
			metav1.SetMetaDataAnnotation(&cur.ObjectMeta, storagehelpers.AnnBindCompleted, "yes")
		})
		if err != nil {
			return err
		}
	}
	return c.claimPhase(ctx, claim, corev1.ClaimBound, pv)
}

// claimPhase writes the status of a claim; pv is nil for one that is not bound.
func (c *controller) claimPhase(ctx context.Context, claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, pv *corev1.PersistentVolume) error {
	if equality.Semantic.DeepEqual(statusOf(claim, phase, pv), claim.Status) {
		return nil
	}
	_, err := c.claims.UpdateStatus(ctx, claim.Namespace, claim.Name, func(cur *corev1.PersistentVolumeClaim) error {
		if cur.UID == claim.UID {
			cur.Status = statusOf(cur, phase, pv)
		}
		return nil
	})
	return ignoreGone("write the status of claim "+loop.KeyOf(claim), err)
}

func statusOf(claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, pv *corev1.PersistentVolume) corev1.PersistentVolumeClaimStatus {
	s := *claim.Status.DeepCopy()
	s.Phase = phase
	if pv == nil {
		s.AccessModes, s.Capacity, s.CurrentVolumeAttributesClassName = nil, nil, nil
		return s
	}
	s.AccessModes = pv.Spec.AccessModes
	if claim.Status.Phase != phase { // what it holds later may differ on purpose
		s.Capacity = pv.Spec.Capacity
	}
	if claim.Status.Phase == corev1.ClaimPending {
		s.CurrentVolumeAttributesClassName = pv.Spec.VolumeAttributesClassName
	}
	return s
}

func (c *controller) volume(ctx context.Context, pv *corev1.PersistentVolume, step VolumeStep) error {
	about := recorder.Reference("v1", "PersistentVolume", pv, "")
	if step.Unbind {
		cur, err := c.volumes.Update(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
			if cur.UID != pv.UID || cur.ResourceVersion != pv.ResourceVersion {
				return apierrors.NewConflict(corev1.Resource("persistentvolumes"), cur.Name, errors.New("it was changed after it was read"))
			}
			if metav1.HasAnnotation(cur.ObjectMeta, storagehelpers.AnnBoundByController) {
				cur.Spec.ClaimRef = nil
				delete(cur.Annotations, storagehelpers.AnnBoundByController)
			} else {
				cur.Spec.ClaimRef.UID = "" // reserved by a user
			}
			return nil
		})
		if err != nil {
			return ignoreGone("unbind volume "+pv.Name, err)
		}
		return c.volumePhase(ctx, cur, corev1.VolumeAvailable, "")
	}
	if step.Phase != "" {
		if err := c.volumePhase(ctx, pv, step.Phase, step.Message); err != nil {
			return err
		}
	}
	if e := step.Event; e != nil {
		c.events.Event(about, e.Type, e.Reason, e.Message)
	}
	if step.Unprotect || step.Forget {
		_, err := c.volumes.Update(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
			if cur.UID == pv.UID {
				if step.Unprotect {
					unprotect(cur, claims.VolumeProtectionFinalizer)
				}
				if step.Forget {
					unprotect(cur, storagehelpers.PVDeletionProtectionFinalizer)
				}
			}
			return nil
		})
		if err != nil {
			return ignoreGone("take the finalizers of volume "+pv.Name+" away", err)
		}
	}
	if step.Forget && pv.DeletionTimestamp == nil {
		err := c.volumes.Delete(ctx, "", pv.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pv.UID))})
		return ignoreGone("delete volume "+pv.Name, err)
	}
	return nil
}

func (c *controller) volumePhase(ctx context.Context, pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	if pv.Status.Phase == phase {
		return nil
	}
	_, err := c.volumes.UpdateStatus(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
		if cur.UID == pv.UID && cur.Status.Phase != phase {
			cur.Status.Phase, cur.Status.Message, cur.Status.Reason = phase, message, ""
		}
		return nil
	})
	return ignoreGone("write the status of volume "+pv.Name, err)
}
