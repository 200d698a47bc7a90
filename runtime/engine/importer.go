package engine

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportImages reads a tar archive, plain, gzip or zstd, of one or many images: an
// OCI image layout (also one with an index per platform) or what `docker save`
// writes. It returns the images that are for this device's platform; an archive
// with none is an error. Images appear one by one as they are complete.
func (e *Engine) ImportImages(ctx context.Context, r io.Reader) ([]Image, error) {
	ctx = inNamespace(ctx)
	r, done, err := decompress(r)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer done()
	var out []Image
	err = e.store.withLease(ctx, func(ctx context.Context) error {
		index, err := archive.ImportIndex(ctx, e.store.content, r)
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		out, err = e.addImages(ctx, index)
		return err
	})
	if err != nil {
		// Nobody resumes an import: what it brought is garbage now.
		return nil, fmt.Errorf("import images: %w", errors.Join(err, e.GC(context.WithoutCancel(ctx))))
	}
	return out, nil
}

// decompress looks at the first bytes.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 32<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read the archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		gz, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("read the archive: %w", err)
		}
		return gz, func() { _ = gz.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("read the archive: %w", err)
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

// addImages unpacks and publishes what an archive's index lists. Several names of
// one manifest come as several entries.
func (e *Engine) addImages(ctx context.Context, index ocispec.Descriptor) ([]Image, error) {
	data, err := content.ReadBlob(ctx, e.store.content, index)
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, fmt.Errorf("parse the index: %w", err)
	}
	var (
		order []ocispec.Descriptor
		seen  = map[string]bool{}
	)
	for _, desc := range idx.Manifests {
		if _, isReferrer := desc.Annotations[images.AnnotationManifestSubject]; isReferrer {
			continue
		}
		if desc.Platform != nil && !e.store.platform.Match(*desc.Platform) {
			continue
		}
		name, err := importName(desc)
		if err != nil {
			return nil, err
		}
		if err := e.addImage(ctx, name, desc); err != nil {
			if errdefs.IsNotFound(err) {
				e.log.Warn("an image of the archive has no content for this platform", "image", name, "err", err)
				continue
			}
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		if !seen[desc.Digest.String()] {
			seen[desc.Digest.String()] = true
			order = append(order, desc)
		}
	}
	if len(order) == 0 {
		return nil, errors.New("the archive holds no image for this platform")
	}
	out := make([]Image, 0, len(order))
	for _, desc := range order {
		img, _, err := e.describeTarget(ctx, desc)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

// importName is what an entry of an index wants to be called: containerd's
// annotation, or the OCI one if it is a whole name and not just a tag. An image
// without any gets a name that nothing asks for by accident.
func importName(desc ocispec.Descriptor) (string, error) {
	name := desc.Annotations[images.AnnotationImageName]
	if ref := desc.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, "/:") {
		name = ref
	}
	if name == "" {
		return "localhost/imported@" + desc.Digest.String(), nil
	}
	return NormalizeImageName(name)
}

// addImage ties an image's content together, unpacks it and gives it a name: in
// that order, so that a name means a complete image. The garbage collector waits
// meanwhile: a layer found to be there must stay.
func (e *Engine) addImage(ctx context.Context, name string, target ocispec.Descriptor) error {
	e.imagesMu.RLock()
	defer e.imagesMu.RUnlock()
	s := e.store
	target.Annotations = nil
	handler := images.FilterPlatforms(images.ChildrenHandler(s.content), s.platform)
	handler = images.SetChildrenLabels(s.content, images.LimitManifests(handler, s.platform, 1))
	if err := images.Walk(ctx, handler, target); err != nil {
		return err
	}
	m, err := s.readManifest(ctx, target)
	if err != nil {
		return err
	}
	if err := s.unpack(ctx, m); err != nil {
		return err
	}
	if err := s.publish(ctx, name, target); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}
