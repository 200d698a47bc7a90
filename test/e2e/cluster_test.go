package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// newCluster starts n devices on a switch of their own: the first founds a
// cluster, the others join by a token.
func newCluster(t *testing.T, n int, flags ...string) []*harness.Device {
	t.Helper()
	sw := harness.NewSwitch(t)
	devices := []*harness.Device{harness.New(t, sw, 1, flags...)}
	devices[0].Start()
	devices[0].WaitReady()
	token, err := devices[0].Edged("token", "create", "--run-dir", devices[0].RunDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= n; i++ {
		// An address where nobody is, first.
		join := []string{"--join", "10.99.0.250:6443," + devices[0].Addr.String() + ":6443", "--token", strings.TrimSpace(token)}
		d := harness.New(t, sw, i, append(join, flags...)...)
		d.Start()
		devices = append(devices, d)
	}
	t.Cleanup(func() {
		for _, d := range devices {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		}
	})
	for _, d := range devices[1:] {
		d.WaitReady()
	}
	allReady(t, devices[0], n)
	return devices
}

// allReady waits until the API of d says that n Nodes are Ready.
func allReady(t *testing.T, d *harness.Device, n int) {
	t.Helper()
	d.Eventually(60*time.Second, fmt.Sprintf("seeing %d ready Nodes", n), func() error {
		nodes, err := d.Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for _, node := range nodes.Items {
			for _, c := range node.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready != n {
			return fmt.Errorf("%d of %d", ready, len(nodes.Items))
		}
		return nil
	})
}

// TestThreeDevices: they form one cluster, each serves the API, Pods of all reach
// each other and the Service, and exec and logs go through any device.
func TestThreeDevices(t *testing.T) {
	devices := newCluster(t, 3)
	for _, d := range devices {
		d.ImportBusybox()
	}
	p := placeOn(t, devices[2])
	p.apply(strings.ReplaceAll(webDeployment, "replicas: 2", "replicas: 3"))
	p.kubectl("rollout", "status", "deployment/web", "--timeout=15s")
	for i, d := range devices {
		pod := fmt.Sprintf("on-%d", i+1)
		p.kubectl("run", pod, "--image=edged.example/busybox:1", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, d.Name), "--", "sleep", "3600")
		p.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=15s")
	}
	for i := range devices {
		for range 6 { // each of three Pods is chosen now and then
			out := devices[(i+1)%3].MustKubectl("", "-n", p.ns, "exec", fmt.Sprintf("on-%d", i+1), "--", "fetch", "http://web/")
			if !strings.HasSuffix(out, "v1\n") {
				t.Errorf("from %s: %q", devices[i].Name, out)
			}
		}
	}
	pods, err := devices[1].Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, pod := range pods.Items {
		if other := seen[pod.Status.PodIP]; other != "" {
			t.Errorf("%s and %s have the address %s", pod.Name, other, pod.Status.PodIP)
		}
		seen[pod.Status.PodIP] = pod.Name
	}
}
