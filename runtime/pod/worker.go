package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"edged/runtime/engine"
	"edged/runtime/image"
	"edged/runtime/podlog"
	"edged/runtime/probe"
	"edged/runtime/sandbox"
)

// Engine is what a worker needs of runtime/engine.
type Engine interface {
	Create(ctx context.Context, spec engine.ContainerSpec) error
	Start(ctx context.Context, id string) error
	Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error
	Delete(ctx context.Context, id string) error
	List() []engine.Container
	Stdio(ctx context.Context, id string) (engine.Stdio, error)
	Exec(ctx context.Context, id string, spec engine.ExecSpec, streams engine.Streams) (int, error)
	UpdateResources(ctx context.Context, id string, r engine.Resources) error
	SetGroup(group string, cpuShares uint64) error
}

// Volumes is what a worker needs of runtime/volume.
type Volumes interface {
	Setup(ctx context.Context, pod *corev1.Pod) (paths map[string]string, again time.Time, err error)
	SubPath(uid, container string, index int, volumePath, subPath string, readOnly bool) (string, error)
	Release(ctx context.Context, uid string) error
	Teardown(ctx context.Context, uid string) error
	PodRunDir(uid string) string
}

// Network connects a Pod's network namespace and returns its addresses.
type Network interface {
	Attach(ctx context.Context, pod *corev1.Pod, netns string) ([]string, error)
	Detach(ctx context.Context, uid string) error
}

// Images makes images present.
type Images interface {
	Ensure(ctx context.Context, r image.Request) (engine.Image, error)
	Forget(podUID string)
}

// Sandboxes is what a worker needs of runtime/sandbox.
type Sandboxes interface {
	Ensure(uid string, o sandbox.Options) (box sandbox.Sandbox, fresh bool, err error)
	Remove(uid string) error
}

// Device is what all Pods of this device share.
type Device struct {
	Engine    Engine
	Volumes   Volumes
	Network   Network
	Images    Images
	Sandboxes Sandboxes
	Objects   Objects
	// Auth returns the credentials of a Pod's imagePullSecrets for an image, by
	// registry.
	Auth func(pod *corev1.Pod, image string) (auth func(host string) []engine.Auth, key string)
	// Event reports to the user; container is "" for the Pod itself.
	Event       func(pod *corev1.Pod, container, eventType, reason, message string)
	DNS         DNS
	HostIP      func() string
	LogRoot     string // /var/log/pods
	LogLimits   podlog.Limits
	SeccompDir  string
	MemoryBytes int64
	// Now is the cluster's time, in which the status tells when something was; nil is
	// this device's own, by which everything else goes.
	Now    func() time.Time
	Logger *slog.Logger
}

// ahead is how far the cluster's time is ahead of this device's clock.
func (d *Device) ahead() time.Duration {
	if d.Now == nil {
		return 0
	}
	if by := time.Until(d.Now()); by.Abs() > time.Second {
		return by
	}
	return 0
}

// memory is what a worker remembers of a container beside its records.
type memory struct {
	backOff  time.Duration
	backedID string    // the attempt whose end backOff already counts
	endedAt  time.Time // when that was, with the monotonic clock's reading
	blocked  *waiting
	image    *engine.Image
	imageRef string // that image is what this names
	tried    string // the image that was last asked for
	told     told   // what was said about it
	pulling  bool
	runID    string // the attempt that the rest is about
	started  bool
	ready    bool
	dead     probe.Kind
	hooking  bool
	hookFail string
	backTold string    // the attempt whose back-off was told
	replaced bool      // it was stopped to be started as it is defined now
	held     time.Time // until when its end is not told
	probes   *probe.Set
	log      *podlog.Writer
	logDone  bool
	stopping *stopping
	applied  *corev1.ResourceRequirements
}

// stopping is a stop under way.
type stopping struct {
	deadline time.Time
	hookDone bool
	signaled bool
	killed   bool
}

