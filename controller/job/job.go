package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

const (
	// gather is how long changes of Pods are gathered: those of one Job tend to
	// end together, and each status written costs flash. Upstream waits a second.
	gather = 100 * time.Millisecond
	// orphanPrefix begins the key of a Pod whose Job may be gone.
	orphanPrefix = "orphan|"
)

type controller struct {
	env     loop.Env
	jobs    registry.Client[*batchv1.Job]
	control podset.Control
	queue   *loop.Queue

	mu       sync.Mutex
	backoffs map[types.UID]Backoff // of Jobs that failed and are not over
}

// Run is the Job controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:      env,
		jobs:     registry.For[*batchv1.Job](env.Registry),
		control:  podset.Control{Pods: registry.For[*corev1.Pod](env.Registry), Events: env.Events.Component("job-controller")},
		backoffs: map[types.UID]Backoff{},
	}
	c.queue = loop.NewQueue(loop.Config{Name: "job", Reconcile: c.sync, Logger: env.Logger})
	defer c.jobs.Subscribe(c.onJob)()
	defer c.control.Pods.Subscribe(c.onPod)()
	return c.queue.Run(ctx)
}

func (c *controller) onJob(e registry.Event[*batchv1.Job]) {
	c.queue.Add(loop.KeyOf(e.Object))
	if e.Type != watch.Deleted {
		return
	}
	for _, p := range c.control.Pods.ByIndex(registry.IndexOwner, string(e.Object.UID)) {
		if isTracked(p) {
			c.queue.Add(orphanPrefix + loop.KeyOf(p))
		}
	}
}

func (c *controller) onPod(e registry.Event[*corev1.Pod]) {
	later := func(key string) { c.queue.AddAfter(key, gather) }
	podset.Keys(e, Kind.Kind, podset.Selecting(c.jobs, func(j *batchv1.Job) labels.Selector { return podset.Selector(j.Spec.Selector) }), later)
	if e.Type != watch.Deleted && isTracked(e.Object) && c.isOrphan(e.Object) {
		c.queue.Add(orphanPrefix + loop.KeyOf(e.Object))
	}
}

// isOrphan reports whether no Job counts the Pod's end any more.
func (c *controller) isOrphan(p *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return true
	}
	if ref.Kind != Kind.Kind || ref.APIVersion != Kind.GroupVersion().String() {
		return false
	}
	job, ok := c.jobs.Get(p.Namespace, ref.Name)
	if !ok || job.UID != ref.UID {
		return true
	}
	_, finished := IsFinished(job)
	return finished && !isForeign(job)
}

// isForeign reports whether another controller runs the Job.
func isForeign(job *batchv1.Job) bool {
	return ptr.Deref(job.Spec.ManagedBy, batchv1.JobControllerName) != batchv1.JobControllerName
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if pod, ok := strings.CutPrefix(key, orphanPrefix); ok {
		ns, name := loop.SplitKey(pod)
		if p, ok := c.control.Pods.Get(ns, name); ok && isTracked(p) && c.isOrphan(p) {
			return 0, c.untrack(ctx, p)
		}
		return 0, nil
	}
	ns, name := loop.SplitKey(key)
	job, ok := c.jobs.Get(ns, name)
	if !ok {
		c.forgetGone()
		return 0, nil
	}
	if isForeign(job) {
		return 0, nil
	}
	if end, finished := IsFinished(job); finished {
		c.setBackoff(job, Backoff{})
		return c.expire(ctx, job, end)
	}
	return c.advance(ctx, job)
}

// advance takes a step of a Job that is not over.
func (c *controller) advance(ctx context.Context, job *batchv1.Job) (time.Duration, error) {
	claim := podset.Match(job, podset.Selector(job.Spec.Selector), c.control.Pods.List(job.Namespace))
	claim.Finalizer = batchv1.JobTrackingFinalizer
	pods, err := claim.Apply(ctx, c.control.Pods, job, *metav1.NewControllerRef(job, Kind))
	if err != nil {
		return 0, err
	}
	plan := Reconcile(World{Job: job, Pods: pods, Backoff: c.backoff(job), Now: c.env.Now()})
	failure := c.perform(ctx, job, plan)
	accounts := Account(plan, c.pods(job), failure == nil)
	written, err := c.writeStatus(ctx, job, accounts.Status)
	if err != nil || written == nil {
		return plan.Again, errors.Join(failure, err)
	}
	c.setBackoff(job, plan.Backoff)
	c.tell(job, accounts.Events)
	_, err = podset.Each(len(accounts.Release), func(i int) error { return c.untrack(ctx, accounts.Release[i]) })
	status, events := accounts.Settle(c.pods(job))
	_, settling := c.writeStatus(ctx, written, status)
	if settling == nil {
		c.tell(job, events)
	}
	return plan.Again, errors.Join(failure, err, settling)
}

