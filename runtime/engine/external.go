package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"edged/internal/atomicfile"
)

const (
	// externalWait is how long a containerd may take to come up, which starts beside us.
	externalWait = 30 * time.Second
	// externalRoot marks snapshots and leases in a containerd that others use too.
	externalRoot = "edged"
	leaseLabel   = "io.edged.lease"
	// externalFile names, in Root, the socket of the containerd whose snapshots are to be
	// cleaned up.
	externalFile = "socket"
)

// openExternal uses the images and layers of the containerd that listens at socket. The
// containers stay with our shim, so that neither daemon's end is theirs.
func openExternal(ctx context.Context, root, socket string) (_ *store, err error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	s := &store{
		platform: platforms.Default(), snapName: overlayName, snapRoot: externalRoot, closers: []func() error{conn.Close},
		content: contentproxy.NewContentStore(contentapi.NewContentClient(conn)), images: imageClient{imagesapi.NewImagesClient(conn)},
		leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		snap:   snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), overlayName),
	}
	s.leaseFilter = []string{fmt.Sprintf("labels.%q==%s", leaseLabel, externalRoot)}
	s.leaseOpts = []leases.Opt{leases.WithLabel(leaseLabel, externalRoot)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.applier = diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier)
	ctx, cancel := context.WithTimeout(ctx, externalWait)
	defer cancel()
	v, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("no containerd answers at %s: %w", socket, errgrpc.ToNative(err))
	}
	s.version = v.Version
	// A snapshotter that it lacks is found out now, not by the first Pod.
	if err := s.snap.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "name==none"); err != nil {
		return nil, fmt.Errorf("containerd at %s, snapshotter %s: %w", socket, overlayName, err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the image folder: %w", err)
	}
	return s, atomicfile.Write(filepath.Join(root, externalFile), []byte(socket), 0o600)
}

// cleanExternal removes what engines with this Root made in a containerd of others: the
// root file systems of containers. Its images stay. A containerd that is no more has
// nothing to be removed.
func cleanExternal(ctx context.Context, root string) error {
	socket, err := os.ReadFile(filepath.Join(root, externalFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the containerd that was used: %w", err)
	}
	if _, err := os.Stat(string(socket)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx = inNamespace(ctx)
	s, err := openExternal(ctx, root, string(socket))
	if err != nil {
		return err
	}
	r := &rootfsMaker{store: s, dir: filepath.Join(root, "containers")}
	return errors.Join(r.sweepCopies(ctx, func(string) bool { return false }), s.close())
}

// leaveStores deals with what is left where images and layers were before: edged's own
// store stays for a way back, which may have images that no registry does; another
// containerd is rid of the layers of our containers once none of them can be in use.
func (e *Engine) leaveStores() {
	if e.cfg.Socket != "" {
		if blobs, err := filepath.Glob(filepath.Join(e.cfg.Root, "content", "blobs", "*", "*")); err == nil && len(blobs) > 0 {
			e.log.Warn("the images that edged keeps of its own are not used with --containerd", "dir", e.cfg.Root)
		}
		return
	}
	path := filepath.Join(e.cfg.Root, externalFile)
	socket, err := os.ReadFile(path)
	if err != nil || len(e.containers) > 0 {
		return
	}
	if _, err := os.Stat(string(socket)); err != nil {
		return // it may come up later: the next start looks again, and so does Cleanup
	}
	e.wg.Go(func() {
		err := cleanExternal(e.ctx, e.cfg.Root)
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil && e.ctx.Err() == nil {
			e.log.Warn("layers of containers are left in a containerd that is not used any more", "socket", string(socket), "err", err)
		}
	})
}

// ownVersion is that of the containerd in this program.
func ownVersion() string {
	v, _, _ := strings.Cut(version.Version, "+") // "+unknown", as it was not built by its makers
	return v
}

// imageClient is the image store of another containerd.
type imageClient struct{ c imagesapi.ImagesClient }

func (i imageClient) Get(ctx context.Context, name string) (images.Image, error) {
	r, err := i.c.Get(ctx, &imagesapi.GetImageRequest{Name: name})
	return fromProto(r.GetImage()), errgrpc.ToNative(err)
}

func (i imageClient) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	r, err := i.c.List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
	list := make([]images.Image, 0, len(r.GetImages()))
	for _, img := range r.GetImages() {
		list = append(list, fromProto(img))
	}
	return list, errgrpc.ToNative(err)
}

func (i imageClient) Create(ctx context.Context, img images.Image) (images.Image, error) {
	r, err := i.c.Create(ctx, &imagesapi.CreateImageRequest{Image: toProto(img)})
	return fromProto(r.GetImage()), errgrpc.ToNative(err)
}

func (i imageClient) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	r, err := i.c.Update(ctx, &imagesapi.UpdateImageRequest{Image: toProto(img), UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}})
	return fromProto(r.GetImage()), errgrpc.ToNative(err)
}

func (i imageClient) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	var o images.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	r := &imagesapi.DeleteImageRequest{Name: name, Sync: o.Synchronous}
	if o.Target != nil {
		r.Target = oci.DescriptorToProto(*o.Target)
	}
	_, err := i.c.Delete(ctx, r)
	return errgrpc.ToNative(err)
}

func toProto(i images.Image) *imagesapi.Image {
	return &imagesapi.Image{
		Name: i.Name, Labels: i.Labels, Target: oci.DescriptorToProto(i.Target),
		CreatedAt: timestamppb.New(i.CreatedAt), UpdatedAt: timestamppb.New(i.UpdatedAt),
	}
}

func fromProto(p *imagesapi.Image) images.Image {
	if p == nil {
		return images.Image{}
	}
	return images.Image{
		Name: p.Name, Labels: p.Labels, Target: oci.DescriptorFromProto(p.Target),
		CreatedAt: p.CreatedAt.AsTime(), UpdatedAt: p.UpdatedAt.AsTime(),
	}
}
