package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// gcSnapshotLabel on a configuration keeps the unpacked layers while the
// configuration is needed; see containerd's docs/garbage-collection.md.
const gcSnapshotLabel = "containerd.io/gc.ref.snapshot."

// NormalizeImageName gives the full form of a reference as people write it:
// busybox is docker.io/library/busybox:latest. A reference with a digest keeps
// the digest only.
func NormalizeImageName(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("%w: couldn't parse image name %q: %w", ErrInvalidImageName, ref, err)
	}
	return named.String(), nil
}

// Images lists every image, one entry for all names of the same content.
func (e *Engine) Images(ctx context.Context) ([]Image, error) {
	ctx = inNamespace(ctx)
	list, err := e.store.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byTarget := map[digest.Digest][]string{}
	targets := map[digest.Digest]ocispec.Descriptor{}
	for _, i := range list {
		byTarget[i.Target.Digest] = append(byTarget[i.Target.Digest], i.Name)
		targets[i.Target.Digest] = i.Target
	}
	var out []Image
	for _, dgst := range slices.Sorted(maps.Keys(byTarget)) {
		img, _, err := e.store.describe(ctx, targets[dgst], byTarget[dgst])
		if err != nil {
			e.log.Warn("an image cannot be read", "image", byTarget[dgst][0], "err", err)
			continue
		}
		out = append(out, img)
	}
	return out, nil
}

// Image finds an image by name, by repository@digest, or by id (sha256:…, the
// digest of the configuration). The bool says whether there is one.
func (e *Engine) Image(ctx context.Context, ref string) (Image, bool, error) {
	img, _, err := e.findImage(inNamespace(ctx), ref)
	if errors.Is(err, ErrNotFound) {
		return Image{}, false, nil
	}
	return img, err == nil, err
}

// findImage is Image with the manifest.
func (e *Engine) findImage(ctx context.Context, ref string) (Image, manifest, error) {
	if strings.HasPrefix(ref, "sha256:") {
		return e.findByID(ctx, ref)
	}
	name, err := NormalizeImageName(ref)
	if err != nil {
		return Image{}, manifest{}, err
	}
	rec, err := e.store.images.Get(ctx, name)
	if err == nil {
		return e.describeTarget(ctx, rec.Target)
	}
	if !errdefs.IsNotFound(err) {
		return Image{}, manifest{}, fmt.Errorf("look up image %s: %w", name, err)
	}
	repo, dgst, isDigest := strings.Cut(name, "@")
	if !isDigest {
		return Image{}, manifest{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	list, err := e.store.images.List(ctx, "target.digest=="+dgst)
	if err != nil {
		return Image{}, manifest{}, fmt.Errorf("look up image %s: %w", name, err)
	}
	for _, i := range list {
		if repository(i.Name) == repo {
			return e.describeTarget(ctx, i.Target)
		}
	}
	return Image{}, manifest{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
}

func (e *Engine) findByID(ctx context.Context, id string) (Image, manifest, error) {
	list, err := e.store.images.List(ctx)
	if err != nil {
		return Image{}, manifest{}, fmt.Errorf("list images: %w", err)
	}
	for _, i := range list {
		m, err := e.store.readManifest(ctx, i.Target)
		if err == nil && (m.config.Digest.String() == id || i.Target.Digest.String() == id) {
			return e.describeTarget(ctx, i.Target)
		}
	}
	return Image{}, manifest{}, fmt.Errorf("image %s: %w", id, ErrNotFound)
}

func (e *Engine) describeTarget(ctx context.Context, target ocispec.Descriptor) (Image, manifest, error) {
	list, err := e.store.images.List(ctx, "target.digest=="+target.Digest.String())
	if err != nil {
		return Image{}, manifest{}, fmt.Errorf("list the names of %s: %w", target.Digest, err)
	}
	names := make([]string, 0, len(list))
	for _, i := range list {
		names = append(names, i.Name)
	}
	return e.store.describe(ctx, target, names)
}

// describe reads what there is to say of a target that goes by names.
func (s *store) describe(ctx context.Context, target ocispec.Descriptor, names []string) (Image, manifest, error) {
	m, err := s.readManifest(ctx, target)
	if err != nil {
		return Image{}, m, err
	}
	img := Image{
		ID:        m.config.Digest.String(),
		Digest:    target.Digest.String(),
		SizeBytes: target.Size + m.config.Size,
		Config:    imageConfig(m.image.Config),
	}
	for _, l := range m.layers {
		img.SizeBytes += l.Size
	}
	info, err := s.content.Info(ctx, target.Digest)
	if err != nil {
		return Image{}, m, fmt.Errorf("look at %s: %w", target.Digest, err)
	}
	for key := range info.Labels {
		img.Pulled = img.Pulled || strings.HasPrefix(key, labels.LabelDistributionSource)
	}
	if m.image.Created != nil {
		img.CreatedAt = *m.image.Created
	}
	digests := map[string]bool{}
	for _, name := range names {
		if !strings.Contains(name, "@") {
			img.Names = append(img.Names, name)
		}
		digests[repository(name)+"@"+img.Digest] = true
	}
	sort.Strings(img.Names)
	img.RepoDigests = slices.Sorted(maps.Keys(digests))
	return img, m, nil
}

func imageConfig(c ocispec.ImageConfig) ImageConfig {
	return ImageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir,
		StopSignal: c.StopSignal, Labels: c.Labels, Volumes: slices.Sorted(maps.Keys(c.Volumes)),
	}
}

// repository cuts tag and digest off a full name.
func repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

// RemoveImage forgets a name, or with a digest or an id all names of that image,
// and frees what nothing else needs. It refuses while a container was made from
// the image and would lose its last name.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error {
	ctx = inNamespace(ctx)
	e.imagesMu.Lock()
	defer e.imagesMu.Unlock()
	img, _, err := e.findImage(ctx, ref)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	names, err := e.namesToRemove(ctx, ref, img)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	for _, name := range names {
		if err := e.store.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, err)
		}
	}
	return e.store.gc(ctx)
}

