package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// namespace is the one that Kubernetes' tools look into.
	namespace = "k8s.io"
	// pageSizeBytes of the metadata file, whatever the kernel's is: files move
	// between devices.
	pageSizeBytes = 4096
	// lockTimeout bounds the wait for another daemon's hold on the metadata.
	lockTimeout = 2 * time.Second
	// leaseExpiry outlives any import; leases of a dead daemon are swept by Open.
	leaseExpiry = 24 * time.Hour

	overlayName, nativeName = "overlayfs", "native"
)

// store is containerd's image side as Go objects, or another containerd's over its
// socket. Everything in it is on disk, ours below Root, and survives reboots.
type store struct {
	log      *slog.Logger
	bolt     *bolt.DB     // nil: another containerd's
	db       *metadata.DB // likewise
	version  string       // containerd's
	content  content.Store
	images   images.Store
	leases   leases.Manager
	snapName string
	snap     snapshots.Snapshotter
	// layered says that the folders of layers are known, so that an overlay is mounted
	// over them without a snapshot for each container.
	layered bool
	// snapRoot is the value of the label that keeps a container's snapshot.
	snapRoot string
	// leaseOpts mark our leases, and leaseFilter finds those.
	leaseOpts   []leases.Opt
	leaseFilter []string
	applier     diff.Applier
	platform    platforms.MatchComparer
	closers     []func() error
}

// openStore opens or makes the store below root.
func openStore(ctx context.Context, root string, log *slog.Logger) (_ *store, err error) {
	s := &store{log: log, version: ownVersion(), platform: platforms.Default(), snapRoot: "container"}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the image folder: %w", err)
	}
	if err := s.openSnapshotter(root); err != nil {
		return nil, err
	}
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	path := filepath.Join(root, "meta.db")
	s.bolt, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout:        lockTimeout,
		PageSize:       pageSizeBytes,
		NoFreelistSync: true, // fewer bytes a commit; a list rebuilt at Open
		FreelistType:   bolt.FreelistMapType,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is held by another edged: stop that one first", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open image metadata %s: %w; remove the folder %s to begin without images", path, err, root)
	}
	s.closers = append(s.closers, s.bolt.Close)
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{s.snapName: s.snap})
	if err := s.db.Init(ctx); err != nil {
		return nil, fmt.Errorf("prepare image metadata %s: %w", path, err)
	}
	s.content = s.db.ContentStore()
	s.snap = s.db.Snapshotter(s.snapName)
	s.images = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	s.applier = apply.NewFileSystemApplier(s.content)
	return s, s.makeNamespace(ctx)
}

func (s *store) openSnapshotter(root string) error {
	sn, err := overlay.NewSnapshotter(filepath.Join(root, overlayName), overlay.WithUpperdirLabel)
	s.snapName = overlayName
	if err == nil && !overlayMounts(filepath.Join(root, overlayName)) {
		err = errors.Join(errors.New("the kernel refuses to mount it"), sn.Close())
	}
	if err != nil {
		s.log.Warn("overlayfs is not possible here: each container gets a full copy of its image", "dir", root, "err", err)
		s.snapName = nativeName
		if sn, err = native.NewSnapshotter(filepath.Join(root, nativeName)); err != nil {
			return fmt.Errorf("open the snapshots: %w", err)
		}
	}
	s.snap, s.layered = sn, s.snapName == overlayName
	s.closers = append(s.closers, sn.Close)
	return nil
}

func (s *store) makeNamespace(ctx context.Context) error {
	return s.bolt.Update(func(tx *bolt.Tx) error {
		ns := metadata.NewNamespaceStore(tx)
		if _, err := ns.Labels(ctx, namespace); err == nil {
			list, err := ns.List(ctx)
			if err != nil {
				return err
			}
			for _, name := range list {
				if name == namespace {
					return nil
				}
			}
		}
		return ns.Create(ctx, namespace, nil)
	})
}

func (s *store) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// inNamespace adds what containerd wants to know of every caller.
func inNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// withLease keeps what fn adds from the garbage collector until fn is done.
func (s *store) withLease(ctx context.Context, fn func(context.Context) error) error {
	lease, err := s.leases.Create(ctx, append([]leases.Opt{leases.WithRandomID(), leases.WithExpiration(leaseExpiry)}, s.leaseOpts...)...)
	if err != nil {
		return fmt.Errorf("take a lease: %w", err)
	}
	err = fn(leases.WithLease(ctx, lease.ID))
	// The lease goes even if the caller's context has ended.
	return errors.Join(err, s.leases.Delete(context.WithoutCancel(ctx), lease))
}

// drop deletes leases; what they held is garbage then.
func (s *store) drop(ctx context.Context, list []leases.Lease) error {
	for _, l := range list {
		if err := s.leases.Delete(ctx, l); err != nil {
			return fmt.Errorf("drop the lease %s: %w", l.ID, err)
		}
	}
	return nil
}

// gc removes content and snapshots that no image needs.
func (s *store) gc(ctx context.Context) error {
	if s.db == nil {
		// The end of a lease is when another containerd looks, if one asks it to.
		lease, err := s.leases.Create(ctx, append([]leases.Opt{leases.WithRandomID(), leases.WithExpiration(leaseExpiry)}, s.leaseOpts...)...)
		if err == nil {
			err = s.leases.Delete(ctx, lease, leases.SynchronousDelete)
		}
		return wrap("collect garbage", err)
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// manifest is what this device needs to know of an image.
type manifest struct {
	target  ocispec.Descriptor // what the name points to
	config  ocispec.Descriptor
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
	image   ocispec.Image
}

// chainID names the snapshot of all layers; empty for an image without any.
func (m manifest) chainID() string {
	if len(m.diffIDs) == 0 {
		return ""
	}
	return identity.ChainID(m.diffIDs).String()
}

// maxMetadataBytes bounds what is read into memory of an image: indexes, manifests,
// configurations. Registries take manifests of 4 MiB.
const maxMetadataBytes = 8 << 20

// checkMetadata refuses to read what an image's author has made too large to.
func checkMetadata(desc ocispec.Descriptor, isMetadata bool) error {
	if isMetadata && desc.Size > maxMetadataBytes {
		return fmt.Errorf("%s %s has %d bytes, of which at most %d are read", desc.MediaType, desc.Digest, desc.Size, int64(maxMetadataBytes))
	}
	return nil
}

// readManifest resolves a target for this platform and reads its configuration.
func (s *store) readManifest(ctx context.Context, target ocispec.Descriptor) (manifest, error) {
	m := manifest{target: target}
	mf, err := images.Manifest(ctx, s.content, target, s.platform)
	if err != nil {
		return m, fmt.Errorf("read the manifest of %s: %w", target.Digest, err)
	}
	m.config, m.layers = mf.Config, mf.Layers
	if err := checkMetadata(mf.Config, true); err != nil {
		return m, err
	}
	data, err := content.ReadBlob(ctx, s.content, mf.Config)
	if err != nil {
		return m, fmt.Errorf("read the configuration of %s: %w", target.Digest, err)
	}
	if err := json.Unmarshal(data, &m.image); err != nil {
		return m, fmt.Errorf("parse the configuration of %s: %w", target.Digest, err)
	}
	m.diffIDs = m.image.RootFS.DiffIDs
	if len(m.diffIDs) != len(m.layers) {
		return m, fmt.Errorf("image %s has %d layers but %d diff ids", target.Digest, len(m.layers), len(m.diffIDs))
	}
	return m, nil
}
