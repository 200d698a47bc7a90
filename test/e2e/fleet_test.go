package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// onEach is a Pod on every device.
const onEach = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: edged.example/busybox:1
        args: [sleep, "3600"]
`

// TestTenDevices: ten devices form one cluster, five of them vote and five follow;
// each runs its Pod; when the leader is lost, the nine go on, and one that followed
// votes in its place. It is large: `make test-ten` asks for it.
func TestTenDevices(t *testing.T) {
	if os.Getenv("EDGED_TEN") == "" {
		t.Skip("make test-ten runs it")
	}
	const n = 10
	sw := harness.NewSwitch(t)
	devices := []*harness.Device{harness.New(t, sw, 1)}
	t.Cleanup(func() {
		for _, d := range devices {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		}
	})
	began := time.Now()
	since := func() time.Duration { return time.Since(began).Round(100 * time.Millisecond) }
	devices[0].Start()
	devices[0].WaitReady()
	token, err := devices[0].Edged("token", "create", "--run-dir", devices[0].RunDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= n; i++ {
		d := harness.New(t, sw, i, "--join", devices[0].Addr.String()+":6443", "--token", strings.TrimSpace(token))
		d.Start()
		devices = append(devices, d)
	}
	allReady(t, devices[0], n)
	t.Logf("%d Nodes were ready after %v", n, since())
	// voters waits until that many vote, seen from d, and the others of all follow.
	voters := func(d *harness.Device, within time.Duration, vote, all int) {
		t.Helper()
		d.Eventually(within, fmt.Sprintf("%d voters of %d", vote, all), func() error {
			votes, follow := 0, 0
			for _, s := range status(t, d).Devices {
				switch {
				case !s.Reached:
				case s.Role == "learner":
					follow++
				default:
					votes++
				}
			}
			if votes != vote || follow != all-vote {
				return fmt.Errorf("%d vote and %d follow", votes, follow)
			}
			return nil
		})
	}
	voters(devices[n-1], 120*time.Second, 5, n)
	t.Logf("five voted after %v", since())
	for _, d := range devices {
		d.ImportBusybox()
	}
	leader := leaderOf(t, devices[n-1], devices)
	rest := without(devices, leader)
	at := rest[len(rest)-1]
	p := placeOn(t, at)
	p.apply(onEach)
	p.kubectl("rollout", "status", "daemonset/each", "--timeout=120s")
	t.Logf("ten Pods ran after %v", since())
	var pss, anon int64
	for _, d := range devices {
		processes, err := d.Memory()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range processes {
			if m.Command != "sleep" && m.Command != "sh" {
				pss, anon = pss+m.PSS, anon+m.Anon
			}
		}
	}
	t.Logf("memory of a device, mean: PSS %.1f MB, anonymous %.1f MB", float64(pss)/n/1e6, float64(anon)/n/1e6)

	leader.PowerOff()
	began = time.Now()
	at.Eventually(30*time.Second, "writing without the leader", func() error {
		_, err := at.Kubectl("", "-n", p.ns, "create", "configmap", fmt.Sprintf("c%d", time.Since(began).Milliseconds()), "--request-timeout=3s")
		return err
	})
	t.Logf("a write was accepted %v after the leader lost power", since())
	allReady(t, at, n-1)
	voters(at, 150*time.Second, 5, n-1)
	t.Logf("five voted again after %v", since())
	p.kubectl("rollout", "restart", "daemonset/each")
	at.Eventually(120*time.Second, "nine Pods replaced", func() error {
		out, err := at.Kubectl("", "-n", p.ns, "get", "daemonset", "each", "-o", "jsonpath={.status.updatedNumberScheduled} {.status.numberReady}")
		if err == nil && out != "9 9" {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	t.Logf("its nine Pods were replaced after %v", since())
}
