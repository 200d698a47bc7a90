package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"edged/apiserver/registry/claims"
)

// persistent is where the volume of a Pod's claim is on this device.
func (m *Manager) persistent(pod *corev1.Pod, v *corev1.Volume) (string, error) {
	pv, err := m.volumeOf(pod, v)
	if err != nil {
		return "", err
	}
	if node, ok := m.cfg.Objects.Node(); ok {
		if err := storagehelpers.CheckNodeAffinity(pv, node.Labels); err != nil {
			return "", fmt.Errorf("MountVolume.NodeAffinity check failed for volume %q : %w", pv.Name, err)
		}
	}
	switch {
	case pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return "", fmt.Errorf("PersistentVolume %q has volumeMode Block: edged has volumes with file systems only", pv.Name)
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, hostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		return pv.Spec.Local.Path, m.local(pod, v, pv)
	}
	return "", fmt.Errorf("no volume plugin matched: of PersistentVolumes edged has local and hostPath, and %q is neither", pv.Name)
}

// volumeOf is the volume that the claim is bound to.
func (m *Manager) volumeOf(pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error) {
	name := claims.Name(pod, v)
	failed := func(format string, args ...any) error {
		return fmt.Errorf("error processing PVC %s/%s: %w", pod.Namespace, name, fmt.Errorf(format, args...))
	}
	claim, ok := m.cfg.Objects.PersistentVolumeClaim(pod.Namespace, name)
	switch {
	case !ok:
		return nil, failed("persistentvolumeclaim %q not found", name)
	case v.Ephemeral != nil && ephemeral.VolumeIsForPod(pod, claim) != nil:
		return nil, failed("%w", ephemeral.VolumeIsForPod(pod, claim))
	case claim.DeletionTimestamp != nil && pod.Status.StartTime == nil:
		return nil, failed("PVC is being deleted")
	case claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "":
		return nil, failed("PVC is not bound")
	}
	pv, ok := m.cfg.Objects.PersistentVolume(claim.Spec.VolumeName)
	switch {
	case !ok:
		return nil, failed("failed to fetch PV %s: persistentvolume %q not found", claim.Spec.VolumeName, claim.Spec.VolumeName)
	case pv.Spec.ClaimRef == nil:
		return nil, failed("PV %q is not bound", pv.Name)
	case pv.Spec.ClaimRef.UID != claim.UID:
		return nil, failed("PV %q is bound to a different PVC", pv.Name)
	}
	return pv, nil
}

// local sees to it that the folder is there and is the fsGroup's. A folder that is
// missing is not made: what was in it is lost, which an empty one would hide.
func (m *Manager) local(pod *corev1.Pod, v *corev1.Volume, pv *corev1.PersistentVolume) error {
	path := pv.Spec.Local.Path
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("path %q does not exist", path)
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("path %q is not a directory: edged mounts no block devices", path)
	}
	gid := fsGroup(pod)
	if gid == nil || readOnly(v) {
		return nil
	}
	// Once for a Pod, also if the daemon restarts: what it writes later is its own.
	done := filepath.Join(m.PodRunDir(string(pod.UID)), "volumes", "kubernetes.io~local-volume", v.Name)
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	policy := pod.Spec.SecurityContext.FSGroupChangePolicy
	if err := ownTree(path, int(*gid), policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch); err != nil {
		return fmt.Errorf("applyFSGroup failed for vol %s: %w", pv.Name, err)
	}
	if err := os.MkdirAll(filepath.Dir(done), 0o755); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o600)
}

func readOnly(v *corev1.Volume) bool {
	return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
}

// ownTree gives all that is in dir to the group. What is the group's already is not
// written again. No link is followed, since others may change dir meanwhile.
func ownTree(dir string, gid int, rootOnly bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	own := func(name string, fi fs.FileInfo) (changed bool, err error) {
		if int(fi.Sys().(*syscall.Stat_t).Gid) != gid {
			changed = true
			if err := root.Lchown(name, -1, gid); err != nil {
				return false, err
			}
		}
		mode := fi.Mode()
		want := mode | 0o660
		if fi.IsDir() {
			want |= 0o110 | fs.ModeSetgid
		}
		if mode&fs.ModeSymlink != 0 || want == mode && !changed {
			return changed, nil
		}
		return true, root.Chmod(name, want) // a change of owner may have cleared setgid
	}
	fi, err := root.Lstat(".")
	if err != nil {
		return err
	}
	changed, err := own(".", fi)
	if err != nil || rootOnly && !changed {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			_, err = own(name, fi)
		}
		return err
	})
}
