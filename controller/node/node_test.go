package node_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/apiserver/registry/registrytest"
	"edged/controller/loop"
	"edged/controller/node"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestHealth(t *testing.T) {
	ready := []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: "Own", Status: corev1.ConditionTrue}}
	if out, changed, again := node.Health(ready, noon.Add(-2*time.Second), noon, node.Grace); changed || again != 2*time.Second || len(out) != 2 {
		t.Errorf("heard of 2 s ago: %v %v, again in %v", out, changed, again)
	}
	out, changed, _ := node.Health(ready, noon.Add(-5*time.Second), noon, node.Grace)
	if !changed || out[0].Status != corev1.ConditionUnknown || out[0].Reason != "NodeStatusUnknown" || out[1].Status != corev1.ConditionTrue || len(out) != 5 {
		t.Errorf("silent for 5 s: %v", out)
	}
	if ready[0].Status != corev1.ConditionTrue {
		t.Error("the argument was changed")
	}
	if _, changed, _ := node.Health(out, noon.Add(-time.Minute), noon, node.Grace); changed {
		t.Error("changed again")
	}
}

func TestTaints(t *testing.T) {
	added := metav1.NewTime(noon.Add(-time.Hour))
	own := corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}
	old := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	for _, tt := range []struct {
		name  string
		ready corev1.ConditionStatus
		disk  corev1.ConditionStatus
		off   bool
		has   []corev1.Taint
		want  string
	}{
		{"ready", "True", "False", false, nil, "false []"},
		{"ready, own taint", "True", "False", false, []corev1.Taint{own}, "false [gpu:NoSchedule]"},
		{"ready again", "True", "False", false, []corev1.Taint{own, old}, "true [gpu:NoSchedule]"},
		{"silent", "Unknown", "False", false, []corev1.Taint{own}, "true [gpu:NoSchedule node.kubernetes.io/unreachable:NoSchedule node.kubernetes.io/unreachable:NoExecute]"},
		{"still silent", "Unknown", "False", false, []corev1.Taint{old, {Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule}}, "false [node.kubernetes.io/unreachable:NoExecute node.kubernetes.io/unreachable:NoSchedule]"},
		{"not ready, was silent", "False", "False", false, []corev1.Taint{old}, "true [node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute]"},
		{"disk full", "True", "True", false, nil, "true [node.kubernetes.io/disk-pressure:NoSchedule]"},
		{"cordoned", "True", "False", true, nil, "true [node.kubernetes.io/unschedulable:NoSchedule]"},
	} {
		n := &corev1.Node{Spec: corev1.NodeSpec{Taints: tt.has, Unschedulable: tt.off}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: tt.ready}, {Type: corev1.NodeDiskPressure, Status: tt.disk}}
		out, changed := node.Taints(n, noon)
		var keys []string
		for _, x := range out {
			keys = append(keys, x.Key+":"+string(x.Effect))
			if x.Key == old.Key && x.Effect == old.Effect && slices.Contains(tt.has, old) && !x.TimeAdded.Equal(&added) {
				t.Errorf("%s: the clock of the taint began anew", tt.name)
			}
		}
		if got := fmt.Sprint(changed, " ", keys); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestEviction(t *testing.T) {
	unreachable := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &metav1.Time{Time: noon.Add(-4 * time.Second)}}
	bears := func(seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
	}
	for _, tt := range []struct {
		name        string
		tolerations []corev1.Toleration
		taints      []corev1.Taint
		started     time.Time
		deleted     bool
		want        string
	}{
		{name: "no taint", want: "false 0s"},
		{name: "bears nothing", taints: []corev1.Taint{unreachable}, want: "true 0s"},
		{name: "bears it for ever", tolerations: []corev1.Toleration{bears(nil)}, taints: []corev1.Taint{unreachable}, want: "false 0s"},
		{name: "for ten seconds", tolerations: []corev1.Toleration{bears(ptr.To[int64](10))}, taints: []corev1.Taint{unreachable}, want: "false 6s"},
		{name: "the shorter of two", tolerations: []corev1.Toleration{bears(ptr.To[int64](10)), bears(ptr.To[int64](7))}, taints: []corev1.Taint{unreachable}, want: "false 3s"},
		{name: "the time is over", tolerations: []corev1.Toleration{bears(ptr.To[int64](3))}, taints: []corev1.Taint{unreachable}, want: "true 0s"},
		{name: "not at all", tolerations: []corev1.Toleration{bears(ptr.To[int64](0))}, taints: []corev1.Taint{unreachable}, want: "true 0s"},
		{name: "came after the taint", tolerations: []corev1.Toleration{bears(ptr.To[int64](10))}, taints: []corev1.Taint{unreachable}, started: noon.Add(-time.Second), want: "false 9s"},
		{name: "NoSchedule only", taints: []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}, want: "false 0s"},
		{name: "one of two", tolerations: []corev1.Toleration{bears(nil)}, taints: []corev1.Taint{unreachable, {Key: "x", Effect: corev1.TaintEffectNoExecute}}, want: "true 0s"},
		{name: "on its way already", taints: []corev1.Taint{unreachable}, deleted: true, want: "false 0s"},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: tt.tolerations}}
		if !tt.started.IsZero() {
			p.Status.StartTime = &metav1.Time{Time: tt.started}
		}
		if tt.deleted {
			p.DeletionTimestamp = &metav1.Time{Time: noon}
		}
		evict, after := node.Eviction(p, tt.taints, noon)
		if got := fmt.Sprint(evict, " ", after); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestExact: what a second cuts off is given back to those who tolerate the loss, what
