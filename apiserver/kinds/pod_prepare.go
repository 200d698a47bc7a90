package kinds

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/warning"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/features"
)

// setSchedulingGated says in a new Pod's status why it is not scheduled yet.
func setSchedulingGated(pod *api.Pod) {
	if len(pod.Spec.SchedulingGates) == 0 {
		return
	}
	podutil.UpdatePodCondition(&pod.Status, &api.PodCondition{
		Type:    api.PodScheduled,
		Status:  api.ConditionFalse,
		Reason:  corev1.PodReasonSchedulingGated,
		Message: "Scheduling is blocked due to non-empty scheduling gates",
	})
}

// mergeMatchLabelKeys writes what matchLabelKeys and mismatchLabelKeys mean
// for this Pod's labels into the selectors of its affinity and spreading
// terms. A nil selector matches nothing and stays nil.
func mergeMatchLabelKeys(pod *api.Pod) {
	gate := utilfeature.DefaultFeatureGate
	if affinity := pod.Spec.Affinity; affinity != nil && gate.Enabled(features.MatchLabelKeysInPodAffinity) {
		if a := affinity.PodAffinity; a != nil {
			mergeTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, pod.Labels)
		}
		if a := affinity.PodAntiAffinity; a != nil {
			mergeTerms(a.RequiredDuringSchedulingIgnoredDuringExecution, a.PreferredDuringSchedulingIgnoredDuringExecution, pod.Labels)
		}
	}
	if gate.Enabled(features.MatchLabelKeysInPodTopologySpread) && gate.Enabled(features.MatchLabelKeysInPodTopologySpreadSelectorMerge) {
		for i := range pod.Spec.TopologySpreadConstraints {
			c := &pod.Spec.TopologySpreadConstraints[i]
			mergeKeys(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, pod.Labels)
		}
	}
}

func mergeTerms(required []api.PodAffinityTerm, preferred []api.WeightedPodAffinityTerm, labels map[string]string) {
	for i := range preferred {
		mergeTerm(&preferred[i].PodAffinityTerm, labels)
	}
	for i := range required {
		mergeTerm(&required[i], labels)
	}
}

func mergeTerm(term *api.PodAffinityTerm, labels map[string]string) {
	mergeKeys(term.LabelSelector, term.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
	mergeKeys(term.LabelSelector, term.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
}

func mergeKeys(selector *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) {
	if selector == nil {
		return
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			selector.MatchExpressions = append(selector.MatchExpressions, metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}

// appArmorFromAnnotations fills the AppArmor fields of containers from the
// annotations that were used before, with upstream's warning (KEP 24).
func appArmorFromAnnotations(ctx context.Context, pod *api.Pod) {
	if pod.Spec.OS != nil && pod.Spec.OS.Name == api.Windows {
		return
	}
	var podProfile *api.AppArmorProfile
	if pod.Spec.SecurityContext != nil {
		podProfile = pod.Spec.SecurityContext.AppArmorProfile
	}
	podutil.VisitContainers(&pod.Spec, podutil.AllFeatureEnabledContainers(), func(ctr *api.Container, _ podutil.ContainerType) bool {
		key := api.DeprecatedAppArmorAnnotationKeyPrefix + ctr.Name
		annotation, ok := pod.Annotations[key]
		if !ok || ctr.SecurityContext != nil && ctr.SecurityContext.AppArmorProfile != nil {
			return true
		}
		profile := podutil.ApparmorFieldForAnnotation(annotation)
		if len(validation.ValidateAppArmorProfileField(profile, &field.Path{})) > 0 {
			profile = nil
		}
		warn := profile == nil
		if profile != nil && !equality.Semantic.DeepEqual(profile, podProfile) {
			if ctr.SecurityContext == nil {
				ctr.SecurityContext = &api.SecurityContext{}
			}
			ctr.SecurityContext.AppArmorProfile = profile
			warn = true
		}
		if warn {
			path := field.NewPath("metadata", "annotations").Key(key)
			warning.AddWarning(ctx, "", fmt.Sprintf(`%s: deprecated since v1.30; use the "appArmorProfile" field instead`, path))
		}
		return true
	})
}
