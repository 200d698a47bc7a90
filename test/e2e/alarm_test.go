package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// alarms counts what a device that is there must not be told of: Nodes that were
// taken for lost, and Pods that were evicted.
func alarms(t *testing.T, via *harness.Device) (lost, evicted int) {
	t.Helper()
	events, err := via.Client().CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		switch {
		case e.Reason == "NodeNotReady" && e.InvolvedObject.Kind == "Node":
			lost += int(max(e.Count, 1))
		case e.Reason == "TaintManagerEviction":
			evicted += int(max(e.Count, 1))
		}
	}
	return lost, evicted
}

// burn keeps the machine's CPUs busy from inside a device.
func burn(t *testing.T, d *harness.Device) {
	ctx, cancel := context.WithCancel(context.Background())
	var all []*exec.Cmd
	for range 4 {
		c := d.Command(ctx, "sh", "-c", "while :; do :; done")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	t.Cleanup(func() {
		cancel()
		for _, c := range all {
			_ = c.Wait() // it was killed
		}
	})
}

// leads says whether a device takes itself for the leader.
func leads(d *harness.Device) (bool, error) {
	out, err := d.Edged("status", "-o", "json", "--run-dir", d.RunDir())
	var s struct{ Role string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s.Role == "leader", err
}

// TestNoFalseAlarms: daemons that stand still for 3 s while the CPUs are busy, and
// disks that hang for 12 s, cost no Pod. EDGED_PAUSES says how often, 6 if not set.
func TestNoFalseAlarms(t *testing.T) {
	pauses := 6
	if n, err := strconv.Atoi(os.Getenv("EDGED_PAUSES")); err == nil {
		pauses = n
	}
	all := newClusterWith(t, 3, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		return harness.NewOnDisk(t, sw, i, 512, flags...)
	})
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[0])
	p.kubectl("create", "configmap", "written")
	p.apply(strings.ReplaceAll(webDeployment, "replicas: 2", "replicas: 3"))
	p.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	p.eventually(60*time.Second, "three voters", func() error {
		for _, s := range status(t, all[0]).Devices {
			if s.Role == "learner" || !s.Ready || !s.Reached {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	before := restarts(t, p, all[0])
	same := func(t *testing.T) {
		t.Helper()
		allReady(t, all[0], 3)
		if after := restarts(t, p, all[0]); after != before {
			t.Errorf("Pods were %s, are %s", before, after)
		}
		if _, evicted := alarms(t, all[0]); evicted > 0 {
			t.Errorf("%d Pods were evicted", evicted)
		}
	}

	t.Run("disk of a follower", func(t *testing.T) {
		leader := leaderOf(t, all[0], all)
		hung := without(all, leader)[0]
		others := without(all, hung)
		l := startLoad(p, others...)
		l.again(p)
		was, _ := alarms(t, all[0])
		hung.Freeze()
		time.Sleep(12 * time.Second) // how long it hangs, not a wait
		hung.Thaw()
		gap, refused := l.again(p)
		t.Logf("longest gap between writes %v, %d refused", gap.Round(10*time.Millisecond), refused)
		if refused > 0 {
			t.Errorf("%d writes were refused", refused)
		}
		if now := leaderOf(t, leader, all); now != leader {
			t.Errorf("%s leads, %s did", now.Name, leader.Name)
		}
		if lost, _ := alarms(t, leader); lost > was {
			t.Errorf("a device was taken for lost")
		}
		same(t)
	})

	t.Run("disk of the leader", func(t *testing.T) {
		hung := leaderOf(t, all[0], all)
		others := without(all, hung)
		was, _ := alarms(t, others[0])
		l := startLoad(p, others...)
		l.again(p)
		hung.Freeze()
		began := time.Now()
		hung.Eventually(10*time.Second, "leading no more", func() error {
			if is, err := leads(hung); err != nil || is {
				return fmt.Errorf("leads: %v %v", is, err)
			}
			return nil
		})
		stepped := time.Since(began)
		others[0].Eventually(10*time.Second, "led by another", func() error {
			for _, d := range others {
				if is, err := leads(d); err == nil && is {
					return nil
				}
			}
			return fmt.Errorf("nobody else leads")
		})
		gap, refused := l.again(p)
		t.Logf("it stepped down after %v; longest gap between writes %v, %d refused", stepped.Round(100*time.Millisecond), gap.Round(10*time.Millisecond), refused)
		time.Sleep(12*time.Second - time.Since(began))
		hung.Thaw()
		if lost, _ := alarms(t, others[0]); lost > was {
			t.Errorf("a device was taken for lost")
		}
		hung.Eventually(30*time.Second, "of one leader", func() error {
			leaders := 0
			for _, d := range all {
				is, err := leads(d)
				if err != nil {
					return err
				}
				if is {
					leaders++
				}
			}
			if leaders != 1 {
				return fmt.Errorf("%d lead", leaders)
			}
			return nil
		})
		same(t)
	})

	t.Run("pauses", func(t *testing.T) {
		burn(t, all[0])
		was, _ := alarms(t, all[0])
		for i := range pauses {
			d := all[i%3]
			if i%2 == 0 {
				d = leaderOf(t, all[i%3], all)
			}
			d.Pause()
			time.Sleep(3 * time.Second) // how long it stands still, not a wait
			d.Resume()
			allReady(t, all[i%3], 3)
		}
		lost, evicted := alarms(t, all[0])
		t.Logf("%d pauses of 3 s: %d Nodes taken for lost, %d Pods evicted", pauses, lost-was, evicted)
		same(t)
	})
}

// quietAt waits until every device is as quiet as it should be.
func quietAt(t *testing.T, all []*harness.Device, metered bool) {
	t.Helper()
	for _, d := range all {
		d.Eventually(90*time.Second, fmt.Sprintf("metered: %v", metered), func() error {
			out, err := d.Edged("status", "-o", "json", "--run-dir", d.RunDir())
			if err != nil {
				return err
			}
			var s struct {
				Devices []struct {
					Node             string
					Metered, Reached bool
				}
			}
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				return err
			}
			for _, d := range s.Devices {
				if d.Metered != metered || !d.Reached {
					return fmt.Errorf("%+v", s.Devices)
				}
			}
			return nil
		})
	}
}

// sentWithin counts the bytes that devices put on their links while it waits.
func sentWithin(all []*harness.Device, d time.Duration) (bytes uint64) {
	count := func() (sum uint64) {
		for _, d := range all {
			sent, _ := d.Traffic()
			sum += sent
		}
		return sum
	}
	before := count()
	time.Sleep(d) // what is counted, not a wait
	return count() - before
}

// TestMetered: one device that is metered makes all quiet, and the loss of the leader
// is noticed within a minute; when it is no more, they are as before.
func TestMetered(t *testing.T) {
	all := newCluster(t, 3)
	p := placeOn(t, all[0])
	p.kubectl("create", "configmap", "written")
	p.eventually(60*time.Second, "three voters", func() error {
		for _, s := range status(t, all[0]).Devices {
			if s.Role == "learner" || !s.Ready || !s.Reached {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	usual := sentWithin(all, 10*time.Second)
	all[2].Stop()
	all[2].Start("--metered")
	all[2].WaitReady()
	quietAt(t, all, true)
	allReady(t, all[0], 3)

	// How many bytes a day that is, make bench measures.
	p.eventually(90*time.Second, "the wire to be quiet", func() error {
		now := sentWithin(all, 10*time.Second)
		if now > usual/4 {
			return fmt.Errorf("%d bytes in 10 s, %d before it was metered", now, usual)
		}
		t.Logf("%d bytes in 10 s, %d before it was metered", now, usual)
		return nil
	})

	lost := leaderOf(t, all[0], all)
	others := without(all, lost)
	lost.Unplug()
	began := time.Now()
	others[0].Eventually(75*time.Second, "told that a device is lost", func() error {
		n, err := others[0].Client().CoreV1().Nodes().Get(context.Background(), lost.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
				return nil
			}
		}
		return fmt.Errorf("it is ready")
	})
	took := time.Since(began)
	t.Logf("the lost leader's Node was NotReady after %v", took.Round(100*time.Millisecond))
	if took > time.Minute {
		t.Errorf("the loss was noticed after %v", took)
	}
	lost.Plug()
	allReady(t, others[0], 3)
	all[2].Stop()
	all[2].Start()
	all[2].WaitReady()
	quietAt(t, all, false)
}
