package pod

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
	"edged/runtime/probe"
)

// hookGrace is what a container gets after its preStop hook, or those that end before
// it, used up the grace period: the kubelet's minimum.
const hookGrace = 2 * time.Second

// graceOf is the grace period of a stop, in seconds.
func (w *Worker) graceOf(o *observed, failed probe.Kind) int64 {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := w.w.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	asked := o.c.LivenessProbe
	if failed == probe.Startup {
		asked = o.c.StartupProbe
	}
	if failed != "" && asked != nil && asked.TerminationGracePeriodSeconds != nil {
		grace = *asked.TerminationGracePeriodSeconds
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.grace != nil {
		return *w.grace // who deletes a Pod may also give it longer than it asks for
	}
	return grace
}

// beginStop begins to stop a container, or shortens a stop under way.
func (w *Worker) beginStop(ctx context.Context, o *observed, s stop) {
	m := w.mem[o.c.Name]
	grace := time.Duration(w.graceOf(o, s.failed)) * time.Second
	now := time.Now()
	deadline := now.Add(grace)
	if st := m.stopping; st != nil {
		// An end of the whole Pod may come with a shorter grace period.
		if s.message == "" && deadline.Before(st.deadline) {
			st.deadline = deadline
		}
		return
	}
	message := s.message
	if message == "" { // the Pod ends
		if w.ending.IsZero() {
			w.ending = now
		}
		// One that waited for its turn has what is left of the Pod's time.
		if deadline = w.ending.Add(grace); grace > 0 && deadline.Before(now.Add(hookGrace)) {
			deadline = now.Add(hookGrace)
		}
		message = fmt.Sprintf("Stopping container %s", o.c.Name)
	}
	w.dev.Event(w.w.pod, o.c.Name, corev1.EventTypeNormal, "Killing", message)
	st := &stopping{deadline: deadline}
	m.stopping, m.replaced = st, s.replace
	if m.probes != nil {
		m.probes.Ending()
	}
	hook := o.c.Lifecycle
	if hook == nil || hook.PreStop == nil || grace == 0 {
		st.hookDone = true
		return
	}
	id, c, pod := o.cur.ID, o.c, w.w.pod
	w.task(func() {
		hctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if err := w.hook(hctx, id, c, hook.PreStop); err != nil && ctx.Err() == nil {
			w.dev.Event(pod, c.Name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		}
		w.later(func() {
			st.hookDone = true
			if least := time.Now().Add(hookGrace); st.deadline.Before(least) {
				st.deadline = least
			}
		})
	})
}

// driveStops takes each stop its next step and returns when the next is due.
func (w *Worker) driveStops(ctx context.Context, all []*observed, now time.Time) (at time.Time) {
	for _, o := range all {
		st := w.mem[o.c.Name].stopping
		if st == nil || !o.running() {
			continue
		}
		if st.hookDone && !st.signaled {
			st.signaled = true
			sig := o.cur.StopSignal
			if sig == 0 {
				sig = syscall.SIGTERM
			}
			if st.deadline.After(now) {
				w.signal(ctx, o, sig, false)
			}
		}
		if !st.deadline.After(now) && (st.hookDone || now.Sub(st.deadline) > hookGrace) {
			if !st.killed {
				st.killed = true
				w.signal(ctx, o, syscall.SIGKILL, true)
			}
			continue
		}
		if at.IsZero() || st.deadline.Before(at) {
			at = st.deadline
			if !st.hookDone {
				at = at.Add(hookGrace)
			}
		}
	}
	return at
}

func (w *Worker) signal(ctx context.Context, o *observed, sig syscall.Signal, all bool) {
	err := w.dev.Engine.Kill(ctx, o.cur.ID, sig, all)
	if err != nil && !errors.Is(err, engine.ErrNotRunning) && !errors.Is(err, engine.ErrNotFound) {
		w.dev.Logger.Warn("a container was not signaled", "pod", w.name(), "container", o.c.Name, "signal", sig, "err", err)
	}
}
