package admission

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	resourcehelper "k8s.io/component-helpers/resource"

	"edged/apiserver/registry"
)

// limitRangerAnnotation tells on a Pod which values were filled in.
const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// limitRanger fills in a namespace's default requests and limits and holds its
// bounds.
type limitRanger struct {
	ranges registry.Client[*corev1.LimitRange]
}

func newLimitRanger(r *registry.Registry) *limitRanger {
	return &limitRanger{registry.For[*corev1.LimitRange](r)}
}

func (p *limitRanger) Admit(_ context.Context, a *registry.Attributes) error {
	pod, ok := newPod(a)
	if !ok {
		return nil
	}
	for _, r := range p.ranges.List(a.Namespace) {
		fillIn(pod, r)
	}
	return nil
}

func fillIn(pod *corev1.Pod, r *corev1.LimitRange) {
	var notes []string
	for i := range r.Spec.Limits {
		limit := &r.Spec.Limits[i]
		if limit.Type != corev1.LimitTypeContainer {
			continue
		}
		for j := range pod.Spec.Containers {
			notes = append(notes, fillInContainer(&pod.Spec.Containers[j], limit, "container")...)
		}
		for j := range pod.Spec.InitContainers {
			notes = append(notes, fillInContainer(&pod.Spec.InitContainers[j], limit, "init container")...)
		}
	}
	if len(notes) == 0 {
		return
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[limitRangerAnnotation] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
}

func fillInContainer(c *corev1.Container, limit *corev1.LimitRangeItem, kind string) []string {
	var notes []string
	var names []string
	c.Resources.Requests, names = merge(c.Resources.Requests, limit.DefaultRequest)
	if len(names) > 0 {
		notes = append(notes, fmt.Sprintf("%s request for %s %s", strings.Join(names, ", "), kind, c.Name))
	}
	c.Resources.Limits, names = merge(c.Resources.Limits, limit.Default)
	if len(names) > 0 {
		notes = append(notes, fmt.Sprintf("%s limit for %s %s", strings.Join(names, ", "), kind, c.Name))
	}
	return notes
}

// merge adds what is missing and returns the names of what it added.
func merge(have, defaults corev1.ResourceList) (corev1.ResourceList, []string) {
	var added []string
	for name, q := range defaults {
		if _, ok := have[name]; ok {
			continue
		}
		if have == nil {
			have = corev1.ResourceList{}
		}
		have[name] = q.DeepCopy()
		added = append(added, string(name))
	}
	slices.Sort(added)
	return have, added
}

func (p *limitRanger) Validate(_ context.Context, a *registry.Attributes) error {
	if claim, ok := a.Object.(*corev1.PersistentVolumeClaim); ok && a.Subresource == "" {
		return p.validateClaim(a, claim)
	}
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || a.Resource.GroupResource() != podResource {
		return nil
	}
	resize := a.Operation == update && a.Subresource == "resize"
	if !resize && (a.Operation != create || a.Subresource != "") {
		return nil
	}
	for _, r := range p.ranges.List(a.Namespace) {
		if err := boundsOf(pod, r); err != nil {
			return forbidden(a, err)
		}
	}
	return nil
}

func (p *limitRanger) validateClaim(a *registry.Attributes, claim *corev1.PersistentVolumeClaim) error {
	if a.Operation != create && a.Operation != update {
		return nil
	}
	for _, r := range p.ranges.List(a.Namespace) {
		var errs []error
		for i := range r.Spec.Limits {
			if r.Spec.Limits[i].Type == corev1.LimitTypePersistentVolumeClaim {
				bounds := r.Spec.Limits[i]
				bounds.MaxLimitRequestRatio = nil
				errs = append(errs, check(&bounds, claim.Spec.Resources.Requests, claim.Spec.Resources.Limits)...)
			}
		}
		if err := utilerrors.NewAggregate(errs); err != nil {
			return forbidden(a, err)
		}
	}
	return nil
}

func boundsOf(pod *corev1.Pod, r *corev1.LimitRange) error {
	var errs []error
	for i := range r.Spec.Limits {
		limit := &r.Spec.Limits[i]
		switch limit.Type {
		case corev1.LimitTypeContainer:
			for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
				for j := range containers {
					errs = append(errs, check(limit, containers[j].Resources.Requests, containers[j].Resources.Limits)...)
				}
			}
		case corev1.LimitTypePod:
			opts := resourcehelper.PodResourcesOptions{}
			errs = append(errs, check(limit, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))...)
		}
	}
	return utilerrors.NewAggregate(errs)
}

// check compares one set of requests and limits with one item's bounds, in
// order of resource names.
func check(limit *corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	each(limit.Min, func(name corev1.ResourceName, bound resource.Quantity) {
		errs = append(errs, checkMin(limit.Type, name, bound, requests, limits))
	})
	each(limit.Max, func(name corev1.ResourceName, bound resource.Quantity) {
		errs = append(errs, checkMax(limit.Type, name, bound, requests, limits))
	})
	each(limit.MaxLimitRequestRatio, func(name corev1.ResourceName, bound resource.Quantity) {
		errs = append(errs, checkRatio(limit.Type, name, bound, requests, limits))
	})
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func each(list corev1.ResourceList, fn func(corev1.ResourceName, resource.Quantity)) {
	names := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare)
	for _, name := range names {
		fn(name, list[name])
	}
}

func checkMin(typ corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	request, ok := requests[name]
	if !ok {
		return fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", name, typ, bound.String())
	}
	if request.Cmp(bound) < 0 {
		return fmt.Errorf("minimum %s usage per %s is %s, but request is %s", name, typ, bound.String(), request.String())
	}
	if limit, ok := limits[name]; ok && limit.Cmp(bound) < 0 {
		return fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", name, typ, bound.String(), limit.String())
	}
	return nil
}

func checkMax(typ corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	limit, ok := limits[name]
	if !ok && typ != corev1.LimitTypePersistentVolumeClaim {
		return fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", name, typ, bound.String())
	}
	if ok && limit.Cmp(bound) > 0 {
		return fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", name, typ, bound.String(), limit.String())
	}
	if request, ok := requests[name]; ok && request.Cmp(bound) > 0 {
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, typ, bound.String(), request.String())
	}
	return nil
}

func checkRatio(typ corev1.LimitType, name corev1.ResourceName, bound resource.Quantity, requests, limits corev1.ResourceList) error {
	request, limit := requests[name], limits[name]
	if request.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, typ, bound.String())
	}
	if limit.IsZero() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, typ, bound.String())
	}
	if ratio := limit.AsApproximateFloat64() / request.AsApproximateFloat64(); ratio > bound.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, typ, bound.String(), ratio)
	}
	return nil
}
