package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
)

// notReadySeconds is how long a Pod stays on a device that is not ready or not
// heard of, if the Pod does not say. Upstream has five minutes; who runs a box of
// small devices wants its Pods back.
const notReadySeconds = 10

// defaultTolerations gives every Pod its patience with failing devices.
type defaultTolerations struct{ admitOnly }

func (defaultTolerations) Admit(_ context.Context, a *registry.Attributes) error {
	if a.Resource.GroupResource() != podResource || a.Subresource != "" || a.Object == nil {
		return nil
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Operation != create && a.Operation != update {
		return nil
	}
	for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if toleratesNoExecute(pod.Spec.Tolerations, taint) {
			continue
		}
		seconds := int64(notReadySeconds)
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
			Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
	return nil
}

func toleratesNoExecute(tolerations []corev1.Toleration, taint string) bool {
	for _, t := range tolerations {
		if (t.Key == taint || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}
