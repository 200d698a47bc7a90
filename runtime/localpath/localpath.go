// Package localpath makes and removes the PersistentVolumes that are folders on this
// device's own disk: edged's own provisioner, which every device runs for itself.
//
// It binds no claims (controller/persistentvolume), chooses no device (scheduler) and
// mounts nothing (runtime/volume). Folders are as large as the disk: nothing measures
// them.
//
// A claim is this device's once it names the provisioner and, as the node that was
// selected, this one. First the folder is made, durably, then the PersistentVolume, so
// that one whose folder is missing has lost it. A volume is removed once it is released
// or is being deleted: first the folder, then the finalizer and the object. A device
// that was away finds what it missed in its replica. Both are the same when done twice,
// so a daemon that was killed in the middle begins anew; a folder that it had made for
// nothing is removed at the next start, if it is empty.
//
// Promise: nothing outside of Config.Dir is removed. A volume's path must be its name in
// that folder, and no link is followed (os.Root).
//
// The volume is of type local, with the device's host name as node affinity, and not
// hostPath, as k3s makes it: so it has a fsGroup, and a folder that is missing is told.
//
// Goroutines: Run is one, asleep while there is nothing to do, ended by its context. It
// remembers what is to be done, a name each. May be imported by cmd/edged.
//
// Sources: sigs.k8s.io/sig-storage-lib-external-provisioner for the order of writes.
package localpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
	"edged/apiserver/registry/recorder"
)

const (
	// firstRetry and maxRetry bound how soon what failed is tried again: without a
	// leader, or with a full disk, which also other events end.
	firstRetry = 500 * time.Millisecond
	maxRetry   = time.Minute
	// prefix of a volume's name, before its claim's UID.
	prefix = "pvc-"
	// folderMode lets every Pod's user write.
	folderMode = 0o777
)

// Config is what New needs.
type Config struct {
	NodeName string
	// Dir holds the folders; it is made when the first one is.
	Dir      string
	Registry *registry.Registry
	Events   *recorder.Recorder
	Logger   *slog.Logger
}

// Provisioner makes and removes this device's volumes.
type Provisioner struct {
	cfg     Config
	claims  registry.Client[*corev1.PersistentVolumeClaim]
	volumes registry.Client[*corev1.PersistentVolume]
	classes registry.Client[*storagev1.StorageClass]
	nodes   registry.Client[*corev1.Node]
	wake    chan struct{} // cap 1: look at todo

	mu   sync.Mutex
	todo map[string]bool // guarded by mu: "namespace/name" of claims, "name" of volumes
	told map[string]string
}

// New returns a Provisioner; Run makes it work.
func New(cfg Config) *Provisioner {
	return &Provisioner{
		cfg: cfg, wake: make(chan struct{}, 1), todo: map[string]bool{}, told: map[string]string{},
		claims:  registry.For[*corev1.PersistentVolumeClaim](cfg.Registry),
		volumes: registry.For[*corev1.PersistentVolume](cfg.Registry),
		classes: registry.For[*storagev1.StorageClass](cfg.Registry),
		nodes:   registry.For[*corev1.Node](cfg.Registry),
	}
}

