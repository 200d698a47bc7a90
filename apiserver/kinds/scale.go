package kinds

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

var scaleKind = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

// withScale adds the scale subresource to a kind that scalable knows.
func withScale(k *registry.Kind) *registry.Kind {
	return withSubresource(k, "scale", &registry.Subresource{
		Projection: &registry.Projection{Get: getScale, Set: setScale},
		GVK:        scaleKind,
		New:        func() runtime.Object { return new(autoscalingv1.Scale) },
		Verbs:      []string{"get", "patch", "update"},
	})
}

// scalable gives what a Scale shows of an object, and where its replicas are.
func scalable(obj runtime.Object) (m *metav1.ObjectMeta, replicas **int32, current int32, selector labels.Selector, err error) {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		selector, err = metav1.LabelSelectorAsSelector(o.Spec.Selector)
		return &o.ObjectMeta, &o.Spec.Replicas, o.Status.Replicas, selector, err
	case *appsv1.ReplicaSet:
		selector, err = metav1.LabelSelectorAsSelector(o.Spec.Selector)
		return &o.ObjectMeta, &o.Spec.Replicas, o.Status.Replicas, selector, err
	case *appsv1.StatefulSet:
		selector, err = metav1.LabelSelectorAsSelector(o.Spec.Selector)
		return &o.ObjectMeta, &o.Spec.Replicas, o.Status.Replicas, selector, err
	case *corev1.ReplicationController:
		return &o.ObjectMeta, &o.Spec.Replicas, o.Status.Replicas, labels.SelectorFromSet(o.Spec.Selector), nil
	}
	return nil, nil, 0, nil, fmt.Errorf("%T has no scale", obj)
}

func getScale(obj runtime.Object) (runtime.Object, error) {
	m, replicas, current, selector, err := scalable(obj)
	if err != nil {
		return nil, err
	}
	scale := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: m.Name, Namespace: m.Namespace, UID: m.UID,
			ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp,
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: ptr.Deref(*replicas, 0)},
		Status: autoscalingv1.ScaleStatus{Replicas: current, Selector: selector.String()},
	}
	scale.SetGroupVersionKind(scaleKind)
	return scale, nil
}

func setScale(_ context.Context, obj, projected runtime.Object) error {
	m, replicas, _, _, err := scalable(obj)
	if err != nil {
		return err
	}
	v1, err := codec.ToVersion(projected, scaleKind)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("expected input object type to be Scale, but %T", projected))
	}
	scale := v1.(*autoscalingv1.Scale)
	if scale.Spec.Replicas < 0 {
		errs := field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0")}
		return apierrors.NewInvalid(scaleKind.GroupKind(), m.Name, errs)
	}
	*replicas = ptr.To(scale.Spec.Replicas)
	return nil
}
