package nodestats

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"edged/runtime/engine"
	"edged/runtime/volume"
)

// device has one Pod with a container, which uses as much CPU as time passes, and one
// that is on its way.
type device struct {
	t     *testing.T
	dir   string
	began time.Time
	walks int
}

func newDevice(t *testing.T) (*device, *Source) {
	d := &device{t: t, dir: t.TempDir(), began: time.Now()}
	for name, content := range map[string]string{
		"stat":                   "cpu  100 20 30 5000 70 4 5 6 0 0\ncpu0 1 2 3\nbtime 1700000000\n",
		"meminfo":                "MemTotal:        1000 kB\nMemFree:          300 kB\nMemAvailable:     600 kB\nInactive(file):   150 kB\nAnonPages: 100 kB\nSwapTotal: 50 kB\nSwapFree: 40 kB\n",
		"vmstat":                 "nr_free 3\npgfault 70\npgmajfault 7\n",
		"loadavg":                "0.26 1.18 1.53 2/128 4711\n",
		"sys/kernel/pid_max":     "32768\n",
		"sys/kernel/threads-max": "3000\n",
		"pressure/cpu":           "some avg10=1.50 avg60=0.25 avg300=0.00 total=20\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
		"net/dev": "Inter-|   Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  wan0: 11 1 2 0 0 0 0 0 33 1 4 0 0 0 0 0\n" +
			"edv0a: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n",
		"net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nwan0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n",
		"log/0.log": "a line\n",
		"data/file": "content",
	} {
		path := filepath.Join(d.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d, New(Config{
		NodeName: "n1", Engine: d, Pods: d, Proc: d.dir, DataDir: d.dir, Now: time.Now,
		Owner: func(c engine.Container) (string, string) { return c.Labels["pod"], c.Labels["name"] },
		Group: func(uid string) string { return "group-" + uid },
		Log:   func(*corev1.Pod, string) string { return filepath.Join(d.dir, "log") },
		Volume: func(_ *corev1.Pod, v *corev1.Volume) (volume.Use, bool) {
			return volume.Use{Path: filepath.Join(d.dir, v.Name)}, true
		},
		NetDev: func(*corev1.Pod) ([]byte, error) { return []byte("eth0: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n"), nil },
	})
}

func (d *device) Pods() []*corev1.Pod {
	return []*corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: types.UID("u")}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}, {Name: "not-yet"},
		}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "pending", Namespace: "ns", UID: types.UID("v")}},
	}
}

func (d *device) List() []engine.Container {
	return []engine.Container{
		{ID: "c", State: engine.Running, Labels: map[string]string{"pod": "u", "name": "main"}},
		{ID: "holder", State: engine.Running, Labels: map[string]string{"pod": "u"}},
		{ID: "old", State: engine.Exited, Labels: map[string]string{"pod": "u", "name": "main"}},
	}
}

func (d *device) Images(context.Context) ([]engine.Image, error) {
	return []engine.Image{{SizeBytes: 1000}, {SizeBytes: 500}}, nil
}

func (d *device) Stats(context.Context, ...string) ([]engine.Stats, error) {
	return []engine.Stats{{ID: "c", Time: time.Now(), CPUUsage: time.Since(d.began), MemoryUsageBytes: 40, MemoryWorkingSetBytes: 30, MemoryLimitBytes: 100}, {ID: "holder"}}, nil
}

func (d *device) GroupStats(group string) engine.Stats {
	if group != "group-u" {
		d.t.Errorf("the group %q is measured", group)
	}
	return engine.Stats{Time: time.Now(), CPUUsage: 2 * time.Since(d.began), MemoryWorkingSetBytes: 31, PIDs: 3}
}

func (d *device) WritableLayer(_ context.Context, id string) (int64, error) {
	d.walks++
	return map[string]int64{"c": 4096, "old": 1}[id], nil
}

