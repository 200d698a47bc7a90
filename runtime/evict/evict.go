package evict

import (
	"context"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
)

const (
	// lookEvery is how often the device is looked at.
	lookEvery = 10 * time.Second
	// again is how long images are left alone after none could be removed, and Pods
	// after one was ended: what it gives back comes with its end.
	again = time.Minute
)

// Engine is what a Manager needs of runtime/engine.
type Engine interface {
	List() []engine.Container
	Images(ctx context.Context) ([]engine.Image, error)
	RemoveImage(ctx context.Context, ref string) error
	Stats(ctx context.Context, ids ...string) ([]engine.Stats, error)
	WritableLayer(ctx context.Context, id string) (int64, error)
}

// Pods are those of this device.
type Pods interface {
	Pods() []*corev1.Pod
	Evict(uid, message string, disrupted bool)
}

// Config is what a Manager needs.
type Config struct {
	Engine Engine
	Pods   Pods
	// Look says what the device has.
	Look func() (Resources, error)
	// NodeName is this device's. Copies names the others that have an image now;
	// Named are the full names of images that workloads of the cluster name. Both
	// may be nil: then nobody has one, and none is named.
	NodeName string
	Copies   func(context.Context, engine.Image) []string
	Named    func() map[string]bool
	// Owner tells the UID of the Pod whose a container is, and which one of it.
	Owner func(engine.Container) (uid, container string)
	// Dirs are the folders of a Pod's own files on the disk: its emptyDirs and logs.
	Dirs func(*corev1.Pod) []string
	// Volume is the folder of an emptyDir on the disk, Log that of a container's log.
	Volume func(p *corev1.Pod, volume string) string
	Log    func(p *corev1.Pod, container string) string
	Now    func() time.Time
	Logger *slog.Logger
}

// Manager looks after the device's disk and memory.
type Manager struct {
	cfg       Config
	lastUsed  map[string]time.Time // by image; owned by Run
	overLimit map[string]bool      // Pods that were ended for their limits, while they are there
	images    time.Time            // not before this are images removed again
	pods      time.Time            // nor Pods ended
}

// New returns a Manager; Run starts it.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, lastUsed: map[string]time.Time{}, overLimit: map[string]bool{}}
}

// Run looks after the device until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		err := m.Look(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			m.cfg.Logger.Warn("disk and memory are not looked after", "err", err)
		}
		failing = err != nil
	}
}

// Look looks once, and acts.
func (m *Manager) Look(ctx context.Context) error {
	now := m.cfg.Now()
	m.enforceLimits(ctx)
	r, err := m.cfg.Look()
	if err != nil {
		return err
	}
	what, threshold, available := r.shortage()
	age := MinAge
	if what != "" {
		age = 0
	}
	removed := false
	if want := r.toFree(); want > 0 && (what != "" || !now.Before(m.images)) {
		if removed, err = m.removeImages(ctx, want, age, now); err != nil {
			return err
		}
		if !removed {
			m.images = now.Add(again)
		}
	}
	if what == "" || removed || now.Before(m.pods) {
		return nil
	}
	u, ok := victim(m.usages(ctx, what), what)
	if !ok {
		return nil
	}
	m.pods = now.Add(again)
	m.cfg.Logger.Warn("a Pod is ended because the device is short of something", "pod", u.Pod.Namespace+"/"+u.Pod.Name, "short", what, "available", available, "threshold", threshold)
	m.cfg.Pods.Evict(string(u.Pod.UID), message(what, threshold, available, u), true)
	return nil
}

