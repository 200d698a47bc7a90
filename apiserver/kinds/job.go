package kinds

import (
	"context"
	"maps"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	jobutil "k8s.io/kubernetes/pkg/api/job"
	"k8s.io/kubernetes/pkg/api/pod"
	batchapi "k8s.io/kubernetes/pkg/apis/batch"
	"k8s.io/kubernetes/pkg/apis/batch/validation"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

func jobs() *registry.Kind {
	s := jobStrategy{newBase(true).resets("batch/v1", "status")}
	k := inAll(row[batchv1.Job, batchv1.JobList](batchv1.SchemeGroupVersion, "jobs", s))
	k.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"status.successful": strconv.Itoa(int(obj.(*batchv1.Job).Status.Succeeded))}
	}
	k.SelectableFields = []string{"status.successful"}
	return withStatus(k, jobStatusStrategy{jobStrategy{newBase(true).resets("batch/v1", "spec")}})
}

// jobStrategy follows pkg/registry/batch/job.
type jobStrategy struct{ base }

// DefaultGarbageCollectionPolicy is what it was when batch/v1 was made.
func (jobStrategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.OrphanDependents
}

// WarningsOnDelete: the policy above is not what most expect.
func (jobStrategy) WarningsOnDelete(opts *metav1.DeleteOptions) []string {
	//lint:ignore SA1019 clients still send OrphanDependents
	if opts.PropagationPolicy != nil || opts.OrphanDependents != nil {
		return nil
	}
	return []string{"child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"}
}

func (jobStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	job := obj.(*batchapi.Job)
	if !ptr.Deref(job.Spec.ManualSelector, false) {
		generateSelector(job)
	}
	job.Status = batchapi.JobStatus{}
	job.Generation = 1
	if !utilfeature.DefaultFeatureGate.Enabled(features.JobManagedBy) {
		job.Spec.ManagedBy = nil
	}
	jobutil.DropDisabledFields(&job.Spec, nil)
	pod.DropDisabledTemplateFields(&job.Spec.Template, nil)
}

// generateSelector makes the Job select its own Pods by its UID. Labels and
// selectors that are there already are left for validation to refuse.
func generateSelector(job *batchapi.Job) {
	labels := job.Spec.Template.Labels
	if labels == nil {
		labels = map[string]string{}
		job.Spec.Template.Labels = labels
	}
	setMissing := func(m map[string]string, key, value string) {
		if _, ok := m[key]; !ok {
			m[key] = value
		}
	}
	setMissing(labels, batchapi.LegacyJobNameLabel, job.Name)
	setMissing(labels, batchapi.JobNameLabel, job.Name)
	setMissing(labels, batchapi.LegacyControllerUidLabel, string(job.UID))
	setMissing(labels, batchapi.ControllerUidLabel, string(job.UID))
	if len(job.Labels) == 0 {
		job.Labels = maps.Clone(labels) // defaulting would show them from the next read on
	}
	if job.Spec.Selector == nil {
		job.Spec.Selector = &metav1.LabelSelector{}
	}
	if job.Spec.Selector.MatchLabels == nil {
		job.Spec.Selector.MatchLabels = map[string]string{}
	}
	setMissing(job.Spec.Selector.MatchLabels, batchapi.ControllerUidLabel, string(job.UID))
}

func (jobStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	job, was := obj.(*batchapi.Job), old.(*batchapi.Job)
	job.Status = was.Status
	jobutil.DropDisabledFields(&job.Spec, &was.Spec)
	pod.DropDisabledTemplateFields(&job.Spec.Template, &was.Spec.Template)
	if !equality.Semantic.DeepEqual(job.Spec, was.Spec) {
		job.Generation = was.Generation + 1
	}
}

func (jobStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	job := obj.(*batchapi.Job)
	return validation.ValidateJobCreate(job, jobOptions(job, nil))
}

func (jobStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	job, was := obj.(*batchapi.Job), old.(*batchapi.Job)
	return validation.ValidateJobUpdate(job, was, jobOptions(job, was))
}

func (jobStrategy) DeclarativeValidationConfig(context.Context, runtime.Object, runtime.Object) rest.DeclarativeValidationConfig {
	return rest.DeclarativeValidationConfig{Options: map[string]bool{
		string(features.WorkloadWithJob): utilfeature.DefaultFeatureGate.Enabled(features.WorkloadWithJob),
	}}
}

// jobOptions say what may change: much of the template while the Job is
// suspended and nothing of it runs.
func jobOptions(job, was *batchapi.Job) validation.JobValidationOptions {
	var oldTemplate *api.PodTemplateSpec
	if was != nil {
		oldTemplate = &was.Spec.Template
	}
	opts := validation.JobValidationOptions{
		PodValidationOptions:  pod.GetValidationOptionsFromPodTemplate(&job.Spec.Template, oldTemplate),
		RequirePrefixedLabels: true,
	}
	if was == nil {
		return opts
	}
	opts.AllowInvalidLabelValueInSelector = opts.AllowInvalidLabelValueInSelector || metav1validation.LabelSelectorHasInvalidLabelValue(was.Spec.Selector)
	suspended, notStarted := ptr.Deref(was.Spec.Suspend, false), was.Status.StartTime == nil
	opts.AllowMutableSchedulingDirectives = suspended && notStarted
	idle := suspended && was.Status.Active == 0 && (notStarted || validation.IsConditionTrue(was.Status.Conditions, batchapi.JobSuspended))
	if utilfeature.DefaultFeatureGate.Enabled(features.MutablePodResourcesForSuspendedJobs) {
		opts.AllowMutablePodResources = idle
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.MutableSchedulingDirectivesForSuspendedJobs) {
		opts.AllowMutableSchedulingDirectives = idle
	}
	_, hadName := was.Spec.Template.Labels[batchapi.JobNameLabel]
	_, hadUID := was.Spec.Template.Labels[batchapi.ControllerUidLabel]
	opts.RequirePrefixedLabels = hadName && hadUID
	return opts
}

