package volume

import (
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

type fakeObjects struct {
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
	bundles    map[string]*certificatesv1.ClusterTrustBundle
	requests   map[string]*certificatesv1.PodCertificateRequest
	claims     map[string]*corev1.PersistentVolumeClaim
	volumes    map[string]*corev1.PersistentVolume
}

func (f *fakeObjects) PersistentVolumeClaim(_, name string) (*corev1.PersistentVolumeClaim, bool) {
	c, ok := f.claims[name]
	return c, ok
}
func (f *fakeObjects) PersistentVolume(name string) (*corev1.PersistentVolume, bool) {
	v, ok := f.volumes[name]
	return v, ok
}

func (f *fakeObjects) ConfigMap(_, name string) (*corev1.ConfigMap, bool) {
	c, ok := f.configMaps[name]
	return c, ok
}
func (f *fakeObjects) Secret(_, name string) (*corev1.Secret, bool) {
	s, ok := f.secrets[name]
	return s, ok
}
func (f *fakeObjects) ClusterTrustBundle(name string) (*certificatesv1.ClusterTrustBundle, bool) {
	b, ok := f.bundles[name]
	return b, ok
}
func (f *fakeObjects) ClusterTrustBundles() []*certificatesv1.ClusterTrustBundle {
	return slices.Collect(maps.Values(f.bundles))
}
func (f *fakeObjects) PodCertificateRequest(_, name string) (*certificatesv1.PodCertificateRequest, bool) {
	r, ok := f.requests[name]
	return r, ok
}
func (f *fakeObjects) ServiceAccount(ns, name string) (*corev1.ServiceAccount, bool) {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-" + name)}}, name == "robot"
}
func (f *fakeObjects) Node() (*corev1.Node, bool) {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "uid-n"}}, true
}
func (f *fakeObjects) Allocatable() corev1.ResourceList {
	return corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("1Gi")}
}

type fakeTokens struct {
	now func() time.Time
	n   int
}

