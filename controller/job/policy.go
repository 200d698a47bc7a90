package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// judgement is what the failure policy says of a Pod that failed.
type judgement struct {
	counts    bool   // towards the limits
	failIndex bool   // no more tries for its index
	failJob   string // the message with which the Job fails, if not empty
}

// judge applies the Job's failure policy.
func judge(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) judgement {
	if policy == nil {
		return judgement{counts: true}
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		why, ok := matches(rule, pod)
		if !ok {
			continue
		}
		switch rule.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return judgement{}
		case batchv1.PodFailurePolicyActionFailIndex:
			return judgement{counts: true, failIndex: true}
		case batchv1.PodFailurePolicyActionCount:
			return judgement{counts: true}
		case batchv1.PodFailurePolicyActionFailJob:
			return judgement{counts: true, failJob: fmt.Sprintf("%s matching %v rule at index %d", why, rule.Action, i)}
		}
	}
	return judgement{counts: true}
}

// matches reports whether a rule is about the Pod, and why.
func matches(rule *batchv1.PodFailurePolicyRule, pod *corev1.Pod) (why string, ok bool) {
	switch {
	case rule.OnExitCodes != nil:
		for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
			for i := range list {
				if s := &list[i]; exitMatches(rule.OnExitCodes, s) {
					return fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v", s.Name, pod.Namespace, pod.Name, s.State.Terminated.ExitCode), true
				}
			}
		}
	case rule.OnPodConditions != nil:
		for _, c := range pod.Status.Conditions {
			if slices.ContainsFunc(rule.OnPodConditions, func(p batchv1.PodFailurePolicyOnPodConditionsPattern) bool {
				return p.Type == c.Type && p.Status == c.Status
			}) {
				return fmt.Sprintf("Pod %s/%s has condition %v", pod.Namespace, pod.Name, c.Type), true
			}
		}
	}
	return "", false
}

func exitMatches(want *batchv1.PodFailurePolicyOnExitCodesRequirement, s *corev1.ContainerStatus) bool {
	end := s.State.Terminated
	if end == nil || end.ExitCode == 0 || want.ContainerName != nil && *want.ContainerName != s.Name {
		return false
	}
	listed := slices.Contains(want.Values, end.ExitCode)
	switch want.Operator {
	case batchv1.PodFailurePolicyOnExitCodesOpIn:
		return listed
	case batchv1.PodFailurePolicyOnExitCodesOpNotIn:
		return !listed
	}
	return false
}

// isSuccess reports whether the success policy is met by these indexes.
func isSuccess(policy *batchv1.SuccessPolicy, completions int, succeeded indexes) (message string, ok bool) {
	if policy == nil || len(succeeded) == 0 {
		return "", false
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		switch {
		case rule.SucceededIndexes != nil:
			wanted := parseIndexes(*rule.SucceededIndexes, completions)
			have := wanted.common(succeeded)
			ok = len(wanted) > 0 && (have == wanted.count() || rule.SucceededCount != nil && have >= int(*rule.SucceededCount))
		case rule.SucceededCount != nil:
			ok = succeeded.count() >= int(*rule.SucceededCount)
		}
		if ok {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}
