package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/engine"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// box describes one container of a test's Pod; see see.
type box struct {
	kind  kind
	name  string
	state string // "", "up", "up not started", "0", "1" (exit codes), "lost", "rebooted"
	o     observed
}

// see makes what is observed of a box. Its last attempt ended at noon, unless it
// runs.
func see(b box) *observed {
	o := b.o
	o.slot = slot{b.kind, &corev1.Container{Name: b.name, Image: "img"}}
	cur := &engine.Container{ID: b.name + "-0", StartedAt: noon.Add(-time.Minute), FinishedAt: noon, Labels: map[string]string{labelHash: hash(o.c)}}
	o.next = 1
	switch b.state {
	case "":
		o.next = 0
	case "up":
		cur.State, o.cur, o.started = engine.Running, cur, true
	case "up not started":
		cur.State, o.cur = engine.Running, cur
	case "lost":
		cur.State, o.cur = engine.Unknown, cur
	case "rebooted":
		o.known = &corev1.ContainerStatus{Name: b.name, ContainerID: "containerd://x", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(noon)}}}
	default:
		var code uint32
		fmt.Sscan(b.state, &code)
		cur.State, cur.ExitCode, o.cur = engine.Exited, code, cur
	}
	return &o
}

func (p plan) String() string {
	var out []string
	for _, name := range p.start {
		out = append(out, "start "+name)
	}
	for _, s := range p.stop {
		out = append(out, "stop "+s.name)
	}
	for name, w := range p.waits {
		out = append(out, name+" waits: "+w.reason)
	}
	if p.finished {
		out = append(out, "finished")
	}
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	const (
		always = corev1.RestartPolicyAlways
		onFail = corev1.RestartPolicyOnFailure
		never  = corev1.RestartPolicyNever
	)
	blocked := observed{blocked: &waiting{reason: "ImagePullBackOff", until: noon.Add(time.Minute)}}
	for _, tt := range []struct {
		name   string
		policy corev1.RestartPolicy
		boxes  []box
		ending bool
		failed bool
		want   string
		at     time.Duration // after noon; 0: no wake-up
	}{
		{name: "new", policy: always, boxes: []box{{app, "a", "", observed{}}, {app, "b", "", observed{}}}, want: "start a, start b"},
		{name: "at rest", policy: always, boxes: []box{{app, "a", "up", observed{}}}, want: ""},
		{name: "ended, Always", policy: always, boxes: []box{{app, "a", "0", observed{}}}, want: "start a"},
		{name: "ended well, OnFailure", policy: onFail, boxes: []box{{app, "a", "0", observed{}}}, want: "finished"},
		{name: "ended badly, OnFailure", policy: onFail, boxes: []box{{app, "a", "1", observed{}}}, want: "start a"},
		{name: "ended badly, Never", policy: never, boxes: []box{{app, "a", "1", observed{}}}, want: "finished"},
		{name: "one of two ended, Never", policy: never, boxes: []box{{app, "a", "1", observed{}}, {app, "b", "up", observed{}}}, want: ""},
		{name: "lost with its shim", policy: always, boxes: []box{{app, "a", "lost", observed{}}}, want: "start a"},
		{name: "lost with its shim, Never", policy: never, boxes: []box{{app, "a", "lost", observed{}}}, want: "finished"},
		{name: "rebooted", policy: onFail, boxes: []box{{app, "a", "rebooted", observed{}}}, want: "start a"},
		{name: "rebooted, Never", policy: never, boxes: []box{{app, "a", "rebooted", observed{}}}, want: "finished"},

		{name: "backs off", policy: always, boxes: []box{{app, "a", "1", observed{backOff: 10 * time.Second}}}, want: "a waits: CrashLoopBackOff", at: 10 * time.Second},
		{name: "image missing", policy: always, boxes: []box{{app, "a", "", blocked}}, want: "a waits: ImagePullBackOff", at: time.Minute},
		{name: "another's image missing", policy: always, boxes: []box{{app, "a", "", blocked}, {app, "b", "", observed{}}}, want: "start b, a waits: ImagePullBackOff", at: time.Minute},

		{name: "liveness failed", policy: never, boxes: []box{{app, "a", "up", observed{dead: true}}}, want: "stop a"},
		{name: "postStart failed", policy: always, boxes: []box{{app, "a", "up", observed{hookFail: "no"}}}, want: "stop a"},
		{name: "is being stopped", policy: always, boxes: []box{{app, "a", "up", observed{dead: true, stopping: true}}}, want: ""},

		{name: "first init", policy: always, boxes: []box{{initial, "i", "", observed{}}, {initial, "j", "", observed{}}, {app, "a", "", observed{}}}, want: "start i"},
		{name: "init runs", policy: always, boxes: []box{{initial, "i", "up", observed{}}, {initial, "j", "", observed{}}, {app, "a", "", observed{}}}, want: ""},
		{name: "second init", policy: always, boxes: []box{{initial, "i", "0", observed{}}, {initial, "j", "", observed{}}, {app, "a", "", observed{}}}, want: "start j"},
		{name: "init failed", policy: always, boxes: []box{{initial, "i", "1", observed{}}, {app, "a", "", observed{}}}, want: "start i"},
		{name: "init failed, Never", policy: never, boxes: []box{{initial, "i", "1", observed{}}, {app, "a", "", observed{}}}, want: "finished"},
		{name: "all init done", policy: always, boxes: []box{{initial, "i", "0", observed{}}, {app, "a", "", observed{}}}, want: "start a"},
		{name: "init gone while the Pod runs", policy: always, boxes: []box{{initial, "i", "", observed{}}, {app, "a", "1", observed{}}}, want: "start a"},

		{name: "sidecar first", policy: always, boxes: []box{{sidecar, "s", "", observed{}}, {app, "a", "", observed{}}}, want: "start s"},
		{name: "sidecar has not started", policy: always, boxes: []box{{sidecar, "s", "up not started", observed{}}, {app, "a", "", observed{}}}, want: ""},
		{name: "sidecar has", policy: always, boxes: []box{{sidecar, "s", "up", observed{}}, {app, "a", "", observed{}}}, want: "start a"},
		{name: "sidecar ended, Never", policy: never, boxes: []box{{sidecar, "s", "1", observed{}}, {app, "a", "up", observed{}}}, want: "start s"},
		{name: "job with sidecar is done", policy: never, boxes: []box{{sidecar, "s", "up", observed{}}, {app, "a", "0", observed{}}}, want: "stop s"},

		{name: "deleted", policy: always, ending: true, boxes: []box{{sidecar, "s", "up", observed{}}, {app, "a", "up", observed{}}, {app, "b", "up", observed{}}}, want: "stop a, stop b"},
		{name: "deleted, sidecars last and backwards", policy: always, ending: true, boxes: []box{{sidecar, "s", "up", observed{}}, {sidecar, "r", "up", observed{}}, {app, "a", "0", observed{}}}, want: "stop r"},
		{name: "deleted and done", policy: always, ending: true, boxes: []box{{app, "a", "0", observed{}}}, want: "finished"},
		{name: "deleted before it began", policy: always, ending: true, boxes: []box{{app, "a", "", observed{}}}, want: "finished"},
		{name: "may not run", policy: always, failed: true, boxes: []box{{app, "a", "up", observed{}}}, want: "stop a"},

		{name: "debug container", policy: always, boxes: []box{{app, "a", "up", observed{}}, {ephemeral, "d", "", observed{}}}, want: "start d"},
		{name: "debug container is never repeated", policy: always, boxes: []box{{app, "a", "up", observed{}}, {ephemeral, "d", "1", observed{}}}, want: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := wanted{pod: &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: tt.policy}}, ending: tt.ending}
			if tt.failed {
				w.failed = &failure{"Evicted", "x"}
			}
			var all []*observed
			for _, b := range tt.boxes {
				all = append(all, see(b))
			}
			p := decide(w, all, noon)
			if p.String() != tt.want {
				t.Errorf("got %q, want %q", p, tt.want)
			}
			var at time.Duration
			if !p.at.IsZero() {
				at = p.at.Sub(noon)
			}
			if at != tt.at {
				t.Errorf("wakes %v after noon, want %v", at, tt.at)
			}
		})
	}
}

