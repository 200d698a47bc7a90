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
	return newClusterOf(t, n, func(*harness.Device) {}, flags...)
}

// newClusterOf is newCluster with something done to each device before it starts.
func newClusterOf(t *testing.T, n int, prepare func(*harness.Device), flags ...string) []*harness.Device {
	t.Helper()
	return newClusterWith(t, n, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		d := harness.New(t, sw, i, flags...)
		prepare(d)
		return d
	}, flags...)
}

// newClusterWith is newCluster of devices that build makes.
func newClusterWith(t *testing.T, n int, build func(sw *harness.Switch, i int, flags ...string) *harness.Device, flags ...string) []*harness.Device {
	t.Helper()
	sw := harness.NewSwitch(t)
	devices := []*harness.Device{build(sw, 1, flags...)}
	devices[0].Start()
	devices[0].WaitReady()
	token, err := devices[0].Edged("token", "create", "--run-dir", devices[0].RunDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= n; i++ {
		// An address where nobody is, first.
		join := []string{"--join", "10.99.0.250:6443," + devices[0].Addr.String() + ":6443", "--token", strings.TrimSpace(token)}
		d := build(sw, i, append(join, flags...)...)
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

// TestDeviceLost: the leader's power goes; the others go on, its Pods are replaced
// elsewhere, and when it is back it is one of them again.
func TestDeviceLost(t *testing.T) {
	devices := newCluster(t, 3)
	for _, d := range devices {
		d.ImportBusybox()
	}
	p := placeOn(t, devices[1])
	p.apply(strings.ReplaceAll(webDeployment, "replicas: 2", "replicas: 3"))
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	p.eventually(30*time.Second, "three voters", func() error {
		out, err := devices[1].Edged("member", "list", "--run-dir", devices[1].RunDir())
		if err == nil && strings.Count(out, "voter") != 2 {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	devices[0].PowerOff()
	start := time.Now()
	p.eventually(30*time.Second, "writing without the leader", func() error {
		_, err := p.Kubectl("", "-n", p.ns, "create", "configmap", fmt.Sprintf("c%d", time.Since(start).Milliseconds()), "--request-timeout=3s")
		return err
	})
	t.Logf("writes were accepted again after %v", time.Since(start).Round(100*time.Millisecond))
	p.eventually(60*time.Second, "three ready Pods on the others", func() error {
		pods, err := p.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		n := 0
		for _, pod := range pods.Items {
			if isReady(&pod) && pod.Spec.NodeName != devices[0].Name {
				n++
			}
		}
		if n != 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	t.Logf("the Pods were replaced after %v", time.Since(start).Round(100*time.Millisecond))
	devices[0].Reboot()
	devices[0].WaitReady()
	allReady(t, devices[2], 3)
	p.eventually(60*time.Second, "rid of the Pods that were given away", func() error {
		pods, err := devices[0].Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
		if err == nil && len(pods.Items) != 3 {
			err = fmt.Errorf("%d Pods", len(pods.Items))
		}
		return err
	})
}

// TestIsland: a device that comes up without any other runs what it ran, answers
// reads, and refuses writes with a reason; then all is one cluster again.
func TestIsland(t *testing.T) {
	devices := newCluster(t, 3)
	devices[2].ImportBusybox()
	p := placeOn(t, devices[2])
	p.kubectl("run", "islander", "--image=edged.example/busybox:1", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, devices[2].Name), "--", "sleep", "3600")
	p.kubectl("wait", "--for=condition=Ready", "pod/islander", "--timeout=60s")
	uid := p.pod("islander").UID
	for _, d := range devices {
		d.PowerOff()
	}
	devices[2].Reboot()
	devices[2].WaitReady()
	p.eventually(60*time.Second, "running its Pod", func() error {
		_, err := p.Kubectl("", "-n", p.ns, "exec", "islander", "--", "true")
		return err
	})
	out, err := p.Kubectl("", "-n", p.ns, "create", "configmap", "impossible", "--request-timeout=20s")
	if err == nil || !strings.Contains(out, "no leader") && !strings.Contains(out, "timed out") {
		t.Errorf("a write without a quorum: %v %s", err, out)
	}
	devices[0].Reboot()
	devices[1].Reboot()
	allReady(t, devices[2], 3)
	p.eventually(60*time.Second, "writing again", func() error {
		_, err := p.Kubectl("", "-n", p.ns, "create", "configmap", "possible", "--request-timeout=5s")
		return err
	})
	if now := p.pod("islander"); now.UID != uid || now.Status.Phase != corev1.PodRunning {
		t.Errorf("the Pod is %s, %s; was %s", now.UID, now.Status.Phase, uid)
	}
}

// TestDeviceOfAnotherCluster: one that has a cluster does not go over to another.
func TestDeviceOfAnotherCluster(t *testing.T) {
	token, err := sharedDevice().Edged("token", "create", "--run-dir", sharedDevice().RunDir())
	if err != nil {
		t.Fatal(err)
	}
	d := harness.Lone(t)
	d.Stop()
	got := refused(t, d, 1, "--data-dir", d.DataDir(), "--run-dir", d.RunDir(), "--node-name", d.Name, "--join", "10.99.0.250:6443", "--token", strings.TrimSpace(token))
	if !strings.Contains(got, "--join: this device is of a cluster already") {
		t.Error(got)
	}
	d.Start()
	d.WaitReady()
}
