package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	// dialTimeout: a registry that does not answer is told at once; whoever asked
	// tries again later.
	dialTimeout = 5 * time.Second
	// headerTimeout bounds the wait for an answer, not the download.
	headerTimeout = 20 * time.Second
	// stallTimeout ends a download that does not move.
	stallTimeout = 60 * time.Second
	// maxLayerFetches of one pull at a time: an SD card gains nothing by more.
	maxLayerFetches  = 3
	progressInterval = time.Second
)

// Pull fetches an image for this device's platform from its registry and unpacks
// it. It tries once: an unreachable registry is an error after seconds, a
// download that stalls after a minute. What was fetched of a broken pull is
// resumed by the next one.
func (e *Engine) Pull(ctx context.Context, ref string, opts PullOptions) (Image, error) {
	name, err := NormalizeImageName(ref)
	if err != nil {
		return Image{}, err
	}
	ctx, cancel := context.WithCancelCause(inNamespace(ctx))
	defer cancel(nil)
	transports := &transports{}
	defer transports.closeIdle()
	var target ocispec.Descriptor
	err = e.store.withLease(ctx, func(ctx context.Context) error {
		hosts, err := registryHosts(ctx, opts, transports)
		if err != nil {
			return err
		}
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
		supply := registryOnly
		if opts.Source != nil {
			supply = opts.Source.Supply(name)
		}
		desc, imported, err := resolve(ctx, resolver, supply, name, opts.Fresh)
		if err != nil {
			return fmt.Errorf("failed to resolve reference %q: %w", name, err)
		}
		fetcher, err := resolver.Fetcher(ctx, name)
		if err != nil {
			return fmt.Errorf("failed to get fetcher for %q: %w", name, err)
		}
		watch := startProgress(opts.Progress, cancel)
		err = e.store.fetch(ctx, name, imported, watch.from(fetcher, supply), desc, watch)
		watch.stop()
		if err != nil {
			return err
		}
		target = desc
		return e.addImage(ctx, name, desc)
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Image{}, fmt.Errorf("failed to pull and unpack image %q: %w", name, err)
	}
	img, _, err := e.describeTarget(ctx, target)
	return img, err
}

// resolve finds what a name means: by what others have, unless it has to be
// fresh, else by the registry. imported says that no registry gave it to them.
func resolve(ctx context.Context, resolver remotes.Resolver, supply Supply, name string, fresh bool) (desc ocispec.Descriptor, imported bool, err error) {
	if !fresh {
		if b, imported, ok := supply.Resolve(ctx); ok {
			dgst, err := digest.Parse(b.Digest)
			if err != nil {
				return desc, false, err
			}
			return ocispec.Descriptor{MediaType: b.MediaType, Digest: dgst, Size: b.Size}, imported, nil
		}
	}
	_, desc, err = resolver.Resolve(ctx, name)
	return desc, false, err
}

// fetch brings manifest, configuration and layers into the content store.
func (s *store) fetch(ctx context.Context, name string, imported bool, fetcher remotes.Fetcher, desc ocispec.Descriptor, watch *progress) error {
	if desc.MediaType == images.MediaTypeDockerSchema1Manifest {
		return fmt.Errorf("image %s has a manifest of schema 1, which is no longer supported: build it again", name)
	}
	children := images.SetChildrenLabels(s.content, images.ChildrenHandler(s.content))
	children = images.FilterPlatforms(children, s.platform)
	children = images.LimitManifests(children, s.platform, 1)
	source, err := docker.AppendDistributionSourceLabel(s.content, name)
	if err != nil {
		return fmt.Errorf("note the source of %s: %w", name, err)
	}
	handler := images.Handlers(
		images.HandlerFunc(watch.expect),
		s.fetchHandler(fetcher),
		children,
	)
	if !imported {
		handler = images.Handlers(handler, source)
	}
	return images.Dispatch(ctx, handler, semaphore.NewWeighted(maxLayerFetches), desc)
}

// fetchHandler is containerd's, which leaves content that turned out to be wrong
// for the next pull to resume.
func (s *store) fetchHandler(fetcher remotes.Fetcher) images.HandlerFunc {
	fetch := remotes.FetchHandler(s.content, fetcher)
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := checkMetadata(desc, images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) || images.IsConfigType(desc.MediaType)); err != nil {
			return nil, err
		}
		out, err := fetch(ctx, desc)
		if errdefs.IsFailedPrecondition(err) {
			ref := remotes.MakeRefKey(ctx, desc)
			if abort := s.content.Abort(context.WithoutCancel(ctx), ref); abort != nil && !errdefs.IsNotFound(abort) {
				err = errors.Join(err, abort)
			}
		}
		return out, err
	}
}

