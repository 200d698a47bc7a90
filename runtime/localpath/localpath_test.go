package localpath_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
	"edged/apiserver/registry/recorder"
	"edged/apiserver/registry/registrytest"
	"edged/runtime/localpath"
)

type device struct {
	t       *testing.T
	reg     *registry.Registry
	dir     string
	claims  registry.Client[*corev1.PersistentVolumeClaim]
	volumes registry.Client[*corev1.PersistentVolume]
}

// newDevice is the device "here" of a cluster that has also "there"; it does nothing
// until it runs.
func newDevice(t *testing.T) *device {
	t.Helper()
	reg := registrytest.New(t)
	d := &device{t, reg, filepath.Join(t.TempDir(), "volumes"), registry.For[*corev1.PersistentVolumeClaim](reg), registry.For[*corev1.PersistentVolume](reg)}
	for _, name := range []string{"here", "there"} {
		_, err := registry.For[*corev1.Node](reg).Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}})
		d.must(err)
	}
	_, err := registry.For[*storagev1.StorageClass](reg).Create(t.Context(), claims.LocalClass())
	d.must(err)
	return d
}

func (d *device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// run runs the device's provisioner; stop ends it.
func (d *device) run() (stop func()) {
	ctx, cancel := context.WithCancel(d.t.Context())
	p := localpath.New(localpath.Config{
		NodeName: "here", Dir: d.dir, Registry: d.reg, Events: recorder.New(d.reg, "local-path", "here", nil), Logger: slog.New(slog.DiscardHandler),
	})
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	}
}

func (d *device) await(what string, cond func() string) {
	d.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		last := cond()
		if last == "" {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("timed out waiting for %s: %s", what, last)
		}
	}
}

// claim makes a claim that the leader asks node for.
func (d *device) claim(name, node string) *corev1.PersistentVolumeClaim {
	d.t.Helper()
	class := "local-path"
	c, err := d.claims.Create(d.t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{
			"volume.kubernetes.io/selected-node": node, "volume.kubernetes.io/storage-provisioner": claims.LocalPath,
		}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	})
	d.must(err)
	return c
}

func (d *device) volumeOf(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	d.t.Helper()
	var pv *corev1.PersistentVolume
	d.await("a volume for "+c.Name, func() string {
		var ok bool
		if pv, ok = d.volumes.Get("", "pvc-"+string(c.UID)); !ok {
			return "none"
		}
		return ""
	})
	return pv
}

func (d *device) phase(pv string, phase corev1.PersistentVolumePhase) {
	d.t.Helper()
	_, err := d.volumes.UpdateStatus(d.t.Context(), "", pv, func(v *corev1.PersistentVolume) error { v.Status.Phase = phase; return nil })
	d.must(err)
}

