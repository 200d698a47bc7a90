package pod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/runtime/engine"
)

// facts are what a Pod's status is made from beside its containers.
type facts struct {
	hostIP   string
	podIPs   []string
	sandbox  bool // namespaces and network are there
	started  time.Time
	messages func(engine.Container) string // termination message of an ended attempt
	images   map[string]engine.Image       // by container
}

// status says how the Pod is. old is the status that the cluster has: what
// others own in it, and times of transitions, are kept.
func status(w wanted, all []*observed, p plan, f facts, now time.Time) corev1.PodStatus {
	old := &w.pod.Status
	s := *old.DeepCopy()
	s.ObservedGeneration = w.pod.Generation
	s.HostIP, s.HostIPs = f.hostIP, nil
	if f.hostIP != "" {
		s.HostIPs = []corev1.HostIP{{IP: f.hostIP}}
	}
	if len(f.podIPs) > 0 {
		s.PodIP, s.PodIPs = f.podIPs[0], nil
		for _, ip := range f.podIPs {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	if s.StartTime == nil {
		s.StartTime = &metav1.Time{Time: f.started.Truncate(time.Second)}
	}
	s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	for _, o := range all {
		cs := containerStatus(w, o, p, f)
		switch o.kind {
		case app:
			s.ContainerStatuses = append(s.ContainerStatuses, cs)
		case ephemeral:
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, cs)
		default:
			s.InitContainerStatuses = append(s.InitContainerStatuses, cs)
		}
	}
	s.Phase = phase(w, all)
	if w.failed != nil {
		s.Reason, s.Message = w.failed.reason, w.failed.message
	}
	conditions(&s, w, all, f, now)
	if w.failed != nil && w.failed.disrupted {
		setCondition(&s, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: w.failed.message,
			ObservedGeneration: w.pod.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
		})
	}
	return s
}

// Evicted is the reason of a Pod that was ended because the device is short of
// something, or because it used more of the disk than it may.
const Evicted = "Evicted"

// phase is the kubelet's getPhase.
func phase(w wanted, all []*observed) corev1.PodPhase {
	if w.failed != nil {
		for _, o := range all {
			if o.running() {
				return w.pod.Status.Phase
			}
		}
		return corev1.PodFailed
	}
	if done := w.pod.Status.Phase; done == corev1.PodFailed || done == corev1.PodSucceeded {
		return done // final
	}
	if out := outcome(w.pod.Spec.RestartPolicy, all, false); out != "" {
		for _, o := range all {
			if o.running() {
				return corev1.PodRunning
			}
		}
		return out
	}
	if w.ending {
		// Deleted: all containers have ended, or are about to.
		if out := outcome(w.pod.Spec.RestartPolicy, all, true); out != "" && !slices.ContainsFunc(all, (*observed).running) {
			return out
		}
	}
	begun := false
	for _, o := range all {
		switch o.kind {
		case initial:
			if !begun && (!o.ended() || o.exitCode() != 0) && !anyApp(all) {
				return corev1.PodPending
			}
		case app:
			if o.cur != nil || o.ended() {
				begun = true
			}
		}
	}
	if !begun {
		return corev1.PodPending
	}
	for _, o := range all {
		if o.kind == app && o.cur == nil && !o.ended() {
			return corev1.PodPending
		}
	}
	return corev1.PodRunning
}

func anyApp(all []*observed) bool {
	return slices.ContainsFunc(all, func(o *observed) bool { return o.kind == app && (o.cur != nil || o.ended()) })
}

func containerStatus(w wanted, o *observed, p plan, f facts) corev1.ContainerStatus {
	cs := corev1.ContainerStatus{Name: o.c.Name, Image: o.c.Image}
	cs.RestartCount = int32(max(o.next-1, 0))
	if o.cur == nil && o.known != nil {
		cs.RestartCount = o.known.RestartCount
	}
	if img, ok := f.images[o.c.Name]; ok {
		cs.ImageID = imageID(img)
	} else if o.known != nil {
		cs.ImageID = o.known.ImageID
	}
	switch {
	case o.running():
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(o.cur.StartedAt.Truncate(time.Second))}
		cs.ContainerID = "containerd://" + o.cur.ID
		started := o.started && !o.hooking
		cs.Started = &started
		cs.Ready = started && o.ready && (o.kind == app || o.kind == sidecar) // also while it is being stopped
		cs.Resources = o.c.Resources.DeepCopy()
		cs.AllocatedResources = o.c.Resources.Requests.DeepCopy()
	case o.ended():
		t := terminated(o, f)
		started := false
		cs.Started = &started
		cs.ContainerID = t.ContainerID
		// One that is about to start again stays terminated until there is a
		// reason to wait, as the kubelet shows it.
		if wait, waits := p.waits[o.c.Name]; waits && !w.ending {
			cs.LastTerminationState.Terminated = t
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: wait.reason, Message: wait.message}
		} else {
			cs.State.Terminated = t
			cs.Ready = o.kind == initial && t.ExitCode == 0
		}
	default:
		reason := "ContainerCreating"
		if hasInit(w.pod) {
			reason = "PodInitializing"
		}
		if wait, ok := p.waits[o.c.Name]; ok {
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: wait.reason, Message: wait.message}
		} else {
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
		}
		started := false
		cs.Started = &started
	}
	if o.kind == ephemeral {
		cs.Started = nil // it has no probes
	}
	if cs.LastTerminationState.Terminated == nil {
		if o.prev != nil {
			cs.LastTerminationState.Terminated = ended(o.prev, f)
		} else if o.known != nil && o.cur != nil && o.next > 1 {
			cs.LastTerminationState = lastKnown(o)
		}
	}
	return cs
}

