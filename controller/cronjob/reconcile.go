package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// Kind is what owns the Jobs.
var Kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

const (
	// lag is added to a time, as upstream, so that it is past on a clock that is
	// a little behind.
	lag = 100 * time.Millisecond
	// Slack is how far in the future the last time may lie and be believed: a
	// clock that is set back by less waits for it, which makes no time twice.
	Slack = 10 * time.Minute
	// MaxWait bounds how long a clock that is set goes unseen.
	MaxWait = 10 * time.Minute
)

// World is what a decision is made from.
type World struct {
	CronJob *batchv1.CronJob
	Jobs    []*batchv1.Job // those that it controls
	// Since is from when times count; see Since.
	Since time.Time
	Now   time.Time
}

// Plan is one step.
type Plan struct {
	// Replace are Jobs that still run and must not beside the next one.
	Replace []*batchv1.Job
	// Start is the time that a Job is to be made for.
	Start *time.Time
	// Delete are Jobs beyond the limits of history.
	Delete []*batchv1.Job
	Status batchv1.CronJobStatus
	Events []Event
	// Again is when to look again though nothing changed; zero for never.
	Again time.Duration
}

// Event is to be told about the CronJob.
type Event struct{ Type, Reason, Message string }

// Since is from when a CronJob's times count: its last one, else its creation.
// ok is false if that is so far in the future that a clock must have been wrong.
func Since(cj *batchv1.CronJob, now time.Time) (since time.Time, ok bool) {
	since = cj.CreationTimestamp.Time
	if last := cj.Status.LastScheduleTime; last != nil {
		since = last.Time
	}
	return since, !since.After(now.Add(Slack))
}

type round struct {
	World
	plan Plan
}

func (r *round) event(eventType, reason, format string, args ...any) {
	r.plan.Events = append(r.plan.Events, Event{eventType, reason, fmt.Sprintf(format, args...)})
}

// Reconcile takes the next step.
func Reconcile(w World) Plan {
	r := &round{World: w}
	r.plan.Status = *w.CronJob.Status.DeepCopy()
	r.follow()
	if w.CronJob.DeletionTimestamp == nil {
		if !ptr.Deref(w.CronJob.Spec.Suspend, false) {
			r.schedule()
		}
		r.history()
	}
	return r.plan
}

func finished(job *batchv1.Job) batchv1.JobConditionType {
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// follow brings the list of active Jobs up to date.
func (r *round) follow() {
	s := &r.plan.Status
	there := map[types.UID]bool{}
	for _, job := range r.Jobs {
		there[job.UID] = true
		i := slices.IndexFunc(s.Active, func(ref corev1.ObjectReference) bool { return ref.UID == job.UID })
		end := finished(job)
		switch {
		case end == "" && i < 0:
			r.event(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", job.Name)
		case end != "" && i >= 0:
			s.Active = slices.Delete(s.Active, i, i+1)
			r.event(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", job.Name, end)
		}
		if done := job.Status.CompletionTime; end == batchv1.JobComplete && done != nil && (s.LastSuccessfulTime == nil || done.After(s.LastSuccessfulTime.Time)) {
			s.LastSuccessfulTime = done.DeepCopy()
		}
	}
	s.Active = slices.DeleteFunc(s.Active, func(ref corev1.ObjectReference) bool {
		if !there[ref.UID] {
			r.event(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", ref.Name)
		}
		return !there[ref.UID]
	})
	if len(s.Active) == 0 {
		s.Active = nil
	}
}

// schedule starts a Job if one is due, and says when the next one is.
func (r *round) schedule() {
	cj := r.CronJob
	if tz := cj.Spec.TimeZone; tz != nil {
		if _, err := time.LoadLocation(*tz); err != nil {
			r.event(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", *tz, err)
			return
		}
	}
	schedule, err := parse(cj)
	if err != nil {
		r.event(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return
	}
	since := r.Since
	if d := cj.Spec.StartingDeadlineSeconds; d != nil {
		if earliest := r.Now.Add(-time.Duration(*d) * time.Second); earliest.After(since) {
			since = earliest
		}
	}
	at, missed, err := Due(schedule, since, r.Now)
	if err != nil {
		r.event(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", cj.Spec.Schedule, err)
		return
	}
	r.plan.Again = next(schedule, r.Since, at, r.Now)
	if at.IsZero() || r.done(at) {
		return
	}
	switch {
	case cj.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(r.plan.Status.Active) > 0:
		if r.Now.Sub(at) < time.Minute { // told once, not whenever it is looked at
			r.event(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		}
		return
	case cj.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, job := range r.Jobs {
			if slices.ContainsFunc(r.plan.Status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == job.UID }) {
				r.plan.Replace = append(r.plan.Replace, job)
			}
		}
	}
	if missed > many {
		r.event(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	r.plan.Start = &at
}

// done reports whether the time has its Job already.
func (r *round) done(at time.Time) bool {
	last := r.CronJob.Status.LastScheduleTime
	return last != nil && last.Time.Equal(at) ||
		slices.ContainsFunc(r.plan.Status.Active, func(ref corev1.ObjectReference) bool { return ref.Name == jobName(r.CronJob, at) })
}

// next is how long to wait for the time after this one.
func next(schedule cron.Schedule, since, at, now time.Time) time.Duration {
	from := at
	if from.IsZero() {
		from = since
	}
	t := schedule.Next(from)
	if !t.After(now) {
		t = schedule.Next(now)
	}
	if t.IsZero() {
		return MaxWait
	}
	return min(t.Sub(now)+lag, MaxWait)
}

// history finds finished Jobs that are more than the limits allow, the oldest
// first.
func (r *round) history() {
	for end, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: r.CronJob.Spec.SuccessfulJobsHistoryLimit,
		batchv1.JobFailed:   r.CronJob.Spec.FailedJobsHistoryLimit,
	} {
		if limit == nil {
			continue
		}
		var jobs []*batchv1.Job
		for _, job := range r.Jobs {
			if finished(job) == end && job.DeletionTimestamp == nil {
				jobs = append(jobs, job)
			}
		}
		slices.SortFunc(jobs, func(a, b *batchv1.Job) int {
			return cmp.Or(started(a).Compare(started(b)), cmp.Compare(a.Name, b.Name))
		})
		r.plan.Delete = append(r.plan.Delete, jobs[:max(0, len(jobs)-int(*limit))]...)
	}
}

func started(job *batchv1.Job) time.Time {
	if job.Status.StartTime == nil {
		return job.CreationTimestamp.Time
	}
	return job.Status.StartTime.Time
}

// jobName names a Job by its minute, as upstream.
func jobName(cj *batchv1.CronJob, at time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, at.Unix()/60)
}

// newJob makes the Job of a time.
func newJob(cj *batchv1.CronJob, at time.Time) *batchv1.Job {
	annotations := maps.Clone(cj.Spec.JobTemplate.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	if zone, err := time.LoadLocation(ptr.Deref(cj.Spec.TimeZone, "")); err == nil {
		annotations[batchv1.CronJobScheduledTimestampAnnotation] = at.In(zone).Format(time.RFC3339)
	}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: jobName(cj, at), Namespace: cj.Namespace, Labels: maps.Clone(cj.Spec.JobTemplate.Labels), Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, Kind)},
		},
		Spec: *cj.Spec.JobTemplate.Spec.DeepCopy(),
	}
}
