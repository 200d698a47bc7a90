package main

import (
	"context"
	"fmt"
	"log"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

const (
	leaderKills = 12
	powerCuts   = 3
)

// cluster starts n devices that form a cluster, with a vote each if n is odd.
func (b *bench) cluster(n int, flags ...string) ([]*harness.Device, error) {
	return b.clusterOf(n, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		return harness.New(b.tb, sw, i, flags...)
	}, flags...)
}

// clusterOf is cluster of devices that build makes.
func (b *bench) clusterOf(n int, build func(sw *harness.Switch, i int, flags ...string) *harness.Device, flags ...string) ([]*harness.Device, error) {
	sw := harness.NewSwitch(b.tb)
	first := build(sw, 1, flags...)
	first.Start()
	first.WaitReady()
	token, err := first.Edged("token", "create", "--run-dir", first.RunDir())
	if err != nil {
		return nil, err
	}
	devices := []*harness.Device{first}
	for i := 2; i <= n; i++ {
		d := build(sw, i, append([]string{"--join", first.Addr.String() + ":6443", "--token", strings.TrimSpace(token)}, flags...)...)
		d.Start()
		devices = append(devices, d)
	}
	for _, d := range devices {
		d.WaitReady()
	}
	first.Eventually(time.Minute, "of a cluster whose members vote", func() error {
		out, err := first.Edged("member", "list", "--run-dir", first.RunDir())
		if err == nil && (strings.Contains(out, "learner") || strings.Count(out, "true") != n) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	return devices, nil
}

// leads finds the device that leads.
func leads(devices []*harness.Device) (int, error) {
	for _, via := range devices {
		out, err := via.Edged("member", "list", "--run-dir", via.RunDir())
		if err != nil {
			continue
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 2 && f[2] == "leader" {
				return slices.IndexFunc(devices, func(d *harness.Device) bool { return d.Name == f[1] }), nil
			}
		}
	}
	return 0, fmt.Errorf("no device knows a leader")
}

// failover kills leaders and cuts the power of devices.
func (b *bench) failover() error {
	devices, err := b.cluster(3)
	if err != nil {
		return err
	}
	for _, d := range devices {
		d.ImportBusybox()
	}
	if err := b.quiet(devices); err != nil {
		return err
	}
	var again []time.Duration
	for range leaderKills {
		i, err := leads(devices)
		if err != nil {
			return err
		}
		via := devices[(i+1)%3]
		client := via.Client().CoreV1().ConfigMaps("default")
		// The connection is there already, as a client's is.
		if _, err := client.List(context.Background(), metav1.ListOptions{}); err != nil {
			return err
		}
		devices[i].Kill()
		began := time.Now()
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_, err := client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "written-"}}, metav1.CreateOptions{})
			cancel()
			if err == nil {
				break
			}
			if time.Since(began) > time.Minute {
				return fmt.Errorf("no write a minute after the leader was killed: %w", err)
			}
		}
		again = append(again, time.Since(began))
		devices[i].Start()
		devices[i].WaitReady()
		if err := allReady(via, 3); err != nil {
			return err
		}
	}
	b.add(fmt.Sprintf("leader of 3 killed: first write accepted again, p50 / worst of %d", leaderKills), "2 s", "%.2f / %.2f s", median(again).Seconds(), slices.Max(again).Seconds())
	return b.powerCuts(devices)
}

func allReady(via *harness.Device, n int) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		nodes, err := via.Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err == nil {
			ready := 0
			for _, node := range nodes.Items {
				for _, c := range node.Status.Conditions {
					if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
						ready++
					}
				}
			}
			if ready == n {
				return nil
			}
			err = fmt.Errorf("%d of %d Nodes are ready", ready, n)
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// quiet counts what idle devices of a cluster send.
func (b *bench) quiet(devices []*harness.Device) error {
	settle()
	leader, other, err := sent(devices, time.Minute)
	if err != nil {
		return err
	}
	b.add("an idle device of 3 sends a day, leader / other", "100 MB", "%.0f / %.0f MB", leader, other)
	return nil
}

// sent is how many megabytes a day the leader and another device send, by what they
// do while they are watched.
func sent(devices []*harness.Device, watched time.Duration) (leader, other float64, err error) {
	before := make([]uint64, len(devices))
	for i, d := range devices {
		before[i], _ = d.Traffic()
	}
	time.Sleep(watched)
	i, err := leads(devices)
	if err != nil {
		return 0, 0, err
	}
	for j, d := range devices {
		now, _ := d.Traffic()
		day := float64(now-before[j]) * float64(24*time.Hour/watched) / mb
		if j == i {
			leader = day
		} else {
			other = max(other, day)
		}
	}
	return leader, other, nil
}

// metered is quiet for devices of which one is metered.
func (b *bench) metered() error {
	devices, err := b.cluster(3)
	if err != nil {
		return err
	}
	devices[2].Stop()
	devices[2].Start("--metered")
	devices[2].WaitReady()
	if err := allReady(devices[0], 3); err != nil {
		return err
	}
	time.Sleep(time.Minute) // what was going on has its time to end
	leader, other, err := sent(devices, 5*time.Minute)
	if err != nil {
		return err
	}
	b.add("the same, one of 3 with --metered", "5 MB", "%.1f / %.1f MB", leader, other)
	return nil
}

// powerCuts cuts the power of each device in turn, leaders too, and waits until
// its Pods run elsewhere.
func (b *bench) powerCuts(devices []*harness.Device) error {
	if err := b.deploy(devices[0], 6); err != nil {
		return err
	}
	var replaced []time.Duration
	for n := range powerCuts {
		lost, via := devices[n%3], devices[(n+1)%3]
		count := func() (there, elsewhere int) {
			pods, err := via.Client().CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
			if err != nil {
				return 0, 0
			}
			for _, p := range pods.Items {
				if p.DeletionTimestamp != nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
					return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
				}) {
					continue
				}
				if p.Spec.NodeName == lost.Name {
					there++
				} else {
					elsewhere++
				}
			}
			return there, elsewhere
		}
		if there, _ := count(); there == 0 {
			continue // it came back last and got no Pods
		}
		lost.PowerOff()
		began := time.Now()
		for {
			if _, n := count(); n == 6 {
				break
			}
			if time.Since(began) > 2*time.Minute {
				return fmt.Errorf("the Pods of %s were not replaced within two minutes", lost.Name)
			}
			time.Sleep(50 * time.Millisecond)
		}
		replaced = append(replaced, time.Since(began))
		log.Printf("%s: its Pods were replaced after %v", lost.Name, replaced[len(replaced)-1].Round(10*time.Millisecond))
		lost.Reboot()
		lost.WaitReady()
		if err := allReady(via, 3); err != nil {
			return err
		}
		// The next to go must run Pods.
		if err := b.deploy(via, 0); err != nil {
			return err
		}
		if err := b.deploy(via, 6); err != nil {
			return err
		}
	}
	if len(replaced) == 0 {
		return fmt.Errorf("no device that lost its power ran Pods")
	}
	b.add(fmt.Sprintf("a device's power cut: its Pods ready elsewhere, p50 / worst of %d", len(replaced)), "15 s", "%.1f / %.1f s", median(replaced).Seconds(), slices.Max(replaced).Seconds())
	return nil
}