// TestSummary: what the device, a Pod and a container use, in the API's units; what is
// asked first is measured over a short time, then since the question before; disks are
// walked once a minute.
func TestSummary(t *testing.T) {
	d, s := newDevice(t) // outside: t.TempDir ends with the whole test
	synctest.Test(t, func(t *testing.T) {
		d.began = time.Now()
		time.Sleep(time.Second)
		sum, err := s.Summary(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		n := sum.Node
		eq := func(what string, got *uint64, want uint64) {
			t.Helper()
			if got == nil || *got != want {
				t.Errorf("%s: %v, not %d", what, deref(got), want)
			}
		}
		eq("node CPU", n.CPU.UsageCoreNanoSeconds, uint64(1650*time.Millisecond))
		eq("node CPU now", n.CPU.UsageNanoCores, 0)
		eq("node working set", n.Memory.WorkingSetBytes, 550<<10)
		eq("node available", n.Memory.AvailableBytes, 450<<10)
		eq("node swap", n.Swap.SwapUsageBytes, 10<<10)
		eq("images", n.Runtime.ImageFs.UsedBytes, 1500)
		eq("layers", n.Runtime.ContainerFs.UsedBytes, 4097)
		eq("received", n.Network.RxBytes, 11)
		if n.Network.Name != "wan0" || len(n.Network.Interfaces) != 1 {
			t.Errorf("links %+v", n.Network)
		}
		if *n.Rlimit.MaxPID != 3000 || *n.Rlimit.NumOfRunningProcesses != 128 || n.StartTime.Unix() != 1700000000 {
			t.Errorf("%d of %d processes since %v", *n.Rlimit.NumOfRunningProcesses, *n.Rlimit.MaxPID, n.StartTime)
		}
		if p := n.CPU.PSI; p == nil || p.Some.Avg10 != 1.5 || p.Some.Total != 20000 || p.Full.Total != 10000 || n.Memory.PSI != nil {
			t.Errorf("pressure %+v", p)
		}
		if len(sum.Pods) != 1 || len(sum.Pods[0].Containers) != 1 {
			t.Fatalf("Pods %+v", sum.Pods)
		}
		p, c := sum.Pods[0], sum.Pods[0].Containers[0]
		eq("container now", c.CPU.UsageNanoCores, uint64(time.Second))
		eq("Pod now", p.CPU.UsageNanoCores, 2*uint64(time.Second))
		eq("container available", c.Memory.AvailableBytes, 70)
		eq("Pod working set", p.Memory.WorkingSetBytes, 31)
		eq("processes", p.ProcessStats.ProcessCount, 3)
		eq("layer", c.Rootfs.UsedBytes, 4096)
		eq("log inodes", c.Logs.InodesUsed, 2)
		eq("sent", p.Network.TxBytes, 6)
		if len(p.VolumeStats) != 1 || p.VolumeStats[0].Name != "data" {
			t.Fatalf("volumes %+v", p.VolumeStats)
		}
		eq("volume inodes", p.VolumeStats[0].InodesUsed, 2)
		eq("ephemeral", p.EphemeralStorage.UsedBytes, 4096+*c.Logs.UsedBytes+*p.VolumeStats[0].UsedBytes)

		walks, asked := d.walks, time.Now()
		d.began = d.began.Add(-time.Second) // it has used more than time passed
		time.Sleep(10 * time.Second)
		again, err := s.Summary(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(asked); took != 10*time.Second || d.walks != walks {
			t.Errorf("a second question took %v more, and %d walks", took-10*time.Second, d.walks-walks)
		}
		eq("container over ten seconds", again.Pods[0].Containers[0].CPU.UsageNanoCores, uint64(1100*time.Millisecond))
		time.Sleep(time.Hour)
		if again, err = s.Summary(t.Context(), false); err != nil || d.walks == walks {
			t.Errorf("an hour later: %v, %d walks", err, d.walks-walks)
		}
		eq("container an hour later", again.Pods[0].Containers[0].CPU.UsageNanoCores, uint64(time.Second))
		only, err := s.Summary(t.Context(), true)
		if err != nil || only.Node.Fs != nil || only.Pods[0].Containers[0].Rootfs != nil {
			t.Errorf("only CPU and memory: %+v %v", only, err)
		}
	})
}

func deref(n *uint64) any {
	if n == nil {
		return "nothing"
	}
	return *n
}

// TestReport: what devices tell each other is measured over the time since the last
// question, and says over which.
func TestReport(t *testing.T) {
	d, s := newDevice(t)
	synctest.Test(t, func(t *testing.T) {
		d.began = time.Now()
		for _, want := range []struct{ sleep, age, window time.Duration }{
			{time.Second, 0, shortWindow}, {20 * time.Second, 0, 20 * time.Second}, {time.Second, time.Second, 20 * time.Second},
		} {
			time.Sleep(want.sleep)
			r, err := s.Report(t.Context(), "ns")
			if err != nil || len(r.Pods) != 1 || len(r.Pods[0].Containers) != 1 {
				t.Fatalf("%+v %v", r, err)
			}
			c := r.Pods[0].Containers[0]
			if r.Pods[0].UID != "u" || c.Name != "main" || c.Age != want.age || c.Window != want.window || c.CPUNanoCores != 1e9 || c.MemoryBytes != 30 {
				t.Errorf("%+v, want it %v old, over %v", c, want.age, want.window)
			}
			if r.Node.MemoryBytes == 0 || r.Node.Window != want.window {
				t.Errorf("the device: %+v", r.Node)
			}
		}
		if r, err := s.Report(t.Context(), "another"); err != nil || len(r.Pods) != 0 {
			t.Errorf("of another namespace: %+v %v", r, err)
		}
	})
}
