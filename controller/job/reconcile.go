package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"edged/controller/podset"
)

// World is what a decision is made from.
type World struct {
	Job     *batchv1.Job
	Pods    []*corev1.Pod
	Backoff Backoff
	Now     time.Time
}

// Plan is one step.
type Plan struct {
	Create []*corev1.Pod
	// Drop are Pods to be deleted that do not count; Delete are those of a Job
	// whose end is decided, which are counted.
	Drop, Delete []*corev1.Pod
	// Backoff is the record once the Pods that have ended are counted.
	Backoff Backoff
	// Again is when to look again though nothing changed; zero for never.
	Again time.Duration

	facts *facts
}

// facts are what the Pods say, computed once for a round.
type facts struct {
	World
	active []*corev1.Pod
	// uncounted ends that the status names already.
	countedSucceeded, countedFailed map[types.UID]bool
	succeeded, failed               int32 // with those that are about to be counted
	wasSucceeded, succeededIndexes  indexes
	failedIndexes                   indexes // only with a limit by index
	// waiting are failed Pods that stay until their index has a new one, which
	// takes over their count.
	waiting map[int]*corev1.Pod
	// verdict is the condition that ends the Job, nil while it goes on.
	verdict *batchv1.JobCondition
	started *metav1.Time
}

func newFacts(w World) *facts {
	f := &facts{World: w, active: podset.Filter(w.Pods, podset.IsActive), started: w.Job.Status.StartTime}
	if f.started == nil && !isSuspended(w.Job) {
		f.started = f.now()
	}
	f.countedSucceeded, f.countedFailed = map[types.UID]bool{}, map[types.UID]bool{}
	if u := w.Job.Status.UncountedTerminatedPods; u != nil {
		for _, uid := range u.Succeeded {
			f.countedSucceeded[uid] = true
		}
		for _, uid := range u.Failed {
			f.countedFailed[uid] = true
		}
	}
	return f
}

func (f *facts) now() *metav1.Time {
	t := metav1.NewTime(f.Now).Rfc3339Copy()
	return &t
}

// newlyEnded are Pods whose end no status knows yet.
func (f *facts) newlyEnded() (succeeded, failed []*corev1.Pod) {
	for _, p := range f.Pods {
		if !isTracked(p) {
			continue
		}
		if _, ok := indexOf(p, f.Job); isIndexed(f.Job) && !ok {
			continue
		}
		switch {
		case p.Status.Phase == corev1.PodSucceeded && !f.countedSucceeded[p.UID]:
			succeeded = append(succeeded, p)
		case hasFailed(p, f.Job) && !f.countedFailed[p.UID]:
			failed = append(failed, p)
		}
	}
	return succeeded, failed
}

// Reconcile takes the next step.
func Reconcile(w World) Plan {
	f := newFacts(w)
	succeeded, failed := f.newlyEnded()
	counting := podset.Filter(failed, func(p *corev1.Pod) bool { return judge(w.Job.Spec.PodFailurePolicy, p).counts })
	f.succeeded = w.Job.Status.Succeeded + int32(len(succeeded)+len(f.countedSucceeded))
	f.failed = w.Job.Status.Failed + int32(len(counting)+len(f.countedFailed))
	plan := Plan{Backoff: w.Backoff.after(succeeded, failed), facts: f}
	f.end(&plan)
	switch {
	case f.verdict != nil:
		plan.Delete = f.active
	case w.Job.DeletionTimestamp == nil:
		f.manage(&plan)
	}
	return plan
}

// end looks whether the Job is over, in upstream's order: what was decided
// stands, failure goes before success.
func (f *facts) end(plan *Plan) {
	job := f.Job
	if c := condition(&job.Status, batchv1.JobSuccessCriteriaMet); c != nil && c.Status == corev1.ConditionTrue {
		f.verdict = c
	} else if c := condition(&job.Status, batchv1.JobFailureTarget); c != nil && c.Status == corev1.ConditionTrue {
		f.verdict = c
	} else if message := f.policyFailure(); message != "" {
		f.verdict = f.newCondition(batchv1.JobFailureTarget, batchv1.JobReasonPodFailurePolicy, message)
	} else if f.failed > *job.Spec.BackoffLimit || f.restartedTooOften() {
		f.verdict = f.newCondition(batchv1.JobFailureTarget, batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	} else if left, limited := f.untilDeadline(); limited && left <= 0 {
		f.verdict = f.newCondition(batchv1.JobFailureTarget, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	} else if limited {
		plan.again(left)
	}
	if isIndexed(job) {
		f.endByIndex()
	}
}

func (p *Plan) again(d time.Duration) {
	if d > 0 && (p.Again == 0 || d < p.Again) {
		p.Again = d
	}
}

func (f *facts) policyFailure() string {
	if f.Job.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, p := range f.Pods {
		if hasFailed(p, f.Job) {
			if message := judge(f.Job.Spec.PodFailurePolicy, p).failJob; message != "" {
				return message
			}
		}
	}
	return ""
}

// restartedTooOften counts restarts within Pods, which are a Job's failures when
// its Pods restart by themselves.
func (f *facts) restartedTooOften() bool {
	if f.Job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, p := range f.Pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			restarts += s.RestartCount
		}
	}
	return restarts > 0 && restarts >= *f.Job.Spec.BackoffLimit
}

// untilDeadline is the time that is left to the Job, if it has a limit.
func (f *facts) untilDeadline() (left time.Duration, limited bool) {
	if f.Job.Spec.ActiveDeadlineSeconds == nil || f.started == nil || isSuspended(f.Job) {
		return 0, false
	}
	return f.started.Add(time.Duration(*f.Job.Spec.ActiveDeadlineSeconds) * time.Second).Sub(f.Now), true
}

