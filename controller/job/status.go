package job

import (
	"cmp"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

// maxUncounted bounds the list of Pods whose end is being counted, which keeps a
// Job's status below 20 KB, as upstream.
const maxUncounted = 500

func condition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// IsFinished reports whether a Job is over, and how.
func IsFinished(job *batchv1.Job) (*batchv1.JobCondition, bool) {
	for _, t := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		if c := condition(&job.Status, t); c != nil && c.Status == corev1.ConditionTrue {
			return c, true
		}
	}
	return nil, false
}

func (f *facts) newCondition(t batchv1.JobConditionType, reason, message string) *batchv1.JobCondition {
	now := *f.now()
	return &batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue, LastProbeTime: now, LastTransitionTime: now, Reason: reason, Message: message}
}

// Accounts are what a round says of a Job: a status to be written first, the
// Pods to lose their finalizer then, and what Settle needs after that.
type Accounts struct {
	Status  batchv1.JobStatus
	Release []*corev1.Pod
	// Events to be told.
	Events []Event

	facts *facts
	// final is the condition that the Job ends with.
	final *batchv1.JobCondition
	full  bool // more ends are to be counted in another round
}

// Event is to be told about the Job.
type Event struct{ Type, Reason, Message string }

// Account names the ends that are to be counted. pods are the Job's Pods after
// the plan was carried out, done whether it was whole.
func Account(plan Plan, pods []*corev1.Pod, done bool) Accounts {
	f := plan.facts
	a := Accounts{Status: *f.Job.Status.DeepCopy(), facts: f}
	active := podset.Filter(pods, podset.IsActive)
	a.Status.StartTime = f.started
	a.Status.Active = int32(len(active))
	a.Status.Ready = ptr.To(podset.Count(active, podset.IsReady))
	a.Status.Terminating = ptr.To(podset.Count(pods, podset.IsTerminating))
	if a.Status.UncountedTerminatedPods == nil {
		a.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	verdict := f.verdict
	switch {
	case verdict != nil && (!done || len(active) > 0):
		verdict = nil // Pods are left that may still be counted
	case verdict == nil && f.isComplete(len(active)):
		verdict = f.newCondition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	case verdict == nil && f.Job.DeletionTimestamp == nil:
		a.suspension()
	}
	a.count(verdict)
	a.conclude(verdict)
	return a
}

func (f *facts) isComplete(active int) bool {
	if f.verdict != nil || active > 0 {
		return false
	}
	if f.Job.Spec.Completions == nil {
		return f.succeeded > 0
	}
	return f.succeeded >= *f.Job.Spec.Completions
}

// suspension says whether the Job is suspended. A Job that goes on counts its
// time anew.
func (a *Accounts) suspension() {
	f := a.facts
	c := condition(&a.Status, batchv1.JobSuspended)
	if isSuspended(f.Job) {
		if c == nil || c.Status != corev1.ConditionTrue {
			a.setCondition(*f.newCondition(batchv1.JobSuspended, "JobSuspended", "Job suspended"))
			a.Status.StartTime = nil
			a.event(corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
		return
	}
	if c != nil && c.Status != corev1.ConditionFalse {
		resumed := f.newCondition(batchv1.JobSuspended, "JobResumed", "Job resumed")
		resumed.Status = corev1.ConditionFalse
		a.setCondition(*resumed)
		a.Status.StartTime = f.now()
		a.event(corev1.EventTypeNormal, "Resumed", "Job resumed")
	}
}

func (a *Accounts) event(eventType, reason, message string) {
	a.Events = append(a.Events, Event{eventType, reason, message})
}

func (a *Accounts) setCondition(c batchv1.JobCondition) {
	if cur := condition(&a.Status, c.Type); cur != nil {
		*cur = c
		return
	}
	a.Status.Conditions = append(a.Status.Conditions, c)
}

// count names the Pods whose end is to be counted and those that may go.
func (a *Accounts) count(verdict *batchv1.JobCondition) {
	f := a.facts
	u := a.Status.UncountedTerminatedPods
	clean(&a.Status, trackedUIDs(f.Pods))
	failing := verdict != nil && verdict.Type == batchv1.JobFailureTarget
	succeeded := f.wasSucceeded
	pods := slices.Clone(f.Pods)
	if isIndexed(f.Job) {
		slices.SortStableFunc(pods, func(x, y *corev1.Pod) int {
			i, _ := indexOf(x, f.Job)
			j, _ := indexOf(y, f.Job)
			return cmp.Compare(i, j)
		})
	}
	fresh := 0
	for _, p := range pods {
		if !isTracked(p) || !f.mayGo(p, verdict) {
			continue
		}
		a.Release = append(a.Release, p)
		i, hasIndex := indexOf(p, f.Job)
		switch indexed := isIndexed(f.Job); {
		case p.Status.Phase == corev1.PodSucceeded && !f.countedFailed[p.UID]:
			if !indexed && !f.countedSucceeded[p.UID] {
				u.Succeeded = append(u.Succeeded, p.UID)
			} else if indexed && hasIndex && !succeeded.has(i) {
				succeeded = succeeded.add(i, i)
				fresh++
			}
		case (failing || hasFailed(p, f.Job)) && !f.countedFailed[p.UID] && (!indexed || hasIndex) && judge(f.Job.Spec.PodFailurePolicy, p).counts:
			u.Failed = append(u.Failed, p.UID)
		}
		if fresh+len(u.Succeeded)+len(u.Failed) >= maxUncounted {
			a.full = true
			break
		}
	}
	if isIndexed(f.Job) {
		a.Status.CompletedIndexes = succeeded.String()
		a.Status.Succeeded = int32(succeeded.count())
		a.Status.FailedIndexes = nil
		if f.Job.Spec.BackoffLimitPerIndex != nil {
			a.Status.FailedIndexes = ptr.To(f.failedIndexes.String())
		}
	}
}

// mayGo reports whether a Pod's end is certain and its finalizer no more use.
func (f *facts) mayGo(p *corev1.Pod, verdict *batchv1.JobCondition) bool {
	if f.Job.DeletionTimestamp != nil || verdict != nil || p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !hasFailed(p, f.Job) {
		return false
	}
	i, ok := indexOf(p, f.Job)
	return !ok || f.waiting[i] == nil || f.waiting[i].UID != p.UID
}

// conclude adds the condition that says how the Job will end.
func (a *Accounts) conclude(verdict *batchv1.JobCondition) {
	if verdict == nil {
		return
	}
	final := batchv1.JobFailed
	if verdict.Type == batchv1.JobSuccessCriteriaMet {
		final = batchv1.JobComplete
	}
	if condition(&a.Status, verdict.Type) == nil {
		a.Status.Conditions = append(a.Status.Conditions, *verdict)
	}
	a.final = a.facts.newCondition(final, verdict.Reason, verdict.Message)
}

// Settle counts what has lost its finalizer: left are the Pods that still have
// one. A Job whose end is decided and of which nothing is left to count or to
// stop is over.
func (a Accounts) Settle(left []*corev1.Pod) (batchv1.JobStatus, []Event) {
	status := *a.Status.DeepCopy()
	clean(&status, trackedUIDs(left))
	u := status.UncountedTerminatedPods
	if a.final == nil || a.full || len(u.Succeeded)+len(u.Failed) > 0 || ptr.Deref(status.Terminating, 0) > 0 {
		return status, nil
	}
	status.Conditions = append(status.Conditions, *a.final)
	if a.final.Type == batchv1.JobFailed {
		return status, []Event{{corev1.EventTypeWarning, a.final.Reason, a.final.Message}}
	}
	status.CompletionTime = &metav1.Time{Time: a.final.LastTransitionTime.Time}
	var events []Event
	if c := a.facts.Job.Spec.Completions; c != nil && status.Succeeded > *c {
		events = append(events, Event{corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached"})
	}
	return status, append(events, Event{corev1.EventTypeNormal, "Completed", "Job completed"})
}

func trackedUIDs(pods []*corev1.Pod) map[types.UID]bool {
	out := map[types.UID]bool{}
	for _, p := range pods {
		if isTracked(p) {
			out[p.UID] = true
		}
	}
	return out
}

// clean counts the Pods in the status that have no finalizer any more.
func clean(s *batchv1.JobStatus, tracked map[types.UID]bool) {
	u := s.UncountedTerminatedPods
	gone := func(uid types.UID) bool { return !tracked[uid] }
	was := len(u.Succeeded)
	u.Succeeded = slices.DeleteFunc(u.Succeeded, gone)
	s.Succeeded += int32(was - len(u.Succeeded))
	was = len(u.Failed)
	u.Failed = slices.DeleteFunc(u.Failed, gone)
	s.Failed += int32(was - len(u.Failed))
	if len(u.Succeeded) == 0 {
		u.Succeeded = nil
	}
	if len(u.Failed) == 0 {
		u.Failed = nil
	}
}
