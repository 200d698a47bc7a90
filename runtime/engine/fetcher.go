package engine

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// counting wraps a fetcher so that what is read from it moves the progress.
func (p *progress) counting(f remotes.Fetcher) remotes.Fetcher {
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		rc, err := f.Fetch(ctx, desc)
		if err != nil {
			return nil, err
		}
		counted := countedReader{rc, p}
		if s, ok := rc.(io.Seeker); ok {
			return seekingReader{counted, s}, nil
		}
		return counted, nil
	})
}

type countedReader struct {
	io.ReadCloser
	p *progress
}

func (r countedReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.p.done.Add(int64(n))
	return n, err
}

// seekingReader keeps the fetcher's ability to resume in the middle of a blob.
type seekingReader struct {
	countedReader
	io.Seeker
}
