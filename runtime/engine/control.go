package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/continuity/fs"
	"google.golang.org/protobuf/types/known/anypb"
)

// ResizeTTY sets the size of a running container's terminal.
func (e *Engine) ResizeTTY(ctx context.Context, id string, size Size) error {
	s, err := e.running(id)
	if err == nil {
		_, err = s.tasks.ResizePty(inNamespace(ctx), &taskapi.ResizePtyRequest{
			ID: id, Width: uint32(size.Width), Height: uint32(size.Height),
		})
	}
	return wrap("resize the terminal of container "+id, fromShim(err))
}

// UpdateResources changes the limits of a running container. Zero fields are left
// as they are.
func (e *Engine) UpdateResources(ctx context.Context, id string, r Resources) error {
	data, err := json.Marshal(e.host.resources(r))
	if err != nil {
		return err
	}
	s, err := e.running(id)
	if err == nil {
		_, err = s.tasks.Update(inNamespace(ctx), &taskapi.UpdateTaskRequest{ID: id, Resources: &anypb.Any{
			TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: data,
		}})
	}
	return wrap("update the resources of container "+id, fromShim(err))
}

// running gives the shim of a container that runs.
func (e *Engine) running(id string) (*shim, error) {
	c, err := e.find(id)
	if err != nil {
		return nil, err
	}
	s := e.liveShim()
	if s == nil || c.phase() != phaseRunning {
		return nil, ErrNotRunning
	}
	return s, nil
}

// Stats of running containers, all or those named. Those that do not run are left
// out.
func (e *Engine) Stats(_ context.Context, ids ...string) ([]Stats, error) {
	if len(ids) == 0 {
		for _, c := range e.snapshot() {
			ids = append(ids, c.id())
		}
	}
	out := make([]Stats, 0, len(ids))
	for _, id := range ids {
		c, err := e.find(id)
		if err != nil || c.phase() != phaseRunning {
			continue
		}
		s := Stats{ID: id, Time: time.Now()}
		e.host.cgroups.stats(c.cgroup(), &s)
		out = append(out, s)
	}
	return out, nil
}

// GroupStats is what the containers of a group use together, a Pod's, those that
// ended included; all is zero if there is no such group.
func (e *Engine) GroupStats(group string) Stats {
	s := Stats{ID: group, Time: time.Now()}
	e.host.cgroups.stats(group, &s)
	return s
}

// WritableLayer is the size on disk of what a container wrote to its root file
// system. It walks the layer.
func (e *Engine) WritableLayer(ctx context.Context, id string) (int64, error) {
	c, err := e.find(id)
	if err != nil {
		return 0, fmt.Errorf("measure: %w", err)
	}
	if c.rec.Holder || !e.store.layered {
		return 0, nil
	}
	du, err := fs.DiskUsage(ctx, filepath.Join(e.rootfs.dir, id, "fs"))
	if err != nil {
		return 0, fmt.Errorf("measure the writable layer of container %s: %w", id, err)
	}
	return du.Size, nil
}

// MountImage mounts an image's content read-only at target, which exists; for
// image volumes. The image must not be removed meanwhile.
func (e *Engine) MountImage(ctx context.Context, ref, target string) error {
	ctx = inNamespace(ctx)
	_, m, err := e.findImage(ctx, ref)
	if err == nil {
		err = e.rootfs.mountImage(ctx, m.chainID(), target)
	}
	return wrap("mount image "+ref, err)
}

// UnmountImage undoes MountImage; it may be repeated.
func (e *Engine) UnmountImage(_ context.Context, target string) error {
	return wrap("unmount an image", errors.Join(unmountBelow(target)))
}