func (d *device) gone(pv string) {
	d.t.Helper()
	d.await(pv+" to go", func() string {
		if v, ok := d.volumes.Get("", pv); ok {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
}

func (d *device) exists(path string, want bool) {
	d.t.Helper()
	if _, err := os.Lstat(path); (err == nil) != want {
		d.t.Errorf("%s is there: %v, want %v", path, err == nil, want)
	}
}

// A volume is a folder of this device that every user may write, and is removed with
// what is in it when it is released.
func TestMadeAndRemoved(t *testing.T) {
	d := newDevice(t)
	stop := d.run()
	defer stop()
	other, mine := d.claim("other", "there"), d.claim("mine", "here")
	pv := d.volumeOf(mine)
	path := filepath.Join(d.dir, pv.Name)
	fi, err := os.Stat(path)
	d.must(err)
	if fi.Mode() != os.ModeDir|0o777 {
		t.Errorf("the folder's mode is %v", fi.Mode())
	}
	if pv.Spec.Local.Path != path || pv.Spec.ClaimRef.UID != mine.UID || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.StorageClassName != "local-path" {
		t.Errorf("%+v", pv)
	}
	if got := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values; len(got) != 1 || got[0] != "here" {
		t.Errorf("it is on %v", got)
	}
	if _, ok := d.volumes.Get("", "pvc-"+string(other.UID)); ok {
		t.Error("it made another device's volume")
	}
	d.must(os.MkdirAll(filepath.Join(path, "a", "b"), 0o700))
	d.phase(pv.Name, corev1.VolumeBound)
	d.phase(pv.Name, corev1.VolumeReleased)
	d.gone(pv.Name)
	d.exists(path, false)
}

// What happened while no daemon ran is made up for: a claim that was decided, a folder
// without its volume, a volume that was released or deleted. What somebody has put
// there stays.
func TestMissedWhileAway(t *testing.T) {
	d := newDevice(t)
	stop := d.run()
	var released, deleted, retained *corev1.PersistentVolume
	for name, pv := range map[string]**corev1.PersistentVolume{"a": &released, "b": &deleted, "c": &retained} {
		*pv = d.volumeOf(d.claim(name, "here"))
		d.must(os.WriteFile(filepath.Join(d.dir, (*pv).Name, "file"), nil, 0o600))
		d.phase((*pv).Name, corev1.VolumeBound)
	}
	stop()
	for _, name := range []string{"a", "b", "c"} {
		d.must(d.claims.Delete(t.Context(), "default", name, metav1.DeleteOptions{}))
	}
	d.phase(released.Name, corev1.VolumeReleased)
	d.must(d.volumes.Delete(t.Context(), "", deleted.Name, metav1.DeleteOptions{}))
	d.phase(deleted.Name, corev1.VolumeReleased)
	_, err := d.volumes.Update(t.Context(), "", retained.Name, func(v *corev1.PersistentVolume) error {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		return nil
	})
	d.must(err)
	d.must(d.volumes.Delete(t.Context(), "", retained.Name, metav1.DeleteOptions{}))
	d.phase(retained.Name, corev1.VolumeReleased)
	began := d.claim("began", "here")
	d.must(os.Mkdir(filepath.Join(d.dir, "pvc-"+string(began.UID)), 0o700))
	d.must(os.Mkdir(filepath.Join(d.dir, "pvc-nobody"), 0o700))
	d.must(os.MkdirAll(filepath.Join(d.dir, "somebody", "there"), 0o700))
	stop = d.run()
	defer stop()
	d.volumeOf(began)
	for _, pv := range []*corev1.PersistentVolume{released, deleted, retained} {
		d.gone(pv.Name)
	}
	d.exists(filepath.Join(d.dir, released.Name), false)
	d.exists(filepath.Join(d.dir, deleted.Name), false)
	d.exists(filepath.Join(d.dir, retained.Name, "file"), true)
	d.exists(filepath.Join(d.dir, "pvc-nobody"), false)
	d.exists(filepath.Join(d.dir, "somebody", "there"), true)
	if fi, err := os.Stat(filepath.Join(d.dir, "pvc-"+string(began.UID))); err != nil || fi.Mode().Perm() != 0o777 {
		t.Errorf("the folder that was begun: %v %v", fi, err)
	}
}

// Nothing outside the folder is removed: no path that somebody made up, and nothing
// behind a link.
func TestNothingElseIsRemoved(t *testing.T) {
	d := newDevice(t)
	outside := filepath.Join(t.TempDir(), "precious")
	d.must(os.WriteFile(outside, nil, 0o600))
	d.must(os.MkdirAll(filepath.Join(d.dir, "pvc-other", "data"), 0o700))
	made := func(name, path, node string) string {
		_, err := d.volumes.Create(t.Context(), &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": claims.LocalPath}},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
				}}}},
			},
		})
		d.must(err)
		d.phase(name, corev1.VolumeReleased)
		return name
	}
	stop := d.run()
	defer stop()
	other := made("pvc-other", filepath.Join(d.dir, "pvc-other"), "there")
	alien := made("alien", filepath.Dir(outside), "here")
	sibling := made("sibling", filepath.Join(d.dir, "pvc-other"), "here")
	// A link in a volume, and one in a volume's place.
	pv := d.volumeOf(d.claim("c", "here"))
	d.must(os.Symlink(filepath.Dir(outside), filepath.Join(d.dir, pv.Name, "link")))
	d.phase(pv.Name, corev1.VolumeReleased)
	d.gone(pv.Name)
	d.must(os.Symlink(filepath.Dir(outside), filepath.Join(d.dir, "linked")))
	d.gone(made("linked", filepath.Join(d.dir, "linked"), "here"))
	d.exists(filepath.Join(d.dir, "linked"), false)
	d.exists(outside, true)
	d.exists(filepath.Join(d.dir, "pvc-other"), true)
	for _, name := range []string{other, alien, sibling} {
		if _, ok := d.volumes.Get("", name); !ok {
			t.Errorf("the volume %s is gone", name)
		}
	}
}
