package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
	"edged/runtime/engine"
	"edged/runtime/pod"
)

// Events is where the engine tells of containers that ended.
type Events interface{ Events() <-chan engine.Event }

// Leftovers are what earlier Pods may have left on the device.
type Leftovers interface {
	// Keep removes everything that belongs to no Pod of uids.
	Keep(ctx context.Context, uids []string) error
}

// Config is what an Agent needs.
type Config struct {
	NodeName  string
	Registry  *registry.Registry
	Device    *pod.Device
	Events    Events
	Leftovers []Leftovers
	Logger    *slog.Logger
}

// Agent runs this device's Pods.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	pods registry.Client[*corev1.Pod]
	wake chan struct{}
	out  *statusWriter

	mu sync.Mutex
	// guarded by mu
	changed map[string]*corev1.Pod // by uid, newest wins; nil: gone from the cluster
	workers map[string]*worker     // by uid
	byName  map[string]string      // namespace/name -> uid
}

type worker struct {
	*pod.Worker
	pod *corev1.Pod // newest
	// refused says that the Pod was not let begin.
	refused bool
}

// New returns an agent; Run starts it.
func New(cfg Config) *Agent {
	a := &Agent{
		cfg: cfg, log: cfg.Logger, pods: registry.For[*corev1.Pod](cfg.Registry), wake: make(chan struct{}, 1),
		changed: map[string]*corev1.Pod{}, workers: map[string]*worker{}, byName: map[string]string{},
	}
	a.out = newStatusWriter(a.pods, cfg.Logger)
	return a
}

// Run keeps the device's Pods running until ctx ends. Containers stay.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { a.out.run(ctx) })
	wg.Go(func() { a.readEvents(ctx) })
	defer a.pods.Subscribe(a.podChanged)()
	// The replica has shown everything it holds: what is left over is nobody's.
	a.removeLeftovers(ctx)
	defer registry.For[*corev1.ConfigMap](a.cfg.Registry).Subscribe(func(e registry.Event[*corev1.ConfigMap]) {
		a.objectChanged(e.Object.Namespace, func(p *corev1.Pod) bool { return usesConfigMap(p, e.Object.Name) })
	})()
	defer registry.For[*corev1.Secret](a.cfg.Registry).Subscribe(func(e registry.Event[*corev1.Secret]) {
		a.objectChanged(e.Object.Namespace, func(p *corev1.Pod) bool { return usesSecret(p, e.Object.Name) })
	})()
	defer registry.For[*corev1.PersistentVolumeClaim](a.cfg.Registry).Subscribe(func(e registry.Event[*corev1.PersistentVolumeClaim]) {
		a.objectChanged(e.Object.Namespace, func(p *corev1.Pod) bool { return claims.Uses(p, e.Object) })
	})()
	defer registry.For[*certificatesv1.ClusterTrustBundle](a.cfg.Registry).Subscribe(func(e registry.Event[*certificatesv1.ClusterTrustBundle]) {
		a.objectChanged("", func(p *corev1.Pod) bool { return usesTrustBundle(p, e.Object) })
	})()
	defer registry.For[*certificatesv1.PodCertificateRequest](a.cfg.Registry).Subscribe(func(e registry.Event[*certificatesv1.PodCertificateRequest]) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if w := a.workers[string(e.Object.Spec.PodUID)]; w != nil {
			w.Retry()
		}
	})()
	for {
		a.feed(ctx, &wg)
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
	}
}

// podChanged runs on the cache's goroutine: it notes the Pod and returns.
func (a *Agent) podChanged(e registry.Event[*corev1.Pod]) {
	p := e.Object
	if p.Spec.NodeName != a.cfg.NodeName {
		return
	}
	a.mu.Lock()
	if e.Type == watch.Deleted {
		a.changed[string(p.UID)] = nil
	} else {
		a.changed[string(p.UID)] = p
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// objectChanged has the Pods that use an object look again; ns is empty for one that
// is in no namespace.
func (a *Agent) objectChanged(ns string, uses func(*corev1.Pod) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		if (ns == "" || w.pod.Namespace == ns) && uses(w.pod) {
			w.Retry()
		}
	}
}

// feed hands what changed to the workers, and starts those of new Pods.
func (a *Agent) feed(ctx context.Context, wg *sync.WaitGroup) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, p := range a.changed {
		w := a.workers[uid]
		switch {
		case p == nil && w == nil:
		case p == nil:
			// Deleted by force: the object is gone, its containers are not.
			w.Update(vanished(w.pod))
		case w == nil:
			a.start(ctx, wg, p)
		default:
			w.pod = p
			w.Update(p)
		}
	}
	clear(a.changed)
}

