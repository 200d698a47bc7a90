package pod

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/engine"
	"edged/runtime/image"
	"edged/runtime/probe"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// seen makes one observed container. how is its newest attempt: "" for none,
// "run", "exit N", "lost" (a record without an end); it ended at epoch.
func seen(name string, k kind, how string, change ...func(*observed)) *observed {
	o := &observed{slot: slot{k, &corev1.Container{Name: name, Image: "i"}}, started: true, ready: true}
	if how != "" {
		o.cur = &engine.Container{ID: name + "-0", StartedAt: epoch.Add(-time.Minute), Labels: map[string]string{labelHash: hash(o.c), labelContainer: name}}
		o.next, o.endedAt = 1, epoch
		var code uint32
		switch {
		case how == "run":
			o.cur.State = engine.Running
		case how == "lost":
			o.cur.State, o.cur.FinishedAt = engine.Unknown, epoch
		default:
			fmt.Sscanf(how, "exit %d", &code)
			o.cur.State, o.cur.ExitCode, o.cur.FinishedAt = engine.Exited, code, epoch
		}
	}
	for _, c := range change {
		c(o)
	}
	return o
}

func aPod(policy corev1.RestartPolicy, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u1", Generation: 3},
		Spec:       corev1.PodSpec{RestartPolicy: policy},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// line writes a plan in one line.
func line(p plan) string {
	var out []string
	if p.sandbox {
		out = append(out, "sandbox")
	}
	for _, s := range p.start {
		out = append(out, "start "+s)
	}
	for _, s := range p.stop {
		text := "stop " + s.name
		if s.message != "" {
			text += " (" + s.message + ")"
		}
		out = append(out, text)
	}
	var waits []string
	for name, w := range p.waits {
		waits = append(waits, fmt.Sprintf("wait %s %s %s", name, w.reason, w.message))
	}
	slices.Sort(waits)
	out = append(out, waits...)
	if p.finished {
		out = append(out, "finished")
	}
	if !p.at.IsZero() {
		out = append(out, "again +"+p.at.Sub(epoch).String())
	}
	return strings.Join(out, "; ")
}

func TestDecide(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	back := func(d time.Duration) func(*observed) { return func(o *observed) { o.backOff = d } }
	image := func(o *observed) { o.c.Image = "new" }
	own := func(p corev1.ContainerRestartPolicy, codes ...int32) func(*observed) {
		return func(o *observed) {
			o.c.RestartPolicy = &p
			if len(codes) > 0 {
				o.c.RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: codes}}}
			}
		}
	}
	rebooted := func(state corev1.ContainerState) func(*observed) {
		return func(o *observed) { o.known = &corev1.ContainerStatus{State: state, RestartCount: 2}; o.next = 3 }
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	succeeded := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 0}}
	for _, tc := range []struct {
		name   string
		policy corev1.RestartPolicy
		all    []*observed
		want   string
	}{
		{"new", always, []*observed{seen("a", app, ""), seen("b", app, "")}, "sandbox; start a; start b"},
		{"runs", always, []*observed{seen("a", app, "run")}, "sandbox"},
		{"first end starts at once", always, []*observed{seen("a", app, "exit 1")}, "sandbox; start a"},
		{"backs off", always, []*observed{seen("a", app, "exit 1", back(80*time.Second))}, "sandbox; wait a CrashLoopBackOff back-off 1m20s restarting failed container=a pod=p_ns(u1); again +1m20s"},
		{"no back-off for a new definition", always, []*observed{seen("a", app, "exit 1", back(80*time.Second), image)}, "sandbox; start a"},
		{"success restarts with Always", always, []*observed{seen("a", app, "exit 0")}, "sandbox; start a"},
		{"success is done with OnFailure", onFailure, []*observed{seen("a", app, "exit 0"), seen("b", app, "run")}, "sandbox"},
		{"failure restarts with OnFailure", onFailure, []*observed{seen("a", app, "exit 2")}, "sandbox; start a"},
		{"all done", onFailure, []*observed{seen("a", app, "exit 0")}, "finished"},
		{"failed with Never", never, []*observed{seen("a", app, "exit 2"), seen("b", app, "run")}, "sandbox"},
		{"lost counts as failed", never, []*observed{seen("a", app, "lost")}, "finished"},
		{"own policy beats the Pod's", never, []*observed{seen("a", app, "exit 2", own(corev1.ContainerRestartPolicyOnFailure))}, "sandbox; start a"},
		{"own Never in a Pod of Always", always, []*observed{seen("a", app, "exit 2", own(corev1.ContainerRestartPolicyNever))}, "finished"},
		{"own rule for an exit code", never, []*observed{seen("a", app, "exit 42", own(corev1.ContainerRestartPolicyNever, 42))}, "sandbox; start a"},
		{"own rule for another exit code", never, []*observed{seen("a", app, "exit 41", own(corev1.ContainerRestartPolicyNever, 42))}, "finished"},

		{"definition changed", never, []*observed{seen("a", app, "run", image)}, "sandbox; stop a (Container a definition changed, will be restarted)"},
		{"replaced whatever the policy", never, []*observed{seen("a", app, "exit 0", func(o *observed) { o.replaced = true })}, "sandbox; start a"},
		{"liveness failed", always, []*observed{seen("a", app, "run", func(o *observed) { o.dead = probe.Liveness })}, "sandbox; stop a (Container a failed liveness probe, will be restarted)"},
		{"startup failed", always, []*observed{seen("a", app, "run", func(o *observed) { o.dead = probe.Startup })}, "sandbox; stop a (Container a failed startup probe, will be restarted)"},
		{"already stopping", always, []*observed{seen("a", app, "run", func(o *observed) { o.dead, o.stopping = probe.Liveness, true })}, "sandbox"},
		{"hook failed", always, []*observed{seen("a", app, "run", func(o *observed) { o.hookFail = "x" })}, "sandbox; stop a (FailedPostStartHook)"},
		{"blocked by its image", always, []*observed{seen("a", app, "", func(o *observed) { o.blocked = &waiting{"ErrImagePull", "no", epoch.Add(time.Minute)} })}, "sandbox; wait a ErrImagePull no; again +1m0s"},
		{"blocked till now", always, []*observed{seen("a", app, "", func(o *observed) { o.blocked = &waiting{"ErrImagePull", "no", epoch} })}, "sandbox; start a; wait a ErrImagePull no"},

		{"init first", always, []*observed{seen("i", initial, ""), seen("a", app, "")}, "sandbox; start i"},
		{"second init", always, []*observed{seen("i", initial, "exit 0"), seen("j", initial, ""), seen("a", app, "")}, "sandbox; start j"},
		{"init runs", always, []*observed{seen("i", initial, "run"), seen("a", app, "")}, "sandbox"},
		{"init done", always, []*observed{seen("i", initial, "exit 0"), seen("a", app, "")}, "sandbox; start a"},
		{"init failed", always, []*observed{seen("i", initial, "exit 1"), seen("a", app, "")}, "sandbox; start i"},
		{"init failed for good", never, []*observed{seen("i", initial, "exit 1"), seen("a", app, "")}, "finished"},
		{"init backs off", onFailure, []*observed{seen("i", initial, "exit 1", back(10*time.Second)), seen("a", app, "")}, "sandbox; wait i CrashLoopBackOff back-off 10s restarting failed container=i pod=p_ns(u1); again +10s"},
		{"init is not run again for an app's sake", always, []*observed{seen("i", initial, ""), seen("a", app, "run")}, "sandbox"},

		{"sidecar then init", always, []*observed{seen("s", sidecar, "run"), seen("i", initial, ""), seen("a", app, "")}, "sandbox; start i"},
		{"sidecar not started yet", always, []*observed{seen("s", sidecar, "run", func(o *observed) { o.started = false }), seen("i", initial, ""), seen("a", app, "")}, "sandbox"},
		{"sidecar's hook still runs", always, []*observed{seen("s", sidecar, "run", func(o *observed) { o.hooking = true }), seen("a", app, "")}, "sandbox"},
		{"sidecar restarts in a Pod of Never", never, []*observed{seen("s", sidecar, "exit 0"), seen("a", app, "run")}, "sandbox; start s"},
		{"sidecars end after the apps", never, []*observed{seen("s", sidecar, "run"), seen("r", sidecar, "run"), seen("a", app, "exit 0")}, "stop r"},
		{"first sidecar last", never, []*observed{seen("s", sidecar, "run"), seen("r", sidecar, "exit 0"), seen("a", app, "exit 0")}, "stop s"},

		{"ephemeral starts", always, []*observed{seen("a", app, "run"), seen("e", ephemeral, "")}, "sandbox; start e"},
		{"ephemeral ends for good", always, []*observed{seen("a", app, "run"), seen("e", ephemeral, "exit 1")}, "sandbox"},
		{"ephemeral ends with the Pod", never, []*observed{seen("a", app, "exit 0"), seen("e", ephemeral, "run")}, "stop e"},

		{"reboot: ran, Always", always, []*observed{seen("a", app, "", rebooted(running))}, "sandbox; start a"},
		{"reboot: ran, Never", never, []*observed{seen("a", app, "", rebooted(running))}, "finished"},
		{"reboot: ran, OnFailure", onFailure, []*observed{seen("a", app, "", rebooted(running))}, "sandbox; start a"},
		{"reboot: init had succeeded", always, []*observed{seen("i", initial, "", rebooted(succeeded)), seen("a", app, "", rebooted(running))}, "sandbox; start i"},
		{"reboot: init has run again", onFailure, []*observed{seen("i", initial, "exit 0"), seen("a", app, "", rebooted(running)), seen("b", app, "", rebooted(succeeded))}, "sandbox; start a"},
		{"reboot: init fails then", always, []*observed{seen("i", initial, "exit 1", back(10*time.Second)), seen("a", app, "", rebooted(running))}, "sandbox; wait i CrashLoopBackOff back-off 10s restarting failed container=i pod=p_ns(u1); again +10s"},
		{"reboot: an app of its own policy", never, []*observed{seen("i", initial, "", rebooted(succeeded)), seen("a", app, "", rebooted(running), own(corev1.ContainerRestartPolicyAlways))}, "sandbox; start i"},
		{"reboot: all was done", onFailure, []*observed{seen("i", initial, "", rebooted(succeeded)), seen("a", app, "", rebooted(succeeded))}, "finished"},
		{"reboot: sidecar had run", always, []*observed{seen("s", sidecar, "", rebooted(running)), seen("a", app, "", rebooted(running))}, "sandbox; start s"},
	} {
		if got := line(decide(wanted{pod: aPod(tc.policy)}, tc.all, epoch)); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

// TestDecideOver: a Pod of a final phase does not come back, by a restart of the
// daemon for instance.
func TestDecideOver(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded} {
		pod := aPod(corev1.RestartPolicyAlways, func(p *corev1.Pod) { p.Status.Phase = phase })
		if got := line(decide(wanted{pod: pod}, []*observed{seen("a", app, "")}, epoch)); got != "finished" {
			t.Errorf("%s: %s", phase, got)
		}
		if got := line(decide(wanted{pod: pod}, []*observed{seen("a", app, "run")}, epoch)); got != "stop a" {
			t.Errorf("%s with a container: %s", phase, got)
		}
	}
}