// Worker runs one Pod. Update, Stop and Poke may be called from any goroutine.
type Worker struct {
	dev    *Device
	uid    string
	report func(*corev1.Pod, corev1.PodStatus)
	wake   chan struct{} // holds one: only that something changed matters

	mu sync.Mutex
	// guarded by mu
	next    wanted // newest wins
	grace   *int64 // of the deletion, in seconds
	results []func()

	// owned by Run
	w        wanted
	mem      map[string]*memory
	box      sandbox.Sandbox
	podIPs   []string
	boxReady bool
	volumes  map[string]string
	again    time.Time // when volumes want to be looked at, by the device's clock
	shares   uint64    // of the CPU, that the Pod's control group has
	blockErr string    // the last sandbox or volume error told
	blocked  time.Time // until when it is not tried again
	began    time.Time
	ending   time.Time // since when its containers are stopped for good
	tidied   bool
	last     *corev1.PodStatus
	tasks    sync.WaitGroup
	cancel   context.CancelFunc
}

// NewWorker returns the worker of a Pod. report receives the Pod's status
// whenever it changed.
func NewWorker(dev *Device, pod *corev1.Pod, report func(*corev1.Pod, corev1.PodStatus)) *Worker {
	return &Worker{dev: dev, uid: string(pod.UID), report: report, wake: make(chan struct{}, 1),
		next: wanted{pod: pod, failed: admit(pod)}, mem: map[string]*memory{}, began: time.Now()}
}

// Update gives the worker the newest Pod.
func (w *Worker) Update(pod *corev1.Pod) {
	w.mu.Lock()
	if old := w.next.pod; old.Generation != pod.Generation || !maps.Equal(old.Labels, pod.Labels) || !maps.Equal(old.Annotations, pod.Annotations) {
		w.results = append(w.results, w.retry) // its containers may be made from any of them
	}
	w.next.pod = pod
	if pod.DeletionTimestamp != nil {
		w.next.ending = true
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			grace = *g
		}
		if w.grace == nil || grace < *w.grace { // it may only shrink
			w.grace = &grace
		}
	}
	w.mu.Unlock()
	w.Poke()
}

// Evict ends the Pod for what it uses of the device. disrupted says that it did
// nothing that it may not: then that is no failure to a Job that says so.
func (w *Worker) Evict(grace int64, message string, disrupted bool) {
	w.end(grace, &failure{Evicted, message, disrupted})
}

// End stops the Pod's containers for good; reason, if not "", is why the Pod has
// failed. grace is in seconds.
func (w *Worker) End(grace int64, reason, message string) {
	var fail *failure
	if reason != "" {
		fail = &failure{reason: reason, message: message}
	}
	w.end(grace, fail)
}

func (w *Worker) end(grace int64, fail *failure) {
	w.mu.Lock()
	if asks := w.next.pod.Spec.TerminationGracePeriodSeconds; asks != nil {
		grace = min(grace, *asks)
	}
	w.next.ending = true
	if fail != nil {
		w.next.failed = fail
	}
	if w.grace == nil || grace < *w.grace {
		w.grace = &grace
	}
	w.mu.Unlock()
	w.Poke()
}

// Poke makes the worker look again.
func (w *Worker) Poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Retry makes the worker try at once what failed: an object that the Pod uses
// has changed.
func (w *Worker) Retry() { w.later(w.retry) }

func (w *Worker) retry() {
	w.blocked = time.Time{}
	for _, m := range w.mem {
		if m.blocked != nil && m.blocked.reason == reasonConfig {
			m.blocked = nil
		}
	}
}

// later runs f on the worker's goroutine.
func (w *Worker) later(f func()) {
	w.mu.Lock()
	w.results = append(w.results, f)
	w.mu.Unlock()
	w.Poke()
}

// Run runs the Pod until ctx ends, which leaves its containers alone, or until
// the Pod is being deleted and nothing of it is left on the device: then it
// returns true.
func (w *Worker) Run(ctx context.Context) (gone bool) {
	ctx, w.cancel = context.WithCancel(ctx)
	defer w.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		case <-timer.C:
		}
		gone, at := w.step(ctx)
		if gone {
			return true
		}
		timer.Stop()
		if !at.IsZero() {
			timer.Reset(max(time.Until(at), 0))
		}
	}
}

func (w *Worker) close() {
	w.cancel()
	for _, m := range w.mem {
		if m.probes != nil {
			m.probes.Stop()
		}
		if m.log != nil {
			m.log.Close()
		}
	}
	w.tasks.Wait()
}

