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
	allVote(t, devices[1])

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

// TestMovedTogether: devices that were joined by hand get addresses of another subnet,
// all of them: they find each other as members, with no name and secret to share, also
// one that comes when the others are a cluster again. Of two devices the one that votes
// goes on alone, and looks for the other.
func TestMovedTogether(t *testing.T) {
	for n, move := range map[int]func(devices []*harness.Device, to []netip.Addr){
		3: func(devices []*harness.Device, to []netip.Addr) {
			for i, d := range devices {
				d.PowerOff()
				d.Addr = to[i]
			}
			devices[0].Reboot()
			devices[1].Reboot()
			// The third finds those who have each other already.
			devices[0].Eventually(50*time.Second, "writing without the third", func() error {
				_, err := devices[0].Kubectl("", "label", "--overwrite", "namespace", "default", fmt.Sprint("moved=", time.Now().Unix()), "--request-timeout=3s")
				return err
			})
			devices[2].Reboot()
		},
		2: func(devices []*harness.Device, to []netip.Addr) {
			for i, d := range devices {
				d.Readdress(to[i])
			}
		},
	} {
		t.Run(fmt.Sprintf("%d devices", n), func(t *testing.T) {
			devices := newCluster(t, n)
			if n > 2 {
				allVote(t, devices[0])
			}
			var to []netip.Addr
			for i := range devices {
				to = append(to, netip.AddrFrom4([4]byte{10, 97, 0, byte(40 + i)}))
			}
			move(devices, to)
			began := time.Now()
			for i, d := range devices {
				// Less than the minute after which a Node's status is written anyway.
				d.Eventually(50*time.Second, "seeing all where they are now", func() error {
					nodes, err := d.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
					if err != nil {
						return err
					}
					for _, n := range nodes.Items {
						k := slices.IndexFunc(devices, func(d *harness.Device) bool { return d.Name == n.Name })
						if !nodeReady(&n) || !slices.Contains(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: to[k].String()}) {
							return fmt.Errorf("%s: %v, %v", n.Name, n.Status.Addresses, n.Status.Conditions)
						}
					}
					return nil
				})
				if out, err := d.Kubectl("", "create", "configmap", fmt.Sprint("moved-", i)); err != nil {
					t.Errorf("write through %s: %v %s", d.Name, err, out)
				}
			}
			t.Logf("all were there %v after the last had moved", time.Since(began).Round(100*time.Millisecond))
		})
	}
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
