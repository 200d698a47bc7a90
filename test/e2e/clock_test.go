package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

const year = 365 * 24 * time.Hour

// near is how far apart the clocks of a test may be: a loaded machine's.
const near = 5 * time.Second

// clocks waits until the devices have one time, and returns how far each one's
// system clock is off it.
func clocks(t *testing.T, via *harness.Device, n int) map[string]time.Duration {
	t.Helper()
	out := map[string]time.Duration{}
	via.Eventually(90*time.Second, "of one time with the others", func() error {
		text, err := via.Edged("status", "-o", "json", "--run-dir", via.RunDir())
		if err != nil {
			return err
		}
		var s struct {
			Devices []struct {
				Node, Clock            string
				Reached                bool
				Time                   time.Time
				ClockOffsetNanoseconds time.Duration
				SystemClockOff         time.Duration `json:"systemClockOffNanoseconds"`
			}
		}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		if len(s.Devices) != n {
			return fmt.Errorf("%d devices", len(s.Devices))
		}
		for _, d := range s.Devices {
			if !d.Reached || d.ClockOffsetNanoseconds.Abs() > near || time.Since(d.Time).Abs() > near {
				return fmt.Errorf("%+v", d)
			}
			out[d.Node] = d.SystemClockOff
		}
		return nil
	})
	return out
}

// stamped fails unless an object made through a device has the true time.
func (p *place) stamped(through *harness.Device, name string) {
	p.t.Helper()
	cm, err := through.Client().CoreV1().ConfigMaps(p.ns).Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	if off := time.Since(cm.CreationTimestamp.Time); off.Abs() > near {
		p.t.Errorf("%s: an object made through it is %v old", through.Name, off)
	}
}

func clockOff(t *testing.T, via *harness.Device, name string) corev1.ConditionStatus {
	t.Helper()
	n, err := via.Client().CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == "ClockOff" })
	if i < 0 {
		return ""
	}
	return n.Status.Conditions[i].Status
}

// TestClocks: a device at 1970, one a year ahead, one that is right: they form a
// cluster that has the right time, for certificates, tokens, Leases and CronJobs, and
// keep it when the leader's clock jumps back.
func TestClocks(t *testing.T) {
	sw := harness.NewSwitch(t)
	all := []*harness.Device{harness.New(t, sw, 1)}
	all[0].SetClock(time.Until(time.Unix(1000, 0)), false)
	all[0].Start()
	all[0].WaitReady()
	token, err := all[0].Edged("token", "create", "--ttl", "0", "--run-dir", all[0].RunDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		ahead  time.Duration
		synced bool
	}{{year, false}, {0, true}} {
		d := harness.New(t, sw, i+2, "--join", all[0].Addr.String()+":6443", "--token", strings.TrimSpace(token))
		d.SetClock(c.ahead, c.synced)
		d.Start()
		all = append(all, d)
	}
	t.Cleanup(func() {
		for _, d := range all {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		}
	})
	for _, d := range all {
		d.WaitReady()
	}
	allReady(t, all[0], 3)
	off := clocks(t, all[2], 3)
	if off["device-1"].Abs() > near {
		t.Errorf("the clock that nobody had set was not set: it is off by %v", off["device-1"])
	}
	if d := off["device-2"] - year; d.Abs() > near {
		t.Errorf("the clock that somebody had set is off by %v", off["device-2"])
	}
	p := placeOn(t, all[2])
	for i, d := range all {
		p.stamped(d, fmt.Sprintf("first-%d", i))
		made, err := d.Kubectl("", "-n", p.ns, "create", "token", "default")
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range all { // the TokenReview of another device
			r, err := other.Client().AuthenticationV1().TokenReviews().Create(context.Background(), &authenticationv1.TokenReview{
				Spec: authenticationv1.TokenReviewSpec{Token: strings.TrimSpace(made)},
			}, metav1.CreateOptions{})
			if err != nil || !r.Status.Authenticated {
				t.Errorf("a token of %s at %s: %v %v", d.Name, other.Name, r.Status, err)
			}
		}
	}
	all[2].Eventually(30*time.Second, "told of the wrong clock", func() error {
		if s := clockOff(t, all[2], "device-2"); s != corev1.ConditionTrue {
			return fmt.Errorf("ClockOff is %q", s)
		}
		return nil
	})
	leases, err := all[0].Client().CoordinationV1().Leases("kube-node-lease").List(context.Background(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 3 {
		t.Fatalf("%v %v", leases, err)
	}
	for _, l := range leases.Items {
		if age := time.Since(l.Spec.RenewTime.Time); age.Abs() > near {
			t.Errorf("the Lease of %s was renewed %v ago", l.Name, age)
		}
	}
	p.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: each-minute}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {suspend: true, template: {spec: {restartPolicy: Never, containers: [{name: c, image: none}]}}}}
`)
	made := time.Now()

	// The leader's clock, and another's, jump back; a third is put right.
	leader := leaderOf(t, all[2], all)
	leader.SetClock(-3*year, false)
	all[1].SetClock(0, true)
	if leader == all[1] {
		all[0].SetClock(-3*year, false)
	}
	clocks(t, all[2], 3)
	for i, d := range all {
		p.stamped(d, fmt.Sprintf("second-%d", i))
	}
	all[2].Eventually(30*time.Second, "told that the clock is right", func() error {
		if s := clockOff(t, all[2], "device-2"); leader != all[1] && s != corev1.ConditionFalse {
			return fmt.Errorf("ClockOff is %q", s)
		}
		return nil
	})
	var jobs *batchv1.JobList
	p.eventually(100*time.Second, "the CronJob's time", func() (err error) {
		jobs, err = p.Client().BatchV1().Jobs(p.ns).List(context.Background(), metav1.ListOptions{})
		if err == nil && len(jobs.Items) == 0 {
			err = fmt.Errorf("no Job after %v", time.Since(made))
		}
		return err
	})
	if most := int(time.Since(made)/time.Minute) + 1; len(jobs.Items) > most {
		t.Errorf("%d Jobs of a minute each within %v", len(jobs.Items), time.Since(made))
	}
	for _, j := range jobs.Items {
		if d := time.Since(j.CreationTimestamp.Time); d < -near || d > 2*time.Minute {
			t.Errorf("a Job %v old", d)
		}
	}
	events := all[2].MustKubectl("", "get", "events", "-A", "-o", "jsonpath={range .items[*]}{.reason} {.involvedObject.name}{\"\\n\"}{end}")
	if strings.Contains(events, "NodeNotReady") {
		t.Errorf("a clock made a false alarm:\n%s", events)
	}
}