// task runs f beside the worker; it ends with the worker's context.
func (w *Worker) task(f func()) { w.tasks.Go(f) }

// step takes in what changed, decides, acts once, and reports.
func (w *Worker) step(ctx context.Context) (gone bool, at time.Time) {
	w.mu.Lock()
	w.w = w.next
	results := w.results
	w.results = nil
	w.mu.Unlock()
	for _, f := range results {
		f()
	}
	now := time.Now()
	w.w.ahead = w.dev.ahead()
	all := w.observe(ctx)
	w.checkDeadline(now.Add(w.w.ahead))
	p := decide(w.w, all, now)
	acted := false
	if p.sandbox && !w.prepare(ctx, now) {
		p.wake(w.blocked)
		p.start = nil
	}
	p.wake(w.again)
	for _, s := range p.stop {
		w.beginStop(ctx, w.find(all, s.name), s)
	}
	p.wake(w.driveStops(ctx, all, now))
	for _, name := range p.start {
		o := w.find(all, name)
		if started := w.start(ctx, o); started {
			acted = true
		}
	}
	if acted {
		w.Poke() // decide again with what is running now
		all = w.observe(ctx)
		p2 := decide(w.w, all, now)
		p.waits, p.start = p2.waits, p2.start
	}
	w.waitsOf(all, &p)
	if p.finished && !w.tidied {
		w.tidied = w.tidy(ctx)
		if !w.tidied {
			p.wake(now.Add(time.Second))
		}
	}
	if w.tidied && w.w.pod.Status.Reason == Evicted {
		w.shed(ctx, all)
	}
	if until := w.held(all, now); until.IsZero() {
		w.tell(status(w.w, all, p, w.facts(), now.Add(w.w.ahead)))
	} else {
		p.wake(until)
	}
	if p.finished && w.tidied && w.w.pod.DeletionTimestamp != nil {
		if err := w.forget(ctx); err != nil {
			w.dev.Logger.Error("a Pod is not removed from the device yet", "pod", w.name(), "err", err)
			return false, now.Add(time.Second)
		}
		return true, time.Time{}
	}
	return false, p.at
}

func (w *Worker) name() string { return w.w.pod.Namespace + "/" + w.w.pod.Name }

func (w *Worker) find(all []*observed, name string) *observed {
	for _, o := range all {
		if o.c.Name == name {
			return o
		}
	}
	return nil
}

// holdReplaced is how long the end of a container that is replaced may stay
// untold.
const holdReplaced = time.Second

// held is until when nothing is told, zero for now. The end of a container
// that was stopped to be started anew, in the same breath, is not a state of
// the Pod; the kubelet does not show it either. It spares two writes.
func (w *Worker) held(all []*observed, now time.Time) (until time.Time) {
	if w.w.ending || w.w.failed != nil {
		return until
	}
	for _, o := range all {
		m := w.mem[o.c.Name]
		if !m.replaced || !o.ended() || m.blocked != nil {
			continue
		}
		if m.held.IsZero() {
			m.held = now.Add(holdReplaced)
		}
		if m.held.After(until) && now.Before(m.held) {
			until = m.held
		}
	}
	return until
}

