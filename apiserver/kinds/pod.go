package kinds

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/helper/qos"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/features"

	"edged/apiserver/registry"
)

func pods() *registry.Kind {
	s := podStrategy{newBase(true).resets("v1", "status")}
	k := inAll(returnsDeleted(row[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", s, "po")))
	k.Fields = podFields
	k.SelectableFields = []string{
		"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
		"spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName",
	}
	k.Indexes = map[string]func(runtime.Object) []string{registry.IndexNode: func(obj runtime.Object) []string {
		if name := obj.(*corev1.Pod).Spec.NodeName; name != "" {
			return []string{name}
		}
		return nil
	}}
	withStatus(k, podStatusStrategy{podStrategy{newBase(true).resets("v1", "spec")}})
	update := []string{"get", "patch", "update"}
	withSubresource(k, "ephemeralcontainers", &registry.Subresource{Strategy: podEphemeralContainersStrategy{s}, Verbs: update})
	withSubresource(k, "resize", &registry.Subresource{Strategy: podResizeStrategy{s}, Verbs: update})
	withSubresource(k, "binding", &registry.Subresource{
		Create: bindPod, Verbs: []string{"create"},
		GVK: corev1.SchemeGroupVersion.WithKind("Binding"), New: func() runtime.Object { return new(corev1.Binding) },
	})
	withSubresource(k, "eviction", &registry.Subresource{
		Create: evictPod, Verbs: []string{"create"},
		GVK: policyv1.SchemeGroupVersion.WithKind("Eviction"), New: func() runtime.Object { return new(policyv1.Eviction) },
	})
	return k
}

func podFields(obj runtime.Object) fields.Set {
	pod := obj.(*corev1.Pod)
	podIP := ""
	if len(pod.Status.PodIPs) > 0 {
		podIP = pod.Status.PodIPs[0].IP
	}
	return fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             podIP,
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
}

// podStrategy follows pkg/registry/core/pod.
type podStrategy struct{ base }

func (podStrategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	pod := obj.(*api.Pod)
	pod.Generation = 1
	pod.Status = api.PodStatus{Phase: api.PodPending}
	podutil.DropDisabledPodFields(pod, nil)
	setSchedulingGated(pod)
	mergeMatchLabelKeys(pod)
	appArmorFromAnnotations(ctx, pod)
	podutil.DefaultPodLevelResources(pod)
	pod.Status.QOSClass = qos.GetPodQOS(pod)
}

func (podStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	pod.Status = was.Status
	keepPodLevelResources(pod, was)
	podutil.DropDisabledPodFields(pod, was)
	bumpPodGeneration(pod, was)
}

// keepPodLevelResources is for clients that do not know the field and so drop
// it.
func keepPodLevelResources(pod, was *api.Pod) {
	if utilfeature.DefaultFeatureGate.Enabled(features.PodLevelResourcesFixDefaulting) && pod.Spec.Resources == nil && was.Spec.Resources != nil {
		pod.Spec.Resources = was.Spec.Resources.DeepCopy()
	}
}

func bumpPodGeneration(pod, was *api.Pod) {
	if !equality.Semantic.DeepEqual(pod.Spec, was.Spec) {
		pod.Generation++
	}
}

func podOptions(pod, was *api.Pod) validation.PodValidationOptions {
	var spec *api.PodSpec
	var objectMeta *metav1.ObjectMeta
	if was != nil {
		spec, objectMeta = &was.Spec, &was.ObjectMeta
	}
	opts := podutil.GetValidationOptionsFromPodSpecAndMeta(&pod.Spec, spec, &pod.ObjectMeta, objectMeta)
	opts.ResourceIsPod = true
	return opts
}

func (podStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	pod := obj.(*api.Pod)
	return validation.ValidatePodCreate(pod, podOptions(pod, nil))
}

func (podStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	return validation.ValidatePodUpdate(pod, was, podOptions(pod, was))
}

func (podStrategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	pod := obj.(*api.Pod)
	var warnings []string
	if msgs := utilvalidation.IsDNS1123Label(pod.Name); len(msgs) != 0 {
		warnings = append(warnings, fmt.Sprintf("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
	}
	return append(warnings, podutil.GetWarningsForPod(ctx, pod, nil)...)
}

// CheckGracefulDelete sets how long the Pod has to end: what the request says,
// else what the Pod says; no time if nothing runs.
func (podStrategy) CheckGracefulDelete(_ context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	pod := obj.(*api.Pod)
	period := int64(0)
	switch {
	case options.GracePeriodSeconds != nil:
		period = *options.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		period = *pod.Spec.TerminationGracePeriodSeconds
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == api.PodFailed || pod.Status.Phase == api.PodSucceeded {
		period = 0
	}
	if period < 0 {
		period = 1
	}
	options.GracePeriodSeconds = &period
	return true
}

type podStatusStrategy struct{ podStrategy }

func (podStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	pod.Spec = was.Spec
	pod.DeletionTimestamp = nil
	pod.OwnerReferences = was.OwnerReferences
	status := &pod.Status
	if status.QOSClass == "" {
		status.QOSClass = was.Status.QOSClass
	}
	if status.ResourceClaimStatuses == nil {
		status.ResourceClaimStatuses = was.Status.ResourceClaimStatuses
	}
	if status.ExtendedResourceClaimStatus == nil {
		status.ExtendedResourceClaimStatus = was.Status.ExtendedResourceClaimStatus
	}
	if status.NodeAllocatableResourceClaimStatuses == nil {
		status.NodeAllocatableResourceClaimStatuses = was.Status.NodeAllocatableResourceClaimStatuses
	}
	keepObservedGeneration(status, &was.Status)
	podutil.DropDisabledPodFields(pod, was)
}

// keepObservedGeneration restores the observed generations that an update
// leaves out. Several conditions of one type are matched in order.
func keepObservedGeneration(status, was *api.PodStatus) {
	if status.ObservedGeneration == 0 {
		status.ObservedGeneration = was.ObservedGeneration
	}
	old := map[api.PodConditionType][]int64{}
	for _, c := range was.Conditions {
		old[c.Type] = append(old[c.Type], c.ObservedGeneration)
	}
	for i := range status.Conditions {
		c := &status.Conditions[i]
		generation := int64(0)
		if g := old[c.Type]; len(g) > 0 {
			generation, old[c.Type] = g[0], g[1:]
		}
		if c.ObservedGeneration == 0 {
			c.ObservedGeneration = generation
		}
	}
}

func (podStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	return validation.ValidatePodStatusUpdate(pod, was, podOptions(pod, was))
}

func (podStatusStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	pod := obj.(*api.Pod)
	var warnings []string
	for i, ip := range pod.Status.PodIPs {
		warnings = append(warnings, utilvalidation.GetWarningsForIP(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP)...)
	}
	for i, ip := range pod.Status.HostIPs {
		warnings = append(warnings, utilvalidation.GetWarningsForIP(field.NewPath("status", "hostIPs").Index(i).Child("ip"), ip.IP)...)
	}
	return warnings
}

type podEphemeralContainersStrategy struct{ podStrategy }

func (podEphemeralContainersStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	ephemeral := pod.Spec.EphemeralContainers
	pod.Spec = was.Spec
	pod.Status = was.Status
	metav1.ResetObjectMetaForStatus(&pod.ObjectMeta, &was.ObjectMeta)
	pod.Spec.EphemeralContainers = ephemeral
	podutil.DropDisabledPodFields(pod, was)
	bumpPodGeneration(pod, was)
}

func (podEphemeralContainersStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	return validation.ValidatePodEphemeralContainersUpdate(pod, was, podOptions(pod, was))
}

type podResizeStrategy struct{ podStrategy }

// PrepareForUpdate keeps everything but the resources of containers and of the
// Pod. Containers that were added, removed, reordered or renamed are left for
// validation to refuse.
func (podResizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	if len(pod.Spec.Containers) == len(was.Spec.Containers) && len(pod.Spec.InitContainers) == len(was.Spec.InitContainers) {
		resources, volumes := pod.Spec.Resources, was.Spec.Volumes
		if utilfeature.DefaultFeatureGate.Enabled(features.InPlacePodVerticalScalingMemoryBackedVolumes) {
			volumes = pod.Spec.Volumes
		}
		containers := resized(pod.Spec.Containers, was.Spec.Containers)
		initContainers := resized(pod.Spec.InitContainers, was.Spec.InitContainers)
		pod.Spec = was.Spec
		if utilfeature.DefaultFeatureGate.Enabled(features.InPlacePodLevelResourcesVerticalScaling) {
			pod.Spec.Resources = resources
		}
		pod.Status = was.Status
		metav1.ResetObjectMetaForStatus(&pod.ObjectMeta, &was.ObjectMeta)
		pod.Spec.Containers, pod.Spec.InitContainers, pod.Spec.Volumes = containers, initContainers, volumes
	}
	keepPodLevelResources(pod, was)
	if utilfeature.DefaultFeatureGate.Enabled(features.PodLevelResourcesFixDefaulting) && pod.Spec.Resources != nil {
		podutil.DefaultPodLevelResources(pod)
	}
	podutil.DropDisabledPodFields(pod, was)
	bumpPodGeneration(pod, was)
}

// resized are the old containers with the new resources.
func resized(now, was []api.Container) []api.Container {
	if len(now) == 0 {
		return now
	}
	out := append([]api.Container(nil), was...)
	for i := range now {
		if out[i].Name != now[i].Name {
			return now
		}
		out[i].Resources = now[i].Resources
		out[i].ResizePolicy = now[i].ResizePolicy
	}
	return out
}

func (podResizeStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	pod, was := obj.(*api.Pod), old.(*api.Pod)
	return validation.ValidatePodResize(pod, was, podOptions(pod, was))
}
