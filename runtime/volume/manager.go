package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	helper "k8s.io/component-helpers/resource"

	"edged/apiserver/registry/claims"
)

// Objects are the parts of the cluster's state that volumes are made from.
type Objects interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, bool)
	Secret(namespace, name string) (*corev1.Secret, bool)
	ClusterTrustBundle(name string) (*certificatesv1.ClusterTrustBundle, bool)
	// ClusterTrustBundles lists all; the list is the caller's, what it holds is not.
	ClusterTrustBundles() []*certificatesv1.ClusterTrustBundle
	PodCertificateRequest(namespace, name string) (*certificatesv1.PodCertificateRequest, bool)
	ServiceAccount(namespace, name string) (*corev1.ServiceAccount, bool)
	PersistentVolumeClaim(namespace, name string) (*corev1.PersistentVolumeClaim, bool)
	PersistentVolume(name string) (*corev1.PersistentVolume, bool)
	// Node is this device's.
	Node() (*corev1.Node, bool)
	// Allocatable is what this device can give to Pods.
	Allocatable() corev1.ResourceList
}

// Tokens makes ServiceAccount tokens.
type Tokens interface {
	RequestToken(ctx context.Context, namespace, account string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// Certificates asks signers for certificates of Pods.
type Certificates interface {
	// RequestPodCertificate creates req, as this device, and returns it as stored.
	RequestPodCertificate(ctx context.Context, req *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error)
}

// Images mounts images as read-only volumes.
type Images interface {
	MountImage(ctx context.Context, ref, target string) error
	UnmountImage(ctx context.Context, target string) error
}

// Config is what a Manager needs.
type Config struct {
	// DataDir holds what Pods write: <data-dir>/pods. RunDir holds what edged can
	// make again: <run-dir>/pods; New sees to it that it is on a tmpfs.
	DataDir, RunDir string
	Objects         Objects
	Tokens          Tokens
	Certificates    Certificates
	Images          Images
	Now             func() time.Time
	Logger          *slog.Logger
}

// Manager makes volumes.
type Manager struct{ cfg Config }

// New returns a Manager.
func New(cfg Config) (*Manager, error) {
	if err := os.MkdirAll(cfg.DataDir, 0o711); err != nil {
		return nil, fmt.Errorf("make the folder of Pods: %w", err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o711); err != nil {
		return nil, fmt.Errorf("make the folder of Pods: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(cfg.RunDir, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", cfg.RunDir, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		if err := unix.Mount("edged", cfg.RunDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return nil, fmt.Errorf("mount a tmpfs for Secrets at %s: %w", cfg.RunDir, err)
		}
	}
	return &Manager{cfg}, nil
}

// PodRunDir is the folder below the run-dir for files of the Pod uid.
func (m *Manager) PodRunDir(uid string) string { return filepath.Join(m.cfg.RunDir, uid) }

// Setup makes the Pod's volumes, or brings their content up to date, and
// returns the path of each, and when it should be called again at the latest
// (zero: only when an object changed).
func (m *Manager) Setup(ctx context.Context, pod *corev1.Pod) (paths map[string]string, again time.Time, err error) {
	paths = map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, next, err := m.setup(ctx, pod, v)
		if err != nil {
			return nil, again, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
		}
		paths[v.Name] = path
		if !next.IsZero() && (again.IsZero() || next.Before(again)) {
			again = next
		}
	}
	return paths, again, nil
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func (m *Manager) setup(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (path string, again time.Time, err error) {
	filled := func(kind string) string { return m.filled(pod, kind, v.Name) }
	switch {
	case v.EmptyDir != nil:
		path, err = m.emptyDir(pod, v)
	case v.HostPath != nil:
		path, err = v.HostPath.Path, hostPath(v.HostPath)
	case v.ConfigMap != nil:
		path = filled("configmap")
		p := payload{}
		if err = m.configMap(pod.Namespace, configMapProjection(v.ConfigMap), mode(v.ConfigMap.DefaultMode), p); err == nil {
			err = p.write(path, fsGroup(pod))
		}
	case v.Secret != nil:
		path = filled("secret")
		p := payload{}
		if err = m.secret(pod.Namespace, secretProjection(v.Secret), mode(v.Secret.DefaultMode), p); err == nil {
			err = p.write(path, fsGroup(pod))
		}
	case v.DownwardAPI != nil:
		path = filled("downward-api")
		p := payload{}
		if err = m.downward(pod, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode), p); err == nil {
			err = p.write(path, fsGroup(pod))
		}
	case v.Projected != nil:
		path = filled("projected")
		var p payload
		if p, again, err = m.projected(ctx, pod, v.Name, v.Projected, path); err == nil {
			err = p.write(path, fsGroup(pod))
		}
	case v.Image != nil:
		path = filled("image")
		if !mounted(path) {
			if err = os.MkdirAll(path, 0o755); err == nil {
				err = m.cfg.Images.MountImage(ctx, v.Image.Reference, path)
			}
		}
	case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
		path, err = m.persistent(pod, v)
	default:
		err = errors.New("no volume plugin matched: edged has emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, persistentVolumeClaim and ephemeral")
	}
	return path, again, err
}

// filled is the folder of a volume that the device fills.
func (m *Manager) filled(pod *corev1.Pod, kind, volume string) string {
	return filepath.Join(m.PodRunDir(string(pod.UID)), "volumes", "kubernetes.io~"+kind, volume)
}

// Use is how to find out what a volume takes.
type Use struct {
	Path string
	// Whole: what is used of its file system is asked, as upstream does for local
	// volumes, not what its files take.
	Whole bool
	// Claim is the PersistentVolumeClaim's name, if it is one's.
	Claim string
}

// Use finds out for volumes of the kinds that upstream's plugins measure. The volume
// need not be there.
func (m *Manager) Use(pod *corev1.Pod, v *corev1.Volume) (Use, bool) {
	switch {
	case v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory:
		return Use{Path: emptyDirPath(m.PodRunDir(string(pod.UID)), v.Name)}, true
	case v.EmptyDir != nil:
		return Use{Path: m.EmptyDir(pod, v.Name)}, true
	case v.ConfigMap != nil:
		return Use{Path: m.filled(pod, "configmap", v.Name)}, true
	case v.Secret != nil:
		return Use{Path: m.filled(pod, "secret", v.Name)}, true
	case v.DownwardAPI != nil:
		return Use{Path: m.filled(pod, "downward-api", v.Name)}, true
	case v.Projected != nil:
		return Use{Path: m.filled(pod, "projected", v.Name)}, true
	case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
		if pv, err := m.volumeOf(pod, v); err == nil && pv.Spec.Local != nil {
			return Use{Path: pv.Spec.Local.Path, Whole: true, Claim: claims.Name(pod, v)}, true
		}
	}
	return Use{}, false
}

func mode(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m).Perm()
}

// EmptyDir is where a Pod's emptyDir on the disk is, or would be.
func (m *Manager) EmptyDir(pod *corev1.Pod, volume string) string {
	return emptyDirPath(filepath.Join(m.cfg.DataDir, string(pod.UID)), volume)
}

func emptyDirPath(base, volume string) string {
	return filepath.Join(base, "volumes", "kubernetes.io~empty-dir", volume)
}

func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume) (string, error) {
	base := filepath.Join(m.cfg.DataDir, string(pod.UID))
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		base = m.PodRunDir(string(pod.UID))
	}
	path := emptyDirPath(base, v.Name)
	if _, err := os.Stat(path); err == nil && (v.EmptyDir.Medium != corev1.StorageMediumMemory || mounted(path)) {
		return path, nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		opts := "mode=0777"
		if size := memorySize(pod, v.EmptyDir); size > 0 {
			opts += ",size=" + strconv.FormatInt(size, 10)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
			return "", fmt.Errorf("mount a tmpfs: %w", err)
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return "", err
	}
	if gid := fsGroup(pod); gid != nil {
		return path, ownDir(path, *gid)
	}
	return path, nil
}

// memorySize is how much a volume in memory may hold: what the Pod may have, if all of
// its containers have a limit, or its own limit if that is less (KEP-1967). 0 is what
// the kernel gives, half of the memory.
func memorySize(pod *corev1.Pod, v *corev1.EmptyDirVolumeSource) (size int64) {
	limited := func(c corev1.Container) bool { return !c.Resources.Limits.Memory().IsZero() }
	whole := pod.Spec.Resources
	if whole != nil && !whole.Limits.Memory().IsZero() || !slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c corev1.Container) bool { return !limited(c) }) {
		limits := helper.PodLimits(pod, helper.PodResourcesOptions{})
		size = limits.Memory().Value()
	}
	if own := v.SizeLimit; own != nil && own.Value() > 0 && (size == 0 || own.Value() < size) {
		size = own.Value()
	}
	return size
}

func hostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	fi, err := os.Stat(h.Path)
	if os.IsNotExist(err) {
		switch kind {
		case corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(h.Path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		case corev1.HostPathUnset:
			return os.MkdirAll(h.Path, 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("hostPath type check failed: %w", err)
	}
	is := func(ok bool, what string) error {
		if !ok {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, what)
		}
		return nil
	}
	switch kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		return is(fi.IsDir(), "directory")
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		return is(fi.Mode().IsRegular(), "file")
	case corev1.HostPathSocket:
		return is(fi.Mode()&fs.ModeSocket != 0, "socket file")
	case corev1.HostPathCharDev:
		return is(fi.Mode()&fs.ModeCharDevice != 0, "character device")
	case corev1.HostPathBlockDev:
		return is(fi.Mode()&fs.ModeDevice != 0 && fi.Mode()&fs.ModeCharDevice == 0, "block device")
	}
	return nil
}

// Teardown removes all that a Pod had.
func (m *Manager) Teardown(ctx context.Context, uid string) error {
	if err := m.Release(ctx, uid); err != nil {
		return err
	}
	if err := os.RemoveAll(m.PodRunDir(uid)); err != nil {
		return fmt.Errorf("remove a Pod's files: %w", err)
	}
	return nil
}

// Release removes the volumes of a Pod that is over, its emptyDirs included; its
// other files stay. It refuses to delete what is still mounted.
func (m *Manager) Release(ctx context.Context, uid string) error {
	run, data := m.PodRunDir(uid), filepath.Join(m.cfg.DataDir, uid)
	images, err := filepath.Glob(filepath.Join(run, "volumes", "kubernetes.io~image", "*"))
	if err != nil {
		return err
	}
	for _, target := range images {
		if mounted(target) {
			if err := m.cfg.Images.UnmountImage(ctx, target); err != nil {
				return fmt.Errorf("unmount an image volume: %w", err)
			}
		}
	}
	// SubPaths and emptyDirs in memory, and whatever a container mounted in a volume that
	// it shares with the device (Bidirectional): that is others'.
	for _, dir := range []string{run, data} {
		if err := detachBelow(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{filepath.Join(run, "volumes"), filepath.Join(run, "subpaths"), filepath.Join(run, certificatesDir), data} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove a Pod's volumes: %w", err)
		}
	}
	return nil
}

// List returns the Pods that have files on this device.
func (m *Manager) List() ([]string, error) {
	seen := map[string]bool{}
	var uids []string
	for _, dir := range []string{m.cfg.DataDir, m.cfg.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list Pods' files: %w", err)
		}
		for _, e := range entries {
			if !seen[e.Name()] {
				seen[e.Name()] = true
				uids = append(uids, e.Name())
			}
		}
	}
	return uids, nil
}

// Cleanup removes all volumes below dataDir and runDir, and the tmpfs that New may
// have mounted.
func Cleanup(dataDir, runDir string) error {
	for _, dir := range []string{runDir, dataDir} {
		if err := detachBelow(dir); err != nil {
			return err
		}
	}
	return errors.Join(unmount(runDir), os.RemoveAll(runDir), os.RemoveAll(dataDir))
}
