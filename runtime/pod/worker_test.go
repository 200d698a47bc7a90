package pod

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/engine"
	"edged/runtime/image"
	"edged/runtime/podlog"
	"edged/runtime/sandbox"
)

// machine is a device without a kernel: containers are records, time is the
// bubble's. It notes what is done to it, and when.
type machine struct {
	t     *testing.T
	dir   string
	begin time.Time

	mu     sync.Mutex
	all    []engine.Container
	log    []string
	events []string
	status corev1.PodStatus
	told   []string // the phases and states that were reported
	poke   func()

	lives map[string]time.Duration // by image: how long it runs; 0 for ever
	open  bool                     // containers' output does not end
	deaf  bool                     // it does not end by SIGTERM
	ahead time.Duration            // of the clock that containers' ends are told by
	exec  func(command string) (int, error)
	now   func() time.Time // the cluster's; nil: the device's
	again time.Duration    // after which volumes want to be looked at, 0 for never
	setup int              // how often they were
}

func (m *machine) setups() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.setup
}

func (m *machine) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%.0fs ", time.Since(m.begin).Seconds())+fmt.Sprintf(format, args...))
}

func (m *machine) List() []engine.Container {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

func (m *machine) find(id string) *engine.Container {
	for i := range m.all {
		if m.all[i].ID == id {
			return &m.all[i]
		}
	}
	m.t.Errorf("no container %s", id)
	return &engine.Container{}
}

func (m *machine) Create(_ context.Context, s engine.ContainerSpec) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, engine.Container{ID: s.ID, Labels: s.Labels, Image: s.Image, State: engine.Created, StopSignal: syscall.SIGTERM, CreatedAt: time.Now()})
	return nil
}

func (m *machine) Start(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.find(id)
	c.State, c.StartedAt = engine.Running, time.Now().Add(m.ahead)
	m.note("start %s %s", c.Labels[labelContainer], c.Image)
	if life := m.lives[c.Image]; life > 0 {
		time.AfterFunc(life, func() { m.end(id, 1) })
	}
	return nil
}

func (m *machine) end(id string, code uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.find(id); c.State == engine.Running {
		c.State, c.ExitCode, c.FinishedAt = engine.Exited, code, time.Now().Add(m.ahead)
		m.poke()
	}
}

func (m *machine) Kill(_ context.Context, id string, sig syscall.Signal, _ bool) error {
	m.mu.Lock()
	c := m.find(id)
	m.note("signal %s %v", c.Labels[labelContainer], sig)
	m.mu.Unlock()
	switch {
	case sig == syscall.SIGKILL:
		m.end(id, 137)
	case !m.deaf:
		m.end(id, 0)
	}
	return nil
}

func (m *machine) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = slices.DeleteFunc(m.all, func(c engine.Container) bool { return c.ID == id })
	return nil
}

func (m *machine) Exec(_ context.Context, _ string, s engine.ExecSpec, _ engine.Streams) (int, error) {
	return m.exec(strings.Join(s.Args, " "))
}

func (m *machine) Stdio(context.Context, string) (engine.Stdio, error) {
	if !m.open {
		return engine.Stdio{}, nil
	}
	r, _ := io.Pipe()
	return engine.Stdio{Stdout: r}, nil
}
func (m *machine) SetGroup(string, uint64) error { return nil }
func (m *machine) UpdateResources(context.Context, string, engine.Resources) error {
	return nil
}

func (m *machine) Setup(_ context.Context, p *corev1.Pod) (map[string]string, time.Time, error) {
	paths := map[string]string{}
	for _, v := range p.Spec.Volumes {
		paths[v.Name] = m.dir
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setup++
	if m.again == 0 {
		return paths, time.Time{}, nil
	}
	return paths, m.now().Add(m.again), nil
}
func (m *machine) SubPath(string, string, int, string, string, bool) (string, error) { return "", nil }
func (m *machine) Release(context.Context, string) error                             { return nil }
func (m *machine) Teardown(context.Context, string) error                            { return nil }
func (m *machine) PodRunDir(uid string) string                                       { return filepath.Join(m.dir, uid) }
func (m *machine) Attach(context.Context, *corev1.Pod, string) ([]string, error) {
	return []string{"10.42.0.2"}, nil
}
func (m *machine) Detach(context.Context, string) error { return nil }
func (m *machine) Ensure(_ context.Context, r image.Request) (engine.Image, error) {
	return engine.Image{ID: r.Image}, nil
}
func (m *machine) Forget(string) {}

type boxes struct{}

func (boxes) Ensure(string, sandbox.Options) (sandbox.Sandbox, bool, error) {
	return sandbox.Sandbox{}, true, nil
}
func (boxes) Remove(string) error { return nil }

// reported is the last status, and all in short.
func (m *machine) reported() (corev1.PodStatus, []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status, slices.Clone(m.told)
}

// run gives the Pod to a worker for as long as f takes, and returns what was
// done to the machine.
func (m *machine) run(pod *corev1.Pod, f func(w *Worker)) []string {
	m.begin = time.Now()
	dev := &Device{
		Engine: m, Volumes: m, Network: m, Images: m, Sandboxes: boxes{}, Objects: world{},
		Event: func(_ *corev1.Pod, _, _, reason, message string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.events = append(m.events, reason+": "+message)
		},
		Now: m.now, HostIP: func() string { return "10.0.0.1" }, LogRoot: filepath.Join(m.dir, "logs"), LogLimits: podlog.OnDisk, Logger: slog.New(slog.DiscardHandler),
	}
	w := NewWorker(dev, pod, func(_ *corev1.Pod, s corev1.PodStatus) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.status = s
		m.told = append(m.told, shown(s))
	})
	m.poke = w.Poke
	w.Update(pod)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	f(w)
	synctest.Wait()
	cancel()
	wg.Wait()
	return m.log
}

