package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// claimed is a Pod with a claim, bound to a local volume at path on the device n.
func claimed(objects *fakeObjects, path string) (*corev1.Pod, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "ns", UID: "uid-c"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef:               &corev1.ObjectReference{Namespace: "ns", Name: "c", UID: "uid-c"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
	}}
	objects.claims = map[string]*corev1.PersistentVolumeClaim{"c": claim}
	objects.volumes = map[string]*corev1.PersistentVolume{"pv": pv}
	p := pod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}})
	p.Namespace = "ns"
	return p, claim, pv
}

// What keeps a claim's volume from a Pod is told; a folder that is missing is not made.
func TestClaimWaits(t *testing.T) {
	m, objects, _, _ := newManager(t)
	dir := t.TempDir()
	for _, tt := range []struct {
		what string
		mod  func(*corev1.Pod, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
		want string
	}{
		{"no claim", func(_ *corev1.Pod, c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			delete(objects.claims, c.Name)
		}, `error processing PVC ns/c: persistentvolumeclaim "c" not found`},
		{"not bound", func(_ *corev1.Pod, c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.Status.Phase = corev1.ClaimPending
		}, "error processing PVC ns/c: PVC is not bound"},
		{"being deleted", func(_ *corev1.Pod, c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}, "error processing PVC ns/c: PVC is being deleted"},
		{"of another claim", func(_ *corev1.Pod, _ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.ClaimRef.UID = "other"
		}, `error processing PVC ns/c: PV "pv" is bound to a different PVC`},
		{"an ephemeral claim of another Pod", func(p *corev1.Pod, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			p.Name, p.Spec.Volumes[0].VolumeSource = "c", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
			objects.claims["c-v"] = objects.claims["c"]
		}, "was not created for pod"},
		{"on another device", func(_ *corev1.Pod, _ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"m"}}},
			}}}}
		}, "MountVolume.NodeAffinity check failed"},
		{"a block device", func(_ *corev1.Pod, _ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
		}, "has volumeMode Block"},
		{"of a driver", func(_ *corev1.Pod, _ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d"}}
		}, "no volume plugin matched"},
		{"lost", func(*corev1.Pod, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, "does not exist"},
	} {
		p, c, v := claimed(objects, dir)
		tt.mod(p, c, v)
		if _, _, err := m.Setup(context.Background(), p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.what, err, tt.want)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the lost folder: %v", err)
	}
}

// A volume is given to the Pod's fsGroup once, without following links and without
// touching what is the group's already, and outlives the Pod.
func TestClaimedVolume(t *testing.T) {
	m, objects, _, _ := newManager(t)
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "file")
	inside := filepath.Join(dir, "sub", "file")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	must(os.WriteFile(inside, nil, 0o600))
	must(os.WriteFile(outside, nil, 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "link")))
	group := func(path string, gid uint32, mode os.FileMode) {
		t.Helper()
		fi, err := os.Lstat(path)
		must(err)
		if got := fi.Sys().(*syscall.Stat_t).Gid; got != gid || mode != 0 && fi.Mode() != mode {
			t.Errorf("%s: group %d, mode %v; want %d, %v", path, got, fi.Mode(), gid, mode)
		}
	}
	changed := func(path string) syscall.Timespec {
		fi, err := os.Stat(path)
		must(err)
		return fi.Sys().(*syscall.Stat_t).Ctim
	}
	p, _, _ := claimed(objects, dir)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](4321)}
	setup := func() {
		t.Helper()
		paths, _, err := m.Setup(context.Background(), p)
		must(err)
		if paths["v"] != dir {
			t.Errorf("it is at %s", paths["v"])
		}
	}
	setup()
	group(filepath.Join(dir, "sub"), 4321, os.ModeDir|os.ModeSetgid|0o770)
	group(inside, 4321, 0o660)
	group(filepath.Join(dir, "link"), 4321, 0)
	group(outside, 0, 0o600)
	// What the Pod changes is its own while it runs.
	must(os.Chmod(inside, 0o600))
	setup()
	group(inside, 4321, 0o600)
	must(m.Teardown(context.Background(), string(p.UID)))
	when := changed(filepath.Join(dir, "sub"))
	setup()
	group(inside, 4321, 0o660)
	if now := changed(filepath.Join(dir, "sub")); now != when {
		t.Error("what was the group's was written again")
	}
	// Only the top is looked at if the Pod says so.
	must(m.Teardown(context.Background(), string(p.UID)))
	must(os.Chmod(inside, 0o600))
	p.Spec.SecurityContext.FSGroupChangePolicy = ptr.To(corev1.FSGroupChangeOnRootMismatch)
	setup()
	group(inside, 4321, 0o600)
	must(m.Teardown(context.Background(), string(p.UID)))
	if _, err := os.Stat(inside); err != nil {
		t.Error(err)
	}
}
