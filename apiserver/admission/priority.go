package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"edged/apiserver/registry"
)

// priority resolves a Pod's PriorityClass and allows one default class.
type priority struct {
	classes registry.Client[*schedulingv1.PriorityClass]
}

func newPriority(r *registry.Registry) *priority {
	return &priority{registry.For[*schedulingv1.PriorityClass](r)}
}

func (p *priority) Admit(_ context.Context, a *registry.Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Resource.GroupResource() != podResource || a.Subresource != "" {
		return nil
	}
	switch a.Operation {
	case create:
		return p.admitNew(a, pod)
	case update:
		old, ok := a.OldObject.(*corev1.Pod)
		if !ok {
			return nil
		}
		if pod.Spec.Priority == nil {
			pod.Spec.Priority = old.Spec.Priority
		}
		if pod.Spec.PreemptionPolicy == nil {
			pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
	}
	return nil
}

func (p *priority) admitNew(a *registry.Attributes, pod *corev1.Pod) error {
	value, policy := int32(0), corev1.PreemptLowerPriority
	class := p.defaultClass()
	if name := pod.Spec.PriorityClassName; name != "" {
		var ok bool
		if class, ok = p.classes.Get("", name); !ok {
			return forbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
		}
	}
	if class != nil {
		pod.Spec.PriorityClassName, value = class.Name, class.Value
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
	}
	if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
		return forbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value))
	}
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy != policy {
		return forbidden(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *pod.Spec.PreemptionPolicy, policy))
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

// defaultClass is the class for Pods that name none; of several, which only a
// race can make, the one with the lowest value.
func (p *priority) defaultClass() *schedulingv1.PriorityClass {
	var found *schedulingv1.PriorityClass
	for _, c := range p.classes.List("") {
		if c.GlobalDefault && (found == nil || c.Value < found.Value) {
			found = c
		}
	}
	return found
}

func (p *priority) Validate(_ context.Context, a *registry.Attributes) error {
	class, ok := a.Object.(*schedulingv1.PriorityClass)
	if !ok || !class.GlobalDefault || a.Operation != create && a.Operation != update {
		return nil
	}
	if other := p.defaultClass(); other != nil && (a.Operation == create || other.Name != class.Name) {
		return forbidden(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", other.Name))
	}
	return nil
}
