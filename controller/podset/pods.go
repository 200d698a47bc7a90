package podset

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
)

// IsActive reports whether the Pod counts: it has not ended and is not being
// deleted.
func IsActive(pod *corev1.Pod) bool { return !IsFinished(pod) && pod.DeletionTimestamp == nil }

// IsFinished reports whether the Pod has ended for good.
func IsFinished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// IsTerminating reports whether the Pod is being deleted and has not ended.
func IsTerminating(pod *corev1.Pod) bool { return !IsFinished(pod) && pod.DeletionTimestamp != nil }

// Condition returns the Pod's condition of a type, nil if it has none.
func Condition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// SetCondition replaces the Pod's condition of that type. The time of the last
// transition is kept when the status is the same.
func SetCondition(pod *corev1.Pod, c corev1.PodCondition) {
	old := Condition(pod, c.Type)
	if old == nil {
		pod.Status.Conditions = append(pod.Status.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	*old = c
}

// IsReady reports whether the Pod is ready.
func IsReady(pod *corev1.Pod) bool {
	c := Condition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// IsAvailable reports whether the Pod has been ready for minReadySeconds.
func IsAvailable(pod *corev1.Pod, minReadySeconds int32, now time.Time) bool {
	return IsReady(pod) && UntilAvailable(pod, minReadySeconds, now) <= 0
}

// UntilAvailable is how long a ready Pod has to stay so to be available; zero
// or less if it is.
func UntilAvailable(pod *corev1.Pod, minReadySeconds int32, now time.Time) time.Duration {
	if minReadySeconds == 0 {
		return 0
	}
	c := Condition(pod, corev1.PodReady)
	if c == nil || c.LastTransitionTime.IsZero() {
		return time.Duration(minReadySeconds) * time.Second
	}
	return c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second).Sub(now)
}

// NextAvailable is the time until the first of the ready Pods becomes
// available; zero if there is nothing to wait for.
func NextAvailable(pods []*corev1.Pod, minReadySeconds int32, now time.Time) time.Duration {
	next := time.Duration(0)
	for _, pod := range pods {
		if minReadySeconds == 0 || !IsReady(pod) {
			continue
		}
		if d := UntilAvailable(pod, minReadySeconds, now); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	return next
}

// FromTemplate makes the Pod of a template with its owner, still without a
// name.
func FromTemplate(template *corev1.PodTemplateSpec, owner metav1.Object, ref metav1.OwnerReference) *corev1.Pod {
	t := template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			Labels:          t.Labels,
			Annotations:     t.Annotations,
			Finalizers:      t.Finalizers,
			GenerateName:    NamePrefix(owner.GetName()),
			OwnerReferences: []metav1.OwnerReference{ref},
		},
		Spec: t.Spec,
	}
	return pod
}

// NamePrefix is what the generated names of an owner's Pods begin with.
func NamePrefix(owner string) string {
	const maxPrefix = 253 - 1 // upstream validates the prefix as a name
	if prefix := owner + "-"; len(prefix) <= maxPrefix {
		return prefix
	}
	return owner
}

// Count returns how many of the Pods satisfy cond.
func Count(pods []*corev1.Pod, cond func(*corev1.Pod) bool) int32 {
	n := int32(0)
	for _, pod := range pods {
		if cond(pod) {
			n++
		}
	}
	return n
}

// Filter returns the Pods that satisfy cond.
func Filter(pods []*corev1.Pod, cond func(*corev1.Pod) bool) []*corev1.Pod {
	var out []*corev1.Pod
	for _, pod := range pods {
		if cond(pod) {
			out = append(out, pod)
		}
	}
	return out
}

// TemplateHash is upstream's hash of a template (pod-template-hash,
// controller-revision-hash); collisions, if not nil, makes another one.
func TemplateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*template))
	if collisions != nil {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, uint32(*collisions))
		h.Write(b)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// WithLabel is a copy of the labels with one more.
func WithLabel(labels map[string]string, key, value string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[key] = value
	return out
}
