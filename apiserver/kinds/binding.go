package kinds

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/features"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

var podResource = schema.GroupResource{Resource: "pods"}

// bindPod is POST pods/binding: it gives the Pod its node, once. It follows
// pkg/registry/core/pod/storage.
func bindPod(ctx context.Context, r *registry.Registry, ns, name string, obj runtime.Object, opts registry.CreateOptions) (runtime.Object, error) {
	internal, err := codec.ToInternal(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	binding, ok := internal.(*api.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %#v", obj))
	}
	if name != binding.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := validation.ValidatePodBinding(binding); len(errs) != 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Binding"}, name, errs)
	}
	_, err = r.Rewrite(ctx, podResource, ns, name, func(cur runtime.Object) (runtime.Object, error) {
		pod := cur.(*corev1.Pod)
		if err := bindable(pod, binding); err != nil {
			return nil, err
		}
		assign(pod, binding, r.Now())
		return pod, nil
	}, registry.UpdateOptions{DryRun: opts.DryRun})
	if err != nil {
		return nil, err
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: 201}, nil
}

// bindable says why the Pod cannot be bound.
func bindable(pod *corev1.Pod, binding *api.Binding) error {
	if binding.UID != "" && binding.UID != pod.UID {
		//lint:ignore ST1005 upstream's text
		return apierrors.NewConflict(podResource, pod.Name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", binding.UID, pod.UID))
	}
	if binding.ResourceVersion != "" && binding.ResourceVersion != pod.ResourceVersion {
		//lint:ignore ST1005 upstream's text
		return apierrors.NewConflict(podResource, pod.Name, fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", binding.ResourceVersion, pod.ResourceVersion))
	}
	var err error
	switch {
	case pod.DeletionTimestamp != nil:
		err = fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		err = fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) != 0:
		err = fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	default:
		return nil
	}
	return apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, err)
}

func assign(pod *corev1.Pod, binding *api.Binding, now time.Time) {
	pod.Spec.NodeName = binding.Target.Name
	if utilfeature.DefaultFeatureGate.Enabled(features.ClearingNominatedNodeNameAfterBinding) {
		pod.Status.NominatedNodeName = ""
	}
	if pod.Annotations == nil && len(binding.Annotations) > 0 {
		pod.Annotations = map[string]string{}
	}
	maps.Copy(pod.Annotations, binding.Annotations)
	podutil.DropInitContainerAnnotations(pod.Annotations)
	if utilfeature.DefaultFeatureGate.Enabled(features.PodTopologyLabelsAdmission) && len(binding.Labels) > 0 {
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		maps.Copy(pod.Labels, binding.Labels)
	}
	setCondition(&pod.Status, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, now)
}

// setCondition sets a condition of a Pod; its time moves only with its status.
func setCondition(status *corev1.PodStatus, c corev1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	for i := range status.Conditions {
		if old := &status.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	status.Conditions = append(status.Conditions, c)
}