// Run works until ctx ends, and returns nil then.
func (p *Provisioner) Run(ctx context.Context) error {
	defer p.claims.Subscribe(func(e registry.Event[*corev1.PersistentVolumeClaim]) {
		if e.Type != watch.Deleted && p.wants(e.Object) {
			p.add(e.Object.Namespace + "/" + e.Object.Name)
		}
	})()
	defer p.volumes.Subscribe(func(e registry.Event[*corev1.PersistentVolume]) {
		if e.Type != watch.Deleted && ended(e.Object) {
			p.add(e.Object.Name)
		}
	})()
	// The replica has shown everything that it holds.
	if err := p.sweep(); err != nil {
		p.cfg.Logger.Warn("folders that were made for no volume are still there", "err", err)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for wait := firstRetry; ; {
		if p.work(ctx) {
			timer.Stop()
			wait = firstRetry
		} else {
			timer.Reset(wait)
			wait = min(2*wait, maxRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// add runs on the cache's goroutine.
func (p *Provisioner) add(key string) {
	p.mu.Lock()
	p.todo[key] = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// work does what is to be done once and reports whether nothing is left.
func (p *Provisioner) work(ctx context.Context) (done bool) {
	p.mu.Lock()
	todo := p.todo
	p.todo = map[string]bool{}
	p.mu.Unlock()
	done = true
	for key := range todo {
		err := p.one(ctx, key)
		if ctx.Err() != nil {
			return true
		}
		if err == nil {
			delete(p.told, key)
			continue
		}
		done = false
		if text := err.Error(); p.told[key] != text {
			p.told[key] = text
			p.cfg.Logger.Warn("a volume on this device is neither made nor removed yet", "key", key, "err", err)
		}
		p.mu.Lock()
		p.todo[key] = true
		p.mu.Unlock()
	}
	return done
}

func (p *Provisioner) one(ctx context.Context, key string) error {
	dir, name := filepath.Split(key)
	if dir == "" {
		if pv, ok := p.volumes.Get("", key); ok && ended(pv) && p.isHere(pv) {
			return p.remove(ctx, pv)
		}
		return nil
	}
	if claim, ok := p.claims.Get(filepath.Clean(dir), name); ok && p.wants(claim) {
		return p.provision(ctx, claim)
	}
	return nil
}

// wants reports whether this device is to make a volume for the claim.
func (p *Provisioner) wants(c *corev1.PersistentVolumeClaim) bool {
	return c.Spec.VolumeName == "" && c.DeletionTimestamp == nil && c.Annotations[storagehelpers.AnnSelectedNode] == p.cfg.NodeName &&
		claims.IsLocal(c.Annotations[storagehelpers.AnnStorageProvisioner])
}

// ended reports whether the volume is over, or is being deleted while it is not bound.
func ended(pv *corev1.PersistentVolume) bool {
	return claims.IsLocalVolume(pv) && pv.Status.Phase != corev1.VolumeBound &&
		(pv.DeletionTimestamp != nil || pv.Status.Phase == corev1.VolumeReleased)
}

// isHere reports whether the volume is on this device.
func (p *Provisioner) isHere(pv *corev1.PersistentVolume) bool {
	node, ok := p.nodes.Get("", p.cfg.NodeName)
	return ok && storagehelpers.CheckNodeAffinity(pv, node.Labels) == nil
}

func (p *Provisioner) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	name := prefix + string(claim.UID)
	if _, ok := p.volumes.Get("", name); ok {
		return nil // the leader binds it
	}
	class, ok := p.classes.Get("", storagehelpers.GetPersistentVolumeClaimClass(claim))
	node, known := p.nodes.Get("", p.cfg.NodeName)
	if !ok || !known {
		return nil // a change of the claim brings it back
	}
	about := recorder.Reference("v1", "PersistentVolumeClaim", claim, "")
	if err := p.makeFolder(name); err != nil {
		err = fmt.Errorf("failed to provision volume with StorageClass %q: %w", class.Name, err)
		if p.told[claim.Namespace+"/"+claim.Name] != err.Error() {
			p.cfg.Events.Event(about, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		}
		return err
	}
	if _, err := p.volumes.Create(ctx, p.volumeFor(name, claim, class, node)); err != nil {
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return fmt.Errorf("create the PersistentVolume %s: %w", name, err)
	}
	p.cfg.Events.Eventf(about, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", name)
	return nil
}

func (p *Provisioner) volumeFor(name string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) *corev1.PersistentVolume {
	mode := corev1.PersistentVolumeFilesystem
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{storagehelpers.AnnDynamicallyProvisioned: class.Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: *claim.Spec.Resources.Requests.Storage()},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(p.cfg.Dir, name)}},
			AccessModes:            claim.Spec.AccessModes, VolumeMode: &mode, StorageClassName: class.Name,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.Labels[corev1.LabelHostname]}}},
			}}}},
		},
	}
	if class.ReclaimPolicy != nil {
		pv.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		pv.Finalizers = []string{storagehelpers.PVDeletionProtectionFinalizer}
	}
	return pv
}

// makeFolder makes a volume's folder so that a power cut does not undo it.
func (p *Provisioner) makeFolder(name string) error {
	if err := os.Mkdir(p.cfg.Dir, 0o711); err == nil {
		err = syncFolder(filepath.Dir(p.cfg.Dir))
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	path := filepath.Join(p.cfg.Dir, name)
	if err := os.Mkdir(path, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(path, folderMode); err != nil { // whatever the umask
		return err
	}
	return syncFolder(p.cfg.Dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// remove removes what the volume's reclaim policy says.
func (p *Provisioner) remove(ctx context.Context, pv *corev1.PersistentVolume) error {
	gone := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	if !gone && pv.DeletionTimestamp == nil {
		return nil // retained
	}
	if gone {
		if err := p.removeFolder(pv); err != nil {
			if p.told[pv.Name] != err.Error() {
				p.cfg.Events.Event(recorder.Reference("v1", "PersistentVolume", pv, ""), corev1.EventTypeWarning, "VolumeFailedDelete", err.Error())
			}
			return err
		}
	}
	if slices.Contains(pv.Finalizers, storagehelpers.PVDeletionProtectionFinalizer) {
		_, err := p.volumes.Update(ctx, "", pv.Name, func(cur *corev1.PersistentVolume) error {
			if cur.UID == pv.UID {
				cur.Finalizers = slices.DeleteFunc(cur.Finalizers, func(f string) bool { return f == storagehelpers.PVDeletionProtectionFinalizer })
			}
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("take the finalizer of the PersistentVolume %s away: %w", pv.Name, err)
		}
	}
	if pv.DeletionTimestamp != nil {
		return nil
	}
	err := p.volumes.Delete(ctx, "", pv.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pv.UID))})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the PersistentVolume %s: %w", pv.Name, err)
	}
	return nil
}

func (p *Provisioner) removeFolder(pv *corev1.PersistentVolume) error {
	if pv.Spec.Local.Path != filepath.Join(p.cfg.Dir, pv.Name) {
		return fmt.Errorf("path %q is not the folder of this volume on this device, %s: it is left", pv.Spec.Local.Path, filepath.Join(p.cfg.Dir, pv.Name))
	}
	root, err := os.OpenRoot(p.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(pv.Name)
}

// sweep removes the empty folders of no volume: a daemon was killed after it had made
// one, and its claim is gone.
func (p *Provisioner) sweep() error {
	entries, err := os.ReadDir(p.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, pv := range p.volumes.List("") {
		there[pv.Name] = true
	}
	for _, c := range p.claims.List("") {
		there[prefix+string(c.UID)] = true
	}
	for _, e := range entries {
		if e.IsDir() && !there[e.Name()] {
			_ = os.Remove(filepath.Join(p.cfg.Dir, e.Name())) // one that holds something stays
		}
	}
	return nil
}
