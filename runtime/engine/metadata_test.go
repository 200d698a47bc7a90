package engine

import (
	"context"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestMetadataIsBounded: nothing is fetched of what an image's author made too large to
// be read into memory, however it is named; layers are not read.
func TestMetadataIsBounded(t *testing.T) {
	fetched := false
	fetcher := remotes.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		fetched = true
		return nil, io.EOF
	})
	s := &store{}
	for _, mediaType := range []string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageConfig,
		images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Config,
	} {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(""), Size: maxMetadataBytes + 1}
		if _, err := s.fetchHandler(fetcher)(t.Context(), desc); err == nil || fetched {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: 1 << 40}
	if err := checkMetadata(layer, images.IsConfigType(layer.MediaType)); err != nil {
		t.Errorf("a layer: %v", err)
	}
	// A configuration under the name of a layer.
	if err := checkMetadata(layer, true); err == nil {
		t.Error("a configuration of a terabyte is read")
	}
}
