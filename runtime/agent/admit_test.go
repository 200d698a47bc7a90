package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"edged/apiserver/registry"
)

func TestRefused(t *testing.T) {
	pod := func(uid string, port int32, ip string, protocol corev1.Protocol, edit ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: port, HostIP: ip, Protocol: protocol}}}}
		for _, e := range edit {
			e(p)
		}
		return p
	}
	now := metav1.Now()
	begun := func(p *corev1.Pod) { p.Status.StartTime = &now }
	forOS := func(name corev1.OSName) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: name} }
	}
	first := func(policy *corev1.ContainerRestartPolicy) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{RestartPolicy: policy, Ports: p.Spec.Containers[0].Ports}}
			p.Spec.Containers[0].Ports = nil
		}
	}
	always := corev1.ContainerRestartPolicyAlways
	for _, tc := range []struct {
		name     string
		p, other *corev1.Pod
		want     string
	}{
		{"the port is taken", pod("a", 80, "", ""), pod("b", 80, "", "TCP"), portsTaken},
		{"on one address", pod("a", 80, "10.0.0.1", ""), pod("b", 80, "0.0.0.0", ""), portsTaken},
		{"on another address", pod("a", 80, "10.0.0.1", ""), pod("b", 80, "10.0.0.2", ""), ""},
		{"a sidecar's", pod("a", 80, "", "", first(&always)), pod("b", 80, "", ""), portsTaken},
		{"an init container's", pod("a", 80, "", "", first(nil)), pod("b", 80, "", ""), ""},
		{"another protocol", pod("a", 80, "", "UDP"), pod("b", 80, "", "TCP"), ""},
		{"another port", pod("a", 81, "", ""), pod("b", 80, "", ""), ""},
		{"none", pod("a", 0, "", ""), pod("b", 0, "", ""), ""},
		{"it has begun", pod("a", 80, "", "", begun), pod("b", 80, "", ""), ""},
		{"the other has ended", pod("a", 80, "", ""), pod("b", 80, "", "", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), ""},
		{"the other is on its way out", pod("a", 80, "", ""), pod("b", 80, "", "", func(p *corev1.Pod) { p.DeletionTimestamp = &now }), ""},
		{"for Linux", pod("a", 0, "", "", forOS(corev1.Linux)), pod("b", 0, "", ""), ""},
		{"for Windows", pod("a", 0, "", "", forOS(corev1.Windows)), pod("b", 0, "", ""), otherOS},
		{"itself", pod("a", 80, "", ""), pod("a", 80, "", ""), ""},
	} {
		if got, _ := refused(tc.p, []*corev1.Pod{tc.other}); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestReport: a status that the cluster has not taken yet is told.
func TestReport(t *testing.T) {
	a := &Agent{out: newStatusWriter(registry.Client[*corev1.Pod]{}, nil), workers: map[string]*worker{}}
	for _, name := range []string{"b", "a"} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Status: corev1.PodStatus{Phase: corev1.PodPending, QOSClass: corev1.PodQOSBurstable}}
		a.workers[name] = &worker{pod: p}
	}
	a.out.set(a.workers["b"].pod, corev1.PodStatus{Phase: corev1.PodRunning})
	got := a.Report()
	if len(got) != 2 || got[0].Name != "a" || got[0].Status.Phase != corev1.PodPending || got[1].Status.Phase != corev1.PodRunning || got[1].Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("%+v", got)
	}
	if a.workers["b"].pod.Status.Phase != corev1.PodPending {
		t.Error("the shared Pod was changed")
	}
}
