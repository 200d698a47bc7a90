package pod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
	"edged/runtime/probe"
)

const (
	backOffFirst = 10 * time.Second
	backOffMost  = 5 * time.Minute
	// backOffForget is how long a container must have run for its back-off to
	// begin anew: twice the longest, the kubelet's rule.
	backOffForget = 2 * backOffMost
)

// observed is one container as it is.
type observed struct {
	slot
	// cur is the newest attempt, prev the one before; nil if there is none.
	cur, prev *engine.Container
	// restarts is the attempt that a next start would be.
	next int
	// known is what the cluster last knew, for attempts that a reboot took away.
	known *corev1.ContainerStatus

	// the worker's memory
	backOff  time.Duration // before the next start; 0 for none
	endedAt  time.Time     // of the newest attempt, by a clock that nobody sets
	blocked  *waiting      // why it cannot be started just now
	started  bool          // its startup probe has succeeded, or it has none
	ready    bool
	dead     probe.Kind // of its liveness or startup probe, if that failed
	hooking  bool       // its postStart hook is running
	hookFail string
	stopping bool
	replaced bool // it was stopped because its definition changed
}

// waiting is why a container does not run.
type waiting struct {
	reason, message string
	until           time.Time // when to try again; zero: when something changes
}

func (o *observed) running() bool { return o.cur != nil && o.cur.State == engine.Running }

// ended says that the newest attempt is over, or that a reboot took it away.
func (o *observed) ended() bool {
	if o.cur == nil {
		return o.known != nil && (o.known.State.Running != nil || o.known.State.Terminated != nil)
	}
	return o.cur.State == engine.Exited || o.cur.State == engine.Unknown
}

// exitCode of an attempt that has ended; a reboot counts as 255, as containerd
// reports what it lost.
func (o *observed) exitCode() int {
	switch {
	case o.cur != nil && o.cur.State == engine.Unknown:
		return 255
	case o.cur != nil:
		return int(o.cur.ExitCode)
	case o.known != nil && o.known.State.Terminated != nil:
		return int(o.known.State.Terminated.ExitCode)
	}
	return 255
}

// changed says that the newest attempt is not of the definition that the Pod has
// now.
func (o *observed) changed() bool {
	return o.cur != nil && o.cur.Labels[labelHash] != hash(o.c)
}

// wanted is what the Pod is asked to be.
type wanted struct {
	pod *corev1.Pod
	// ending says that the Pod is being deleted or evicted: everything stops.
	ending bool
	// failed is set when the Pod may not run at all, or not any longer.
	failed *failure
	// ahead is how far the time in the Pod's object is ahead of now.
	ahead time.Duration
}

type failure struct {
	reason, message string
	disrupted       bool // by the device, for nothing that the Pod did
}

// stop is a decision to stop a container.
type stop struct {
	name, message string
	failed        probe.Kind // the probe that asks for it: its own grace period may apply
	replace       bool       // to be started as it is defined now
}

// plan is what to do next.
type plan struct {
	pod *corev1.Pod
	// sandbox and volumes are needed.
	sandbox bool
	start   []string
	stop    []stop
	// waits says why each container that should run does not.
	waits map[string]waiting
	// finished says that no container runs or will run again: sandbox and volumes
	// can go.
	finished bool
	// at is when to plan again though nothing changed; zero for never.
	at time.Time
}

func (p *plan) wake(t time.Time) {
	if !t.IsZero() && (p.at.IsZero() || t.Before(p.at)) {
		p.at = t
	}
}

// decide plans the Pod's next step.
func decide(w wanted, all []*observed, now time.Time) plan {
	p := plan{pod: w.pod, waits: map[string]waiting{}}
	if w.ending || w.failed != nil || over(w.pod) {
		p.end(all)
		return p
	}
	if d := w.pod.Spec.ActiveDeadlineSeconds; d != nil && w.pod.Status.StartTime != nil {
		p.wake(w.pod.Status.StartTime.Add(time.Duration(*d)*time.Second - w.ahead))
	}
	policy := w.pod.Spec.RestartPolicy
	if outcome(policy, all, false) != "" {
		p.end(all)
		return p
	}
	p.sandbox = true
	if !p.initialize(policy, all, now) {
		return p
	}
	for _, o := range all {
		if o.kind == app || o.kind == ephemeral {
			p.keepRunning(o, policy, now)
		}
	}
	return p
}

