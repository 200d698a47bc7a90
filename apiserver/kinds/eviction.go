package kinds

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// maxDisruptedPods is upstream's: a budget whose controller does not keep up
// stops evictions before its status grows without bound.
const maxDisruptedPods = 2000

// evictPod is POST pods/eviction: it deletes a Pod if its disruption budget
// allows. It follows pkg/registry/core/pod/storage/eviction.go.
func evictPod(ctx context.Context, r *registry.Registry, ns, name string, obj runtime.Object, opts registry.CreateOptions) (runtime.Object, error) {
	v1, err := codec.ToVersion(obj, policyv1.SchemeGroupVersion.WithKind("Eviction"))
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Eviction object: %T", obj))
	}
	eviction := v1.(*policyv1.Eviction)
	if name != eviction.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	del, err := evictionDeleteOptions(eviction, opts)
	if err != nil {
		return nil, err
	}
	cur, err := r.Get(ctx, podResource, ns, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := cur.(*corev1.Pod)
	if !ignoresBudget(pod) {
		exact, err := takeFromBudget(ctx, r, pod, len(del.DryRun) > 0)
		if err != nil {
			return nil, err
		}
		if exact && (del.Preconditions == nil || del.Preconditions.ResourceVersion == nil) {
			if del.Preconditions == nil {
				del.Preconditions = &metav1.Preconditions{}
			}
			del.Preconditions.ResourceVersion = &pod.ResourceVersion
		}
	}
	if err := markAndDelete(ctx, r, ns, name, del); err != nil {
		return nil, err
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Code: 201}, nil
}

func evictionDeleteOptions(e *policyv1.Eviction, opts registry.CreateOptions) (metav1.DeleteOptions, error) {
	del := metav1.DeleteOptions{}
	if e.DeleteOptions != nil {
		del = *e.DeleteOptions.DeepCopy()
	}
	switch {
	case len(del.DryRun) == 0:
		del.DryRun = opts.DryRun
	case len(opts.DryRun) > 0 && !slices.Equal(del.DryRun, opts.DryRun):
		return del, apierrors.NewBadRequest(fmt.Sprintf("Non-matching dry-run options in request and content: %v and %v", opts.DryRun, del.DryRun))
	}
	return del, nil
}

// ignoresBudget reports whether the Pod's loss disrupts nobody any more.
func ignoresBudget(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// takeFromBudget takes one disruption from the Pod's budget, if it has one.
// exact says that the answer holds for this version of the Pod only, because
// it was not ready.
func takeFromBudget(ctx context.Context, r *registry.Registry, pod *corev1.Pod, dryRun bool) (exact bool, err error) {
	budgets := registry.For[*policyv1.PodDisruptionBudget](r)
	var mine []*policyv1.PodDisruptionBudget
	for _, b := range budgets.List(pod.Namespace) {
		if s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err == nil && s.Matches(labels.Set(pod.Labels)) {
			mine = append(mine, b)
		}
	}
	switch len(mine) {
	case 0:
		return false, nil
	case 1:
	default:
		return false, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: 500,
			Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
		}}
	}
	if b := mine[0]; !podReady(pod) {
		p := b.Spec.UnhealthyPodEvictionPolicy
		if p != nil && *p == policyv1.AlwaysAllow || b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0 {
			return true, nil
		}
	}
	if dryRun {
		return false, allowDisruption(mine[0].DeepCopy(), pod.Name, r.Now())
	}
	_, err = budgets.UpdateStatus(ctx, pod.Namespace, mine[0].Name, func(b *policyv1.PodDisruptionBudget) error {
		return allowDisruption(b, pod.Name, r.Now())
	})
	return false, err
}

// allowDisruption counts one disruption against the budget.
func allowDisruption(b *policyv1.PodDisruptionBudget, podName string, now time.Time) error {
	switch {
	case b.Status.ObservedGeneration < b.Generation:
		return budgetRefuses(b.Name, fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
	case b.Status.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("pdb disruptions allowed is negative"))
	case len(b.Status.DisruptedPods) > maxDisruptedPods:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case b.Status.DisruptionsAllowed == 0:
		return budgetRefuses(b.Name, fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy))
	}
	b.Status.DisruptionsAllowed--
	if b.Status.DisruptedPods == nil {
		b.Status.DisruptedPods = map[string]metav1.Time{}
	}
	b.Status.DisruptedPods[podName] = metav1.NewTime(now).Rfc3339Copy()
	return nil
}

func budgetRefuses(_, cause string) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: cause})
	return err
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// markAndDelete says in the Pod's status who disrupts it and deletes it.
func markAndDelete(ctx context.Context, r *registry.Registry, ns, name string, del metav1.DeleteOptions) error {
	if len(del.DryRun) == 0 {
		out, err := r.Rewrite(ctx, podResource, ns, name, func(cur runtime.Object) (runtime.Object, error) {
			pod := cur.(*corev1.Pod)
			if err := preconditions(pod, del.Preconditions); err != nil {
				return nil, err
			}
			setCondition(&pod.Status, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			}, r.Now())
			return pod, nil
		}, registry.UpdateOptions{})
		if err != nil {
			return err
		}
		if p := del.Preconditions; p != nil && p.ResourceVersion != nil {
			rv := out.(*corev1.Pod).ResourceVersion
			p.ResourceVersion = &rv // we are the one who moved it
		}
	}
	_, _, err := r.Delete(ctx, podResource, ns, name, del)
	return err
}

func preconditions(pod *corev1.Pod, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	resource := podResource
	resource.Resource = "Pod"
	if uid := p.UID; uid != nil && *uid != "" && *uid != pod.UID {
		return apierrors.NewConflict(resource, pod.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *uid, pod.UID))
	}
	if rv := p.ResourceVersion; rv != nil && *rv != "" && *rv != pod.ResourceVersion {
		return apierrors.NewConflict(resource, pod.Name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *rv, pod.ResourceVersion))
	}
	return nil
}
