package pod

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/engine"
)

var noMessage = func(engine.Container) string { return "" }

// statusOf plans and reports as the worker does.
func statusOf(w wanted, all []*observed) corev1.PodStatus {
	for _, o := range all {
		switch o.kind {
		case app:
			w.pod.Spec.Containers = append(w.pod.Spec.Containers, *o.c)
		case initial, sidecar:
			w.pod.Spec.InitContainers = append(w.pod.Spec.InitContainers, *o.c)
		}
	}
	return status(w, all, decide(w, all, epoch), facts{hostIP: "10.0.0.1", podIPs: []string{"10.42.0.2"}, sandbox: true, started: epoch, messages: noMessage}, epoch)
}

// shown writes what a person looks at: phase, containers, conditions.
func shown(s corev1.PodStatus) string {
	out := []string{string(s.Phase)}
	if s.Reason != "" {
		out[0] += " " + s.Reason
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for _, c := range list {
			text := c.Name + ":"
			switch st := c.State; {
			case st.Running != nil:
				text += "run"
			case st.Waiting != nil:
				text += st.Waiting.Reason
			case st.Terminated != nil:
				text += st.Terminated.Reason
			}
			if c.LastTerminationState.Terminated != nil {
				text += "<" + c.LastTerminationState.Terminated.Reason
			}
			if c.Ready {
				text += "+"
			}
			out = append(out, text)
		}
	}
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			out = append(out, map[corev1.PodConditionType]string{corev1.PodInitialized: "I", corev1.ContainersReady: "C", corev1.PodReady: "R", corev1.PodReadyToStartContainers: "S"}[c.Type])
		}
	}
	return strings.Join(out, " ")
}

