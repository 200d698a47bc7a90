package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func set(edit ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "ds", Namespace: "ns", UID: "u"}}
	ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
		Type:          appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0))},
	}
	for _, e := range edit {
		e(ds)
	}
	return ds
}

func surge(n int32) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(n))}
	}
}

func node(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Spec: corev1.NodeSpec{Taints: taints}}
}

// pod is one on a Node: "a new ready", "b old", "c new failed", "d old deleted".
func pod(s string) *corev1.Pod {
	f := strings.Fields(s)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: strings.Join(f, "-"), Namespace: "ns", Labels: map[string]string{appsv1.ControllerRevisionHashLabelKey: f[1]}}}
	p.Spec.NodeName = f[0]
	p.Status.Phase = corev1.PodRunning
	for _, w := range f[2:] {
		switch w {
		case "ready":
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Minute))}}
		case "failed":
			p.Status.Phase = corev1.PodFailed
		case "succeeded":
			p.Status.Phase = corev1.PodSucceeded
		case "deleted":
			p.DeletionTimestamp = &metav1.Time{Time: now}
		case "waiting":
			p.Spec.NodeName = ""
			pin(&p.Spec, f[0])
		}
	}
	return p
}

func TestReconcile(t *testing.T) {
	noExecute := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute}
	noSchedule := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoSchedule}
	lost := []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}, {Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}
	abc := []*corev1.Node{node("a"), node("b"), node("c")}
	for _, tc := range []struct {
		name  string
		set   *appsv1.DaemonSet
		nodes []*corev1.Node
		pods  []string
		held  time.Duration
		want  string // created nodes | deleted Pods
	}{
		{"one for each", set(), abc, nil, 0, "a b c | "},
		{"there already", set(), abc, []string{"a new ready", "b new ready", "c new waiting"}, 0, " | "},
		{"not on a tainted Node", set(), []*corev1.Node{node("a", noSchedule), node("b", noExecute), node("c")}, nil, 0, "c | "},
		{"stays if it may", set(), []*corev1.Node{node("a", noSchedule), node("b", noExecute)}, []string{"a new ready", "b new ready"}, 0, " | b-new-ready"},
		{"a lost Node keeps its Pod", set(), []*corev1.Node{node("a", lost...)}, []string{"a new"}, 0, " | "},
		{"also on a lost Node", set(), []*corev1.Node{node("a", lost...)}, nil, 0, "a | "},
		{"selected Nodes", set(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"name": "b"} }), abc, []string{"a new ready"}, 0, "b | a-new-ready"},
		{"one name", set(func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeName = "c" }), abc, nil, 0, "c | "},
		{"failed is removed", set(), abc[:1], []string{"a new failed"}, 0, " | a-new-failed"},
		{"but not too fast", set(), abc[:1], []string{"a new failed"}, time.Second, " | "},
		{"succeeded is removed", set(), abc[:1], []string{"a new succeeded"}, 0, " | a-new-succeeded"},
		{"being deleted is waited for", set(), abc[:1], []string{"a new deleted"}, 0, " | "},
		{"two are one too many", set(), abc[:1], []string{"a new ready", "a new waiting"}, 0, " | a-new-waiting"},
		{"the Node is gone", set(), abc[:1], []string{"a new ready", "z new waiting", "y new ready"}, 0, " | z-new-waiting"},
		{"update one at a time", set(), abc, []string{"a old ready", "b old ready", "c old ready"}, 0, " | a-old-ready"},
		{"and wait for it", set(), abc, []string{"a new", "b old ready", "c old ready"}, 0, " | "},
		{"what is no use goes at once", set(), abc, []string{"a new", "b old", "c old ready"}, 0, " | b-old"},
		{"on delete", set(func(ds *appsv1.DaemonSet) { ds.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType }), abc[:1], []string{"a old ready"}, 0, " | "},
		{"surge: the new one first", set(surge(1)), abc, []string{"a old ready", "b old ready", "c old ready"}, 0, "a | "},
		{"surge: while it starts", set(surge(1)), abc, []string{"a old ready", "a new", "b old ready", "c old ready"}, 0, " | "},
		{"surge: then the old one goes", set(surge(1)), abc, []string{"a old ready", "a new ready", "b old ready", "c old ready"}, 0, " | a-old-ready"},
		{"surge: replaced while it ends", set(surge(1)), abc[:1], []string{"a old deleted"}, 0, "a | "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := World{Set: tc.set, Nodes: tc.nodes, Hash: "new", Now: now, Held: func(string) time.Duration { return tc.held }}
			for _, s := range tc.pods {
				w.Pods = append(w.Pods, pod(s))
			}
			plan := Reconcile(w)
			var gone []string
			for _, p := range plan.Delete {
				gone = append(gone, p.Name)
			}
			slices.Sort(gone)
			slices.Sort(plan.Create)
			if got := strings.Join(plan.Create, " ") + " | " + strings.Join(gone, " "); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.held > 0 && plan.Again != tc.held {
				t.Errorf("again in %v", plan.Again)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	w := World{Set: set(), Hash: "new", Now: now, Nodes: []*corev1.Node{node("a"), node("b"), node("c"), node("d", corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoSchedule})}}
	w.Set.Generation = 3
	w.Set.Spec.MinReadySeconds = 70
	for _, s := range []string{"a new ready", "b old", "d new ready"} {
		w.Pods = append(w.Pods, pod(s))
	}
	s, again := Status(w)
	if got := fmt.Sprint(s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.UpdatedNumberScheduled, s.NumberAvailable, s.NumberUnavailable, s.ObservedGeneration); got != "3 2 1 1 1 0 3 3" {
		t.Error(got)
	}
	if again != 10*time.Second {
		t.Errorf("again in %v", again)
	}
}

func TestPodBearsTroubles(t *testing.T) {
	ds := set(func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.HostNetwork = true
		ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)}}
	})
	p := newPod(ds, "n", "h")
	if len(p.Spec.Tolerations) != 7 || p.Spec.Tolerations[0].TolerationSeconds != nil {
		t.Errorf("tolerations: %+v", p.Spec.Tolerations)
	}
	if target(p) != "n" || p.Labels[appsv1.ControllerRevisionHashLabelKey] != "h" || p.GenerateName != "ds-" {
		t.Errorf("%+v", p)
	}
}

func TestHoldsDouble(t *testing.T) {
	var h holds
	k := holdKey{"u", 1, "n"}
	var got []time.Duration
	for range 3 {
		h.note(k, now)
		got = append(got, h.left(k, now))
	}
	if !slices.Equal(got, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}) || h.left(holdKey{"u", 2, "n"}, now) > 0 {
		t.Error(got)
	}
}
