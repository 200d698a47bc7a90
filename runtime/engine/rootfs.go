package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// gcRootLabel keeps a snapshot from the garbage collector.
const gcRootLabel = "containerd.io/gc.root"

// upperdirLabel is how containerd's overlay snapshotter tells where a layer lies.
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

// rootfsMaker mounts the root file systems of containers. With overlayfs a
// container costs two folders and a mount and no write to a database: the layers
// come from the snapshotter, the writable one is ours, below Root/containers/<id>.
// It is thrown away at the latest by the first Open after a reboot, so it is
// mounted without syncs (volatile) where the kernel can. Without overlayfs it is a
// snapshot of the native snapshotter: a copy. In another containerd it is a snapshot
// too, which keeps the layers below it from whoever removes their image.
type rootfsMaker struct {
	store    *store
	dir      string // of writable layers
	volatile bool
}

func newRootfsMaker(s *store, root string) (*rootfsMaker, error) {
	r := &rootfsMaker{store: s, dir: filepath.Join(root, "containers")}
	if err := os.MkdirAll(r.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the folder of writable layers: %w", err)
	}
	r.volatile = s.layered && overlayMounts(r.dir, "volatile")
	return r, nil
}

// overlayMounts tries whether an overlay can be mounted over dir with options.
func overlayMounts(dir string, options ...string) bool {
	tmp, err := os.MkdirTemp(dir, ".try-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"lower", "upper", "work", "at"} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			return false
		}
	}
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", tmp)
	at := filepath.Join(tmp, "at")
	if err := unix.Mount("overlay", at, "overlay", 0, strings.Join(append(options, data), ",")); err != nil {
		return false
	}
	return unix.Unmount(at, unix.MNT_DETACH) == nil
}

// mount makes the root file system of container id over chain and mounts it at
// target. On an error nothing is left.
func (r *rootfsMaker) mount(ctx context.Context, id, chain, target string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, r.remove(ctx, id, target))
		}
	}()
	if err := os.MkdirAll(target, 0o711); err != nil {
		return fmt.Errorf("make the root folder: %w", err)
	}
	if !r.store.layered {
		return r.mountCopy(ctx, id, chain, target)
	}
	lower, err := r.lowerDirs(ctx, chain)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, id)
	upper, work := filepath.Join(dir, "fs"), filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o711); err != nil {
		return fmt.Errorf("make the writable layer: %w", err)
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		return fmt.Errorf("make the writable layer: %w", err)
	}
	if len(lower) == 0 {
		m := mount.Mount{Type: "bind", Source: upper, Options: []string{"rbind", "rw"}}
		return wrap("mount the root file system", m.Mount(target))
	}
	if err := copyMode(lower[0], upper); err != nil {
		return err
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append(r.overlayOptions(),
		"workdir="+work, "upperdir="+upper, "lowerdir="+strings.Join(lower, ":"))}
	return wrap("mount the root file system", m.Mount(target))
}

func (r *rootfsMaker) overlayOptions() []string {
	var options []string
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		options = append(options, "index=off") // as containerd: layers are shared by many mounts
	}
	if r.volatile {
		options = append(options, "volatile")
	}
	return options
}

// copyMode gives the writable layer's root the mode and owner of the image's.
func copyMode(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return fmt.Errorf("look at layer %s: %w", from, err)
	}
	err := errors.Join(os.Lchown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777))
	return wrap("set the mode of the writable layer", err)
}

// lowerDirs are the folders of a chain's layers, the topmost first.
func (r *rootfsMaker) lowerDirs(ctx context.Context, chain string) ([]string, error) {
	var dirs []string
	for name := chain; name != ""; {
		info, err := r.store.snap.Stat(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("find layer %s: %w", name, err)
		}
		dir := info.Labels[upperdirLabel]
		if dir == "" {
			return nil, fmt.Errorf("layer %s has no folder", name)
		}
		dirs = append(dirs, dir)
		name = info.Parent
	}
	return dirs, nil
}

func (r *rootfsMaker) mountCopy(ctx context.Context, id, chain, target string) error {
	mounts, err := r.store.snap.Prepare(ctx, id, chain, snapshots.WithLabels(map[string]string{
		gcRootLabel: r.store.snapRoot,
	}))
	if err != nil {
		return fmt.Errorf("copy the image: %w", err)
	}
	return wrap("mount the root file system", mount.All(mounts, target))
}

// mountImage mounts an image's content read-only at target.
func (r *rootfsMaker) mountImage(ctx context.Context, chain, target string) error {
	if !r.store.layered {
		return errors.New("image volumes need overlayfs, and images in edged's own store")
	}
	lower, err := r.lowerDirs(ctx, chain)
	if err != nil {
		return err
	}
	if len(lower) == 0 {
		return errors.New("the image is empty")
	}
	m := mount.Mount{Type: "bind", Source: lower[0], Options: []string{"rbind", "ro"}}
	if len(lower) > 1 {
		m = mount.Mount{Type: "overlay", Source: "overlay", Options: append(r.overlayOptions(),
			"ro", "lowerdir="+strings.Join(lower, ":"))}
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "volatile" })
	}
	return m.Mount(target)
}

// remove unmounts target and removes the writable layer. It may be called for
// what was never made.
func (r *rootfsMaker) remove(ctx context.Context, id, target string) error {
	if err := unmountBelow(target); err != nil {
		return err
	}
	if !r.store.layered {
		if err := r.store.snap.Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the copy of the image: %w", err)
		}
		return r.store.gc(ctx)
	}
	return wrap("remove the writable layer", os.RemoveAll(filepath.Join(r.dir, id)))
}

// sweep removes the writable layers of containers that nobody knows.
func (r *rootfsMaker) sweep(ctx context.Context, known func(id string) bool) error {
	var errs []error
	if !r.store.layered {
		errs = append(errs, r.sweepCopies(ctx, known))
	}
	entries, err := os.ReadDir(r.dir)
	errs = append(errs, err)
	for _, entry := range entries {
		if !known(entry.Name()) && ctx.Err() == nil {
			errs = append(errs, os.RemoveAll(filepath.Join(r.dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// sweepCopies removes the snapshots of containers that nobody knows.
func (r *rootfsMaker) sweepCopies(ctx context.Context, known func(id string) bool) error {
	var old []string
	err := r.store.snap.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && info.Labels[gcRootLabel] == r.store.snapRoot && !known(info.Name) {
			old = append(old, info.Name)
		}
		return nil
	})
	errs := []error{err}
	for _, key := range old {
		errs = append(errs, r.store.snap.Remove(ctx, key))
	}
	return errors.Join(errs...)
}

// unmountBelow detaches every mount at or below path, the latest first.
func unmountBelow(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("read the mounts below %s: %w", path, err)
	}
	slices.SortFunc(mounts, func(a, b *mountinfo.Info) int { return b.ID - a.ID })
	var errs []error
	for _, m := range mounts {
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// wrap is fmt.Errorf for calls whose error may be nil.
func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
