package podgc_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/controller/podgc"
)

func TestDoomed(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	status := func(s corev1.ConditionStatus, taints ...string) *corev1.Node {
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: s}}}}
		for _, k := range taints {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k})
		}
		return n
	}
	nodes := map[string]*corev1.Node{
		"up": status("True"), "down": status("Unknown"),
		"out": status("Unknown", corev1.TaintNodeOutOfService), "declared too early": status("True", corev1.TaintNodeOutOfService),
	}
	gone := map[string]time.Time{"long gone": noon.Add(-time.Minute), "just gone": noon.Add(-10 * time.Second)}
	pod := func(name, node string, deleted bool, phase corev1.PodPhase) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
		if deleted {
			p.DeletionTimestamp = &metav1.Time{Time: noon}
		}
		return p
	}
	pods := []*corev1.Pod{
		pod("runs", "up", false, "Running"), pod("stops", "up", true, "Running"), pod("on a silent node", "down", true, "Running"),
		pod("waits", "", false, "Pending"), pod("deleted before it had a node", "", true, "Pending"),
		pod("its node is long gone", "long gone", false, "Running"), pod("its node is just gone", "just gone", false, "Running"),
		pod("out of service", "out", true, "Running"), pod("not deleted", "out", false, "Running"), pod("node is well", "declared too early", true, "Running"),
	}
	victims, again := podgc.Doomed(pods, func(n string) *corev1.Node { return nodes[n] }, func(n string) time.Time { return gone[n] }, noon)
	var got []string
	for _, v := range victims {
		got = append(got, v.Pod.Name)
	}
	if s := strings.Join(got, ", "); s != "deleted before it had a node, its node is long gone, out of service" {
		t.Errorf("removes %s", s)
	}
	if again != 30*time.Second {
		t.Errorf("looks again in %v", again)
	}

	pods = nil
	for i := range podgc.MaxEnded + 3 {
		p := pod(fmt.Sprint("e", i), "up", false, "Succeeded")
		p.CreationTimestamp = metav1.NewTime(noon.Add(-time.Duration(i) * time.Second))
		pods = append(pods, p)
	}
	victims, _ = podgc.Doomed(pods, func(n string) *corev1.Node { return nodes[n] }, nil, noon)
	if len(victims) != 3 || victims[0].Pod.Name != fmt.Sprint("e", podgc.MaxEnded+2) {
		t.Errorf("of too many that ended: %v", victims)
	}
}