func TestStatus(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	back := func(o *observed) { o.backOff = time.Minute }
	unready := func(o *observed) { o.ready = false }
	unstarted := func(o *observed) { o.started = false }
	for _, tc := range []struct {
		name string
		w    wanted
		all  []*observed
		want string
	}{
		{"new", wanted{pod: aPod(always)}, []*observed{seen("a", app, "")}, "Pending a:ContainerCreating S I"},
		{"new with init", wanted{pod: aPod(always)}, []*observed{seen("i", initial, ""), seen("a", app, "")}, "Pending i:PodInitializing a:PodInitializing S"},
		{"init runs", wanted{pod: aPod(always)}, []*observed{seen("i", initial, "run"), seen("a", app, "")}, "Pending i:run a:PodInitializing S"},
		{"init done", wanted{pod: aPod(always)}, []*observed{seen("i", initial, "exit 0"), seen("a", app, "run")}, "Running i:Completed+ a:run+ S I C R"},
		{"init backs off", wanted{pod: aPod(always)}, []*observed{seen("i", initial, "exit 1", back), seen("a", app, "")}, "Pending i:CrashLoopBackOff<Error a:PodInitializing S"},
		{"init failed", wanted{pod: aPod(never)}, []*observed{seen("i", initial, "exit 1"), seen("a", app, "")}, "Failed i:Error a:PodInitializing S"},
		{"sidecar not started", wanted{pod: aPod(always)}, []*observed{seen("s", sidecar, "run", unstarted), seen("a", app, "")}, "Pending s:run a:PodInitializing S"},
		{"sidecar started", wanted{pod: aPod(always)}, []*observed{seen("s", sidecar, "run"), seen("a", app, "run")}, "Running s:run+ a:run+ S I C R"},
		{"sidecar not ready", wanted{pod: aPod(always)}, []*observed{seen("s", sidecar, "run", unready), seen("a", app, "run")}, "Running s:run a:run+ S I"},
		{"not ready", wanted{pod: aPod(always)}, []*observed{seen("a", app, "run", unready), seen("b", app, "run")}, "Running a:run b:run+ S I"},
		{"one not started yet", wanted{pod: aPod(always)}, []*observed{seen("a", app, "run"), seen("b", app, "")}, "Pending a:run+ b:ContainerCreating S I"},
		{"crash loop", wanted{pod: aPod(always)}, []*observed{seen("a", app, "exit 1", back)}, "Running a:CrashLoopBackOff<Error S I"},
		{"about to start again", wanted{pod: aPod(always)}, []*observed{seen("a", app, "exit 1")}, "Running a:Error S I"},
		{"succeeded", wanted{pod: aPod(onFailure)}, []*observed{seen("a", app, "exit 0")}, "Succeeded a:Completed S I"},
		{"failed", wanted{pod: aPod(never)}, []*observed{seen("a", app, "exit 0"), seen("b", app, "exit 3")}, "Failed a:Completed b:Error S I"},
		{"done but for a sidecar", wanted{pod: aPod(never)}, []*observed{seen("s", sidecar, "run"), seen("a", app, "exit 0")}, "Running s:run+ a:Completed S I"},
		{"still stops", wanted{pod: aPod(always), ending: true}, []*observed{seen("a", app, "run")}, "Running a:run+ S I C R"},
		{"deleted", wanted{pod: aPod(always), ending: true}, []*observed{seen("a", app, "exit 0")}, "Succeeded a:Completed S I"},
		{"deleted, killed", wanted{pod: aPod(always), ending: true}, []*observed{seen("a", app, "exit 137")}, "Failed a:Error S I"},
		{"deleted before it began", wanted{pod: aPod(always), ending: true}, []*observed{seen("a", app, "")}, "Pending a:ContainerCreating S I"},
		{"refused", wanted{pod: aPod(always), failed: &failure{reason: "SysctlForbidden", message: "no"}}, []*observed{seen("a", app, "")}, "Failed SysctlForbidden a:ContainerCreating S I"},
		{"ephemeral changes nothing", wanted{pod: aPod(always)}, []*observed{seen("a", app, "run"), seen("e", ephemeral, "exit 1")}, "Running a:run+ e:Error S I C R"},
		{"OOM", wanted{pod: aPod(never)}, []*observed{seen("a", app, "exit 137", func(o *observed) { o.cur.OOMKilled = true })}, "Failed a:OOMKilled S I"},
		{"could not start", wanted{pod: aPod(never)}, []*observed{seen("a", app, "exit 128", func(o *observed) { o.cur.StartedAt, o.cur.Message = epoch, "no such file" })}, "Failed a:StartError S I"},
		{"final phases stay", wanted{pod: aPod(always, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, []*observed{seen("a", app, "run")}, "Failed a:run+ S I"},
	} {
		s := statusOf(tc.w, tc.all)
		if got := shown(s); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
		for _, c := range s.Conditions {
			if c.ObservedGeneration != 3 {
				t.Errorf("%s: %s observed generation %d", tc.name, c.Type, c.ObservedGeneration)
			}
		}
		if s.ObservedGeneration != 3 || s.HostIP != "10.0.0.1" || s.PodIP != "10.42.0.2" || len(s.PodIPs) != 1 || len(s.HostIPs) != 1 || !s.StartTime.Time.Equal(epoch) {
			t.Errorf("%s: %+v", tc.name, s)
		}
	}
}

func condition(s corev1.PodStatus, t corev1.PodConditionType) corev1.PodCondition {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.PodCondition{}
}

// TestConditions: the kubelet's reasons and messages, and times that move only
// with the condition.
func TestConditions(t *testing.T) {
	pod := aPod(corev1.RestartPolicyAlways, func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}, {ConditionType: "example.com/other"}}
		p.Status.Conditions = []corev1.PodCondition{
			{Type: "example.com/lb", Status: corev1.ConditionFalse},
			{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(epoch.Add(-time.Hour))},
		}
	})
	s := statusOf(wanted{pod: pod}, []*observed{seen("a", app, "run")})
	if c := condition(s, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" ||
		c.Message != `the status of pod readiness gate "example.com/lb" is not "True", but False, corresponding condition of pod readiness gate "example.com/other" does not exist.` {
		t.Errorf("%+v", c)
	}
	if c := condition(s, corev1.ContainersReady); c.Status != corev1.ConditionTrue || !c.LastTransitionTime.Time.Equal(epoch.Add(-time.Hour)) {
		t.Errorf("%+v", c)
	}
	if len(pod.Status.Conditions) != 2 || len(pod.Status.ContainerStatuses) != 0 {
		t.Error("the shared object was changed")
	}
	if c := condition(s, "example.com/lb"); c.Status != corev1.ConditionFalse {
		t.Errorf("another's condition: %+v", c)
	}
	for name, tc := range map[string]struct {
		policy          corev1.RestartPolicy
		all             []*observed
		typ             corev1.PodConditionType
		reason, message string
	}{
		"unready":       {corev1.RestartPolicyAlways, []*observed{seen("a", app, ""), seen("b", app, "run"), seen("c", app, "")}, corev1.PodReady, "ContainersNotReady", "containers with unready status: [a c]"},
		"uninitialized": {corev1.RestartPolicyAlways, []*observed{seen("i", initial, "run", func(o *observed) { o.ready = false }), seen("j", initial, ""), seen("a", app, "")}, corev1.PodInitialized, "ContainersNotInitialized", "containers with incomplete status: [i j]"},
		"completed":     {corev1.RestartPolicyNever, []*observed{seen("a", app, "exit 0")}, corev1.ContainersReady, "PodCompleted", ""},
		"failed":        {corev1.RestartPolicyNever, []*observed{seen("a", app, "exit 1")}, corev1.PodReady, "PodFailed", ""},
		"initialized":   {corev1.RestartPolicyNever, []*observed{seen("a", app, "exit 0")}, corev1.PodInitialized, "PodCompleted", ""},
	} {
		if c := condition(statusOf(wanted{pod: aPod(tc.policy)}, tc.all), tc.typ); c.Reason != tc.reason || c.Message != tc.message {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestRestartCount: it goes on over reboots, and what ended is the last state.
func TestRestartCount(t *testing.T) {
	first := corev1.ContainerStatus{Name: "a", RestartCount: 4, ContainerID: "containerd://old", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(epoch)}}}
	o := seen("a", app, "run", func(o *observed) { o.known, o.next = &first, 6 })
	c := statusOf(wanted{pod: aPod(corev1.RestartPolicyAlways)}, []*observed{o}).ContainerStatuses[0]
	if c.RestartCount != 5 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.Reason != "Unknown" || c.LastTerminationState.Terminated.ContainerID != "containerd://old" {
		t.Errorf("after a reboot: %+v", c)
	}
	o = seen("a", app, "", func(o *observed) { o.known = &first; o.next = 5 })
	c = statusOf(wanted{pod: aPod(corev1.RestartPolicyNever)}, []*observed{o}).ContainerStatuses[0]
	if c.RestartCount != 4 || c.State.Terminated == nil || c.State.Terminated.ExitCode != 255 {
		t.Errorf("taken away by a reboot: %+v", c)
	}
	before := engine.Container{ID: "a-0", State: engine.Exited, ExitCode: 7, StartedAt: epoch, FinishedAt: epoch}
	o = seen("a", app, "run", func(o *observed) { o.prev, o.next, o.cur.ID = &before, 2, "a-1" })
	c = statusOf(wanted{pod: aPod(corev1.RestartPolicyAlways)}, []*observed{o}).ContainerStatuses[0]
	if c.RestartCount != 1 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 7 || c.ContainerID != "containerd://a-1" {
		t.Errorf("restarted: %+v", c)
	}
}
