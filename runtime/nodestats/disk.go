package nodestats

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/runtime/engine"
)

// keepDisks is how long what was found on the disks is told again: the kubelet looks
// once a minute.
const keepDisks = time.Minute

// du is what a tree takes.
type du struct{ bytes, inodes uint64 }

func (u *du) add(o du) { u.bytes += o.bytes; u.inodes += o.inodes }

// of tells of a use of the file system whose other figures are disk's.
func (u du) of(disk statsapi.FsStats, at metav1.Time) *statsapi.FsStats {
	disk.Time, disk.UsedBytes, disk.InodesUsed = at, &u.bytes, &u.inodes
	return &disk
}

type containerUse struct {
	layer uint64 // bytes
	logs  du
}

type volumeUse struct {
	stats     statsapi.VolumeStats
	ephemeral bool // counts to the Pod's ephemeral storage
}

// diskUse is what was found on the disks; it is not changed once made.
type diskUse struct {
	at             metav1.Time
	images, layers du
	containers     map[[2]string]containerUse // by Pod's UID and name
	volumes        map[string][]volumeUse     // by Pod's UID
}

// measureDisks walks, or tells what was found less than a minute ago.
func (s *Source) measureDisks(ctx context.Context) (diskUse, error) {
	s.walking.Lock()
	defer s.walking.Unlock()
	now := s.cfg.Now()
	if age := now.Sub(s.walked); !s.walked.IsZero() && age >= 0 && age < keepDisks {
		return s.disks, nil
	}
	use, err := s.walk(ctx, now)
	if err == nil {
		s.disks, s.walked = use, now
	}
	return use, err
}

func (s *Source) walk(ctx context.Context, now time.Time) (diskUse, error) {
	use := diskUse{at: metav1.NewTime(now), containers: map[[2]string]containerUse{}, volumes: map[string][]volumeUse{}}
	images, err := s.cfg.Engine.Images(ctx)
	if err != nil {
		return use, fmt.Errorf("list the images: %w", err)
	}
	for _, im := range images {
		use.images.bytes += uint64(im.SizeBytes)
	}
	pods := map[string]*corev1.Pod{}
	for _, p := range s.cfg.Pods.Pods() {
		pods[string(p.UID)] = p
		use.volumes[string(p.UID)] = s.volumes(p, use.at)
	}
	for _, c := range s.cfg.Engine.List() {
		uid, name := s.cfg.Owner(c)
		layer, err := s.cfg.Engine.WritableLayer(ctx, c.ID)
		if ctx.Err() != nil {
			return use, ctx.Err()
		}
		if err != nil {
			continue // it is gone by now
		}
		use.layers.bytes += uint64(layer)
		if p := pods[uid]; p != nil && name != "" && c.State == engine.Running {
			use.containers[[2]string{uid, name}] = containerUse{uint64(layer), treeUse(s.cfg.Log(p, name))}
		}
	}
	return use, nil
}

// volumes are those of a Pod that are there.
func (s *Source) volumes(p *corev1.Pod, at metav1.Time) []volumeUse {
	var out []volumeUse
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		how, ok := s.cfg.Volume(p, v)
		if !ok {
			continue
		}
		st, err := fsStats(how.Path, at)
		if err != nil {
			continue // it is not made yet
		}
		if !how.Whole {
			st = *treeUse(how.Path).of(st, at)
		}
		u := volumeUse{stats: statsapi.VolumeStats{Name: v.Name, FsStats: st}}
		if how.Claim != "" {
			u.stats.PVCRef = &statsapi.PVCReference{Name: how.Claim, Namespace: p.Namespace}
		} else {
			u.ephemeral = v.EmptyDir == nil || v.EmptyDir.Medium == corev1.StorageMediumDefault
		}
		out = append(out, u)
	}
	return out
}

// treeUse is the use of a tree as du counts it, except that a file of several names counts once
// for each; what vanishes meanwhile counts nothing.
func treeUse(dir string) (u du) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if fi, err := e.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				u.bytes += uint64(st.Blocks) * 512 // the unit of st_blocks on every Linux
				u.inodes++
			}
		}
		return nil
	})
	return u
}
