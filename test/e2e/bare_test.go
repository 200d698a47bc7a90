package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// TestBareMachine: a machine with no link but lo, a clock at 1970 and no memory
// cgroup serves the API and runs Pods, which a Service reaches by name; an address
// that appears is taken up, and no Pod is started again for it.
func TestBareMachine(t *testing.T) {
	t.Parallel()
	d := harness.New(t, harness.NewSwitch(t), 1)
	if out, err := d.Run("sh", "-ec", "ip link set eth0 down; ip address flush dev eth0; ! mountpoint -q /sys/fs/cgroup/memory || umount /sys/fs/cgroup/memory"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.SetClock(-time.Since(time.Unix(0, 0)), false)
	began := time.Now()
	since := func() time.Duration { return time.Since(began).Round(10 * time.Millisecond) }
	d.Start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", d.Name, d.LogTail())
		}
	})
	d.WaitReady()
	t.Logf("the API was ready after %v", since())
	d.ImportBusybox()
	p := placeOn(t, d)
	began = time.Now()
	p.kubectl("create", "deployment", "bare", "--image="+harness.Busybox, "--replicas=10", "--", "sleep", "1000000")
	p.kubectl("rollout", "status", "deployment/bare", "--timeout=60s")
	t.Logf("10 Pods ran after %v", since())
	p.apply(webDeployment)
	p.clientPod("client")
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	ask := func() error {
		out, err := p.Kubectl("", "-n", p.ns, "exec", "client", "--", "fetch", "http://web/")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	p.eventually(20*time.Second, "the Service answers by name", ask)
	before := restarts(t, p, d)

	began = time.Now()
	if out, err := d.Run("sh", "-ec", "ip link set eth0 up; ip address add "+d.Addr.String()+"/24 dev eth0"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.eventually(30*time.Second, "the Node has the address", func() error {
		node, err := d.Client().CoreV1().Nodes().Get(t.Context(), d.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && a.Address == d.Addr.String() {
				return nil
			}
		}
		return fmt.Errorf("it has %v", node.Status.Addresses)
	})
	t.Logf("its Node had the address after %v", since())
	p.eventually(20*time.Second, "the Service answers by name", ask)
	if after := restarts(t, p, d); after != before {
		t.Errorf("Pods and restarts were %s, are %s", before, after)
	}
}