func (jobStrategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	job := obj.(*batchapi.Job)
	return append(podNameWarnings(job.Name), jobutil.WarningsForJobSpec(ctx, field.NewPath("spec"), &job.Spec, nil)...)
}

func (jobStrategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	job, was := obj.(*batchapi.Job), old.(*batchapi.Job)
	if job.Generation == was.Generation {
		return nil
	}
	return jobutil.WarningsForJobSpec(ctx, field.NewPath("spec"), &job.Spec, &was.Spec)
}

type jobStatusStrategy struct{ jobStrategy }

func (jobStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*batchapi.Job).Spec = old.(*batchapi.Job).Spec
}

func (jobStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	job, was := obj.(*batchapi.Job), old.(*batchapi.Job)
	return validation.ValidateJobUpdateStatus(job, was, jobStatusOptions(job, was))
}

func (jobStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// jobStatusOptions refuse what a Job's status must not become, but only for
// the fields that this update changes: a status that broke a rule before must
// not block the rest.
func jobStatusOptions(job, was *batchapi.Job) validation.JobStatusValidationOptions {
	if !utilfeature.DefaultFeatureGate.Enabled(features.JobManagedBy) {
		return validation.JobStatusValidationOptions{}
	}
	now, old := &job.Status, &was.Status
	changed := func(t batchapi.JobConditionType) bool {
		return validation.IsConditionTrue(old.Conditions, t) != validation.IsConditionTrue(now.Conditions, t)
	}
	var (
		indexed    = ptr.Deref(job.Spec.CompletionMode, batchapi.NonIndexedCompletion) == batchapi.IndexedCompletion
		finished   = validation.IsJobFinished(was) != validation.IsJobFinished(job)
		complete   = validation.IsJobComplete(was) != validation.IsJobComplete(job)
		failed     = validation.IsJobFailed(was) != validation.IsJobFailed(job)
		completed  = old.CompletedIndexes != now.CompletedIndexes
		failedIdx  = !ptr.Equal(old.FailedIndexes, now.FailedIndexes)
		active     = old.Active != now.Active
		started    = !ptr.Equal(old.StartTime, now.StartTime)
		ended      = !ptr.Equal(old.CompletionTime, now.CompletionTime)
		emptyPause = ptr.Equal(job.Spec.Suspend, ptr.To(true)) && ptr.Equal(job.Spec.Completions, ptr.To[int32](0))
		resuming   = validation.IsConditionTrue(old.Conditions, batchapi.JobSuspended) && validation.IsConditionFalse(now.Conditions, batchapi.JobSuspended)
	)
	return validation.JobStatusValidationOptions{
		RejectDecreasingSucceededCounter:             !indexed || !ptr.Equal(job.Spec.Completions, job.Spec.Parallelism),
		RejectDecreasingFailedCounter:                true,
		RejectDisablingTerminalCondition:             true,
		RejectInvalidCompletedIndexes:                completed,
		RejectInvalidFailedIndexes:                   failedIdx,
		RejectCompletedIndexesForNonIndexedJob:       completed,
		RejectFailedIndexesForNoBackoffLimitPerIndex: failedIdx,
		RejectFailedIndexesOverlappingCompleted:      failedIdx || completed,
		RejectFailedJobWithoutFailureTarget:          failed || failedIdx,
		RejectCompleteJobWithoutSuccessCriteriaMet:   complete || changed(batchapi.JobSuccessCriteriaMet),
		RejectFinishedJobWithActivePods:              finished || active,
		RejectFinishedJobWithoutStartTime:            (finished || started) && !emptyPause,
		RejectFinishedJobWithUncountedTerminatedPods: finished || !equality.Semantic.DeepEqual(old.UncountedTerminatedPods, now.UncountedTerminatedPods),
		RejectStartTimeUpdateForUnsuspendedJob:       started && !resuming,
		RejectCompletionTimeBeforeStartTime:          started || ended,
		RejectMutatingCompletionTime:                 true,
		RejectNotCompleteJobWithCompletionTime:       complete || ended,
		RejectCompleteJobWithoutCompletionTime:       complete || ended,
		RejectCompleteJobWithFailedCondition:         complete || failed,
		RejectCompleteJobWithFailureTargetCondition:  complete || changed(batchapi.JobFailureTarget),
		RejectMoreReadyThanActivePods:                !ptr.Equal(old.Ready, now.Ready) || active,
		RejectFinishedJobWithTerminatingPods:         finished || !ptr.Equal(old.Terminating, now.Terminating),
	}
}
