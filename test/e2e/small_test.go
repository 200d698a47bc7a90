package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// TestSmallMemory: a machine of 128 MB, the pages of the daemon's own file counted,
// runs 20 Pods, serves a list of them and takes writes; nothing is killed for want of
// memory.
func TestSmallMemory(t *testing.T) {
	t.Parallel()
	d := harness.New(t, harness.NewSwitch(t), 1)
	d.LimitMemory(128 << 20)
	// The machine's own copy, whose pages are charged to it.
	d.Binary = filepath.Join(d.Dir, "edged")
	if out, err := d.Run("cp", harness.Edged(), d.Binary); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.Start()
	d.WaitReady()
	d.ImportBusybox()
	p := placeOn(t, d)
	began := time.Now()
	p.kubectl("create", "deployment", "small", "--image="+harness.Busybox, "--replicas=20", "--", "sleep", "1000000")
	p.kubectl("rollout", "status", "deployment/small", "--timeout=120s")
	t.Logf("20 Pods ran after %v", time.Since(began).Round(10*time.Millisecond))
	for i := range 20 {
		p.kubectl("create", "configmap", fmt.Sprint("written-", i), "--from-literal=at="+fmt.Sprint(i))
		if list, err := d.Client().CoreV1().Pods(p.ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 20 {
			t.Fatalf("%d Pods are listed: %v", len(list.Items), err)
		}
	}
	pods, err := d.Client().CoreV1().Pods(p.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Status.Phase != corev1.PodRunning || pod.Status.ContainerStatuses[0].RestartCount > 0 {
			t.Errorf("%s: %+v", pod.Name, pod.Status)
		}
	}
	if n, err := d.OOMKills(); err != nil || n > 0 {
		t.Errorf("%d processes were killed for want of memory: %v", n, err)
	}
}