// lastKnown is what the cluster knew of the attempt before the one that runs.
func lastKnown(o *observed) corev1.ContainerState {
	if t := o.known.State.Terminated; t != nil && t.ContainerID != "containerd://"+o.cur.ID {
		return corev1.ContainerState{Terminated: t}
	}
	if r := o.known.State.Running; r != nil && o.known.ContainerID != "containerd://"+o.cur.ID {
		return corev1.ContainerState{Terminated: lost(o.known)}
	}
	return o.known.LastTerminationState
}

// lost is the end of an attempt that a reboot took away.
func lost(known *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: 255, Reason: "Unknown", StartedAt: known.State.Running.StartedAt, FinishedAt: known.State.Running.StartedAt, ContainerID: known.ContainerID,
	}
}

func terminated(o *observed, f facts) *corev1.ContainerStateTerminated {
	switch {
	case o.cur != nil:
		return ended(o.cur, f)
	case o.known.State.Terminated != nil:
		return o.known.State.Terminated
	}
	return lost(o.known)
}

func ended(c *engine.Container, f facts) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(c.ExitCode), ContainerID: "containerd://" + c.ID,
		StartedAt: metav1.NewTime(c.StartedAt.Truncate(time.Second)), FinishedAt: metav1.NewTime(c.FinishedAt.Truncate(time.Second)),
	}
	switch {
	case c.State == engine.Unknown:
		t.ExitCode, t.Reason, t.Message = 255, "Unknown", c.Message
	case c.OOMKilled:
		t.Reason = "OOMKilled"
	case c.Message != "" && c.StartedAt.Equal(c.FinishedAt): // it never ran
		t.Reason, t.Message = "StartError", c.Message
	case c.ExitCode == 0:
		t.Reason = "Completed"
	default:
		t.Reason = "Error"
	}
	if m := f.messages(*c); m != "" {
		t.Message = m
	}
	return t
}

func hasInit(pod *corev1.Pod) bool { return len(pod.Spec.InitContainers) > 0 }

// imageID is what Kubernetes shows: a digest that can be pulled, if there is one.
func imageID(img engine.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// conditions sets those that the kubelet owns.
func conditions(s *corev1.PodStatus, w wanted, all []*observed, f facts, now time.Time) {
	done := s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
	var unInit, unready []string
	for _, o := range all {
		cs := find(s, o)
		switch {
		case cs == nil:
			continue
		case o.kind == initial && !cs.Ready && !anyApp(all):
			unInit = append(unInit, o.c.Name)
		case o.kind == sidecar && !(cs.Started != nil && *cs.Started) && !anyApp(all):
			unInit = append(unInit, o.c.Name)
		}
		if (o.kind == app || o.kind == sidecar) && !cs.Ready {
			unready = append(unready, o.c.Name)
		}
	}
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: w.pod.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second))}
		if ok {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, "", ""
			if done && s.Phase == corev1.PodSucceeded && t == corev1.PodInitialized {
				c.Reason = "PodCompleted"
			}
		}
		setCondition(s, c)
	}
	set(corev1.PodReadyToStartContainers, f.sandbox, "", "")
	set(corev1.PodInitialized, len(unInit) == 0 || s.Phase == corev1.PodSucceeded, "ContainersNotInitialized", "containers with incomplete status: ["+strings.Join(unInit, " ")+"]")
	reason, message := "ContainersNotReady", "containers with unready status: ["+strings.Join(unready, " ")+"]"
	switch s.Phase {
	case corev1.PodSucceeded:
		reason, message = "PodCompleted", ""
	case corev1.PodFailed:
		reason, message = "PodFailed", ""
	}
	ready := len(unready) == 0 && !done
	set(corev1.ContainersReady, ready, reason, message)
	if ready {
		if closed := closedGates(s, w.pod); len(closed) > 0 {
			ready, reason, message = false, "ReadinessGatesNotReady", strings.Join(closed, ", ")
		}
	}
	set(corev1.PodReady, ready, reason, message)
}

func find(s *corev1.PodStatus, o *observed) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == o.c.Name {
				return &list[i]
			}
		}
	}
	return nil
}

// closedGates says why the Pod's readiness gates keep it from being ready.
func closedGates(s *corev1.PodStatus, pod *corev1.Pod) []string {
	var closed []string
	for _, g := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == g.ConditionType })
		switch {
		case i < 0:
			closed = append(closed, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		case s.Conditions[i].Status != corev1.ConditionTrue:
			closed = append(closed, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, s.Conditions[i].Status))
		}
	}
	return closed
}

// setCondition keeps the time of the last transition when there is none.
func setCondition(s *corev1.PodStatus, c corev1.PodCondition) {
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}
