package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/test/harness"
)

// TestEvictedFromFullDisk: the Pod that fills the disk is ended, with the
// kubelet's words, and gives its files back; the one beside it runs on. It does
// not come back with the daemon.
func TestEvictedFromFullDisk(t *testing.T) {
	t.Parallel()
	d := harness.NewOnDisk(t, harness.NewSwitch(t), 1, 256)
	d.Start()
	d.WaitReady()
	d.ImportBusybox()
	p := placeOn(t, d)
	p.clientPod("quiet")
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, 'while [ $(df -m /data | tail -1 | sed "s/ \+/ /g" | cut -d" " -f4) -gt 12 ]; do dd if=/dev/zero of=/data/$((i=i+1)) bs=1M count=1; done; sleep 1000000']
    volumeMounts: [{name: data, mountPath: /data}]
`)
	pod := p.waitPod("hog", "evicted", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if pod.Status.Reason != "Evicted" || !strings.HasPrefix(pod.Status.Message, "The node was low on resource: ephemeral-storage. ") {
		t.Errorf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
	disrupted := false
	for _, c := range pod.Status.Conditions {
		disrupted = disrupted || c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "TerminationByKubelet"
	}
	if !disrupted {
		t.Errorf("no DisruptionTarget in %v", pod.Status.Conditions)
	}
	p.eventually(10*time.Second, "room again", func() error {
		_, err := p.Run("sh", "-c", "[ $(df -m "+d.DataDir()+" | tail -1 | awk '{print $4}') -gt 100 ]")
		return err
	})
	p.Kill()
	p.Start()
	p.WaitReady()
	if quiet := p.waitReady("quiet"); quiet.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the Pod beside it was restarted: %+v", quiet.Status.ContainerStatuses[0])
	}
	if pod := p.pod("hog"); pod.Status.Phase != corev1.PodFailed || pod.Status.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("it came back: %+v", pod.Status)
	}
}