// vanished is a Pod whose object is gone: it ends, with little grace.
func vanished(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	now, grace := metav1.Now(), int64(1)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	return p
}

func (a *Agent) start(ctx context.Context, wg *sync.WaitGroup, p *corev1.Pod) {
	uid := string(p.UID)
	w := &worker{Worker: pod.NewWorker(a.cfg.Device, p, a.out.set), pod: p}
	w.Update(p)
	if reason, message := refused(p, a.accepted()); reason != "" {
		w.refused = true
		a.cfg.Device.Event(p, "", corev1.EventTypeWarning, reason, message)
		w.End(0, reason, message)
	}
	a.workers[uid] = w
	a.byName[p.Namespace+"/"+p.Name] = uid
	wg.Go(func() {
		if !w.Run(ctx) {
			return
		}
		a.mu.Lock()
		last := w.pod
		delete(a.workers, uid)
		if name := last.Namespace + "/" + last.Name; a.byName[name] == uid {
			delete(a.byName, name)
		}
		a.mu.Unlock()
		a.out.remove(last)
	})
}

// accepted are the Pods of the device that were let begin; mu is held.
func (a *Agent) accepted() []*corev1.Pod {
	out := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		if !w.refused {
			out = append(out, w.pod)
		}
	}
	return out
}

// readEvents pokes the worker of each container that ended.
func (a *Agent) readEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-a.cfg.Events.Events():
			if !ok {
				return
			}
			a.containerEnded(e)
		}
	}
}

func (a *Agent) containerEnded(e engine.Event) {
	uid := ""
	if e.Type == engine.EventExit {
		for _, c := range a.cfg.Device.Engine.List() {
			if c.ID == e.ID {
				uid, _, _ = pod.Owner(c)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[uid]; w != nil {
		w.Poke()
		return
	}
	if e.Type == engine.EventResync {
		for _, w := range a.workers {
			w.Poke()
		}
	}
}

// Refresh has every Pod's status looked at again: what the device says of itself
// in it has changed.
func (a *Agent) Refresh() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		w.Poke()
	}
}

// removeLeftovers stops containers that belong to no Pod of this device, and
// removes what such Pods left.
func (a *Agent) removeLeftovers(ctx context.Context) {
	var uids []string
	known := map[string]bool{}
	for _, p := range a.pods.ByIndex(registry.IndexNode, a.cfg.NodeName) {
		uids = append(uids, string(p.UID))
		known[string(p.UID)] = true
	}
	for _, c := range a.cfg.Device.Engine.List() {
		uid, ns, name := pod.Owner(c)
		if known[uid] {
			continue
		}
		a.log.Info("a container that no Pod wants is removed", "pod", ns+"/"+name, "container", c.ID)
		if err := a.cfg.Device.Engine.Delete(ctx, c.ID); err != nil && !errors.Is(err, engine.ErrNotFound) {
			a.log.Error("a container that no Pod wants is still there", "container", c.ID, "err", err)
		}
	}
	for _, l := range a.cfg.Leftovers {
		if err := l.Keep(ctx, uids); err != nil {
			a.log.Error("leftovers of Pods are still there", "err", err)
		}
	}
}

// Pods lists the Pods that the device runs, or ends; they are shared.
func (a *Agent) Pods() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w.pod)
	}
	return out
}

// Report lists the Pods that the device runs, or ends, by namespace and name, with
// their statuses as it knows them, also if the cluster has not taken them yet. They
// are shared.
func (a *Agent) Report() []*corev1.Pod {
	pods := a.Pods()
	for i, p := range pods {
		if status, ok := a.out.unsent(p.UID); ok {
			current := *p
			current.Status = merge(p.Status, status)
			pods[i] = &current
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(string(a.UID), string(b.UID)))
	})
	return pods
}

// evictGrace in seconds is what a Pod gets that is ended for want of memory or
// disk: the kubelet's for hard thresholds.
const evictGrace = 1

// Evict ends a Pod for good because the device is short of something (disrupted), or
// because the Pod uses more of the disk than it may.
func (a *Agent) Evict(uid, message string, disrupted bool) {
	a.mu.Lock()
	w := a.workers[uid]
	if w == nil {
		a.mu.Unlock()
		return
	}
	p := w.pod
	a.mu.Unlock()
	a.cfg.Device.Event(p, "", corev1.EventTypeWarning, pod.Evicted, message)
	w.Evict(evictGrace, message, disrupted)
}

// Find returns the Pod and its worker, for requests that people make about it.
func (a *Agent) Find(namespace, name string) (*corev1.Pod, *pod.Worker, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.workers[a.byName[namespace+"/"+name]]
	if w == nil {
		return nil, nil, false
	}
	return w.pod, w.Worker, true
}