func registryHosts(ctx context.Context, opts PullOptions, transports *transports) (docker.RegistryHosts, error) {
	hostOpts := dockerconfig.HostOptions{
		DefaultTLS:   nil,
		UpdateClient: transports.adopt,
	}
	if opts.HostsDir != "" {
		hostOpts.HostDir = dockerconfig.HostDirFromRoot(opts.HostsDir)
	}
	reg, err := readRegistries(opts.Registries)
	if err != nil {
		return nil, err
	}
	if opts.Auth != nil || len(reg.Configs) > 0 {
		hostOpts.Credentials = func(host string) (string, string, error) {
			if host == "registry-1.docker.io" {
				host = "docker.io"
			}
			var a Auth
			if opts.Auth != nil {
				a = opts.Auth(host)
			}
			if a == (Auth{}) {
				a = reg.auth(host)
			}
			if a.IdentityToken != "" {
				return "", a.IdentityToken, nil
			}
			return a.Username, a.Password, nil
		}
	}
	return reg.hosts(dockerconfig.ConfigureHosts(ctx, hostOpts), hostOpts), nil
}

// transports collects the HTTP clients of one pull, to bound their waits and to
// close their connections at its end.
type transports struct {
	mu      sync.Mutex
	clients []*http.Client
}

func (t *transports) adopt(c *http.Client) error {
	tr, ok := c.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	tr = tr.Clone()
	if tr.TLSClientConfig == nil {
		tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	tr.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	tr.TLSHandshakeTimeout = 2 * dialTimeout
	tr.ResponseHeaderTimeout = headerTimeout
	tr.IdleConnTimeout = 10 * time.Second
	c.Transport = tr
	t.mu.Lock()
	t.clients = append(t.clients, c)
	t.mu.Unlock()
	return nil
}

func (t *transports) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.clients {
		c.CloseIdleConnections()
	}
}

// errStalled ends a pull whose bytes stopped coming.
var errStalled = errors.New("the download stalled")

// progress counts the bytes of one pull; its goroutine reports them and cancels
// the pull when they stop.
type progress struct {
	done, total atomic.Int64
	waiting     atomic.Int32 // for others, which is no stall
	end         chan struct{}
	ended       sync.WaitGroup
}

func startProgress(report func(done, total int64), cancel context.CancelCauseFunc) *progress {
	p := &progress{end: make(chan struct{})}
	p.ended.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		last, since := int64(-1), time.Now()
		for {
			select {
			case <-p.end:
				return
			case now := <-tick.C:
				done := p.done.Load()
				switch {
				case done != last || p.waiting.Load() > 0:
					last, since = done, now
				case now.Sub(since) > stallTimeout:
					cancel(fmt.Errorf("%w after %d bytes", errStalled, done))
					return
				}
				if report != nil {
					report(done, p.total.Load())
				}
			}
		}
	})
	return p
}

func (p *progress) stop() {
	close(p.end)
	p.ended.Wait()
}

func (p *progress) expect(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	p.total.Add(desc.Size)
	return nil, nil
}
