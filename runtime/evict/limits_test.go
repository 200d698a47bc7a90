package evict

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"edged/runtime/engine"
)

// limit bounds the ephemeral storage of a Pod's containers, one after the other.
func limit(sizes ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = nil
		for i, s := range sizes {
			c := corev1.Container{Name: string(rune('a' + i)), Image: "i"}
			if s != "" {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(s)}
			}
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
}

func emptyDir(name, size string, medium corev1.StorageMedium) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		e := &corev1.EmptyDirVolumeSource{Medium: medium}
		if size != "" {
			q := resource.MustParse(size)
			e.SizeLimit = &q
		}
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: e}})
	}
}

func TestExceeded(t *testing.T) {
	type m = map[string]int64
	for name, tc := range map[string]struct {
		pod     []func(*corev1.Pod)
		limited bool
		use     localUse
		want    string
	}{
		"no limit":            {nil, false, localUse{m{}, m{"c": gib}}, ""},
		"unbounded emptyDir":  {[]func(*corev1.Pod){emptyDir("v", "", "")}, false, localUse{m{"v": gib}, m{}}, ""},
		"emptyDir in memory":  {[]func(*corev1.Pod){emptyDir("v", "1Mi", corev1.StorageMediumMemory)}, false, localUse{m{}, m{}}, ""},
		"emptyDir just full":  {[]func(*corev1.Pod){emptyDir("v", "1Mi", "")}, true, localUse{m{"v": mib}, m{}}, ""},
		"emptyDir over":       {[]func(*corev1.Pod){emptyDir("v", "1Mi", "")}, true, localUse{m{"v": mib + 1}, m{}}, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		"container within":    {[]func(*corev1.Pod){limit("1Mi")}, true, localUse{m{}, m{"a": mib}}, ""},
		"the Pod over":        {[]func(*corev1.Pod){limit("1Mi", "1Mi"), emptyDir("v", "", "")}, true, localUse{m{"v": mib}, m{"a": mib, "b": 1}}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "},
		"one container over":  {[]func(*corev1.Pod){limit("1Mi", "5Mi")}, true, localUse{m{}, m{"a": 2 * mib}}, `Container a exceeded its local ephemeral storage limit "1Mi". `},
		"the other unbounded": {[]func(*corev1.Pod){limit("", "5Mi")}, true, localUse{m{}, m{"a": 2 * mib, "b": mib}}, ""},
	} {
		p := using("p", 0, tc.pod...).Pod
		if got := isLimited(p); got != tc.limited {
			t.Errorf("%s: limited %v", name, got)
		}
		if got := exceeded(p, tc.use); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestLimitsAreEnforced: what a Pod wrote to its layer, its log and its emptyDirs
// counts, and it is ended once, for its own fault.
func TestLimitsAreEnforced(t *testing.T) {
	data := t.TempDir()
	path := func(p *corev1.Pod, name string) string { return filepath.Join(data, string(p.UID), name) }
	write := func(p *corev1.Pod, name string, bytes int) {
		t.Helper()
		if err := os.MkdirAll(path(p, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path(p, name), "f"), make([]byte, bytes), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	running := func(id, pod string) engine.Container {
		return engine.Container{ID: id, State: engine.Running, Labels: map[string]string{"uid": pod, "name": "a"}}
	}
	volume, logs, layer := using("volume", 0, emptyDir("v", "16Ki", "")).Pod, using("logs", 0, limit("16Ki")).Pod, using("layer", 0, limit("16Ki")).Pod
	fits, crit := using("fits", 0, limit("64Ki"), emptyDir("v", "16Ki", "")).Pod, using("critical", 0, limit("16Ki"), prio(2_000_000_000)).Pod
	d := &device{
		res:     Resources{Disk: 100 * gib, DiskFree: 90 * gib, MemoryAvailable: gib, MemoryThreshold: mib},
		pods:    []*corev1.Pod{volume, logs, layer, fits, crit},
		running: []engine.Container{running("1", "logs"), running("2", "layer"), running("3", "fits"), running("4", "critical")},
		layers:  map[string]int64{"2": 32000, "3": 500, "4": 32000},
	}
	write(volume, "v", 32000)
	write(logs, "a", 32000)
	write(fits, "a", 500)
	// A hole takes no room, and a second name no second one.
	if err := os.Truncate(filepath.Join(path(fits, "a"), "f"), 1<<30); err != nil {
		t.Fatal(err)
	}
	write(fits, "v", 10000)
	for _, name := range []string{"g", "h"} {
		if err := os.Link(filepath.Join(path(fits, "v"), "f"), filepath.Join(path(fits, "v"), name)); err != nil {
			t.Fatal(err)
		}
	}
	m := New(Config{
		Engine: d, Pods: d, Look: d.Look, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Volume: path, Log: path,
		Owner: func(c engine.Container) (string, string) { return c.Labels["uid"], c.Labels["name"] },
	})
	for range 2 {
		if err := m.Look(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.Join(d.evicted, " ")
	for _, p := range []string{"volume", "logs", "layer"} {
		if strings.Count(got, p) != 1 {
			t.Errorf("%s is not among those that were ended once: %s", p, got)
		}
	}
	if len(d.evicted) != 3 || d.disrupted != 0 {
		t.Errorf("ended %s, %d of them disrupted", got, d.disrupted)
	}
}
