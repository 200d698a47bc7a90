package cronjob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

type controller struct {
	env    loop.Env
	crons  registry.Client[*batchv1.CronJob]
	jobs   registry.Client[*batchv1.Job]
	events *recorder.Recorder

	mu sync.Mutex
	// since are the CronJobs whose times lie in a future that was a wrong clock,
	// and when that was seen.
	since map[types.UID]time.Time
}

// Run is the CronJob controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:    env,
		crons:  registry.For[*batchv1.CronJob](env.Registry),
		jobs:   registry.For[*batchv1.Job](env.Registry),
		events: env.Events.Component("cronjob-controller"),
		since:  map[types.UID]time.Time{},
	}
	q := loop.NewQueue(loop.Config{Name: "cronjob", Reconcile: c.sync, Logger: env.Logger})
	defer c.crons.Subscribe(func(e registry.Event[*batchv1.CronJob]) {
		if e.Type == watch.Deleted {
			c.forget(e.Object)
		}
		q.Add(loop.KeyOf(e.Object))
	})()
	defer c.jobs.Subscribe(func(e registry.Event[*batchv1.Job]) {
		if ref := metav1.GetControllerOfNoCopy(e.Object); ref != nil && ref.Kind == Kind.Kind && moves(e) {
			q.Add(loop.Key(e.Object.Namespace, ref.Name))
		}
	})()
	return q.Run(ctx)
}

// moves reports whether a Job's change is one that its CronJob cares for.
func moves(e registry.Event[*batchv1.Job]) bool {
	return e.Type != watch.Modified || finished(e.Old) != finished(e.Object) || e.Old.DeletionTimestamp.IsZero() != e.Object.DeletionTimestamp.IsZero()
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	cj, ok := c.crons.Get(ns, name)
	if !ok {
		return 0, nil
	}
	now := c.env.Now()
	var jobs []*batchv1.Job
	for _, job := range c.jobs.ByIndex(registry.IndexOwner, string(cj.UID)) {
		if metav1.IsControlledBy(job, cj) {
			jobs = append(jobs, job)
		}
	}
	plan := Reconcile(World{CronJob: cj, Jobs: jobs, Since: c.from(cj, now), Now: now})
	about := recorder.Reference(Kind.GroupVersion().String(), Kind.Kind, cj, "")
	for _, e := range plan.Events {
		c.events.Event(about, e.Type, e.Reason, e.Message)
	}
	failure := c.perform(ctx, cj, about, &plan)
	return plan.Again, errors.Join(failure, c.writeStatus(ctx, cj, plan.Status))
}

// from is Since with a memory for clocks that were wrong.
func (c *controller) from(cj *batchv1.CronJob, now time.Time) time.Time {
	since, ok := Since(cj, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		delete(c.since, cj.UID)
		return since
	}
	if seen, ok := c.since[cj.UID]; ok && !seen.After(now) {
		return seen
	}
	c.env.Logger.Warn("the last time of a CronJob is in the future; its times count from now", "cronjob", loop.KeyOf(cj), "last", since)
	c.since[cj.UID] = now
	return now
}

func (c *controller) forget(cj *batchv1.CronJob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.since, cj.UID)
}

// perform deletes and makes Jobs, and says so in the plan's status.
func (c *controller) perform(ctx context.Context, cj *batchv1.CronJob, about corev1.ObjectReference, plan *Plan) error {
	var errs []error
	for _, job := range slices.Concat(plan.Replace, plan.Delete) {
		if err := c.delete(ctx, about, job); err != nil {
			errs = append(errs, err)
			continue
		}
		plan.Status.Active = slices.DeleteFunc(plan.Status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == job.UID })
	}
	if err := errors.Join(errs...); err != nil || plan.Start == nil {
		return err
	}
	job, err := c.jobs.Create(ctx, newJob(cj, *plan.Start))
	switch {
	case err == nil:
		c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", job.Name)
	case podset.IsNamespaceEnding(err):
		return nil
	case apierrors.IsAlreadyExists(err):
		// Made before and not written down, or somebody else's.
		there, ok := c.jobs.Get(cj.Namespace, jobName(cj, *plan.Start))
		if !ok {
			return err
		}
		if job = there; !metav1.IsControlledBy(job, cj) || finished(job) != "" {
			plan.Status.LastScheduleTime = &metav1.Time{Time: *plan.Start}
			return nil
		}
	default:
		c.events.Eventf(about, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return fmt.Errorf("making Job %s: %w", jobName(cj, *plan.Start), err)
	}
	ref := recorder.Reference(batchv1.SchemeGroupVersion.String(), "Job", job, "")
	ref.ResourceVersion = job.ResourceVersion
	plan.Status.Active = append(plan.Status.Active, ref)
	plan.Status.LastScheduleTime = &metav1.Time{Time: *plan.Start}
	return nil
}

func (c *controller) delete(ctx context.Context, about corev1.ObjectReference, job *batchv1.Job) error {
	err := c.jobs.Delete(ctx, job.Namespace, job.Name, metav1.DeleteOptions{
		Preconditions: metav1.NewUIDPreconditions(string(job.UID)), PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		c.events.Eventf(about, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
		return fmt.Errorf("deleting Job %s: %w", job.Name, err)
	}
	c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", job.Name)
	return nil
}

// writeStatus writes over the state that the status was made from, and nothing
// newer.
func (c *controller) writeStatus(ctx context.Context, cj *batchv1.CronJob, status batchv1.CronJobStatus) error {
	_, err := c.crons.UpdateStatus(ctx, cj.Namespace, cj.Name, func(cur *batchv1.CronJob) error {
		if cur.ResourceVersion != cj.ResourceVersion {
			return apierrors.NewConflict(batchv1.Resource("cronjobs"), cj.Name, errors.New("it was changed after it was read"))
		}
		cur.Status = status
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