// waitsOf adds the reasons that starting just gave, and tells of a back-off.
func (w *Worker) waitsOf(all []*observed, p *plan) {
	for _, o := range all {
		m := w.mem[o.c.Name]
		if p.waits[o.c.Name].reason == "CrashLoopBackOff" && m.backTold != m.backedID {
			m.backTold = m.backedID
			w.dev.Event(w.w.pod, o.c.Name, corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", o.c.Name, describe(w.w.pod)))
		}
		if m.blocked != nil && !o.running() {
			p.waits[o.c.Name] = *m.blocked
			p.wake(m.blocked.until)
		}
	}
}

func (w *Worker) checkDeadline(now time.Time) {
	pod := w.w.pod
	d, start := pod.Spec.ActiveDeadlineSeconds, pod.Status.StartTime
	if d == nil || start == nil || w.w.failed != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	if now.Before(start.Add(time.Duration(*d) * time.Second)) {
		return
	}
	w.w.failed = &failure{reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline"}
	w.mu.Lock()
	w.next.failed = w.w.failed
	w.mu.Unlock()
	w.dev.Event(pod, "", corev1.EventTypeNormal, "DeadlineExceeded", w.w.failed.message)
}

// observe puts together the spec, the engine's records and the memory.
func (w *Worker) observe(ctx context.Context) []*observed {
	found := runs(w.uid, w.dev.Engine.List())
	known := statuses(w.w.pod)
	var all []*observed
	for _, sl := range slots(w.w.pod) {
		name := sl.c.Name
		m := w.mem[name]
		if m == nil {
			m = &memory{told: told{}}
			w.mem[name] = m
		}
		if m.blocked != nil && m.tried != sl.c.Image {
			m.blocked = nil // what kept it was about another image
		}
		o := &observed{slot: sl, known: known[name]}
		list := found[name]
		// A record that was created and never started is what a crash left.
		for len(list) > 0 && list[len(list)-1].State == engine.Created {
			w.drop(ctx, list[len(list)-1].ID)
			list = list[:len(list)-1]
		}
		for len(list) > 2 {
			w.drop(ctx, list[0].ID)
			list = list[1:]
		}
		if n := len(list); n > 0 {
			o.cur = &list[n-1]
			o.next = attemptOf(*o.cur) + 1
			if n > 1 {
				o.prev = &list[0]
			}
		} else if o.known != nil && (o.known.State.Running != nil || o.known.State.Terminated != nil || o.known.LastTerminationState.Terminated != nil) {
			o.next = int(o.known.RestartCount) + 1
		}
		w.remember(ctx, o, m)
		o.backOff, o.endedAt, o.blocked, o.started, o.ready, o.dead = m.backOff, m.endedAt, m.blocked, m.started, m.ready, m.dead
		o.hooking, o.hookFail, o.stopping, o.replaced = m.hooking, m.hookFail, m.stopping != nil, m.replaced
		all = append(all, o)
	}
	return all
}

func (w *Worker) drop(ctx context.Context, id string) {
	if err := w.dev.Engine.Delete(ctx, id); err != nil && !errors.Is(err, engine.ErrNotFound) {
		w.dev.Logger.Warn("an old container is not removed yet", "pod", w.name(), "container", id, "err", err)
	}
}

// remember keeps the memory of a container in step with its newest attempt.
func (w *Worker) remember(ctx context.Context, o *observed, m *memory) {
	switch {
	case o.running() && m.runID != o.cur.ID:
		// A daemon that was started again finds its container running.
		w.resume(ctx, o, m)
	case o.running() && m.applied != nil && !apiequality.Semantic.DeepEqual(*m.applied, o.c.Resources):
		w.resize(ctx, o, m)
	case o.ended() && o.cur != nil:
		w.settleEnd(o, m)
	}
}

// resume takes up a container that runs since before this daemon.
func (w *Worker) resume(ctx context.Context, o *observed, m *memory) {
	m.runID, m.started, m.ready = o.cur.ID, true, o.c.ReadinessProbe == nil
	if o.known != nil && o.known.ContainerID == "containerd://"+o.cur.ID {
		m.started = o.known.Started == nil || *o.known.Started
		m.ready = o.known.Ready
	}
	r := o.c.Resources
	m.applied = &r
	w.follow(ctx, o, m, m.started)
}

// follow begins to copy a running container's output and to probe it.
func (w *Worker) follow(ctx context.Context, o *observed, m *memory, resumed bool) {
	id := o.cur.ID
	if m.log == nil { // a postStart hook has it open, and somebody may be attached
		w.openLog(ctx, o, m)
	}
	if o.c.LivenessProbe == nil && o.c.ReadinessProbe == nil && o.c.StartupProbe == nil {
		m.started, m.ready = true, true
		return
	}
	host := w.dev.HostIP()
	if !w.w.pod.Spec.HostNetwork && len(w.podIPs) > 0 {
		host = w.podIPs[0]
	} else if !w.w.pod.Spec.HostNetwork {
		host = w.w.pod.Status.PodIP
	}
	pod, container := w.w.pod, o.c
	m.probes = probe.Start(probe.Target{
		Container: container, Host: host, StartedAt: o.cur.StartedAt, Resumed: resumed,
		Exec: func(ctx context.Context, command []string) (int, string, error) { return w.exec(ctx, id, command) },
	}, func(r probe.Result) {
		w.later(func() { w.probed(id, m, r) })
	}, func(kind probe.Kind, how string) {
		w.dev.Event(pod, container.Name, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe %s", kind, how))
	})
}

func (w *Worker) probed(id string, m *memory, r probe.Result) {
	if m.runID != id {
		return // of an attempt that is over
	}
	switch r.Kind {
	case probe.Startup:
		m.started = m.started || r.OK
		if !r.OK && m.dead == "" {
			m.dead = r.Kind
		}
	case probe.Liveness:
		if !r.OK && m.dead == "" {
			m.dead = r.Kind
		}
	case probe.Readiness:
		m.ready = r.OK
	}
}

func (w *Worker) exec(ctx context.Context, id string, command []string) (int, string, error) {
	var out limited
	code, err := w.dev.Engine.Exec(ctx, id, engine.ExecSpec{Args: command}, engine.Streams{Stdout: &out, Stderr: &out})
	return code, out.String(), err
}

// limited keeps the beginning of what is written to it.
type limited struct {
	mu   sync.Mutex
	data []byte
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := 10<<10 - len(l.data); room > 0 {
		l.data = append(l.data, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.data)
}

func (w *Worker) logDir() string {
	return podlog.Dir(w.dev.LogRoot, w.w.pod.Namespace, w.w.pod.Name, w.uid)
}

func (w *Worker) openLog(ctx context.Context, o *observed, m *memory) {
	io, err := w.dev.Engine.Stdio(ctx, o.cur.ID)
	if err == nil {
		m.log, err = podlog.Start(podlog.Path(w.logDir(), o.c.Name, attemptOf(*o.cur)), w.dev.LogLimits, reader(io.Stdout), reader(io.Stderr), io, w.dev.Logger)
	}
	if err != nil {
		w.dev.Logger.Error("a container's output is not logged", "pod", w.name(), "container", o.c.Name, "err", err)
	}
}

// settleEnd ends what went on beside a container that has ended: its probes, and
// its log once that is complete. It counts the end into the back-off.
func (w *Worker) settleEnd(o *observed, m *memory) {
	if m.probes != nil {
		m.probes.Stop()
		m.probes = nil
	}
	if m.runID != o.cur.ID && m.log == nil && !m.logDone {
		// It ended while no daemon ran: what it printed waits in its fifos.
		m.runID = o.cur.ID
		w.openLog(context.Background(), o, m)
	}
	if log := m.log; log != nil {
		log.Wait()
		m.log, m.logDone = nil, true
	}
	m.started, m.ready, m.dead, m.hooking, m.stopping = false, false, "", false, nil
	if m.backedID != o.cur.ID {
		if m.backedID != "" || o.next > 1 {
			m.backOff = nextBackOff(m.backOff, o.cur.FinishedAt.Sub(o.cur.StartedAt))
		}
		m.backedID, m.hookFail = o.cur.ID, ""
		now := time.Now()
		m.endedAt = now.Add(-min(max(now.Sub(o.cur.FinishedAt), 0), backOffMost))
	}
}

// prepare makes sandbox and volumes; it is false when that failed for now.
func (w *Worker) prepare(ctx context.Context, now time.Time) bool {
	if now.Before(w.blocked) {
		return false
	}
	err := w.ensureSandbox(ctx)
	if err != nil {
		w.block(now, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		return false
	}
	var again time.Time
	if w.volumes, again, err = w.dev.Volumes.Setup(ctx, w.w.pod); err != nil {
		w.block(now, "FailedMount", err.Error())
		return false
	}
	if w.again = again; !again.IsZero() {
		w.again = again.Add(-w.w.ahead) // it is in the cluster's time
	}
	w.blockErr = ""
	return true
}

// block puts the Pod off for a while, and tells why once.
func (w *Worker) block(now time.Time, reason, message string) {
	w.blocked = now.Add(2 * time.Second)
	if w.blockErr != message {
		w.blockErr = message
		w.dev.Event(w.w.pod, "", corev1.EventTypeWarning, reason, message)
	}
}

func (w *Worker) ensureSandbox(ctx context.Context) error {
	if w.boxReady {
		return nil
	}
	pod := w.w.pod
	name, _ := hostname(pod, w.dev.DNS.Domain)
	box, _, err := w.dev.Sandboxes.Ensure(w.uid, sandbox.Options{HostNetwork: pod.Spec.HostNetwork, HostIPC: pod.Spec.HostIPC, Hostname: name})
	if err != nil {
		return err
	}
	w.box = box
	if pod.Spec.HostNetwork {
		w.podIPs = []string{w.dev.HostIP()}
	} else if w.podIPs, err = w.dev.Network.Attach(ctx, pod, box.Net); err != nil {
		return err
	}
	dir := w.dev.Volumes.PodRunDir(w.uid)
	hosts, err := hostsFile(pod, w.podIPs, w.dev.DNS.Domain)
	if err != nil {
		return err
	}
	if err := writeIfChanged(filepath.Join(dir, "etc-hosts"), hosts); err != nil {
		return err
	}
	resolv, err := resolvConf(pod, w.dev.DNS)
	if err != nil {
		return err
	}
	if err := writeIfChanged(filepath.Join(dir, "resolv.conf"), resolv); err != nil {
		return err
	}
	if pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		if err := w.ensureHolder(ctx); err != nil {
			return err
		}
	}
	w.boxReady = true
	return nil
}

// holder is the name of the container that keeps a shared PID namespace.
const holder = "-pid-"

func (w *Worker) holderID() string { return containerID(w.uid, holder, 0) }

func (w *Worker) ensureHolder(ctx context.Context) error {
	for _, c := range w.dev.Engine.List() {
		if c.ID != w.holderID() {
			continue
		}
		if c.State == engine.Running {
			return nil
		}
		if err := w.dev.Engine.Delete(ctx, c.ID); err != nil {
			return err
		}
	}
	err := w.dev.Engine.Create(ctx, engine.ContainerSpec{
		ID: w.holderID(), Holder: true, CgroupParent: Group(w.uid), NetNSPath: w.box.Net, IPCNSPath: w.box.IPC, UTSNSPath: w.box.UTS,
		HostNetwork: w.w.pod.Spec.HostNetwork, HostIPC: w.w.pod.Spec.HostIPC, Seccomp: engine.Profile{Unconfined: true},
		Labels: map[string]string{labelPodName: w.w.pod.Name, labelPodNamespace: w.w.pod.Namespace, labelPodUID: w.uid, labelContainer: holder},
	})
	if err != nil {
		return err
	}
	return w.dev.Engine.Start(ctx, w.holderID())
}

func (w *Worker) pidNS() string {
	for _, c := range w.dev.Engine.List() {
		if c.ID == w.holderID() && c.State == engine.Running {
			return fmt.Sprintf("/proc/%d/ns/pid", c.PID)
		}
	}
	return ""
}

func (w *Worker) facts() facts {
	if w.w.pod.Spec.HostNetwork && len(w.podIPs) > 0 {
		w.podIPs = []string{w.dev.HostIP()} // the device may have another by now
	}
	f := facts{hostIP: w.dev.HostIP(), podIPs: w.podIPs, sandbox: w.boxReady && w.volumes != nil && !w.tidied, started: w.began.Add(w.w.ahead), images: map[string]engine.Image{}, messages: w.message}
	for name, m := range w.mem {
		if m.image != nil {
			f.images[name] = *m.image
		}
	}
	return f
}

// tell reports a status that changed.
func (w *Worker) tell(s corev1.PodStatus) {
	if w.last != nil && apiequality.Semantic.DeepEqual(*w.last, s) {
		return
	}
	w.last = &s
	w.report(w.w.pod, s)
}

// reader keeps a nil stream from becoming an interface that is not nil.
func reader(r io.ReadCloser) io.Reader {
	if r == nil {
		return nil
	}
	return r
}

// Log returns the writer of a running container's log, to attach to.
func (w *Worker) Log(ctx context.Context, container string) (*podlog.Writer, error) {
	got := make(chan *podlog.Writer, 1)
	w.later(func() {
		if m := w.mem[container]; m != nil {
			got <- m.log
			return
		}
		got <- nil
	})
	select {
	case l := <-got:
		if l == nil {
			return nil, fmt.Errorf("container %s is not running", container)
		}
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
