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

// short is a container's status in few words.
func short(s corev1.ContainerStatus) string {
	state := func(st corev1.ContainerState) string {
		switch {
		case st.Running != nil:
			return "Running"
		case st.Terminated != nil:
			return strings.TrimSpace(fmt.Sprintf("%s(%d) %s", st.Terminated.Reason, st.Terminated.ExitCode, st.Terminated.Message))
		case st.Waiting != nil:
			return strings.TrimSpace(st.Waiting.Reason + " " + st.Waiting.Message)
		}
		return "none"
	}
	out := state(s.State)
	if last := state(s.LastTerminationState); last != "none" {
		out += " after " + last
	}
	if s.Ready {
		out += " ready"
	}
	return fmt.Sprintf("%s x%d", out, s.RestartCount)
}

func TestStatus(t *testing.T) {
	const (
		always = corev1.RestartPolicyAlways
		onFail = corev1.RestartPolicyOnFailure
		never  = corev1.RestartPolicyNever
	)
	failedStart := func(o *observed) {
		o.cur = &engine.Container{ID: "a-0", State: engine.Exited, ExitCode: 128, Message: "exec: \"/nope\": no such file", StartedAt: noon, FinishedAt: noon}
		o.next, o.backOff = 1, time.Minute
	}
	for _, tt := range []struct {
		name      string
		policy    corev1.RestartPolicy
		boxes     []box
		ending    bool
		known     corev1.PodPhase
		mend      func(*observed)
		phase     corev1.PodPhase
		first     string // the first container's status
		ready     bool
		condition string // why Ready is not
	}{
		{name: "new", policy: always, boxes: []box{{app, "a", "", observed{}}}, phase: "Pending", first: "ContainerCreating x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "behind an init container", policy: always, boxes: []box{{app, "a", "", observed{}}, {initial, "i", "up", observed{}}}, phase: "Pending", first: "PodInitializing x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "runs", policy: always, boxes: []box{{app, "a", "up", observed{ready: true}}}, phase: "Running", first: "Running ready x0", ready: true},
		{name: "runs, not ready", policy: always, boxes: []box{{app, "a", "up", observed{}}}, phase: "Running", first: "Running x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "its startup probe has not succeeded", policy: always, boxes: []box{{app, "a", "up not started", observed{ready: true}}}, phase: "Running", first: "Running x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "crash loop", policy: always, boxes: []box{{app, "a", "3", observed{backOff: 20 * time.Second}}}, phase: "Running", first: "CrashLoopBackOff after Error(3) x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "cannot be started", policy: always, boxes: []box{{app, "a", "", observed{}}}, mend: failedStart, phase: "Running", first: `CrashLoopBackOff after StartError(128) exec: "/nope": no such file x0`, condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "out of memory", policy: never, boxes: []box{{app, "a", "137", observed{}}}, mend: func(o *observed) { o.cur.OOMKilled = true }, phase: "Failed", first: "OOMKilled(137) x0", condition: "PodFailed "},
		{name: "done", policy: onFail, boxes: []box{{app, "a", "0", observed{}}}, phase: "Succeeded", first: "Completed(0) x0", condition: "PodCompleted "},
		{name: "failed", policy: never, boxes: []box{{app, "a", "2", observed{}}}, phase: "Failed", first: "Error(2) x0", condition: "PodFailed "},
		{name: "rebooted", policy: always, boxes: []box{{app, "a", "rebooted", observed{}}}, phase: "Running", first: "ContainerCreating after Unknown(255) x0", condition: "ContainersNotReady containers with unready status: [a]"},
		{name: "a final phase stays", policy: always, known: corev1.PodFailed, boxes: []box{{app, "a", "", observed{}}}, phase: "Failed", first: "ContainerCreating x0", condition: "PodFailed "},
		{name: "deleted, all ended", policy: always, ending: true, boxes: []box{{app, "a", "0", observed{}}}, phase: "Succeeded", first: "Completed(0) x0", condition: "PodCompleted "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Generation: 7}, Spec: corev1.PodSpec{RestartPolicy: tt.policy}, Status: corev1.PodStatus{Phase: tt.known}}
			var all []*observed
			for _, b := range tt.boxes {
				all = append(all, see(b))
				if b.kind == initial {
					p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: b.name})
				}
			}
			if tt.mend != nil {
				tt.mend(all[0])
			}
			w := wanted{pod: p, ending: tt.ending}
			f := facts{hostIP: "192.0.2.1", podIPs: []string{"10.42.0.2"}, sandbox: true, started: noon, messages: func(engine.Container) string { return "" }}
			s := status(w, all, decide(w, all, noon), f, noon)
			if s.Phase != tt.phase {
				t.Errorf("phase %s, want %s", s.Phase, tt.phase)
			}
			if got := short(s.ContainerStatuses[0]); got != tt.first {
				t.Errorf("container: %s, want %s", got, tt.first)
			}
			if s.ObservedGeneration != 7 || s.HostIP != "192.0.2.1" || s.PodIP != "10.42.0.2" || !s.StartTime.Time.Equal(noon) {
				t.Errorf("generation %d, host %s, Pod %s, start %v", s.ObservedGeneration, s.HostIP, s.PodIP, s.StartTime)
			}
			for _, c := range s.Conditions {
				if c.Type != corev1.PodReady {
					continue
				}
				if ready := c.Status == corev1.ConditionTrue; ready != tt.ready || !ready && c.Reason+" "+c.Message != tt.condition {
					t.Errorf("Ready is %s: %s %s, want %s", c.Status, c.Reason, c.Message, tt.condition)
				}
			}
		})
	}
}

// What others wrote into the status stays, and a condition's time moves only with
// its status.
func TestStatusKeepsOthers(t *testing.T) {
	earlier := metav1.NewTime(noon.Add(-time.Hour))
	p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "example.com/gate"}}}}
	p.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: earlier},
		{Type: corev1.ContainersReady, Status: corev1.ConditionTrue, LastTransitionTime: earlier},
		{Type: "example.com/gate", Status: corev1.ConditionFalse, LastTransitionTime: earlier},
	}
	w := wanted{pod: p}
	all := []*observed{see(box{app, "a", "up", observed{ready: true}})}
	s := status(w, all, decide(w, all, noon), facts{started: noon, messages: func(engine.Container) string { return "" }}, noon)
	got := map[corev1.PodConditionType]corev1.PodCondition{}
	for _, c := range s.Conditions {
		got[c.Type] = c
	}
	if c := got["example.com/gate"]; c.Status != corev1.ConditionFalse || c.LastTransitionTime != earlier {
		t.Errorf("the gate: %+v", c)
	}
	if c := got[corev1.ContainersReady]; c.Status != corev1.ConditionTrue || c.LastTransitionTime != earlier {
		t.Errorf("ContainersReady: %+v", c)
	}
	if c := got[corev1.PodReady]; c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" || !c.LastTransitionTime.Time.Equal(noon) {
		t.Errorf("Ready: %+v", c)
	}
	if len(p.Status.ContainerStatuses) != 0 || len(p.Status.Conditions) != 3 {
		t.Error("the shared object was changed")
	}
}
