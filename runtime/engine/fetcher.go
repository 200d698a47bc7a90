package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// silence is how long a connection may bring nothing before another is tried:
	// a cut link often leaves one that looks open.
	silence = 15 * time.Second
	// reopenAfter and maxReopen bound the waits between connections of one blob.
	reopenAfter = 500 * time.Millisecond
	maxReopen   = 5 * time.Second
)

// Blob is a piece of an image: a manifest, a configuration or a layer.
type Blob struct {
	MediaType, Digest string
	Size              int64
}

// Source is where an image may be had other than from its registry.
type Source interface {
	// Supply begins a pull of a full name.
	Supply(name string) Supply
}

// Supply is what others give to one pull.
type Supply interface {
	// Resolve says what the name means to others, and whether they have it from no
	// registry; false if nobody knows it.
	Resolve(ctx context.Context) (b Blob, imported, ok bool)
	// Blob begins a blob. registry opens it at the registry from an offset on.
	Blob(b Blob, registry OpenFunc) Transfer
}

// OpenFunc opens something to be read from an offset on.
type OpenFunc func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Transfer is one blob on its way.
type Transfer interface {
	// Begin waits until it is this device's turn, however long that takes.
	Begin(ctx context.Context) error
	// Open may be called again after a reader ended before the blob's end.
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Close is the last call; done says that the blob is in the content store.
	Close(done bool)
}

// registryOnly is the Supply of a device that has no others.
var registryOnly Supply = alone{}

type alone struct{}

func (alone) Resolve(context.Context) (Blob, bool, bool) { return Blob{}, false, false }
func (alone) Blob(_ Blob, registry OpenFunc) Transfer    { return fromRegistry{registry} }

type fromRegistry struct{ open OpenFunc }

func (fromRegistry) Begin(context.Context) error { return nil }
func (fromRegistry) Close(bool)                  {}
func (f fromRegistry) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	return f.open(ctx, offset)
}

// from makes the fetcher of a pull out of the registry's and what others supply.
func (p *progress) from(registry remotes.Fetcher, supply Supply) remotes.Fetcher {
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		t := supply.Blob(Blob{MediaType: desc.MediaType, Digest: desc.Digest.String(), Size: desc.Size}, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			return openAt(ctx, registry, desc, offset)
		})
		return &blobReader{ctx: ctx, p: p, t: t, size: desc.Size}, nil
	})
}

// openAt opens a blob at the registry, which is asked for a range.
func openAt(ctx context.Context, registry remotes.Fetcher, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	rc, err := registry.Fetch(ctx, desc)
	if err != nil || offset == 0 {
		return rc, err
	}
	s, ok := rc.(io.Seeker)
	if !ok {
		rc.Close()
		return nil, fmt.Errorf("the registry cannot go on in the middle of %s", desc.Digest)
	}
	if _, err := s.Seek(offset, io.SeekStart); err != nil {
		rc.Close()
		return nil, err
	}
	return rc, nil
}

// blobReader reads one blob over as many connections as it takes: once bytes
// have come, a connection that breaks is replaced by one that goes on where it
// ended, until the pull's context ends, as it does when nothing moves any more.
type blobReader struct {
	ctx    context.Context
	p      *progress
	t      Transfer
	size   int64
	offset int64

	begun bool // Transfer.Begin was called
	moved bool // bytes have come
	rc    io.ReadCloser
	hang  context.CancelFunc // ends the connection
	wait  time.Duration      // before the next one
}

func (r *blobReader) Read(b []byte) (int, error) {
	if !r.begun {
		r.p.waiting.Add(1)
		err := r.t.Begin(r.ctx)
		r.p.waiting.Add(-1)
		if err != nil {
			return 0, err
		}
		r.begun = true
	}
	for r.offset < r.size {
		n, err := r.readOnce(b)
		r.offset += int64(n)
		r.p.done.Add(int64(n))
		if n > 0 {
			r.moved, r.wait = true, 0
			return n, nil
		}
		if err == nil {
			continue
		}
		if !r.moved || errdefs.IsNotFound(err) || r.ctx.Err() != nil {
			return 0, err
		}
		r.wait = min(max(2*r.wait, reopenAfter), maxReopen)
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-time.After(r.wait):
		}
	}
	return 0, io.EOF
}

// readOnce reads from the connection that there is, or a new one. An error has
// closed it.
func (r *blobReader) readOnce(b []byte) (n int, err error) {
	if r.rc == nil {
		ctx, cancel := context.WithCancel(r.ctx)
		rc, err := r.t.Open(ctx, r.offset)
		if err != nil {
			cancel()
			return 0, err
		}
		r.rc, r.hang = rc, cancel
	}
	silent := time.AfterFunc(silence, r.hang)
	n, err = r.rc.Read(b[:min(int64(len(b)), r.size-r.offset)])
	if !silent.Stop() && r.ctx.Err() == nil && n == 0 {
		err = errors.New("the connection is silent")
	}
	if errors.Is(err, io.EOF) && r.offset+int64(n) < r.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = errors.Join(err, r.hangUp())
	}
	return n, err
}

func (r *blobReader) hangUp() error {
	if r.rc == nil {
		return nil
	}
	err := r.rc.Close()
	r.hang()
	r.rc, r.hang = nil, nil
	return err
}

// Seek is how a pull goes on where an earlier one ended.
func (r *blobReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 || offset > r.size {
		return 0, fmt.Errorf("seek to %d in a blob of %d bytes", offset, r.size)
	}
	var err error
	if offset != r.offset {
		err = r.hangUp()
	}
	r.offset = offset
	return offset, err
}

// Close comes after the content was committed, if all of it was read.
func (r *blobReader) Close() error {
	err := r.hangUp()
	r.t.Close(r.offset == r.size)
	return err
}
