package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Target finds what a reference, as [Engine.Image] takes it, points to: the
// manifest or index of an image that is complete on this device.
func (e *Engine) Target(ctx context.Context, ref string) (b Blob, imported, ok bool, err error) {
	img, m, err := e.findImage(inNamespace(ctx), ref)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalidImageName) {
		return Blob{}, false, false, nil
	}
	if err != nil {
		return Blob{}, false, false, err
	}
	return Blob{MediaType: m.target.MediaType, Digest: m.target.Digest.String(), Size: m.target.Size}, !img.Pulled, true, nil
}

// Content is a blob of the content store, for others.
type Content struct {
	io.ReaderAt
	Size int64
	io.Closer
}

// OpenContent opens a blob that is whole; [ErrNotFound] if there is none.
func (e *Engine) OpenContent(ctx context.Context, dgst string) (Content, error) {
	d, err := digest.Parse(dgst)
	if err != nil {
		return Content{}, fmt.Errorf("%q: %w", dgst, ErrNotFound)
	}
	ra, err := e.store.content.ReaderAt(inNamespace(ctx), ocispec.Descriptor{Digest: d})
	if errdefs.IsNotFound(err) {
		return Content{}, fmt.Errorf("content %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return Content{}, fmt.Errorf("open content %s: %w", d, err)
	}
	return Content{ra, ra.Size(), ra}, nil
}