// another leader counted is not touched.
func TestExact(t *testing.T) {
	taint := func(key string, added time.Time) corev1.Taint {
		return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute, TimeAdded: &metav1.Time{Time: added}}
	}
	since := noon.Add(900 * time.Millisecond)
	had := []corev1.Taint{
		taint(corev1.TaintNodeUnreachable, noon), taint(corev1.TaintNodeUnreachable, noon.Add(-2*time.Second)),
		taint(corev1.TaintNodeUnreachable, noon.Add(time.Second)), taint("gpu", noon), {Key: corev1.TaintNodeUnreachable},
	}
	out := node.Exact(had, since)
	for i, want := range []time.Time{since, noon.Add(-2 * time.Second), noon.Add(time.Second), noon} {
		if got := out[i].TimeAdded.Time; !got.Equal(want) {
			t.Errorf("taint %d: %v, want %v", i, got, want)
		}
	}
	if out[4].TimeAdded != nil || !had[0].TimeAdded.Time.Equal(noon) {
		t.Errorf("%v of %v", out, had)
	}
}

// TestTolerationIsWhole: a Pod stays for all of the seconds that it tolerates, also when
// its device was lost at the end of one.
func TestTolerationIsWhole(t *testing.T) {
	f := newFleet(t, 3)
	// The loss is just before a second begins; the object's time says almost a second
	// earlier.
	for time.Now().Nanosecond() < 900e6 {
		time.Sleep(time.Millisecond)
	}
	lost := time.Now()
	f.quiet(0, "d1")
	f.await("its Pod is taken off", func() bool { return f.podGone("p1") })
	if after := time.Since(lost); after < time.Second {
		t.Errorf("after %v of the second that it tolerates", after)
	}
}

// fleet is a cluster of devices that fall silent when told.
type fleet struct {
	t   *testing.T
	reg *registry.Registry

	mu     sync.Mutex
	silent map[string]time.Time
}

func newFleet(t *testing.T, devices int, witnesses ...string) *fleet {
	f := &fleet{t: t, reg: registrytest.New(t), silent: map[string]time.Time{}}
	for i := range devices {
		_, err := registry.For[*corev1.Node](f.reg).Create(t.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("d%d", i)},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		f.pod(fmt.Sprintf("p%d", i), fmt.Sprintf("d%d", i), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	run := node.Run(func(name string) (time.Time, bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if at, ok := f.silent[name]; ok {
			return at, true
		}
		return time.Now(), true
	}, nil, func() []string { return witnesses })
	go func() {
		done <- run(ctx, loop.Env{Registry: f.reg, Events: recorder.New(f.reg, "test", "", nil), Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// pod makes a ready Pod that bears the loss of its device for some seconds.
func (f *fleet) pod(name, on string, bears int64) {
	f.t.Helper()
	seconds := int64(0)
	_, err := registry.For[*corev1.Pod](f.reg).Create(f.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: on, Containers: []corev1.Container{{Name: "c", Image: "i"}}, TerminationGracePeriodSeconds: &seconds,
			Tolerations: []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &bears}},
		},
	})
	if err == nil {
		_, err = registry.For[*corev1.Pod](f.reg).UpdateStatus(f.t.Context(), "default", name, func(p *corev1.Pod) error {
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			return nil
		})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// quiet makes devices, which are lost since some time then, silent in one moment.
func (f *fleet) quiet(lost time.Duration, names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		f.silent[name] = time.Now().Add(-node.Grace - lost)
	}
}

// hear makes a device heard again.
func (f *fleet) hear(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.silent, name)
}

func (f *fleet) await(what string, cond func() bool) {
	f.t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("timed out: %s\n%v", what, registry.For[*corev1.Node](f.reg).List(""))
		}
	}
}

