package disruption

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func budget(minAvailable, maxUnavailable string) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "ns", Generation: 2}}
	if minAvailable != "" {
		b.Spec.MinAvailable = ptr.To(intstr.Parse(minAvailable))
	}
	if maxUnavailable != "" {
		b.Spec.MaxUnavailable = ptr.To(intstr.Parse(maxUnavailable))
	}
	return b
}

// pods of a controller of scale 4: "r" ready, "u" unready, "d" being deleted,
// "o" ready and nobody's.
func pods(s string) (out []*corev1.Pod) {
	for i, c := range s {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", UID: "rs", Controller: ptr.To(true)}}}}
		if c != 'u' {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		switch c {
		case 'd':
			p.DeletionTimestamp = &metav1.Time{Time: now}
		case 'o':
			p.OwnerReferences = nil
		}
		out = append(out, p)
	}
	return out
}

func TestReconcile(t *testing.T) {
	four := func(*metav1.OwnerReference, string) (types.UID, int32, bool) { return "d", 4, true }
	none := func(*metav1.OwnerReference, string) (types.UID, int32, bool) { return "", 0, false }
	evicted := budget("1", "")
	evicted.Status.DisruptedPods = map[string]metav1.Time{"p0": metav1.NewTime(now.Add(-time.Minute)), "p1": metav1.NewTime(now.Add(-3 * time.Minute)), "gone": metav1.NewTime(now)}
	for _, tc := range []struct {
		name   string
		budget *policyv1.PodDisruptionBudget
		pods   string
		scale  func(*metav1.OwnerReference, string) (types.UID, int32, bool)
		want   string // expected desired healthy allowed events
	}{
		{"a number", budget("2", ""), "rrr", four, "3 2 3 1"},
		{"none to spare", budget("3", ""), "rur", four, "3 3 2 0"},
		{"a share", budget("50%", ""), "rrrr", four, "4 2 4 2"},
		{"may be away", budget("", "1"), "rrrr", four, "4 3 4 1"},
		{"one is away", budget("", "1"), "rrrd", four, "4 3 3 0"},
		{"not all are made yet", budget("", "25%"), "rr", four, "4 3 2 0"},
		{"no Pods", budget("1", ""), "", four, "0 1 0 0 NoPods"},
		{"nobody's", budget("", "1"), "oo", four, "0 0 2 0 UnmanagedPods"},
		{"of a controller without scale", budget("", "1"), "rr", none, "0 0 0 0 CalculateExpectedPodCountFailed"},
		{"evictions that are not done", evicted, "rrr", four, "3 1 2 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := World{Budget: tc.budget, Pods: pods(tc.pods), Scale: tc.scale, Now: now}
			o := Reconcile(w)
			s := o.Status
			got := fmt.Sprint(s.ExpectedPods, s.DesiredHealthy, s.CurrentHealthy, s.DisruptionsAllowed)
			for _, e := range o.Events {
				got += " " + e.Reason
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if c := s.Conditions[0]; (c.Status == metav1.ConditionTrue) != (s.DisruptionsAllowed > 0) {
				t.Errorf("condition %+v", c)
			}
			w.Budget = tc.budget.DeepCopy()
			w.Budget.Status, w.Now = s, now.Add(time.Second)
			if again := Reconcile(w).Status; !equality.Semantic.DeepEqual(again, s) {
				t.Errorf("it does not come to rest: %+v then %+v", s, again)
			}
		})
	}
	o := Reconcile(World{Budget: evicted, Pods: pods("rrr"), Scale: four, Now: now})
	if len(o.Status.DisruptedPods) != 1 || len(o.Undeleted) != 1 || o.Again != time.Minute {
		t.Errorf("%v %v %v", o.Status.DisruptedPods, o.Undeleted, o.Again)
	}
}

func TestFailureMessage(t *testing.T) {
	o := Reconcile(World{Budget: budget("", "1"), Pods: pods("r"), Now: now, Scale: func(*metav1.OwnerReference, string) (types.UID, int32, bool) { return "", 0, false }})
	if c := o.Status.Conditions[0]; c.Reason != policyv1.SyncFailedReason || !strings.Contains(c.Message, `found no controllers for pod "p0"`) {
		t.Errorf("%+v", c)
	}
}

func TestStale(t *testing.T) {
	p := pods("r")[0]
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Minute))})
	if marked, after := Stale(p, now); !marked || after != time.Minute {
		t.Error(marked, after)
	}
	p.DeletionTimestamp = &metav1.Time{Time: now}
	if marked, _ := Stale(p, now); marked {
		t.Error("a Pod that is being deleted")
	}
}
