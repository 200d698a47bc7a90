package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"edged/controller/podset"
)

// deletionTimeout is how long an evicted Pod may take to be deleted before it
// counts as there again, upstream's.
const deletionTimeout = 2 * time.Minute

// World is what a decision is made from.
type World struct {
	Budget *policyv1.PodDisruptionBudget
	Pods   []*corev1.Pod // that it selects
	// Scale is how many Pods a controller should have, and the UID of the one
	// that decides it.
	Scale func(ref *metav1.OwnerReference, ns string) (uid types.UID, replicas int32, ok bool)
	Now   time.Time
}

// Outcome is a budget's status and what there is to say about it.
type Outcome struct {
	Status policyv1.PodDisruptionBudgetStatus
	Events []Event
	// Undeleted are Pods that were evicted and not deleted.
	Undeleted []*corev1.Pod
	// Again is when to look again though nothing changed; zero for never.
	Again time.Duration
}

// Event is to be told about the budget.
type Event struct{ Type, Reason, Message string }

// Reconcile counts.
func Reconcile(w World) Outcome {
	var o Outcome
	o.Status = *w.Budget.Status.DeepCopy()
	if len(w.Pods) == 0 {
		o.event(corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	expected, desired, unmanaged, err := count(w)
	if err != nil {
		o.event(corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", fmt.Sprintf("Failed to calculate the number of expected pods: %v", err))
		o.fail(w, err)
		return o
	}
	if unmanaged {
		o.event(corev1.EventTypeWarning, "UnmanagedPods", fmt.Sprintf("Pods selected by this PodDisruptionBudget (selector: %v) were found "+
			"to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" "+
			"field of the PDB to an integer value.", w.Budget.Spec.Selector))
	}
	o.evicted(w)
	healthy := podset.Count(w.Pods, func(p *corev1.Pod) bool {
		_, evicted := o.Status.DisruptedPods[p.Name]
		return p.DeletionTimestamp == nil && !evicted && podset.IsReady(p)
	})
	o.Status.CurrentHealthy, o.Status.DesiredHealthy, o.Status.ExpectedPods = healthy, desired, expected
	o.Status.DisruptionsAllowed = max(0, healthy-desired)
	if expected <= 0 { // Pods that come now are not known to be spare
		o.Status.DisruptionsAllowed = 0
	}
	o.Status.ObservedGeneration = w.Budget.Generation
	o.condition(w)
	return o
}

func (o *Outcome) event(eventType, reason, message string) {
	o.Events = append(o.Events, Event{eventType, reason, message})
}

// condition says whether disruptions are allowed.
func (o *Outcome) condition(w World) {
	c := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.InsufficientPodsReason}
	if o.Status.DisruptionsAllowed > 0 {
		c.Status, c.Reason = metav1.ConditionTrue, policyv1.SufficientPodsReason
	}
	c.ObservedGeneration, c.LastTransitionTime = w.Budget.Generation, metav1.NewTime(w.Now).Rfc3339Copy()
	apimeta.SetStatusCondition(&o.Status.Conditions, c)
}

// fail allows nothing, since nothing is known.
func (o *Outcome) fail(w World, err error) {
	o.Status.DisruptionsAllowed = 0
	apimeta.SetStatusCondition(&o.Status.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason, Message: err.Error(),
		ObservedGeneration: w.Budget.Generation, LastTransitionTime: metav1.NewTime(w.Now).Rfc3339Copy(),
	})
}

// evicted keeps those evictions that are not done and not given up.
func (o *Outcome) evicted(w World) {
	noted := o.Status.DisruptedPods
	o.Status.DisruptedPods = nil
	for _, p := range w.Pods {
		at, ok := noted[p.Name]
		if !ok || p.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(deletionTimeout).Sub(w.Now)
		if left <= 0 {
			o.Undeleted = append(o.Undeleted, p)
			continue
		}
		if o.Status.DisruptedPods == nil {
			o.Status.DisruptedPods = map[string]metav1.Time{}
		}
		o.Status.DisruptedPods[p.Name] = at
		if o.Again == 0 || left < o.Again {
			o.Again = left
		}
	}
}

// count says how many Pods there should be and how many of them healthy.
func count(w World) (expected, desired int32, unmanaged bool, err error) {
	spec := &w.Budget.Spec
	switch {
	case spec.MaxUnavailable != nil:
		if expected, unmanaged, err = scale(w); err != nil {
			return 0, 0, false, err
		}
		away, err := intstr.GetScaledValueFromIntOrPercent(spec.MaxUnavailable, int(expected), true)
		if err != nil {
			return 0, 0, false, err
		}
		return expected, max(0, expected-int32(away)), unmanaged, nil
	case spec.MinAvailable != nil && spec.MinAvailable.Type == intstr.Int:
		return int32(len(w.Pods)), spec.MinAvailable.IntVal, false, nil
	case spec.MinAvailable != nil:
		if expected, unmanaged, err = scale(w); err != nil {
			return 0, 0, false, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(spec.MinAvailable, int(expected), true)
		return expected, int32(n), unmanaged, err
	}
	return 0, 0, false, nil
}

// scale adds up what the controllers of the Pods ask for.
func scale(w World) (expected int32, unmanaged bool, err error) {
	seen := map[types.UID]bool{}
	counted := map[types.UID]bool{}
	for _, p := range w.Pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			unmanaged = true
			continue
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		uid, replicas, ok := w.Scale(ref, p.Namespace)
		if !ok {
			return 0, false, fmt.Errorf("found no controllers for pod %q", p.Name)
		}
		if !counted[uid] {
			counted[uid] = true
			expected += replicas
		}
	}
	return expected, unmanaged, nil
}

// Stale says whether a Pod carries a mark of disruption that nothing came of,
// and if not yet, when it will be so.
func Stale(p *corev1.Pod, now time.Time) (marked bool, after time.Duration) {
	c := podset.Condition(p, corev1.DisruptionTarget)
	if p.DeletionTimestamp != nil || podset.IsFinished(p) || c == nil || c.Status != corev1.ConditionTrue || c.Reason == corev1.PodReasonTerminationByKubelet {
		return false, 0
	}
	return true, max(0, c.LastTransitionTime.Add(deletionTimeout).Sub(now))
}