func onePod(change ...func(*corev1.Container)) *corev1.Pod {
	p := aPod(corev1.RestartPolicyAlways)
	grace := int64(30)
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}}
	for _, c := range change {
		c(&p.Spec.Containers[0])
	}
	return p
}

func deleted(p *corev1.Pod, grace int64) *corev1.Pod {
	p = p.DeepCopy()
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	return p
}

func command(words ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: words}}
}

// TestWorker walks Pods through their lives on virtual time.
func TestWorker(t *testing.T) {
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		m    *machine
		do   func(m *machine, w *Worker, p *corev1.Pod)
		want []string
	}{
		"a crash loop": {onePod(func(c *corev1.Container) { c.Image = "crash" }), &machine{lives: map[string]time.Duration{"crash": time.Second}}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(200 * time.Second)
		}, []string{"0s start a crash", "1s start a crash", "12s start a crash", "33s start a crash", "74s start a crash", "155s start a crash"}},
		"a crash loop, the clock set back by a year at each end": {onePod(func(c *corev1.Container) { c.Image = "crash" }), &machine{lives: map[string]time.Duration{"crash": time.Second}, ahead: 365 * 24 * time.Hour}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(100 * time.Second)
		}, []string{"0s start a crash", "1s start a crash", "12s start a crash", "33s start a crash", "74s start a crash"}},
		"a termination message without an end": {onePod(func(c *corev1.Container) { c.Image = "crash" }), &machine{lives: map[string]time.Duration{"crash": time.Second}}, func(m *machine, w *Worker, p *corev1.Pod) {
			synctest.Wait()
			f, err := os.OpenFile(w.terminationLog("a", 0), os.O_WRONLY, 0)
			if err != nil {
				m.t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(1 << 40); err != nil { // a hole: no device could hold it in memory
				m.t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("last words"), 1<<40-10); err != nil {
				m.t.Fatal(err)
			}
			time.Sleep(1500 * time.Millisecond)
			s, _ := m.reported()
			if end := s.ContainerStatuses[0].LastTerminationState.Terminated; end == nil || len(end.Message) != 4<<10 || !strings.HasSuffix(end.Message, "\x00last words") {
				m.t.Errorf("%+v", s.ContainerStatuses[0])
			}
		}, []string{"0s start a crash", "1s start a crash"}},
		"a hosts file without an end": {onePod(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			synctest.Wait()
			path := filepath.Join(m.PodRunDir("u1"), "etc-hosts")
			if err := os.Truncate(path, 1<<40); err != nil { // a container may
				m.t.Fatal(err)
			}
			if err := writeIfChanged(path, "x"); err != nil { // as the next daemon does
				m.t.Fatal(err)
			}
			if data, err := os.ReadFile(path); string(data) != "x" {
				m.t.Errorf("%d bytes, %v", len(data), err)
			}
		}, []string{"0s start a i"}},
		"a token is renewed by the cluster's time": {func() *corev1.Pod {
			p := onePod()
			p.Spec.Volumes = []corev1.Volume{{Name: "token"}}
			return p
		}(), &machine{now: func() time.Time { return time.Now().Add(24 * time.Hour) }, again: time.Minute}, func(m *machine, w *Worker, p *corev1.Pod) {
			synctest.Wait()
			before := m.setups()
			time.Sleep(61 * time.Second)
			if m.setups() == before {
				m.t.Error("volumes are not looked at again in time")
			}
		}, []string{"0s start a i"}},
		"deleted": {onePod(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(5 * time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(time.Minute)
		}, []string{"0s start a i", "5s signal a terminated"}},
		"deaf to SIGTERM": {onePod(), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(5 * time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(time.Minute)
		}, []string{"0s start a i", "5s signal a terminated", "35s signal a killed"}},
		"the grace period shrinks and does not grow": {onePod(), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(5 * time.Second)
			w.Update(deleted(p, 3))
			time.Sleep(time.Second)
			w.Update(deleted(p, 60))
			time.Sleep(time.Minute)
		}, []string{"0s start a i", "1s signal a terminated", "9s signal a killed"}},
		"a sidecar has what is left of the grace period": {func() *corev1.Pod {
			p := onePod()
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers = []corev1.Container{{Name: "s", Image: "i", RestartPolicy: &always}}
			return p
		}(), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(2 * time.Minute)
		}, []string{"0s start s i", "0s start a i", "1s signal a terminated", "31s signal a killed", "31s signal s terminated", "33s signal s killed"}},
		"given longer than it asks for": {onePod(), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Update(deleted(p, 50))
			time.Sleep(2 * time.Minute)
		}, []string{"0s start a i", "1s signal a terminated", "51s signal a killed"}},
		"ended with more than it asks for": {onePod(), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Evict(50, "low", true)
			time.Sleep(2 * time.Minute)
		}, []string{"0s start a i", "1s signal a terminated", "31s signal a killed"}},
		"who is attached stays so when postStart ends": {onePod(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
		}), &machine{open: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			log, err := w.Log(m.t.Context(), "a")
			if err != nil {
				m.t.Fatal(err)
			}
			done, detach := log.Attach(io.Discard, nil)
			defer detach()
			time.Sleep(10 * time.Second)
			if s, _ := m.reported(); !s.ContainerStatuses[0].Ready {
				m.t.Errorf("not ready: %+v", s.ContainerStatuses[0])
			}
			select {
			case err := <-done:
				m.t.Errorf("let go: %v", err)
			default:
			}
		}, []string{"0s start a i"}},
		"deleted before it began": {onePod(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			w.Update(deleted(p, 30))
			time.Sleep(time.Minute)
		}, nil},
		"preStop comes first and uses the grace period": {onePod(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 10}}}
		}), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(time.Minute)
		}, []string{"0s start a i", "11s signal a terminated", "31s signal a killed"}},
		"preStop that takes it all leaves two seconds": {onePod(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 100}}}
		}), &machine{deaf: true}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			w.Update(deleted(p, 30))
			time.Sleep(time.Minute)
		}, []string{"0s start a i", "31s signal a terminated", "33s signal a killed"}},
		"postStart fails": {onePod(func(c *corev1.Container) { c.Lifecycle = &corev1.Lifecycle{PostStart: command("bad")} }), &machine{exec: func(string) (int, error) { return 1, nil }}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(5 * time.Second)
		}, []string{"0s start a i", "0s signal a terminated", "0s start a i", "0s signal a terminated"}},
		"liveness with a grace period of its own": {onePod(func(c *corev1.Container) {
			grace := int64(4)
			c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sick"}}}, PeriodSeconds: 10, FailureThreshold: 2, TerminationGracePeriodSeconds: &grace}
		}), &machine{deaf: true, exec: func(string) (int, error) { return 1, nil }}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(15 * time.Second)
		}, []string{"0s start a i", "10s signal a terminated", "14s signal a killed", "14s start a i"}},
		"another image": {onePod(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(5 * time.Second)
			p = p.DeepCopy()
			p.Spec.Containers[0].Image = "new"
			w.Update(p)
			time.Sleep(5 * time.Second)
			_, told := m.reported()
			if n := len(told); n < 2 || told[n-2] != "Running a:run+ S I C R" || told[n-1] != "Running a:run<Completed+ S I C R" {
				m.t.Errorf("told of the replacement: %q", told)
			}
		}, []string{"0s start a i", "5s signal a terminated", "5s start a new"}},
		"an annotation that it is made from comes": {func() *corev1.Pod {
			p := onePod(func(c *corev1.Container) {
				c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['a']"}}}}
				c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(A)/b"}}
			})
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			return p
		}(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Second)
			p = p.DeepCopy()
			p.Annotations = map[string]string{"a": "a"}
			w.Update(p)
			time.Sleep(time.Minute)
		}, []string{"1s start a i"}},
		"out of time": {func() *corev1.Pod {
			p := onePod()
			seconds := int64(20)
			start := metav1.NewTime(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) // the bubble's beginning
			p.Spec.ActiveDeadlineSeconds, p.Status.StartTime = &seconds, &start
			return p
		}(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(time.Minute)
			if s, _ := m.reported(); s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" {
				m.t.Errorf("%s %s", s.Phase, s.Reason)
			}
		}, []string{"0s start a i", "20s signal a terminated"}},
		"evicted": {onePod(), &machine{}, func(m *machine, w *Worker, p *corev1.Pod) {
			time.Sleep(5 * time.Second)
			w.Evict(1, "low", true)
			time.Sleep(5 * time.Second)
			s, _ := m.reported()
			if c := condition(s, corev1.DisruptionTarget); s.Phase != corev1.PodFailed || s.Reason != Evicted || c.Reason != corev1.PodReasonTerminationByKubelet {
				m.t.Errorf("%+v", s)
			}
		}, []string{"0s start a i", "5s signal a terminated"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				m := tc.m
				m.t, m.dir = t, dir
				got := m.run(tc.pod, func(w *Worker) { tc.do(m, w, tc.pod) })
				if !slices.Equal(got, tc.want) {
					t.Errorf("got  %q\nwant %q\nevents %q", got, tc.want, m.events)
				}
			})
		})
	}
}