// pods are the Job's Pods as they are now.
func (c *controller) pods(job *batchv1.Job) []*corev1.Pod {
	return podset.Match(job, podset.Selector(job.Spec.Selector), c.control.Pods.ByIndex(registry.IndexOwner, string(job.UID))).Mine
}

func (c *controller) tell(job *batchv1.Job, events []Event) {
	about := recorder.Reference(Kind.GroupVersion().String(), Kind.Kind, job, "")
	for _, e := range events {
		c.control.Events.Event(about, e.Type, e.Reason, e.Message)
	}
}

// perform makes and deletes Pods. A namespace that is being deleted is no
// failure.
func (c *controller) perform(ctx context.Context, job *batchv1.Job, plan Plan) error {
	about := recorder.Reference(Kind.GroupVersion().String(), Kind.Kind, job, "")
	var errs []error
	if len(plan.Drop) > 0 {
		_, err := podset.Each(len(plan.Drop), func(i int) error {
			if err := c.untrack(ctx, plan.Drop[i]); err != nil {
				return err
			}
			return c.control.Delete(ctx, plan.Drop[i], about)
		})
		errs = append(errs, err)
	}
	if len(plan.Delete) > 0 {
		_, err := podset.Each(len(plan.Delete), func(i int) error { return c.control.Delete(ctx, plan.Delete[i], about) })
		errs = append(errs, err)
	}
	next := make(chan *corev1.Pod, len(plan.Create))
	for _, p := range plan.Create {
		next <- p
	}
	_, err := podset.SlowStart(len(plan.Create), func() error {
		_, err := c.control.Create(ctx, <-next, about)
		if err != nil && podset.IsNamespaceEnding(err) {
			return nil
		}
		return err
	})
	return errors.Join(append(errs, err)...)
}

// untrack takes the finalizer from a Pod.
func (c *controller) untrack(ctx context.Context, p *corev1.Pod) error {
	_, err := c.control.Pods.Update(ctx, p.Namespace, p.Name, func(cur *corev1.Pod) error {
		if cur.UID == p.UID {
			cur.Finalizers = slices.DeleteFunc(cur.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
		}
		return nil
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("taking the finalizer from Pod %s: %w", p.Name, err)
	}
	return nil
}

// writeStatus writes over the state that the status was made from, and nothing
// newer; nil if the Job is gone.
func (c *controller) writeStatus(ctx context.Context, job *batchv1.Job, status batchv1.JobStatus) (*batchv1.Job, error) {
	out, err := c.jobs.UpdateStatus(ctx, job.Namespace, job.Name, func(cur *batchv1.Job) error {
		if cur.UID != job.UID || cur.ResourceVersion != job.ResourceVersion {
			return apierrors.NewConflict(batchv1.Resource("jobs"), job.Name, errors.New("it was changed after it was read"))
		}
		cur.Status = status
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return out, err
}

// expire deletes a finished Job when its time to live is over, and lets go of
// Pods that it had not seen.
func (c *controller) expire(ctx context.Context, job *batchv1.Job, end *batchv1.JobCondition) (time.Duration, error) {
	for _, p := range c.pods(job) {
		if isTracked(p) {
			if err := c.untrack(ctx, p); err != nil {
				return 0, err
			}
		}
	}
	left, ok := untilExpiry(job, end, c.env.Now())
	if !ok || left > 0 {
		return left, nil
	}
	err := c.jobs.Delete(ctx, job.Namespace, job.Name, metav1.DeleteOptions{
		Preconditions:     &metav1.Preconditions{UID: &job.UID, ResourceVersion: &job.ResourceVersion},
		PropagationPolicy: ptr.To(metav1.DeletePropagationForeground),
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return 0, err
}

// untilExpiry is the time that a finished Job has left, if it is limited.
func untilExpiry(job *batchv1.Job, end *batchv1.JobCondition, now time.Time) (left time.Duration, ok bool) {
	ttl := job.Spec.TTLSecondsAfterFinished
	if ttl == nil || job.DeletionTimestamp != nil {
		return 0, false
	}
	return end.LastTransitionTime.Add(time.Duration(*ttl) * time.Second).Sub(now), true
}

func (c *controller) backoff(job *batchv1.Job) Backoff {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.backoffs[job.UID]
}

func (c *controller) setBackoff(job *batchv1.Job, b Backoff) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b == (Backoff{}) {
		delete(c.backoffs, job.UID)
	} else {
		c.backoffs[job.UID] = b
	}
}

// forgetGone drops the records of Jobs that are gone.
func (c *controller) forgetGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.backoffs) == 0 {
		return
	}
	there := map[types.UID]bool{}
	for _, j := range c.jobs.List("") {
		there[j.UID] = true
	}
	for uid := range c.backoffs {
		if !there[uid] {
			delete(c.backoffs, uid)
		}
	}
}