func (f *fleet) ready(name string) corev1.ConditionStatus {
	n, _ := registry.For[*corev1.Node](f.reg).Get("", name)
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

func (f *fleet) podGone(name string) bool {
	p, ok := registry.For[*corev1.Pod](f.reg).Get("default", name)
	return !ok || p.DeletionTimestamp != nil
}

func TestSilentDeviceLosesItsPods(t *testing.T) {
	f := newFleet(t, 3)
	f.quiet(0, "d1")
	f.await("d1 is not heard of", func() bool { return f.ready("d1") == corev1.ConditionUnknown })
	f.await("its Pod is taken off", func() bool { return f.podGone("p1") })
	if f.podGone("p0") || f.podGone("p2") || f.ready("d0") != corev1.ConditionTrue {
		t.Error("others are touched")
	}
}

// TestTolerationBeginsWithTheLoss: what Pods bear is counted from when their device
// was lost, not from when somebody came to write that down.
func TestTolerationBeginsWithTheLoss(t *testing.T) {
	f := newFleet(t, 3)
	f.pod("patient", "d1", 600)
	f.pod("very-patient", "d1", 7200)
	f.quiet(time.Hour, "d1")
	f.await("both that bear less than an hour are taken off", func() bool { return f.podGone("p1") && f.podGone("patient") })
	if f.podGone("very-patient") {
		t.Error("one that bears two hours is gone")
	}
}

// TestRestartOnAnOrder lets a device be away that said so: a Pod that nobody makes
// anew waits for it, others are replaced, and a time that is over holds nobody.
func TestRestartOnAnOrder(t *testing.T) {
	f := newFleet(t, 3)
	pods := registry.For[*corev1.Pod](f.reg)
	f.pod("owned", "d1", 1)
	_, err := pods.Update(t.Context(), "default", "owned", func(p *corev1.Pod) error {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "r", Controller: ptr.To(true)}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, by := range map[string]time.Time{"d1": time.Now().Add(time.Hour), "d2": time.Now().Add(-time.Hour)} {
		_, err := registry.For[*corev1.Node](f.reg).Update(t.Context(), "", name, func(n *corev1.Node) error {
			n.Annotations = map[string]string{node.AnnotationBackBy: by.Format(time.RFC3339)}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.quiet(0, "d1")
	f.await("the Pod that is replaced is taken off", func() bool { return f.podGone("owned") })
	if f.podGone("p1") {
		t.Error("the Pod that nobody replaces was taken off")
	}
	f.hear("d1")
	f.quiet(0, "d2")
	f.await("the Pod of a device that should be back is taken off", func() bool { return f.podGone("p2") })
}

// TestWitnessesCount: of two devices and a witness that is heard, one that is lost is
// not half; with a witness that is silent, too, nothing is evicted, nor is one counted
// twice that was a device.
func TestWitnessesCount(t *testing.T) {
	f := newFleet(t, 2, "w", "d0")
	f.quiet(0, "d1", "w")
	f.await("d1 is not heard of", func() bool { return f.ready("d1") == corev1.ConditionUnknown })
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // longer than it tolerates
		if f.podGone("p1") {
			t.Fatal("a Pod was evicted")
		}
	}
	f.hear("w")
	f.await("its Pod is taken off", func() bool { return f.podGone("p1") })
	if f.podGone("p0") {
		t.Error("others are touched")
	}
}

func TestNothingIsEvictedWhenHalfAreSilent(t *testing.T) {
	f := newFleet(t, 4)
	f.quiet(0, "d1", "d2")
	f.await("both are not heard of", func() bool {
		return f.ready("d1") == corev1.ConditionUnknown && f.ready("d2") == corev1.ConditionUnknown
	})
	f.await("their Pods are not ready", func() bool {
		p, _ := registry.For[*corev1.Pod](f.reg).Get("default", "p1")
		return p.Status.Conditions[0].Status == corev1.ConditionFalse
	})
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // longer than they tolerate
		if f.podGone("p1") || f.podGone("p2") {
			t.Fatal("a Pod was evicted")
		}
	}
	// One comes back and did not yet say how it is: its taint is there, its loss is not.
	f.hear("d1")
	f.await("the Pod of the one that is away is taken off", func() bool { return f.podGone("p2") })
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if f.podGone("p1") {
			t.Fatal("a Pod of the one that is back was evicted")
		}
	}
}
