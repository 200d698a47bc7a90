// Package recorder writes Events: what a person sees below `kubectl describe`.
//
// It is not a log and not a bus: nothing in edged reads Events. Each is a write
// to every device's flash, so the bounds are part of the promise: equal Events
// of an object within ten minutes are one object whose count grows; more than
// ten of one reason that differ in their message are combined into one; and a
// component writes at most 25 about one object and then one every five minutes,
// upstream's limits (client-go/tools/record). One object therefore costs at
// most 25 + 12 × hours writes of about 1 KB per component: 300 KB a day for an
// object that never comes to rest. A full queue or a store without a quorum
// drops Events.
//
// Types: a [Recorder] writes as one component; [Recorder.Component] gives
// another component's view of the same queue. [Recorder.Event] never blocks and
// may be called from any goroutine. Goroutines: [Recorder.Run] is one, owned by
// the caller, asleep without Events, ended by its context.
//
// May be imported by controller, scheduler, runtime and cmd/edged.
package recorder

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

const (
	queueLength   = 256
	sameWithin    = 10 * time.Minute
	burst         = 25
	refill        = 5 * time.Minute
	maxRemembered = 1024
	// maxSimilar is how many messages of one reason an object may have within
	// sameWithin before they are combined.
	maxSimilar     = 10
	combinedPrefix = "(combined from similar events): "
)

// Recorder writes the Events of one component of one device.
type Recorder struct {
	component string
	host      string
	*writer
}

// writer is what the components' views share.
type writer struct {
	events registry.Client[*corev1.Event]
	now    func() time.Time // of what is written
	log    *slog.Logger
	queue  chan request

	// owned by Run
	known   map[key]seen
	similar map[key]group // by key without a message
	budgets map[subject]budget
}

type request struct {
	component, host            string
	about                      corev1.ObjectReference
	eventType, reason, message string
	at, stamp                  time.Time // by this device, in the cluster's time
}

// subject is an object and the component that reports on it.
type subject struct {
	component string
	about     corev1.ObjectReference
}

type key struct {
	subject
	eventType, reason, message string
}

// group counts the different messages of one reason.
type group struct {
	messages map[string]bool
	at       time.Time
}

type seen struct {
	name string
	at   time.Time
}

type budget struct {
	tokens float64
	at     time.Time
}

// New returns the recorder of component, e.g. "kubelet", on host ("" for one
// that belongs to no device).
func New(r *registry.Registry, component, host string, log *slog.Logger) *Recorder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Recorder{component: component, host: host, writer: &writer{
		events: registry.For[*corev1.Event](r), now: r.Now, log: log, queue: make(chan request, queueLength),
		known: map[key]seen{}, similar: map[key]group{}, budgets: map[subject]budget{},
	}}
}

// Component returns a recorder of another component that shares r's queue.
func (r *Recorder) Component(name string) *Recorder {
	return &Recorder{component: name, host: r.host, writer: r.writer}
}

// Reference names an object in an Event. fieldPath may be "", or tell a part
// such as spec.containers{web}.
func Reference(apiVersion, kind string, o metav1.Object, fieldPath string) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: apiVersion, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(),
		ResourceVersion: o.GetResourceVersion(), FieldPath: fieldPath,
	}
}

// Event queues an Event about an object. eventType is Normal or Warning.
func (r *Recorder) Event(about corev1.ObjectReference, eventType, reason, message string) {
	select {
	case r.queue <- request{r.component, r.host, about, eventType, reason, message, time.Now(), r.now()}:
	default:
		r.log.Debug("an event was dropped: too many at once", "object", about.Name, "reason", reason)
	}
}

// Eventf is Event with a format.
func (r *Recorder) Eventf(about corev1.ObjectReference, eventType, reason, format string, args ...any) {
	r.Event(about, eventType, reason, fmt.Sprintf(format, args...))
}

// Run writes what is queued until ctx ends.
func (w *writer) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case req := <-w.queue:
			if err := w.write(ctx, req); err != nil && ctx.Err() == nil {
				w.log.Debug("an event was not written", "object", req.about.Name, "reason", req.reason, "err", err)
			}
		}
	}
}

func (w *writer) write(ctx context.Context, req request) error {
	k := key{subject{req.component, req.about}, req.eventType, req.reason, req.message}
	k.about.ResourceVersion = ""
	k, req.message = w.combine(k, req)
	who := k.subject
	who.about.FieldPath = ""
	if !w.spend(who, req.at) {
		return nil
	}
	ns := req.about.Namespace
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	if s, ok := w.known[k]; ok && req.at.Sub(s.at) < sameWithin {
		_, err := w.events.Update(ctx, ns, s.name, func(e *corev1.Event) error {
			e.Count++
			e.LastTimestamp = metav1.NewTime(req.stamp)
			e.Message = req.message
			return nil
		})
		if err == nil {
			w.known[k] = seen{s.name, req.at}
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	name := fmt.Sprintf("%s.%x", req.about.Name, req.stamp.UnixNano())
	_, err := w.events.Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: ns},
		InvolvedObject: req.about, Type: req.eventType, Reason: req.reason, Message: req.message,
		FirstTimestamp: metav1.NewTime(req.stamp), LastTimestamp: metav1.NewTime(req.stamp), Count: 1,
		Source:              corev1.EventSource{Component: req.component, Host: req.host},
		ReportingController: req.component, ReportingInstance: req.host,
	})
	if err != nil {
		return err
	}
	w.remember(k, seen{name, req.at})
	return nil
}

// combine gives the Event its own message, or the common one once an object
// had too many different ones of a reason.
func (w *writer) combine(k key, req request) (key, string) {
	all := k
	all.message = ""
	g, ok := w.similar[all]
	if !ok || req.at.Sub(g.at) >= sameWithin {
		if len(w.similar) >= maxRemembered {
			clear(w.similar)
		}
		g = group{messages: map[string]bool{}}
	}
	g.at = req.at
	if len(g.messages) < maxSimilar {
		g.messages[req.message] = true
	}
	w.similar[all] = g
	if len(g.messages) >= maxSimilar && !g.messages[req.message] {
		return all, combinedPrefix + req.message
	}
	return k, req.message
}

// remember bounds what is known by forgetting what is too old to matter, or
// all of it.
func (w *writer) remember(k key, s seen) {
	if len(w.known) >= maxRemembered {
		for k, old := range w.known {
			if s.at.Sub(old.at) >= sameWithin {
				delete(w.known, k)
			}
		}
		if len(w.known) >= maxRemembered {
			clear(w.known)
		}
	}
	w.known[k] = s
}

// spend takes one Event from the object's budget.
func (w *writer) spend(who subject, now time.Time) bool {
	b, ok := w.budgets[who]
	if !ok {
		if len(w.budgets) >= maxRemembered {
			clear(w.budgets)
		}
		b = budget{burst, now}
	}
	b.tokens = min(burst, b.tokens+now.Sub(b.at).Seconds()/refill.Seconds())
	b.at = now
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	w.budgets[who] = b
	return allowed
}