// TestDecideEnd: apps stop together, then sidecars from the last to the first.
func TestDecideEnd(t *testing.T) {
	all := []*observed{seen("i", initial, "exit 0"), seen("s", sidecar, "run"), seen("r", sidecar, "run"), seen("a", app, "run"), seen("b", app, "run")}
	stopped := map[string]bool{}
	for _, want := range []string{"stop a; stop b", "stop b", "stop r", "stop s", "finished"} {
		for _, w := range []wanted{{pod: aPod(corev1.RestartPolicyAlways), ending: true}, {pod: aPod(corev1.RestartPolicyAlways), failed: &failure{reason: "Evicted", message: "x"}}} {
			if got := line(decide(w, all, epoch)); got != want {
				t.Errorf("after %v: %s, not %s", stopped, got, want)
			}
		}
		if name, ok := strings.CutPrefix(want, "stop "); ok {
			name, _, _ = strings.Cut(name, ";")
			stopped[name] = true
			for i, o := range all {
				if o.c.Name == name {
					all[i] = seen(name, o.kind, "exit 0")
				}
			}
		}
	}
}

// TestDecideDeadline: the plan looks again when activeDeadlineSeconds are over.
func TestDecideDeadline(t *testing.T) {
	pod := aPod(corev1.RestartPolicyAlways, func(p *corev1.Pod) {
		seconds, start := int64(30), metav1.NewTime(epoch)
		p.Spec.ActiveDeadlineSeconds, p.Status.StartTime = &seconds, &start
	})
	if got := line(decide(wanted{pod: pod}, []*observed{seen("a", app, "run")}, epoch)); got != "sandbox; again +30s" {
		t.Error(got)
	}
}

