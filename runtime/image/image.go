// Package image decides when an image is pulled and what is said about it: pull
// policy, back-off, and Kubernetes' reasons and messages.
//
// It does not fetch or store anything (runtime/engine does), and knows no Pods
// beyond a key for the back-off.
//
// # Types
//
// A [Puller] answers a [Request] with an image or an [Error], whose Reason and
// Message go into a container's waiting state as they are.
//
// # Promises
//
//   - At most one pull of an image with the same credentials is under way; who
//     else wants it waits for that one. Pulls of different images never wait for
//     each other.
//   - A pull goes on as long as somebody waits for it and ends when the last one
//     has left.
//   - A failed pull is not repeated for the same Pod before its back-off is over
//     (10 s, doubling to 5 min, as the kubelet's); asking meanwhile returns at
//     once with the last error.
//
// # Dangers
//
// Ensure blocks for as long as a pull takes: give it a context that ends with the
// Pod.
//
// # Goroutines
//
// One per pull under way; it ends with the pull or with the last caller.
//
// May be imported by runtime/* and cmd/edged. Source: kubelet's
// pkg/kubelet/images/image_manager.go, whose words are the contract.
package image

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
)

// Reasons of an [Error]; kubectl shows them as the Pod's status.
const (
	ReasonPull        = "ErrImagePull"
	ReasonBackOff     = "ImagePullBackOff"
	ReasonNeverPull   = "ErrImageNeverPull"
	ReasonInvalidName = "InvalidImageName"
	ReasonInspect     = "ImageInspectError"
)

// Reasons of the events that go with a [Request].
const (
	EventPulling   = "Pulling"
	EventPulled    = "Pulled"
	EventFailed    = "Failed"
	EventBackOff   = "BackOff"
	EventNeverPull = "ErrImageNeverPull"
	EventInspect   = "InspectFailed"
)

const (
	initialBackOff = 10 * time.Second
	maxBackOff     = 300 * time.Second
	// forgetAfter an attempt its failure no longer counts.
	forgetAfter = 2 * maxBackOff
)

