package evict

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"edged/runtime/engine"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestThresholds(t *testing.T) {
	ok := Resources{Disk: 100 * gib, DiskFree: 50 * gib, Inodes: 1000, InodesFree: 500, MemoryAvailable: 200 * mib, MemoryThreshold: 100 * mib}
	for name, tc := range map[string]struct {
		change func(*Resources)
		free   int64
		short  string
	}{
		"well":                 {func(*Resources) {}, 0, ""},
		"84 % used":            {func(r *Resources) { r.DiskFree = 16 * gib }, 0, ""},
		"86 % used":            {func(r *Resources) { r.DiskFree = 14 * gib }, 6 * gib, ""},
		"91 % used":            {func(r *Resources) { r.DiskFree = 9 * gib }, 11 * gib, "ephemeral-storage 10Gi 9Gi"},
		"inodes":               {func(r *Resources) { r.InodesFree = 40 }, 1, "inodes 50 40"},
		"no inodes to count":   {func(r *Resources) { r.Inodes, r.InodesFree = 0, 0 }, 0, ""},
		"memory":               {func(r *Resources) { r.MemoryAvailable = 99 * mib }, 0, "memory 100Mi 99Mi"},
		"memory before disk":   {func(r *Resources) { r.MemoryAvailable, r.DiskFree = 0, 0 }, 20 * gib, "memory 100Mi 0"},
		"nothing known at all": {func(r *Resources) { *r = Resources{} }, 0, ""},
	} {
		r := ok
		tc.change(&r)
		what, threshold, available := r.shortage()
		if short := strings.TrimSpace(fmt.Sprintf("%s %s %s", what, threshold, available)); r.toFree() != tc.free || short != tc.short {
			t.Errorf("%s: to free %d, not %d; short of %q, not %q", name, r.toFree(), tc.free, short, tc.short)
		}
	}
}

func TestUnused(t *testing.T) {
	old := func(id string, minutes int) image {
		return image{id, 10 * mib, false, epoch.Add(-time.Duration(minutes) * time.Minute)}
	}
	imported := old("imported", 99)
	imported.precious = true
	nowhere := func(string) bool { return false }
	images := []image{old("young", 1), old("b", 5), old("a", 5), old("used", 50), imported, old("oldest", 30)}
	for want, ids := range map[int64]string{0: "", 1: "oldest", 11 * mib: "oldest a", 1 << 40: "oldest a b"} {
		if got := strings.Join(unused(slices.Clone(images), map[string]bool{"used": true}, want, MinAge, epoch, nowhere), " "); got != ids {
			t.Errorf("for %d bytes %q, not %q", want, got, ids)
		}
	}
	if got := unused(images, map[string]bool{"used": true}, 1<<40, 0, epoch, nowhere); !slices.Contains(got, "young") || slices.Contains(got, "imported") {
		t.Errorf("without an age: %v", got)
	}
}

func using(name string, bytes int64, change ...func(*corev1.Pod)) Usage {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	for _, c := range change {
		c(p)
	}
	return Usage{p, bytes}
}

func asks(memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
}

func prio(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }

func TestVictim(t *testing.T) {
	for name, tc := range map[string]struct {
		pods []Usage
		want string
	}{
		"nobody":                           {nil, ""},
		"uses nothing":                     {[]Usage{using("a", 0)}, ""},
		"the largest":                      {[]Usage{using("a", 10*mib), using("b", 20*mib)}, "b"},
		"over its request first":           {[]Usage{using("a", 100*mib, asks("200Mi")), using("b", 5*mib)}, "b"},
		"by how much over":                 {[]Usage{using("a", 100*mib, asks("90Mi")), using("b", 50*mib, asks("10Mi"))}, "b"},
		"priority before the amount":       {[]Usage{using("a", 100*mib, prio(10)), using("b", 5*mib, prio(1))}, "b"},
		"over its request before priority": {[]Usage{using("a", 100*mib, prio(10)), using("b", 5*mib, asks("10Mi"), prio(1))}, "a"},
		"never a critical one":             {[]Usage{using("a", 100*mib, prio(2_000_001_000))}, ""},
		"equals by UID":                    {[]Usage{using("b", mib), using("a", mib)}, "a"},
	} {
		u, ok := victim(tc.pods, corev1.ResourceMemory)
		if got := ""; ok {
			got = u.Pod.Name
			if got != tc.want {
				t.Errorf("%s: %s, not %s", name, got, tc.want)
			}
		} else if tc.want != "" {
			t.Errorf("%s: nobody, not %s", name, tc.want)
		}
	}
}

// device is engine and agent of a device whose disk the images fill.
type device struct {
	res       Resources
	images    []engine.Image
	running   []engine.Container
	pods      []*corev1.Pod
	memory    map[string]uint64
	layers    map[string]int64
	evicted   []string
	disrupted int
	messages  []string
}

