package policy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/net/nft"
)

const (
	// restBetween bounds the transactions of a burst.
	restBetween = 20 * time.Millisecond
	// checkEvery is how long a stranger's `nft flush ruleset` stays unnoticed.
	checkEvery = 30 * time.Second
	// retryAfter an error.
	retryAfter = 5 * time.Second
)

// Config is what an Enforcer needs.
type Config struct {
	NodeName string
	Table    *nft.Table
	// Local are the addresses of the Pods that are attached now, by UID; nil
	// leaves only what their status says.
	Local  func() map[string][]netip.Addr
	Logger *slog.Logger
}

// Enforcer keeps the rules of this device.
type Enforcer struct {
	// Set by New.
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // holds one

	started chan struct{} // closed when read may be used
	read    func() State  // set before

	mu   sync.Mutex // guards the following, and serializes transactions
	last string     // the rules applied last, in short; empty: unknown
}

// New prepares an enforcer; nothing is applied yet.
func New(cfg Config) *Enforcer {
	e := &Enforcer{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), started: make(chan struct{})}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e
}

// Apply makes the kernel enforce s and nothing else. On error it enforces what
// it enforced before.
func (e *Enforcer) Apply(s State) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.apply(s)
}

// follow applies the state of now: read with the lock held, so that nobody's older one
// comes after it.
func (e *Enforcer) follow() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.apply(e.read())
}

// apply is Apply with mu held.
func (e *Enforcer) apply(s State) error {
	rules := Translate(e.cfg.NodeName, s)
	text := rules.String()
	if sum := hash(text); sum == e.last {
		return nil
	} else if err := e.cfg.Table.Apply(section, rules); err != nil {
		e.last = ""
		return fmt.Errorf("network policy: %w", err)
	} else {
		e.last = sum
	}
	return nil
}

// Protect returns when the policies that select a Pod of this device are in
// force for the addresses that it has just been given. Its containers may start
// then.
func (e *Enforcer) Protect(ctx context.Context, p *corev1.Pod) error {
	select {
	case <-e.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !slices.ContainsFunc(e.read().Policies, func(np *networkingv1.NetworkPolicy) bool {
		return np.Namespace == p.Namespace && selector(&np.Spec.PodSelector).Matches(labels.Set(p.Labels))
	}) {
		return nil
	}
	return e.follow()
}

// Run keeps the rules in step with the registry until ctx ends. They stay when
// it returns.
func (e *Enforcer) Run(ctx context.Context, reg *registry.Registry) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	policies, namespaces, pods := registry.For[*networkingv1.NetworkPolicy](reg), registry.For[*corev1.Namespace](reg), registry.For[*corev1.Pod](reg)
	e.read = func() State {
		s := State{Policies: policies.List("")}
		if len(s.Policies) == 0 {
			return s // the rest does not matter
		}
		s.Namespaces, s.Pods = namespaces.List(""), pods.List("")
		if e.cfg.Local != nil {
			s.Local = e.cfg.Local()
		}
		return s
	}
	close(e.started)
	defer policies.Subscribe(func(registry.Event[*networkingv1.NetworkPolicy]) { e.poke() })()
	defer namespaces.Subscribe(func(ev registry.Event[*corev1.Namespace]) {
		if ev.Type == watch.Deleted || ev.Old == nil || !maps.Equal(ev.Old.Labels, ev.Object.Labels) {
			e.poke()
		}
	})()
	defer pods.Subscribe(func(ev registry.Event[*corev1.Pod]) {
		if ev.Type == watch.Deleted || ev.Old == nil || !samePod(ev.Old, ev.Object) {
			e.poke()
		}
	})()
	e.poke() // the first time without any event
	e.loop(ctx)
	return nil
}

func (e *Enforcer) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // one is pending already
	}
}

// samePod says whether two versions of a Pod mean the same to policies.
func samePod(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName && a.Status.Phase == b.Status.Phase &&
		slices.Equal(a.Status.PodIPs, b.Status.PodIPs) && maps.Equal(a.Labels, b.Labels)
}

func (e *Enforcer) loop(ctx context.Context) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			if e.intact() {
				continue
			}
			e.log.Warn("packet filter rules of network policies were removed by somebody else and are put back")
		case <-retry:
		case <-e.wake:
		}
		failing := retry != nil
		retry = nil
		if err := e.follow(); err != nil {
			if !failing { // once, however often it is tried
				e.log.Error("network policies not updated; trying again", "every", retryAfter, "err", err)
			}
			retry = time.After(retryAfter)
		} else if failing {
			e.log.Info("network policies updated again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(restBetween):
		}
	}
}

// intact says whether the kernel still has the rules. When it cannot be asked,
// the next time has to do.
func (e *Enforcer) intact() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == "" {
		return true // being retried
	}
	ok, err := e.cfg.Table.Intact(section)
	if err == nil && !ok {
		e.last = ""
	}
	return ok || err != nil
}
