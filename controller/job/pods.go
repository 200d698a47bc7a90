package job

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

// Kind is what owns the Pods.
var Kind = batchv1.SchemeGroupVersion.WithKind("Job")

// indexVariable is the environment variable with a Pod's completion index.
const indexVariable = "JOB_COMPLETION_INDEX"

func isIndexed(job *batchv1.Job) bool {
	return ptr.Deref(job.Spec.CompletionMode, batchv1.NonIndexedCompletion) == batchv1.IndexedCompletion
}

func isSuspended(job *batchv1.Job) bool { return ptr.Deref(job.Spec.Suspend, false) }

// replacesFailed says that a Pod is made again only when the one before has
// ended for good.
func replacesFailed(job *batchv1.Job) bool {
	return ptr.Deref(job.Spec.PodReplacementPolicy, "") == batchv1.Failed
}

func isTracked(p *corev1.Pod) bool {
	return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer)
}

// hasFailed reports whether a Pod counts as failed. One that is being deleted
// does, since it may never tell how it ended, unless only what has ended is
// replaced.
func hasFailed(p *corev1.Pod, job *batchv1.Job) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !replacesFailed(job) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// indexOf is a Pod's completion index; ok is false if it has none that the Job
// has.
func indexOf(p *corev1.Pod, job *batchv1.Job) (i int, ok bool) {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	return i, err == nil && i >= 0 && (job.Spec.Completions == nil || i < int(*job.Spec.Completions))
}

// failures are how often a Pod's index failed before it, counted and ignored.
func failures(p *corev1.Pod) (counted, ignored int32) {
	number := func(key string) int32 {
		n, err := strconv.ParseInt(p.Annotations[key], 10, 32)
		if err != nil || n < 0 {
			return 0
		}
		return int32(n)
	}
	return number(batchv1.JobIndexFailureCountAnnotation), number(batchv1.JobIndexIgnoredFailureCountAnnotation)
}

// newPod makes a Pod of the Job.
func newPod(job *batchv1.Job) *corev1.Pod {
	pod := podset.FromTemplate(&job.Spec.Template, job, *metav1.NewControllerRef(job, Kind))
	if !isTracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	return pod
}

// newIndexedPod makes the Pod of a completion index. before is the one that it
// replaces, if the index has failed.
func newIndexedPod(job *batchv1.Job, index int, before *corev1.Pod) *corev1.Pod {
	pod := newPod(job)
	number := strconv.Itoa(index)
	pod.Annotations, pod.Labels = maps.Clone(pod.Annotations), maps.Clone(pod.Labels)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = number
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = number
	pod.Spec.Hostname = fmt.Sprintf("%s-%d", job.Name, index)
	pod.GenerateName = indexedPrefix(job.Name, index)
	for i := range pod.Spec.InitContainers {
		addIndexVariable(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		addIndexVariable(&pod.Spec.Containers[i])
	}
	if job.Spec.BackoffLimitPerIndex != nil {
		counted, ignored := int32(0), int32(0)
		if before != nil {
			counted, ignored = failures(before)
			if judge(job.Spec.PodFailurePolicy, before).counts {
				counted = min(counted, math.MaxInt32-1) + 1
			} else {
				ignored = min(ignored, math.MaxInt32-1) + 1
			}
		}
		pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(counted))
		if ignored > 0 {
			pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(ignored))
		}
	}
	return pod
}

func indexedPrefix(job string, index int) string {
	const maxPrefix = 58 // of a name with five random letters, as upstream
	suffix := "-" + strconv.Itoa(index) + "-"
	if len(job)+len(suffix) > maxPrefix {
		job = job[:maxPrefix-len(suffix)]
	}
	return job + suffix
}

func addIndexVariable(c *corev1.Container) {
	if slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == indexVariable }) {
		return
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
		FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation),
	}}})
}

// surplus are the active Pods to remove: those that stand twice for an index or
// for none, and beyond them so many that n go, the least missed first.
func surplus(job *batchv1.Job, active []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	var out []*corev1.Pod
	left := active
	if isIndexed(job) {
		left = nil
		byIndex := map[int][]*corev1.Pod{}
		for _, p := range active {
			if i, ok := indexOf(p, job); ok {
				byIndex[i] = append(byIndex[i], p)
			} else {
				out = append(out, p)
			}
		}
		for _, i := range slices.SortedFunc(maps.Keys(byIndex), cmp.Compare[int]) {
			pods := byIndex[i]
			doomed := podset.Doomed(pods, nil, len(pods)-1, now)
			out = append(out, doomed...)
			for _, p := range pods {
				if !slices.Contains(doomed, p) {
					left = append(left, p)
				}
			}
		}
	}
	if n > len(out) {
		out = append(out, podset.Doomed(left, nil, n-len(out), now)...)
	}
	return out
}