// Error is why there is no image yet.
type Error struct {
	Reason, Message string
	// RetryAfter is how long the same request would fail without being tried.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Engine is what a Puller needs of runtime/engine.
type Engine interface {
	Image(ctx context.Context, ref string) (engine.Image, bool, error)
	Pull(ctx context.Context, ref string, opts engine.PullOptions) (engine.Image, error)
}

// Config of a Puller.
type Config struct {
	Engine   Engine
	HostsDir string // containerd's certs.d; "" for none
	// Registries finds the registries.yaml to use now; may be nil.
	Registries func() string
	Source     engine.Source    // other devices; nil for none
	Clock      func() time.Time // default time.Now
}

// Request is one container's wish for an image.
type Request struct {
	PodUID string
	Image  string
	Policy corev1.PullPolicy
	// Auth finds the credentials for a registry, to be tried in turn; nil is
	// anonymous. AuthKey tells apart requests whose credentials differ: they share no
	// pull.
	Auth    func(host string) []engine.Auth
	AuthKey string
	// Event receives what the kubelet would record: corev1.EventTypeNormal or
	// Warning, a reason and a message. May be nil.
	Event func(eventType, reason, message string)
}

func (r Request) event(eventType, reason, message string) {
	if r.Event != nil {
		r.Event(eventType, reason, message)
	}
}

// Puller gets images. Its methods are safe for concurrent use.
type Puller struct {
	cfg Config

	mu       sync.Mutex
	flights  map[flightKey]*flight
	failures map[string]failure // PodUID_image
}

// flightKey: a pull that has to ask the registry what the name means is not one
// that takes what other devices have.
type flightKey struct {
	image, auth string
	fresh       bool
}

func (r Request) flight() flightKey {
	return flightKey{r.Image, r.AuthKey, r.Policy == corev1.PullAlways}
}

// flight is one pull that one or many wait for.
type flight struct {
	cancel  context.CancelFunc
	waiters int // guarded by Puller.mu
	done    chan struct{}
	// img, err and took are set before done is closed.
	img  engine.Image
	err  error
	took time.Duration
}

// failure is the back-off of one image for one Pod.
type failure struct {
	at      time.Time
	backOff time.Duration
	message string
}

// New makes a Puller.
func New(cfg Config) *Puller {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Puller{cfg: cfg, flights: map[flightKey]*flight{}, failures: map[string]failure{}}
}

// Ensure returns the image of a request, pulled if its policy says so. An error is
// an [*Error], or the context's.
func (p *Puller) Ensure(ctx context.Context, r Request) (engine.Image, error) {
	if _, err := engine.NormalizeImageName(r.Image); err != nil {
		cause := strings.TrimPrefix(err.Error(), engine.ErrInvalidImageName.Error()+": ")
		msg := fmt.Sprintf("Failed to apply default image tag %q: %s", r.Image, cause)
		r.event(corev1.EventTypeWarning, EventInspect, msg)
		return engine.Image{}, &Error{Reason: ReasonInvalidName, Message: msg}
	}
	if r.Policy != corev1.PullAlways {
		img, found, err := p.present(ctx, r)
		if found || err != nil {
			return img, err
		}
	}
	if err := p.inBackOff(r); err != nil {
		r.event(corev1.EventTypeNormal, EventBackOff, fmt.Sprintf("Back-off pulling image %q", r.Image))
		return engine.Image{}, err
	}
	return p.pull(ctx, r)
}

func (p *Puller) present(ctx context.Context, r Request) (engine.Image, bool, error) {
	img, found, err := p.cfg.Engine.Image(ctx, r.Image)
	switch {
	case err != nil:
		msg := fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)
		r.event(corev1.EventTypeWarning, EventInspect, msg)
		return engine.Image{}, false, &Error{Reason: ReasonInspect, Message: msg}
	case found:
		r.event(corev1.EventTypeNormal, EventPulled,
			fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", r.Image))
	case r.Policy == corev1.PullNever:
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
		r.event(corev1.EventTypeWarning, EventNeverPull, msg)
		return engine.Image{}, false, &Error{Reason: ReasonNeverPull, Message: msg}
	}
	return img, found, nil
}

func (r Request) backOffKey() string { return r.PodUID + "_" + r.Image }

func (p *Puller) inBackOff(r Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.failures[r.backOffKey()]
	if !ok {
		return nil
	}
	left := f.at.Add(f.backOff).Sub(p.cfg.Clock())
	if left <= 0 {
		return nil
	}
	return &Error{
		Reason:     ReasonBackOff,
		Message:    fmt.Sprintf("Back-off pulling image %q: %s", r.Image, f.message),
		RetryAfter: left,
	}
}

func (p *Puller) pull(ctx context.Context, r Request) (engine.Image, error) {
	r.event(corev1.EventTypeNormal, EventPulling, fmt.Sprintf("Pulling image %q", r.Image))
	began := p.cfg.Clock()
	f := p.join(r)
	select {
	case <-f.done:
	case <-ctx.Done():
		p.leave(r, f)
		return engine.Image{}, context.Cause(ctx)
	}
	p.leave(r, f)
	if f.err != nil {
		r.event(corev1.EventTypeWarning, EventFailed, fmt.Sprintf("Failed to pull image %q: %v", r.Image, f.err))
		return engine.Image{}, p.failed(r, f.err)
	}
	p.mu.Lock()
	delete(p.failures, r.backOffKey())
	p.mu.Unlock()
	waited := p.cfg.Clock().Sub(began)
	r.event(corev1.EventTypeNormal, EventPulled, fmt.Sprintf(
		"Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
		r.Image, f.took.Truncate(time.Millisecond), waited.Truncate(time.Millisecond), f.img.SizeBytes))
	return f.img, nil
}

// join gives the pull under way for a request, or begins one.
func (p *Puller) join(r Request) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := r.flight()
	if f := p.flights[key]; f != nil {
		f.waiters++
		return f
	}
	// Not the first caller's context: others may come to wait.
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight{cancel: cancel, waiters: 1, done: make(chan struct{})}
	p.flights[key] = f
	go func() {
		began := p.cfg.Clock()
		opts := engine.PullOptions{HostsDir: p.cfg.HostsDir, Source: p.cfg.Source, Fresh: key.fresh}
		if p.cfg.Registries != nil {
			opts.Registries = p.cfg.Registries()
		}
		f.img, f.err = p.pullWith(ctx, r, opts)
		f.took = p.cfg.Clock().Sub(began)
		p.mu.Lock()
		if p.flights[key] == f {
			delete(p.flights, key)
		}
		p.mu.Unlock()
		close(f.done)
	}()
	return f
}

// pullWith tries one credential after the other, as long as there are more for a
// registry that was asked.
func (p *Puller) pullWith(ctx context.Context, r Request, opts engine.PullOptions) (engine.Image, error) {
	for n := 0; ; n++ {
		var more atomic.Bool
		if r.Auth != nil {
			opts.Auth = func(host string) engine.Auth {
				all := r.Auth(host)
				if len(all) > n+1 {
					more.Store(true)
				}
				if len(all) == 0 {
					return engine.Auth{}
				}
				return all[min(n, len(all)-1)]
			}
		}
		img, err := p.cfg.Engine.Pull(ctx, r.Image, opts)
		if err == nil || !more.Load() || ctx.Err() != nil {
			return img, err
		}
	}
}

// leave ends a pull that nobody waits for. Who comes afterwards begins another.
func (p *Puller) leave(r Request, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	f.cancel()
	if key := r.flight(); p.flights[key] == f {
		delete(p.flights, key)
	}
}

// failed notes the failure and begins or doubles the back-off.
func (p *Puller) failed(r Request, cause error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Clock()
	for key, f := range p.failures { // also what keeps the map small
		if now.Sub(f.at) > forgetAfter {
			delete(p.failures, key)
		}
	}
	e := &Error{Reason: ReasonPull, Message: cause.Error(), RetryAfter: initialBackOff}
	if last, again := p.failures[r.backOffKey()]; again {
		// Another container of the Pod may have waited for the same pull.
		if now.Sub(last.at) < last.backOff {
			e.RetryAfter = last.backOff
		} else {
			e.RetryAfter = min(2*last.backOff, maxBackOff)
		}
	}
	p.failures[r.backOffKey()] = failure{at: now, backOff: e.RetryAfter, message: e.Error()}
	return e
}

// Forget drops the back-offs of a Pod that is gone.
func (p *Puller) Forget(podUID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.failures {
		if strings.HasPrefix(key, podUID+"_") {
			delete(p.failures, key)
		}
	}
}