// A changed image replaces the container; a Pod that has a deadline is looked at
// again when it is over.
func TestDecideChanges(t *testing.T) {
	start := metav1.NewTime(noon.Add(-time.Minute))
	deadline := int64(90)
	w := wanted{pod: &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, ActiveDeadlineSeconds: &deadline}, Status: corev1.PodStatus{StartTime: &start}}}
	o := see(box{app, "a", "up", observed{}})
	o.c.Image = "img:2"
	p := decide(w, []*observed{o}, noon)
	if p.String() != "stop a" || p.stop[0].message != "Container a definition changed, will be restarted" {
		t.Errorf("a new image: %v", p)
	}
	if want := noon.Add(30 * time.Second); !p.at.Equal(want) {
		t.Errorf("looks again at %v, want %v", p.at, want)
	}
}

func TestBackOff(t *testing.T) {
	var got []time.Duration
	cur := time.Duration(0)
	for range 8 {
		cur = nextBackOff(cur, time.Second)
		got = append(got, cur)
	}
	if s := fmt.Sprint(got); s != "[10s 20s 40s 1m20s 2m40s 5m0s 5m0s 5m0s]" {
		t.Errorf("back-offs %v", s)
	}
	if got := nextBackOff(5*time.Minute, 10*time.Minute); got != 10*time.Second {
		t.Errorf("after ten good minutes: %v", got)
	}
}
