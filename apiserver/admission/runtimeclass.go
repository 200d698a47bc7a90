package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"edged/apiserver/registry"
)

// runtimeClass gives a Pod what its RuntimeClass says of overhead and devices,
// and refuses one whose class is not there.
type runtimeClass struct {
	classes registry.Client[*nodev1.RuntimeClass]
}

func newRuntimeClass(r *registry.Registry) *runtimeClass {
	return &runtimeClass{registry.For[*nodev1.RuntimeClass](r)}
}

// of returns a new Pod and its class, nil if it names none; ok is false for
// everything else.
func (r *runtimeClass) of(a *registry.Attributes) (pod *corev1.Pod, class *nodev1.RuntimeClass, ok bool, err error) {
	if a.Operation != create || a.Resource.GroupResource() != podResource || a.Subresource != "" {
		return nil, nil, false, nil
	}
	if pod, ok = a.Object.(*corev1.Pod); !ok || pod.Spec.RuntimeClassName == nil {
		return pod, nil, ok, nil
	}
	name := *pod.Spec.RuntimeClassName
	if class, ok = r.classes.Get("", name); !ok {
		return pod, nil, true, forbidden(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", name))
	}
	return pod, class, true, nil
}

var errOverhead = errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")

func (r *runtimeClass) Admit(_ context.Context, a *registry.Attributes) error {
	pod, class, ok, err := r.of(a)
	if !ok || err != nil || class == nil {
		return err
	}
	if o := class.Overhead; o != nil {
		if len(pod.Spec.Overhead) > 0 && !apiequality.Semantic.DeepEqual(o.PodFixed, pod.Spec.Overhead) {
			return forbidden(a, errOverhead)
		}
		pod.Spec.Overhead = o.PodFixed.DeepCopy()
	}
	if s := class.Scheduling; s != nil {
		for key, value := range s.NodeSelector {
			if have, ok := pod.Spec.NodeSelector[key]; ok && have != value {
				return forbidden(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, have))
			}
			if pod.Spec.NodeSelector == nil {
				pod.Spec.NodeSelector = map[string]string{}
			}
			pod.Spec.NodeSelector[key] = value
		}
		for _, t := range s.Tolerations {
			if !slices.ContainsFunc(pod.Spec.Tolerations, func(have corev1.Toleration) bool { return apiequality.Semantic.DeepEqual(have, t) }) {
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, *t.DeepCopy())
			}
		}
	}
	return nil
}

func (r *runtimeClass) Validate(_ context.Context, a *registry.Attributes) error {
	pod, class, ok, err := r.of(a)
	switch {
	case !ok || err != nil:
		return err
	case class != nil && class.Overhead != nil:
		if !apiequality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return forbidden(a, errOverhead)
		}
	case pod.Spec.Overhead != nil:
		return forbidden(a, errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
	}
	return nil
}