// TestBackOff: ten seconds, doubled to five minutes, forgotten by a container
// that ran for ten.
func TestBackOff(t *testing.T) {
	var got []time.Duration
	cur := time.Duration(0)
	for range 7 {
		cur = nextBackOff(cur, time.Second)
		got = append(got, cur)
	}
	want := []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second, 300 * time.Second}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if d := nextBackOff(300*time.Second, 10*time.Minute); d != 10*time.Second {
		t.Errorf("after ten minutes %v", d)
	}
}

// TestRetryPull: a failed pull is soon asked for again, to be told to back off;
// what no pull mends is asked for rarely, and told once.
func TestRetryPull(t *testing.T) {
	for _, tc := range []struct {
		reason      string
		after, want time.Duration
	}{
		{image.ReasonPull, 10 * time.Second, 2 * time.Second},
		{image.ReasonPull, time.Second, time.Second},
		{image.ReasonBackOff, 40 * time.Second, 40 * time.Second},
		{image.ReasonNeverPull, 0, 20 * time.Second},
		{image.ReasonInvalidName, 0, 20 * time.Second},
	} {
		if got := retryPull(&image.Error{Reason: tc.reason, RetryAfter: tc.after}); got != tc.want {
			t.Errorf("%s %v: %v", tc.reason, tc.after, got)
		}
	}
	told := told{}
	for i, want := range []bool{true, false, false, true} {
		if got := told.again("Failed", "no", epoch.Add(time.Duration(i)*tellAgain/3)); got != want {
			t.Errorf("told again %d: %v", i, got)
		}
	}
	if !told.again("Failed", "other", epoch) || !told.again("BackOff", "other", epoch) {
		t.Error("something new is not told")
	}
}
