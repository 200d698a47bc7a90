package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// wipe removes what is on a device's card, which keeps its power off.
func wipe(t *testing.T, d *harness.Device) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(d.DataDir(), "*"))
	for _, f := range files {
		if e := os.RemoveAll(f); e != nil {
			err = e
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestComeBack: devices of a cluster are removed and come back, lose their card and
// join under their old name; a second device of a name is told that there is one, also
// when both join at once.
func TestComeBack(t *testing.T) {
	if os.Getenv("EDGED_CLUSTER") == "" {
		t.Skip("make test-cluster runs it")
	}
	all := newCluster(t, 4)
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[0])
	p.apply(onEach)
	p.kubectl("rollout", "status", "daemonset/each", "--timeout=60s")
	join := func() []string {
		token, err := all[0].Edged("token", "create", "--run-dir", all[0].RunDir())
		if err != nil {
			t.Fatal(err)
		}
		return []string{"--join", all[0].Addr.String() + ":6443", "--token", strings.TrimSpace(token)}
	}
	// members wants as many in the cluster as Nodes, each with its Pod.
	members := func(t *testing.T, n int) {
		t.Helper()
		allReady(t, all[0], n)
		p.eventually(60*time.Second, fmt.Sprint(n, " devices with a Pod each"), func() error {
			if s := status(t, all[0]); len(s.Devices) != n {
				return fmt.Errorf("members: %+v", s.Devices)
			}
			pods, err := p.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=each"})
			if err != nil {
				return err
			}
			on := map[string]bool{}
			for _, pod := range pods.Items {
				if isReady(&pod) && pod.DeletionTimestamp == nil {
					on[pod.Spec.NodeName] = true
				}
			}
			if len(on) != n {
				return fmt.Errorf("Pods on %v", on)
			}
			return nil
		})
	}
	members(t, 4)

	ended := func(d *harness.Device) {
		t.Helper()
		d.Eventually(60*time.Second, "ended, as it was removed", func() error {
			if code, ended := d.Exited(); !ended || code == 0 {
				return fmt.Errorf("ended %v, code %d", ended, code)
			}
			if log := d.LogTail(); !strings.Contains(log, "removed from its cluster") {
				return fmt.Errorf("it does not say why")
			}
			return nil
		})
	}
	t.Run("member remove", func(t *testing.T) {
		gone := all[3]
		if out, err := all[1].Edged("member", "remove", gone.Name, "--run-dir", all[1].RunDir()); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		ended(gone)
		members(t, 3)
		gone.Start() // it says so again
		ended(gone)
		if out, err := gone.Edged("reset", "--data-dir", gone.DataDir(), "--run-dir", gone.RunDir()); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		gone.Start(join()...)
		gone.WaitReady()
		gone.ImportBusybox()
		members(t, 4)
	})

	t.Run("delete node", func(t *testing.T) {
		gone := all[2]
		all[0].MustKubectl("", "delete", "node", gone.Name, "--wait=false")
		ended(gone)
		members(t, 3)
		gone.PowerOff()
		wipe(t, gone)
		gone.Reboot(join()...)
		gone.WaitReady()
		gone.ImportBusybox()
		members(t, 4)
	})

	t.Run("another card", func(t *testing.T) {
		gone := all[1]
		gone.PowerOff()
		wipe(t, gone)
		flags := join()
		gone.Reboot(flags...)
		// The cluster may think that it is there yet: a service manager starts it again.
		gone.Eventually(60*time.Second, "in the cluster again", func() error {
			if _, ended := gone.Exited(); ended {
				gone.Start(flags...)
			}
			return gone.Ready()
		})
		gone.ImportBusybox()
		members(t, 4)
	})

	t.Run("a name that another has", func(t *testing.T) {
		uid := func() string {
			return all[0].MustKubectl("", "get", "node", all[2].Name, "-o", "jsonpath={.metadata.uid}")
		}
		before := uid()
		second := harness.New(t, all[0].Switch(), 8, join()...)
		second.Name = all[2].Name
		second.Start()
		// It may have joined just now, or be there for long.
		who := fmt.Sprintf(`a device %q at https://%s:2380 `, all[2].Name, all[2].Addr)
		refused := func() error {
			log := strings.ReplaceAll(second.LogTail(), `\"`, `"`)
			if !strings.Contains(log, who) || !strings.Contains(log, "give this one another --node-name") {
				return fmt.Errorf("it is not told")
			}
			return nil
		}
		second.Eventually(60*time.Second, "told that the name is taken", refused)
		members(t, 4)
		if now := uid(); now != before {
			t.Error("the Node is another")
		}
		second.PowerOff()
		members(t, 4)
	})

	t.Run("two of a name at once", func(t *testing.T) {
		flags := join()
		var twins []*harness.Device
		for i := range 2 {
			d := harness.New(t, all[0].Switch(), 6+i, flags...)
			d.Name = "twin"
			twins = append(twins, d)
		}
		for _, d := range twins {
			d.Start()
		}
		twins[0].Eventually(60*time.Second, "one of them in the cluster, the other told", func() error {
			ready, told := 0, 0
			for _, d := range twins {
				if d.Ready() == nil {
					ready++
				} else if strings.Contains(d.LogTail(), "give this one another --node-name") {
					told++
				}
			}
			if ready != 1 || told != 1 {
				return fmt.Errorf("%d ready, %d told", ready, told)
			}
			return nil
		})
		if s := status(t, all[0]); len(s.Devices) != 5 {
			t.Errorf("%+v", s.Devices)
		}
	})
}
