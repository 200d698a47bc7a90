package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// TestAllMoved: all devices of a cluster get addresses of another subnet and other
// host names, while they run and while they are off. They are one cluster again by
// themselves, with the names that they had.
func TestAllMoved(t *testing.T) {
	sw := harness.NewSwitch(t)
	secret := secretFile(t, "a secret that moves along")
	devices := make([]*harness.Device, 3)
	for i := range devices {
		devices[i] = harness.New(t, sw, i+1, zeroTouch(secret, 3)...)
		devices[i].Nameless = true
		devices[i].Start()
	}
	t.Cleanup(func() {
		for _, d := range devices {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		}
	})
	for _, d := range devices {
		d.WaitReady()
		d.ImportBusybox()
	}
	allReady(t, devices[0], 3)
	p := placeOn(t, devices[1])
	for i, d := range devices {
		p.kubectl("run", fmt.Sprint("on-", i), "--image=edged.example/busybox:1", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, d.Name), "--", "sleep", "3600")
		p.waitReady(fmt.Sprint("on-", i))
	}
	p.eventually(60*time.Second, "three voters", func() error {
		for _, s := range status(t, devices[1]).Devices {
			if s.Role == "learner" || !s.Reached {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})

	addr := func(net byte, i int) netip.Addr { return netip.AddrFrom4([4]byte{10, net, 0, byte(40 + i)}) }
	// whole measures from began to a write, and looks at what the cluster knows.
	whole := func(t *testing.T, began time.Time, write string) {
		t.Helper()
		p.eventually(60*time.Second, "writing", func() error {
			out, err := p.Kubectl("", "-n", p.ns, "create", "configmap", write, "--request-timeout=5s")
			if err != nil && strings.Contains(out, "already exists") {
				return nil // the one before took place, and its answer came too late
			}
			return err
		})
		t.Logf("a write was accepted %v after the last link was up", time.Since(began).Round(100*time.Millisecond))
		for _, d := range devices {
			allReady(t, d, 3)
			d.Eventually(30*time.Second, "knowing where all are", func() error {
				nodes, err := d.Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
				if err != nil {
					return err
				}
				for _, other := range devices {
					if !slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool {
						return n.Name == other.Name && slices.Contains(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: other.Addr.String()})
					}) {
						return fmt.Errorf("%s is not known to be at %s", other.Name, other.Addr)
					}
				}
				return nil
			})
		}
		for i, d := range devices { // across devices: exec goes to where the Node is
			d.Eventually(30*time.Second, "reaching a Pod", func() error {
				out, err := d.Kubectl("", "-n", p.ns, "exec", fmt.Sprint("on-", (i+1)%3), "--", "echo", "hello")
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
		}
	}

	t.Run("as they run", func(t *testing.T) {
		for i, d := range devices {
			d.Rename(fmt.Sprint("renamed-", i))
			d.Readdress(addr(98, i))
		}
		whole(t, time.Now(), "moved")
		for i := range devices {
			if pod := p.pod(fmt.Sprint("on-", i)); pod.Status.ContainerStatuses[0].RestartCount != 0 {
				t.Errorf("%s was restarted", pod.Name)
			}
		}
	})

	t.Run("while they are off", func(t *testing.T) {
		for _, d := range devices {
			d.PowerOff()
		}
		for i, d := range devices {
			d.Hostname, d.Addr = fmt.Sprint("again-", i), addr(97, i)
			d.Reboot()
		}
		whole(t, time.Now(), "moved-again")
	})
}