// endByIndex works out which indexes are done and whether that ends the Job.
func (f *facts) endByIndex() {
	job := f.Job
	completions := int(*job.Spec.Completions)
	f.wasSucceeded = parseIndexes(job.Status.CompletedIndexes, completions)
	f.succeededIndexes = f.wasSucceeded
	for _, p := range f.Pods {
		if i, ok := indexOf(p, job); ok && isTracked(p) && p.Status.Phase == corev1.PodSucceeded {
			f.succeededIndexes = f.succeededIndexes.add(i, i)
		}
	}
	f.succeeded = int32(f.succeededIndexes.count())
	if job.Spec.BackoffLimitPerIndex != nil {
		f.failByIndex(completions)
	}
	if f.verdict == nil {
		if message, ok := isSuccess(job.Spec.SuccessPolicy, completions, f.succeededIndexes); ok {
			f.verdict = f.newCondition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, message)
		}
	}
}

func (f *facts) failByIndex(completions int) {
	job := f.Job
	if job.Status.FailedIndexes != nil {
		f.failedIndexes = parseIndexes(*job.Status.FailedIndexes, completions)
	}
	for _, p := range f.Pods {
		if i, ok := indexOf(p, job); ok && isTracked(p) && f.isLastFailure(p) {
			f.failedIndexes = f.failedIndexes.add(i, i)
		}
	}
	failed := f.failedIndexes.count()
	switch {
	case f.verdict != nil:
	case job.Spec.MaxFailedIndexes != nil && failed > int(*job.Spec.MaxFailedIndexes):
		f.verdict = f.newCondition(batchv1.JobFailureTarget, batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
	case failed > 0 && failed+f.succeededIndexes.count() >= completions:
		f.verdict = f.newCondition(batchv1.JobFailureTarget, batchv1.JobReasonFailedIndexes, "Job has failed indexes")
	}
	running := f.indexesOf(f.active)
	f.waiting = map[int]*corev1.Pod{}
	for _, p := range f.Pods {
		i, ok := indexOf(p, job)
		if !ok || !isTracked(p) || !hasFailed(p, job) || f.succeededIndexes.has(i) || f.failedIndexes.has(i) || running.has(i) {
			continue
		}
		if last := f.waiting[i]; last == nil || tries(last) <= tries(p) && !ended(p).Before(ended(last)) {
			f.waiting[i] = p
		}
	}
}

// tries is how often an index had failed before the Pod.
func tries(p *corev1.Pod) int64 {
	counted, ignored := failures(p)
	return int64(counted) + int64(ignored)
}

// isLastFailure reports whether a Pod's failure is one too many for its index.
func (f *facts) isLastFailure(p *corev1.Pod) bool {
	if !hasFailed(p, f.Job) {
		return false
	}
	j := judge(f.Job.Spec.PodFailurePolicy, p)
	counted, _ := failures(p)
	return j.failIndex || j.counts && counted >= *f.Job.Spec.BackoffLimitPerIndex
}

func (f *facts) indexesOf(pods []*corev1.Pod) indexes {
	var out indexes
	for _, p := range pods {
		if i, ok := indexOf(p, f.Job); ok {
			out = out.add(i, i)
		}
	}
	return out
}

// manage brings the number of Pods to what it should be: down, else up.
func (f *facts) manage(plan *Plan) {
	active := len(f.active)
	if isSuspended(f.Job) {
		plan.Drop = f.active
		return
	}
	want := f.wanted(active)
	plan.Drop = surplus(f.Job, f.active, max(0, active-want), f.Now)
	if len(plan.Drop) > 0 {
		plan.Drop = plan.Drop[:min(len(plan.Drop), podset.Burst)]
		return
	}
	missing := want - active
	if replacesFailed(f.Job) {
		missing -= int(podset.Count(f.Pods, podset.IsTerminating))
	}
	if missing = min(missing, podset.Burst); missing <= 0 {
		return
	}
	if f.Job.Spec.BackoffLimitPerIndex == nil {
		if wait := plan.Backoff.left(f.Now); wait > 0 {
			plan.again(wait)
			return
		}
	}
	if !isIndexed(f.Job) {
		for range missing {
			plan.Create = append(plan.Create, newPod(f.Job))
		}
		return
	}
	f.createIndexes(plan, missing)
}

// wanted is how many Pods should be active.
func (f *facts) wanted(active int) int {
	parallelism := int(*f.Job.Spec.Parallelism)
	if f.Job.Spec.Completions == nil {
		if f.succeeded > 0 {
			return active // one has succeeded: the others finish, none is made
		}
		return parallelism
	}
	return max(0, min(int(*f.Job.Spec.Completions-f.succeeded), parallelism))
}

func (f *facts) createIndexes(plan *Plan, n int) {
	taken := f.succeededIndexes.union(f.indexesOf(f.active)).union(f.failedIndexes)
	if replacesFailed(f.Job) {
		taken = taken.union(f.indexesOf(podset.Filter(f.Pods, podset.IsTerminating)))
	}
	wait := time.Duration(0)
	for _, i := range taken.missing(n, int(*f.Job.Spec.Completions)) {
		before := f.waiting[i]
		if before != nil {
			record := Backoff{Failures: int(min(tries(before)+1, 100)), Last: ended(before)}
			if left := record.left(f.Now); left > 0 {
				if wait == 0 || left < wait {
					wait = left
				}
				continue
			}
		}
		plan.Create = append(plan.Create, newIndexedPod(f.Job, i, before))
	}
	plan.again(wait)
}