// removeImages removes images that nothing uses; it is false if there are none.
func (m *Manager) removeImages(ctx context.Context, want int64, age time.Duration, now time.Time) (bool, error) {
	all, err := m.cfg.Engine.Images(ctx)
	if err != nil {
		return false, err
	}
	inUse := m.inUse(all)
	var named map[string]bool
	if m.cfg.Named != nil {
		named = m.cfg.Named()
	}
	byID := make(map[string]engine.Image, len(all))
	known := make(map[string]time.Time, len(all))
	var images []image
	for _, im := range all {
		used, seen := m.lastUsed[im.ID]
		if !seen || inUse[im.ID] {
			used = now
		}
		known[im.ID] = used
		byID[im.ID] = im
		images = append(images, image{im.ID, im.SizeBytes, !im.Pulled || isNamed(im, named), used})
	}
	m.lastUsed = known
	removed := false
	for _, id := range unused(images, inUse, want, age, now, func(id string) bool { return m.elsewhere(ctx, byID[id]) }) {
		if err := m.cfg.Engine.RemoveImage(ctx, id); err != nil {
			return removed, err
		}
		removed = true
		m.cfg.Logger.Info("an image that nothing uses is removed: the disk is nearly full", "image", id)
	}
	return removed, nil
}

func isNamed(im engine.Image, named map[string]bool) bool {
	isIn := func(name string) bool { return named[name] }
	return slices.ContainsFunc(im.Names, isIn) || slices.ContainsFunc(im.RepoDigests, isIn)
}

// elsewhere says whether another device keeps an image. Of those that have it the
// one that is first by its name keeps it: several that are short at the same time
// do not count on each other.
func (m *Manager) elsewhere(ctx context.Context, im engine.Image) bool {
	if m.cfg.Copies == nil {
		return false
	}
	return slices.ContainsFunc(m.cfg.Copies(ctx, im), func(device string) bool { return device < m.cfg.NodeName })
}

// inUse are the images of containers, ended ones too, and those that Pods of this
// device name.
func (m *Manager) inUse(all []engine.Image) map[string]bool {
	named := map[string]string{}
	for _, im := range all {
		for _, n := range im.Names {
			named[n] = im.ID
		}
		for _, n := range im.RepoDigests {
			named[n] = im.ID
		}
	}
	use := map[string]bool{}
	for _, c := range m.cfg.Engine.List() {
		use[c.ImageID] = true
		use[named[c.Image]] = true
	}
	note := func(ref string) {
		if full, err := engine.NormalizeImageName(ref); err == nil {
			use[named[full]] = true
		}
	}
	for _, p := range m.cfg.Pods.Pods() {
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				note(list[i].Image)
			}
		}
		for i := range p.Spec.Volumes {
			if v := p.Spec.Volumes[i].Image; v != nil {
				note(v.Reference)
			}
		}
	}
	return use
}

// usages measures what each Pod that runs uses of what is short.
func (m *Manager) usages(ctx context.Context, what corev1.ResourceName) []Usage {
	bytes := map[string]int64{}
	for _, c := range m.cfg.Engine.List() {
		if c.State != engine.Running {
			continue
		}
		uid, _ := m.cfg.Owner(c)
		if what != corev1.ResourceMemory {
			if n, err := m.cfg.Engine.WritableLayer(ctx, c.ID); err == nil { // it may be gone by now
				bytes[uid] += n
			}
			continue
		}
		if stats, err := m.cfg.Engine.Stats(ctx, c.ID); err == nil && len(stats) == 1 {
			bytes[uid] += int64(stats[0].MemoryWorkingSetBytes)
		}
	}
	var out []Usage
	for _, p := range m.cfg.Pods.Pods() {
		if !mayEnd(p) {
			continue
		}
		n := bytes[string(p.UID)]
		if what != corev1.ResourceMemory {
			for _, dir := range m.cfg.Dirs(p) {
				n += size(dir)
			}
		}
		out = append(out, Usage{p, n})
	}
	return out
}

// size of the disk that the files below dir take, as du has it: a hole takes none, and
// a file of several names counts once. What vanishes meanwhile counts nothing.
func size(dir string) (bytes int64) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 {
			at := inode{uint64(st.Dev), st.Ino}
			if seen[at] {
				return nil
			}
			seen[at] = true
		}
		bytes += st.Blocks * 512 // the unit of st_blocks on every Linux
		return nil
	})
	return bytes
}
