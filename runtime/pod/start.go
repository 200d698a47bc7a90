package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
	"edged/runtime/image"
	"edged/runtime/probe"
)

// retryConfig is how long a container that could not be made waits, unless
// something it refers to changes first.
const retryConfig = 10 * time.Second

// reasonConfig is of a container that cannot be made as the Pod describes it.
const reasonConfig = "CreateContainerConfigError"

// start starts a container: first its image, beside the worker, and when that is
// there the container. It is true when a container was started.
func (w *Worker) start(ctx context.Context, o *observed) bool {
	m := w.mem[o.c.Name]
	if m.pulling {
		return false
	}
	if m.image == nil || m.imageRef != o.c.Image || m.blocked != nil && m.blocked.reason != reasonConfig {
		w.pull(ctx, o, m)
		return false
	}
	img := *m.image
	if err := w.create(ctx, o, m, img); err != nil {
		var bad configError
		reason := "CreateContainerError"
		if errors.As(err, &bad) || errors.Is(err, engine.ErrInvalid) {
			reason = reasonConfig
		}
		w.fail(o, m, reason, err.Error())
		return false
	}
	return true
}

// fail notes why a container does not start, and tells so once.
func (w *Worker) fail(o *observed, m *memory, reason, message string) {
	if m.blocked == nil || m.blocked.message != message {
		w.dev.Event(w.w.pod, o.c.Name, corev1.EventTypeWarning, "Failed", "Error: "+message)
	}
	m.blocked = &waiting{reason: reason, message: message, until: time.Now().Add(retryConfig)}
	if reason != reasonConfig {
		m.image = nil // it may be gone by the next try
	}
}

// pull makes the image present and then pokes the worker.
func (w *Worker) pull(ctx context.Context, o *observed, m *memory) {
	m.pulling, m.tried = true, o.c.Image
	pod, c := w.w.pod, o.c
	req := image.Request{
		PodUID: w.uid, Image: c.Image, Policy: c.ImagePullPolicy,
		Event: func(eventType, reason, message string) {
			if m.told.again(reason, message, time.Now()) {
				w.dev.Event(pod, c.Name, eventType, reason, message)
			}
		},
	}
	if w.dev.Auth != nil {
		req.Auth, req.AuthKey = w.dev.Auth(pod, req.Image)
	}
	w.task(func() {
		img, err := w.dev.Images.Ensure(ctx, req)
		w.later(func() {
			m.pulling = false
			var bad *image.Error
			switch {
			case err == nil:
				m.image, m.imageRef, m.blocked = &img, c.Image, nil
				clear(m.told)
			case errors.As(err, &bad):
				m.blocked = &waiting{reason: bad.Reason, message: bad.Message, until: time.Now().Add(retryPull(bad))}
			default:
				m.blocked = &waiting{reason: "ErrImagePull", message: err.Error(), until: time.Now().Add(retryConfig)}
			}
		})
	})
}

// retryPull is when to ask for an image again. Soon after a pull failed, so that
// the Pod shows that it backs off; what no pull mends, an import may.
func retryPull(e *image.Error) time.Duration {
	switch {
	case e.Reason == image.ReasonPull:
		return min(e.RetryAfter, 2*time.Second)
	case e.RetryAfter == 0:
		return 2 * retryConfig
	}
	return e.RetryAfter
}

// tellAgain is how long an event that says the same is not repeated. Each is a
// write on every device's card; half the time that events are kept.
const tellAgain = 30 * time.Minute

// told are the events of one image by reason. A pull at a time uses it.
type told map[string]toldEvent

type toldEvent struct {
	message string
	at      time.Time
}

func (t told) again(reason, message string, now time.Time) bool {
	if last := t[reason]; last.message == message && now.Sub(last.at) < tellAgain {
		return false
	}
	t[reason] = toldEvent{message, now}
	return true
}