func (d *device) List() []engine.Container                                  { return d.running }
func (d *device) Images(context.Context) ([]engine.Image, error)            { return d.images, nil }
func (d *device) Pods() []*corev1.Pod                                       { return d.pods }
func (d *device) Look() (Resources, error)                                  { return d.res, nil }
func (d *device) WritableLayer(_ context.Context, id string) (int64, error) { return d.layers[id], nil }
func (d *device) Evict(uid, message string, disrupted bool) {
	if disrupted {
		d.disrupted++
	}
	d.evicted, d.messages = append(d.evicted, uid), append(d.messages, message)
}
func (d *device) Stats(_ context.Context, ids ...string) ([]engine.Stats, error) {
	return []engine.Stats{{ID: ids[0], MemoryWorkingSetBytes: d.memory[ids[0]]}}, nil
}
func (d *device) RemoveImage(_ context.Context, ref string) error {
	i := slices.IndexFunc(d.images, func(im engine.Image) bool { return im.ID == ref })
	if i < 0 {
		return fmt.Errorf("no image %s", ref)
	}
	d.res.DiskFree += d.images[i].SizeBytes
	d.images = slices.Delete(d.images, i, i+1)
	return nil
}

func (d *device) names() string {
	var out []string
	for _, im := range d.images {
		out = append(out, im.ID)
	}
	return strings.Join(out, " ")
}

// TestManager: images go before Pods, not what is used or was imported; then one
// Pod at a time, by what it has on the disk.
func TestManager(t *testing.T) {
	img := func(id string, pulled bool) engine.Image {
		return engine.Image{ID: id, Names: []string{"docker.io/library/" + id + ":1"}, SizeBytes: 3 * gib, Pulled: pulled}
	}
	data := t.TempDir()
	for uid, bytes := range map[string]int{"small": 10, "large": 5000} {
		if err := os.MkdirAll(filepath.Join(data, uid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, uid, "file"), make([]byte, bytes), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := &device{
		res:     Resources{Disk: 100 * gib, DiskFree: 14 * gib, MemoryAvailable: gib, MemoryThreshold: 100 * mib},
		images:  []engine.Image{img("run", true), img("named", true), img("imported", false), img("free", true), img("other", true)},
		running: []engine.Container{{ID: "c1", Image: "docker.io/library/run:1", ImageID: "run", State: engine.Running, Labels: map[string]string{"uid": "small"}}},
		pods:    []*corev1.Pod{using("small", 0).Pod, using("large", 0).Pod},
		layers:  map[string]int64{"c1": 100}, memory: map[string]uint64{"c1": 7 * mib},
	}
	d.pods[0].Spec.Containers[0].Image, d.pods[1].Spec.Containers[0].Image = "named:1", "not-there:1"
	now := epoch
	m := New(Config{
		Engine: d, Pods: d, Look: d.Look, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler),
		Owner: func(c engine.Container) (string, string) { return c.Labels["uid"], c.Labels["name"] },
		Dirs:  func(p *corev1.Pod) []string { return []string{filepath.Join(data, string(p.UID))} },
	})
	look := func() {
		t.Helper()
		if err := m.Look(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if d.names() != "run named imported free other" {
		t.Fatalf("images go before their time: left %s", d.names())
	}
	now = now.Add(MinAge)
	look()
	if d.names() != "run named imported" || d.evicted != nil {
		t.Fatalf("left %s, ended %v", d.names(), d.evicted)
	}
	d.images = append(d.images, img("fresh", true))
	d.res.DiskFree = 5 * gib
	look() // an image before a Pod, whatever its age
	if d.names() != "run named imported" || d.evicted != nil {
		t.Fatalf("left %s, ended %v", d.names(), d.evicted)
	}
	d.res.DiskFree = 5 * gib
	look()
	look()
	if strings.Join(d.evicted, " ") != "large" || !strings.HasPrefix(d.messages[0], "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 5Gi. Pod was using 8Ki, request is 0") {
		t.Fatalf("ended %v: %v", d.evicted, d.messages)
	}
	d.pods = d.pods[:1]
	d.res.DiskFree, d.res.MemoryAvailable = 50*gib, mib
	now = now.Add(again)
	look()
	if strings.Join(d.evicted, " ") != "large small" || !strings.Contains(d.messages[1], "low on resource: memory") {
		t.Fatalf("ended %v: %v", d.evicted, d.messages)
	}
}

// TestLastCopy: an image that a workload names, or that was imported, goes only
// where another device keeps it, and of all that have it one does.
func TestLastCopy(t *testing.T) {
	names := []string{"a", "b", "c"}
	devices := map[string]*device{}
	now := epoch
	for _, name := range names {
		devices[name] = &device{res: Resources{Disk: 100 * gib}, images: []engine.Image{
			{ID: "named", Names: []string{"reg/named:1"}, Pulled: true, SizeBytes: gib},
			{ID: "imported", Names: []string{"reg/imported:1"}, SizeBytes: gib},
			{ID: "free", Names: []string{"reg/free:1"}, Pulled: true, SizeBytes: gib},
		}}
	}
	for _, name := range names {
		d := devices[name]
		m := New(Config{
			Engine: d, Pods: d, Look: d.Look, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler), NodeName: name,
			Named: func() map[string]bool { return map[string]bool{"reg/named:1": true} },
			// What they knew before any of them removed one.
			Copies: func(context.Context, engine.Image) []string {
				return slices.DeleteFunc(slices.Clone(names), func(h string) bool { return h == name })
			},
		})
		for range 2 {
			d.res.DiskFree = 14 * gib
			if err := m.Look(context.Background()); err != nil {
				t.Fatal(err)
			}
			now = now.Add(MinAge)
		}
	}
	if a, b, c := devices["a"].names(), devices["b"].names(), devices["c"].names(); a != "named imported" || b != "" || c != "" {
		t.Errorf("left %q, %q, %q", a, b, c)
	}
}
