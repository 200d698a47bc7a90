package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
)

// The labels of a container in the engine. The first four are those that CRI
// runtimes use, so that tools which look at containerd find their way.
const (
	labelPodName      = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelPodUID       = "io.kubernetes.pod.uid"
	labelContainer    = "io.kubernetes.container.name"
	labelAttempt      = "edged.attempt"
	labelHash         = "edged.hash"
)

// containerID names an attempt. It is a function of what it names, so that a
// creation which a crash cut off is found and not repeated.
func containerID(uid, container string, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", uid, container, attempt))
	return hex.EncodeToString(sum[:])
}

// hash changes when a running container no longer is what the Pod asks for:
// of a running Pod's container only the image can change.
func hash(c *corev1.Container) string {
	sum := sha256.Sum256([]byte(c.Name + "\x00" + c.Image))
	return hex.EncodeToString(sum[:8])
}

func labels(pod *corev1.Pod, c *corev1.Container, attempt int) map[string]string {
	return map[string]string{
		labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID),
		labelContainer: c.Name, labelAttempt: strconv.Itoa(attempt), labelHash: hash(c),
	}
}

// Owner tells whose a container of the engine is.
func Owner(c engine.Container) (uid, namespace, name string) {
	return c.Labels[labelPodUID], c.Labels[labelPodNamespace], c.Labels[labelPodName]
}

// ContainerOf tells which of its Pod's containers one of the engine is.
func ContainerOf(c engine.Container) string { return c.Labels[labelContainer] }

// describe names a Pod in messages, as the kubelet's do.
func describe(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

func attemptOf(c engine.Container) int {
	n, err := strconv.Atoi(c.Labels[labelAttempt])
	if err != nil {
		return 0
	}
	return n
}

// kind tells what part a container plays in its Pod.
type kind int

const (
	app kind = iota
	initial
	sidecar // an init container that restarts always
	ephemeral
)

// slot is a container of the Pod's spec.
type slot struct {
	kind kind
	c    *corev1.Container
}

// slots lists the Pod's containers: init containers in order, then the others.
func slots(pod *corev1.Pod) []slot {
	out := make([]slot, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers)+len(pod.Spec.EphemeralContainers))
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		k := initial
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			k = sidecar
		}
		out = append(out, slot{k, c})
	}
	for i := range pod.Spec.Containers {
		out = append(out, slot{app, &pod.Spec.Containers[i]})
	}
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		c := corev1.Container(e.EphemeralContainerCommon)
		out = append(out, slot{ephemeral, &c})
	}
	return out
}

// runs sorts a Pod's containers in the engine by name, newest attempt last.
func runs(uid string, all []engine.Container) map[string][]engine.Container {
	out := map[string][]engine.Container{}
	for _, c := range all {
		if c.Labels[labelPodUID] == uid {
			name := c.Labels[labelContainer]
			out[name] = append(out[name], c)
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b engine.Container) int { return attemptOf(a) - attemptOf(b) })
	}
	return out
}

// statuses returns what the cluster last knew of the Pod's containers.
func statuses(pod *corev1.Pod) map[string]*corev1.ContainerStatus {
	out := map[string]*corev1.ContainerStatus{}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			out[list[i].Name] = &list[i]
		}
	}
	return out
}

// Containers lists the names of the Pod's containers of all kinds.
func Containers(pod *corev1.Pod) []string {
	var names []string
	for _, s := range slots(pod) {
		names = append(names, s.c.Name)
	}
	return names
}

// Attempts returns the records of a container, newest last.
func Attempts(uid, container string, all []engine.Container) []engine.Container {
	return runs(uid, all)[container]
}

// Attempt is the number of an attempt, from 0.
func Attempt(c engine.Container) int { return attemptOf(c) }

// KnownStatus is what the cluster last knew of a container, or nil.
func KnownStatus(pod *corev1.Pod, container string) *corev1.ContainerStatus {
	return statuses(pod)[container]
}