func (f *fakeTokens) RequestToken(_ context.Context, ns, account string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	f.n++
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d,"sub":"%s/%s/%s"}`, f.now().Unix(), f.now().Unix()+*req.Spec.ExpirationSeconds, ns, account, req.Spec.BoundObjectRef.Name)
	req = req.DeepCopy()
	req.Status.Token = "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
	return req, nil
}

func newManager(t *testing.T) (*Manager, *fakeObjects, *fakeTokens, func(time.Duration)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	now := time.Unix(1_800_000_000, 0)
	objects := &fakeObjects{configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}}
	tokens := &fakeTokens{now: func() time.Time { return now }}
	dir := t.TempDir()
	m, err := New(Config{DataDir: dir + "/data", RunDir: dir + "/run", Objects: objects, Tokens: tokens,
		Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		uids, err := m.List()
		if err != nil {
			t.Error(err)
		}
		for _, uid := range uids {
			if err := m.Teardown(context.Background(), uid); err != nil {
				t.Error(err)
			}
		}
		if err := unmount(dir + "/run"); err != nil {
			t.Error(err)
		}
		if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), dir) {
			t.Error("mounts are left")
		}
	})
	return m, objects, tokens, func(d time.Duration) { now = now.Add(d) }
}

func pod(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid-1", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec:       corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{{Name: "c"}}},
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestContentFollowsItsObjects(t *testing.T) {
	m, objects, _, _ := newManager(t)
	ctx := context.Background()
	optional := true
	p := pod(
		corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		corev1.Volume{Name: "opt", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "later", Optional: &optional}}},
		corev1.Volume{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "cpu/limit", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}},
		}}}},
	)
	if _, _, err := m.Setup(ctx, p); err == nil || err.Error() != `MountVolume.SetUp failed for volume "cm" : configmap "conf" not found` {
		t.Errorf("missing object: %v", err)
	}
	objects.configMaps["conf"] = &corev1.ConfigMap{Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}}
	paths, _, err := m.Setup(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, paths["cm"]+"/a") + read(t, paths["cm"]+"/bin"); got != "1\x00\x01" {
		t.Errorf("%q", got)
	}
	if got := read(t, paths["down"]+"/labels") + " " + read(t, paths["down"]+"/cpu/limit"); got != "a=\"1\"\nb=\"2\" 4" {
		t.Errorf("%q", got)
	}
	before, err := os.Readlink(paths["cm"] + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(paths["cm"] + "/..data"); again != before {
		t.Error("written again without a change")
	}
	objects.configMaps["conf"] = &corev1.ConfigMap{Data: map[string]string{"a": "new"}}
	objects.secrets["later"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}
	if _, _, err := m.Setup(ctx, p); err != nil {
		t.Fatal(err)
	}
	if got := read(t, paths["cm"]+"/a") + read(t, paths["opt"]+"/k"); got != "newv" {
		t.Errorf("%q", got)
	}
	if _, err := os.Lstat(paths["cm"] + "/b"); !os.IsNotExist(err) {
		t.Errorf("a key that is gone is still there: %v", err)
	}
	if old, _ := filepath.Glob(paths["cm"] + "/..version-*"); len(old) != 1 {
		t.Errorf("versions left: %v", old)
	}
}

func TestModesAndGroup(t *testing.T) {
	m, objects, _, _ := newManager(t)
	objects.secrets["s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("v"), "l": nil}}
	def, one, gid := int32(0o400), int32(0o777), int64(4321)
	p := pod(
		corev1.Volume{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: &def,
			Items: []corev1.KeyToPath{{Key: "k", Path: "x/y"}, {Key: "l", Path: "l", Mode: &one}}}}},
		corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "Memory", SizeLimit: resource.NewQuantity(1<<20, resource.BinarySI)}}},
	)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
	paths, _, err := m.Setup(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		paths["s"] + "/x/y": 0o440, paths["s"] + "/l": 0o777,
		paths["e"]: 0o777 | fs.ModeSetgid | fs.ModeDir, paths["m"]: 0o777 | fs.ModeSetgid | fs.ModeDir,
	} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v %v, want %v", path, fi.Mode(), err, want)
		}
	}
	if err := os.WriteFile(paths["m"]+"/big", make([]byte, 2<<20), 0o600); err == nil {
		t.Error("sizeLimit of a Memory medium is not kept")
	}
}

// TestMemorySize: a volume in memory holds no more than the Pod may have, which is known
// if all containers, or the Pod itself, have a limit.
func TestMemorySize(t *testing.T) {
	limits := func(memory string) corev1.ResourceRequirements {
		if memory == "" {
			return corev1.ResourceRequirements{}
		}
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}}
	}
	for _, tc := range []struct {
		own, whole, first, second string
		want                      int64
	}{
		{"", "", "", "", 0},
		{"1Mi", "", "", "", 1 << 20},
		{"", "", "2Mi", "", 0},
		{"", "", "2Mi", "3Mi", 5 << 20},
		{"1Mi", "", "2Mi", "3Mi", 1 << 20},
		{"9Mi", "", "2Mi", "3Mi", 5 << 20},
		{"", "4Mi", "2Mi", "", 4 << 20},
	} {
		v := corev1.Volume{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}
		if tc.own != "" {
			q := resource.MustParse(tc.own)
			v.EmptyDir.SizeLimit = &q
		}
		p := pod(v)
		p.Spec.Containers = []corev1.Container{{Name: "a", Resources: limits(tc.first)}, {Name: "b", Resources: limits(tc.second)}}
		if whole := limits(tc.whole); tc.whole != "" {
			p.Spec.Resources = &whole
		}
		if got := memorySize(p, v.EmptyDir); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}

func TestTokenIsKeptAndRenewed(t *testing.T) {
	m, _, tokens, advance := newManager(t)
	life := int64(3600)
	p := pod(corev1.Volume{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &life}}}}}})
	setup := func() time.Duration {
		t.Helper()
		_, again, err := m.Setup(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		return again.Sub(m.cfg.Now())
	}
	if d := setup(); d != 48*time.Minute {
		t.Errorf("renew in %v", d)
	}
	advance(47 * time.Minute)
	if setup(); tokens.n != 1 {
		t.Error("renewed too early")
	}
	advance(2 * time.Minute)
	if setup(); tokens.n != 2 {
		t.Error("not renewed")
	}
}

func TestSubPathStaysInside(t *testing.T) {
	m, _, _, _ := newManager(t)
	p := pod(corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	paths, _, err := m.Setup(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", paths["e"]+"/out"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"out", "out/passwd", "../..", "/etc"} {
		if got, err := m.SubPath("uid-1", "c", 0, paths["e"], bad, false); err == nil {
			t.Errorf("%s leads to %s", bad, got)
		}
	}
	for range 2 {
		got, err := m.SubPath("uid-1", "c", 1, paths["e"], "a/b", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(got+"/f", []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if read(t, paths["e"]+"/a/b/f") != "x" {
			t.Error("the subPath is another folder")
		}
	}
}

// TestSubPathOpensNothing: a Pod may have put anything into a volume that the next
// container of it mounts a part of.
func TestSubPathOpensNothing(t *testing.T) {
	m, _, _, _ := newManager(t)
	p := pod(corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	paths, _, err := m.Setup(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	dir := paths["e"]
	for _, err := range []error{
		syscall.Mkfifo(dir+"/fifo", 0o600), os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/f", []byte("x"), 0o600),
		os.Symlink("../a/f", dir+"/a/link"), os.Symlink("a/b/../link", dir+"/far"), os.Symlink("round", dir+"/round"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := m.SubPath("uid-1", "c", 0, dir, "fifo", false)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a fifo that nobody writes to holds the Pod up")
		_ = os.WriteFile(dir+"/fifo", nil, 0) // lets it go
		<-done
	}
	for i, sub := range []string{"a/link", "far"} {
		got, err := m.SubPath("uid-1", "c", 1+i, dir, sub, false)
		if err != nil {
			t.Errorf("%s: %v", sub, err)
		} else if read(t, got) != "x" {
			t.Errorf("%s is not what the link leads to", sub)
		}
	}
	if got, err := m.SubPath("uid-1", "c", 9, dir, "round", true); err == nil {
		t.Errorf("a circle of links leads to %s", got)
	}
}

// TestRemovalStaysOnItsFileSystem: what a container has mounted in its volumes, and
// what subPaths show, is others'.
func TestRemovalStaysOnItsFileSystem(t *testing.T) {
	m, _, _, _ := newManager(t)
	others := t.TempDir() + "/a name with blanks"
	if err := os.Mkdir(others, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(others+"/precious", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mount := func(at string) {
		t.Helper()
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(others, at, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	p := pod(corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	paths, _, err := m.Setup(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	mount(paths["e"] + "/share of\tmine")
	mount(paths["e"] + "/share of\tmine") // twice
	if err := m.Release(context.Background(), "uid-1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(paths["e"]); !os.IsNotExist(err) {
		t.Errorf("the volume is still there: %v", err)
	}
	read(t, others+"/precious")

	// The same for all that is removed by `edged reset`, by way of a link.
	run := t.TempDir()
	if err := os.Symlink(run, run+"-link"); err != nil {
		t.Fatal(err)
	}
	mount(run + "/uid-1/subpaths/c/0")
	if err := Cleanup(t.TempDir(), run+"-link"); err != nil {
		t.Error(err)
	}
	read(t, others+"/precious")
	if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), run) {
		t.Error("mounts are left")
		_ = syscall.Unmount(run+"/uid-1/subpaths/c/0", 0)
	}
}

// TestMountPointsInVolumes: what is mounted inside of a volume stays when its content
// changes, and nothing is removed that edged has not made.
func TestMountPointsInVolumes(t *testing.T) {
	m, objects, _, _ := newManager(t)
	p := pod(corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}})
	setup := func(data map[string]string) string {
		t.Helper()
		objects.configMaps["conf"] = &corev1.ConfigMap{Data: data}
		paths, _, err := m.Setup(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		return paths["cm"]
	}
	dir := setup(map[string]string{"a": "1", "b": "1"})
	for name, isDir := range map[string]bool{"sub/dir": true, "file": false, "a": false} {
		for range 2 {
			if err := MakeMountPoint(dir, name, isDir); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := MakeMountPoint(dir, "../../../x", true); err == nil {
		t.Error("a mount point outside of the volume")
	}
	setup(map[string]string{"a": "2"})
	for name, isDir := range map[string]bool{"sub/dir": true, "file": false, "a": false} {
		if fi, err := os.Stat(dir + "/" + name); err != nil || fi.IsDir() != isDir {
			t.Errorf("%s after a change: %v", name, err)
		}
	}
	if read(t, dir+"/a") != "2" {
		t.Error("the content did not change")
	}
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/..data"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, dir+"/..data"); err != nil {
		t.Fatal(err)
	}
	setup(map[string]string{"a": "3"})
	read(t, outside+"/precious")
	if read(t, dir+"/a") != "3" {
		t.Error("the content did not change")
	}
}

// A token is its Pod's alone, if it is known as whom that runs; so is a trust bundle.
func TestTokenAccess(t *testing.T) {
	uid, other, gid, life := int64(4321), int64(1), int64(5432), int64(3600)
	none, optional := "none", true
	user := func(id *int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: id} }
	for _, c := range []struct {
		name       string
		edit       func(*corev1.PodSpec)
		mode       fs.FileMode
		owner, grp uint32
	}{
		{"nothing said", func(*corev1.PodSpec) {}, 0o644, 0, 0},
		{"the Pod's user", func(s *corev1.PodSpec) { s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid} }, 0o600, 4321, 0},
		{"the fsGroup", func(s *corev1.PodSpec) { s.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid} }, 0o640, 0, 5432},
		{"both", func(s *corev1.PodSpec) {
			s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, FSGroup: &gid}
		}, 0o640, 4321, 5432},
		{"one user of two containers", func(s *corev1.PodSpec) {
			s.Containers = []corev1.Container{{SecurityContext: user(&uid)}, {SecurityContext: user(&uid)}}
		}, 0o600, 4321, 0},
		{"two users", func(s *corev1.PodSpec) {
			s.Containers = []corev1.Container{{SecurityContext: user(&uid)}, {SecurityContext: user(&other)}}
		}, 0o644, 0, 0},
		{"one of two says none", func(s *corev1.PodSpec) { s.Containers = []corev1.Container{{SecurityContext: user(&uid)}, {}} }, 0o644, 0, 0},
	} {
		m, _, _, _ := newManager(t)
		p := pod(corev1.Volume{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &life}},
			{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{Path: "ca", Name: &none, Optional: &optional}}}}}})
		p.Spec.Containers = []corev1.Container{{}}
		c.edit(&p.Spec)
		paths, _, err := m.Setup(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"token", "ca"} {
			fi, err := os.Stat(filepath.Join(paths["t"], name))
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			if fi.Mode() != c.mode || st.Uid != c.owner || st.Gid != c.grp {
				t.Errorf("%s: %s has %v of %d:%d, want %v of %d:%d", c.name, name, fi.Mode(), st.Uid, st.Gid, c.mode, c.owner, c.grp)
			}
		}
	}
}
