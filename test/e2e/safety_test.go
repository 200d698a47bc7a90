package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const keptSafe = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1 # 0 asks for what this test forbids: gone without the device's word
      affinity:
        nodeAffinity: # not where the test asks
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [device-1]}]}]
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 100, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: db}}}}
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "100000"]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "100000"]}]
`

// TestKeptSafe: a device is lost with a Pod of a Deployment, one of a StatefulSet
// and one of a DaemonSet. The first is replaced. The second is not, since it may run
// there still, until the device is back, or somebody says that it is off. The third
// stays where it is.
func TestKeptSafe(t *testing.T) {
	devices := newCluster(t, 3)
	for _, d := range devices {
		d.ImportBusybox()
	}
	p := placeOn(t, devices[0])
	p.apply(webDeployment)
	p.kubectl("scale", "deployment/web", "--replicas=3")
	p.apply(keptSafe)
	p.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	p.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
	p.kubectl("rollout", "status", "daemonset/each", "--timeout=90s")
	pods := func() map[string]corev1.Pod {
		t.Helper()
		list, err := p.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]corev1.Pod{}
		for _, pod := range list.Items {
			out[pod.Name] = pod
		}
		return out
	}
	lost := devices[2]
	var stateful, daemon corev1.Pod
	for _, pod := range pods() {
		if pod.Spec.NodeName == lost.Name && pod.Labels["app"] == "db" {
			stateful = pod
		}
		if pod.Spec.NodeName == lost.Name && pod.Labels["app"] == "each" {
			daemon = pod
		}
	}
	if stateful.Name == "" || daemon.Name == "" {
		t.Fatalf("%s runs %q and %q", lost.Name, stateful.Name, daemon.Name)
	}
	// gone waits until the Deployment's Pods run elsewhere and the StatefulSet's is
	// to be deleted, which nobody there can confirm.
	gone := func() {
		t.Helper()
		webOn(p, devices[0], 3, devices[:2])
		p.waitPod(stateful.Name, "being deleted", func(pod *corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	}
	// same looks that it is the Pod of before, and the DaemonSet's untouched.
	same := func(when string) {
		t.Helper()
		now := pods()
		if pod := now[stateful.Name]; pod.UID != stateful.UID || pod.Spec.NodeName != lost.Name {
			t.Errorf("%s: %s is another Pod, on %s", when, stateful.Name, pod.Spec.NodeName)
		}
		if pod := now[daemon.Name]; pod.UID != daemon.UID || pod.DeletionTimestamp != nil {
			t.Errorf("%s: %s was touched: %+v", when, daemon.Name, pod.ObjectMeta)
		}
	}

	lost.PowerOff()
	gone()
	// Longer than it took for the Deployment's.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		same("lost")
	}
	lost.Reboot()
	lost.WaitReady()
	again := p.waitPod(stateful.Name, "replaced, the device being back", func(pod *corev1.Pod) bool { return pod.UID != stateful.UID && isReady(pod) })
	p.eventually(60*time.Second, "the DaemonSet's Pod runs again", func() error {
		pod := pods()[daemon.Name]
		if pod.UID != daemon.UID || !isReady(&pod) {
			return fmt.Errorf("%s: %+v", pod.UID, pod.Status)
		}
		return nil
	})

	// Off for good, and somebody says so.
	if again.Spec.NodeName != lost.Name {
		lost = devices[1]
	}
	stateful = *again
	for _, pod := range pods() {
		if pod.Spec.NodeName == lost.Name && pod.Labels["app"] == "each" {
			daemon = pod
		}
	}
	lost.PowerOff()
	p.waitPod(stateful.Name, "being deleted", func(pod *corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	same("lost again")
	began := time.Now()
	p.kubectl("taint", "node", lost.Name, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
	p.waitPod(stateful.Name, "replaced, the device being out of service", func(pod *corev1.Pod) bool {
		return pod.UID != stateful.UID && pod.Spec.NodeName != lost.Name && isReady(pod)
	})
	t.Logf("replaced %v after the taint", time.Since(began).Round(100*time.Millisecond))
}