// over says that the Pod has reached a phase that is final: it was evicted, say,
// and the daemon has been started again since.
func over(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// end stops what runs: first the Pod's own containers, then its sidecars, the
// last one first.
func (p *plan) end(all []*observed) {
	busy := false
	for _, o := range all {
		if o.kind != sidecar && o.running() {
			p.stop, busy = append(p.stop, stop{name: o.c.Name}), true
		}
	}
	if busy {
		return
	}
	for i := len(all) - 1; i >= 0; i-- {
		if o := all[i]; o.kind == sidecar && o.running() {
			p.stop = append(p.stop, stop{name: o.c.Name})
			return
		}
	}
	p.finished = true
}

// initialize runs the init containers in order; it is true when the Pod's own
// containers may run. After a reboot all of them run again, as in every Kubernetes: what
// they made in the Pod's network or in a volume in memory went with it.
func (p *plan) initialize(policy corev1.RestartPolicy, all []*observed, now time.Time) bool {
	begun := slices.ContainsFunc(all, func(o *observed) bool { return o.kind == app && o.cur != nil })
	for _, o := range all {
		switch o.kind {
		case sidecar:
			p.keepRunning(o, corev1.RestartPolicyAlways, now)
			if !begun && (!o.running() || !o.started || o.hooking) {
				return false
			}
		case initial:
			if begun || o.cur != nil && o.ended() && o.exitCode() == 0 {
				continue
			}
			if !o.running() {
				p.keepRunning(o, initPolicy(policy), now)
			}
			return false
		}
	}
	return true
}

// keepRunning starts a container that should run, after its back-off, and stops
// one that should not run as it does.
func (p *plan) keepRunning(o *observed, policy corev1.RestartPolicy, now time.Time) {
	name := o.c.Name
	if o.running() {
		switch {
		case o.stopping:
		case o.hookFail != "":
			p.stop = append(p.stop, stop{name: name, message: "FailedPostStartHook"})
		case o.dead != "":
			p.stop = append(p.stop, stop{name: name, message: "Container " + name + " failed " + strings.ToLower(string(o.dead)) + " probe, will be restarted", failed: o.dead})
		case o.kind != ephemeral && o.changed():
			p.stop = append(p.stop, stop{name: name, message: "Container " + name + " definition changed, will be restarted", replace: true})
		}
		return
	}
	if o.ended() && !restarts(policy, o) && !(o.kind == initial && o.cur == nil) {
		return
	}
	if o.ended() && o.backOff > 0 && !o.changed() {
		if until := o.endedAt.Add(o.backOff); now.Before(until) {
			p.waits[name] = waiting{"CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", o.backOff, name, describe(p.pod)), until}
			p.wake(until)
			return
		}
	}
	if o.blocked != nil {
		p.waits[name] = *o.blocked
		if o.blocked.until.IsZero() || now.Before(o.blocked.until) {
			p.wake(o.blocked.until)
			return
		}
	}
	p.start = append(p.start, name)
}

// restarts tells whether a container that has ended is started again.
func restarts(policy corev1.RestartPolicy, o *observed) bool {
	switch {
	case o.kind == ephemeral:
		return false
	case o.kind == sidecar, o.replaced:
		return true
	}
	if p := o.c.RestartPolicy; p != nil {
		if o.cur != nil && slices.ContainsFunc(o.c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool { return matches(r, int32(o.exitCode())) }) {
			return true
		}
		policy = corev1.RestartPolicy(*p)
	}
	if o.cur == nil && o.known != nil && o.known.State.Running != nil {
		// A reboot: it did not end, it was ended.
		return policy != corev1.RestartPolicyNever
	}
	switch policy {
	case corev1.RestartPolicyAlways:
		return true
	case corev1.RestartPolicyOnFailure:
		return o.exitCode() != 0
	}
	return false
}

// matches tells whether a container's own rule asks to start it again.
func matches(r corev1.ContainerRestartRule, exitCode int32) bool {
	if r.Action != corev1.ContainerRestartRuleActionRestart || r.ExitCodes == nil {
		return false
	}
	in := slices.Contains(r.ExitCodes.Values, exitCode)
	return in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
}

// nextBackOff is the back-off after one more end of a container that had cur.
func nextBackOff(cur, ranFor time.Duration) time.Duration {
	if cur == 0 || ranFor >= backOffForget {
		return backOffFirst
	}
	return min(2*cur, backOffMost)
}

// initPolicy is the restart policy of an init container: one that succeeded is
// done.
func initPolicy(policy corev1.RestartPolicy) corev1.RestartPolicy {
	if policy == corev1.RestartPolicyNever {
		return policy
	}
	return corev1.RestartPolicyOnFailure
}

// outcome is the phase of a Pod whose containers are all done, else "". When
// the Pod is ending, none starts again whatever its policy.
func outcome(policy corev1.RestartPolicy, all []*observed, ending bool) corev1.PodPhase {
	failed, begun := false, anyApp(all)
	for _, o := range all {
		switch o.kind {
		case initial:
			if begun {
				continue
			}
			if !o.ended() {
				return ""
			}
			if o.exitCode() != 0 && !restarts(initPolicy(policy), o) {
				return corev1.PodFailed
			}
		case app:
			if !o.ended() || !ending && restarts(policy, o) {
				return ""
			}
			failed = failed || o.exitCode() != 0
		}
	}
	if failed {
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}