func (e *Engine) namesToRemove(ctx context.Context, ref string, img Image) ([]string, error) {
	list, err := e.store.images.List(ctx, "target.digest=="+img.Digest)
	if err != nil {
		return nil, err
	}
	full, _ := NormalizeImageName(ref) // an id is no name
	var names []string
	for _, i := range list {
		if i.Name == full {
			names = []string{full}
			break
		}
		names = append(names, i.Name)
	}
	if len(names) < len(list) {
		return names, nil
	}
	for _, c := range e.List() {
		if c.ImageID == img.ID {
			return nil, fmt.Errorf("container %s was made from it: %w", c.ID, ErrInUse)
		}
	}
	return names, nil
}

// GC frees content and snapshots that no image needs.
func (e *Engine) GC(ctx context.Context) error {
	e.imagesMu.Lock()
	defer e.imagesMu.Unlock()
	return e.store.gc(inNamespace(ctx))
}

// unpack makes the snapshots of an image's layers, synced layer by layer, and ties
// them to the image's configuration. A layer that is there already is skipped.
func (s *store) unpack(ctx context.Context, m manifest) error {
	var chain []digest.Digest
	for i, blob := range m.layers {
		layer := rootfs.Layer{
			Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: m.diffIDs[i]},
			Blob: blob,
		}
		applied, err := rootfs.ApplyLayerWithOpts(ctx, layer, chain, s.snap, s.applier, nil,
			[]diff.ApplyOpt{diff.WithSyncFs(true)})
		if err != nil {
			return fmt.Errorf("unpack layer %s: %w", blob.Digest, err)
		}
		if applied {
			err := s.label(ctx, blob.Digest, labels.LabelUncompressed, m.diffIDs[i].String())
			if err != nil {
				return err
			}
		}
		chain = append(chain, m.diffIDs[i])
	}
	if len(chain) == 0 {
		return nil
	}
	return s.label(ctx, m.config.Digest, gcSnapshotLabel+s.snapName, m.chainID())
}

func (s *store) label(ctx context.Context, dgst digest.Digest, key, value string) error {
	info := content.Info{Digest: dgst, Labels: map[string]string{key: value}}
	if _, err := s.content.Update(ctx, info, "labels."+key); err != nil {
		return fmt.Errorf("label %s: %w", dgst, err)
	}
	return nil
}

// publish makes a name point to a target whose content is complete and unpacked.
func (s *store) publish(ctx context.Context, name string, target ocispec.Descriptor) error {
	img := images.Image{Name: name, Target: target, UpdatedAt: time.Now()}
	if _, err := s.images.Create(ctx, img); err == nil || !errdefs.IsAlreadyExists(err) {
		return err
	}
	old, err := s.images.Get(ctx, name)
	if err == nil && old.Target.Digest == target.Digest {
		return nil
	}
	_, err = s.images.Update(ctx, img, "target")
	return err
}