func (w *Worker) create(ctx context.Context, o *observed, m *memory, img engine.Image) error {
	pod, c := w.w.pod, o.c
	env, err := environment(pod, c, w.dev.Objects, w.podIPs, w.dev.HostIP())
	if err != nil {
		return err
	}
	termination := w.terminationLog(c.Name, o.next)
	if err := writeIfChanged(termination, ""); err != nil {
		return fmt.Errorf("make the termination log: %w", err)
	}
	if err := os.Chmod(termination, 0o666); err != nil {
		return fmt.Errorf("make the termination log: %w", err)
	}
	name, _ := hostname(pod, w.dev.DNS.Domain)
	dir := w.dev.Volumes.PodRunDir(w.uid)
	mk := making{
		pod: pod, slot: o.slot, attempt: o.next, image: img, env: env, box: w.box, volumes: w.volumes,
		subPath: func(i int, volumePath, sub string, readOnly bool) (string, error) {
			return w.dev.Volumes.SubPath(w.uid, c.Name, i, volumePath, sub, readOnly)
		},
		hosts: filepath.Join(dir, "etc-hosts"), resolvConf: filepath.Join(dir, "resolv.conf"), hostname: name,
		terminationLog: termination, pidNS: w.pidNS(), seccompDir: w.dev.SeccompDir, memoryBytes: w.dev.MemoryBytes,
	}
	if pod.Spec.HostPID {
		mk.pidNS = ""
	}
	if o.kind == ephemeral {
		for _, e := range pod.Spec.EphemeralContainers {
			if e.Name == c.Name && e.TargetContainerName != "" && mk.pidNS == "" {
				mk.pidNS = w.pidNSOf(e.TargetContainerName)
			}
		}
	}
	spec, err := mk.spec()
	if err != nil {
		return err
	}
	if err := w.dev.Engine.Create(ctx, spec); err != nil && !errors.Is(err, engine.ErrExists) {
		return err
	}
	w.dev.Event(pod, c.Name, corev1.EventTypeNormal, "Created", "Container created")
	if err := w.dev.Engine.Start(ctx, spec.ID); err != nil {
		// The attempt counts: it is Exited, with the message of the failure.
		w.dev.Event(pod, c.Name, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
		m.runID, m.logDone = spec.ID, true
		return nil
	}
	w.dev.Event(pod, c.Name, corev1.EventTypeNormal, "Started", "Container started")
	w.setShares()
	w.follows(ctx, spec.ID, m)
	return nil
}

// setShares gives the Pod its share of the CPU against other Pods: what its
// containers ask for together.
func (w *Worker) setShares() {
	shares := podShares(w.w.pod)
	if shares == w.shares {
		return
	}
	if err := w.dev.Engine.SetGroup(Group(w.uid), shares); err != nil {
		w.dev.Logger.Error("a Pod has not its share of the CPU", "pod", w.name(), "err", err)
		return
	}
	w.shares = shares
}

func (w *Worker) pidNSOf(container string) string {
	list := runs(w.uid, w.dev.Engine.List())[container]
	if n := len(list); n > 0 && list[n-1].State == engine.Running {
		return fmt.Sprintf("/proc/%d/ns/pid", list[n-1].PID)
	}
	return ""
}

// follows begins what goes on beside a container that was just started.
func (w *Worker) follows(ctx context.Context, id string, m *memory) {
	for _, sl := range slots(w.w.pod) {
		list := runs(w.uid, w.dev.Engine.List())[sl.c.Name]
		if len(list) == 0 || list[len(list)-1].ID != id {
			continue
		}
		cur := list[len(list)-1]
		o := &observed{slot: sl, cur: &cur}
		r := sl.c.Resources
		m.runID, m.applied, m.logDone, m.dead, m.hookFail, m.stopping = id, &r, false, "", "", nil
		m.replaced, m.held = false, time.Time{}
		m.started, m.ready = sl.c.StartupProbe == nil, sl.c.ReadinessProbe == nil
		if cur.State != engine.Running {
			w.openLog(ctx, o, m) // it ended at once: what it printed is still there
			return
		}
		hook := sl.c.Lifecycle
		if hook == nil || hook.PostStart == nil {
			w.follow(ctx, o, m, false)
			return
		}
		w.openLog(ctx, o, m)
		m.hooking = true
		w.task(func() {
			err := w.hook(ctx, id, sl.c, hook.PostStart)
			w.later(func() { w.hooked(ctx, id, sl, m, err) })
		})
	}
}

// hooked goes on after a postStart hook.
func (w *Worker) hooked(ctx context.Context, id string, sl slot, m *memory, err error) {
	if m.runID != id || !m.hooking {
		return
	}
	m.hooking = false
	if err != nil {
		m.hookFail = err.Error()
		w.dev.Event(w.w.pod, sl.c.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
		return
	}
	list := runs(w.uid, w.dev.Engine.List())[sl.c.Name]
	if n := len(list); n > 0 && list[n-1].ID == id && list[n-1].State == engine.Running {
		w.follow(ctx, &observed{slot: sl, cur: &list[n-1]}, m, false)
	}
}

// hook runs one lifecycle hook to its end.
func (w *Worker) hook(ctx context.Context, id string, c *corev1.Container, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, out, err := w.exec(ctx, id, h.Exec.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, code, out)
		}
		return err
	case h.HTTPGet != nil:
		host := w.dev.HostIP()
		if !w.w.pod.Spec.HostNetwork && len(w.podIPs) > 0 {
			host = w.podIPs[0]
		}
		ok, out, err := probe.HTTPGet(ctx, h.HTTPGet, c, host)
		if err == nil && !ok {
			err = errors.New(out)
		}
		return err
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		}
	}
	return errors.New("invalid handler: edged has exec, httpGet and sleep")
}

// resize applies changed limits to a running container's cgroup.
func (w *Worker) resize(ctx context.Context, o *observed, m *memory) {
	r := o.c.Resources
	if err := w.dev.Engine.UpdateResources(ctx, o.cur.ID, resources(w.w.pod, o.c, w.dev.MemoryBytes)); err != nil {
		w.dev.Event(w.w.pod, o.c.Name, corev1.EventTypeWarning, "ResizeFailed", err.Error())
	}
	w.setShares()
	m.applied = &r
}
