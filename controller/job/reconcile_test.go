package job

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

var epoch = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newJob(edit ...func(*batchv1.JobSpec)) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "ns", UID: "job"}}
	j.Spec = batchv1.JobSpec{Parallelism: ptr.To[int32](1), Completions: ptr.To[int32](1), BackoffLimit: ptr.To[int32](6)}
	for _, e := range edit {
		e(&j.Spec)
	}
	return j
}

func size(parallelism, completions int32) func(*batchv1.JobSpec) {
	return func(s *batchv1.JobSpec) { s.Parallelism, s.Completions = &parallelism, &completions }
}

func indexed(s *batchv1.JobSpec) { s.CompletionMode = ptr.To(batchv1.IndexedCompletion) }

// cluster carries plans out: Pods of a fate each.
type cluster struct {
	t       *testing.T
	job     *batchv1.Job
	pods    []*corev1.Pod
	now     time.Time
	backoff Backoff
	made    int
	// fate says how the n-th Pod made ends.
	fate func(n int, p *corev1.Pod) corev1.PodPhase
	exit int32
	// most Pods active at once.
	most int
}

// step is one round: the controller's, then the Pods'.
func (c *cluster) step() {
	c.t.Helper()
	plan := Reconcile(World{Job: c.job, Pods: slices.Clone(c.pods), Backoff: c.backoff, Now: c.now})
	if plan.Again < 0 {
		c.t.Fatalf("again in %v", plan.Again)
	}
	for _, p := range plan.Drop {
		c.edit(p, func(p *corev1.Pod) { p.Finalizers = nil })
		c.remove(p)
	}
	for _, p := range plan.Delete {
		c.remove(p)
	}
	for _, p := range plan.Create {
		p.Name, p.UID = fmt.Sprintf("p%d", c.made), types.UID(fmt.Sprintf("u%d", c.made))
		p.CreationTimestamp = metav1.NewTime(c.now)
		p.Status.Phase = corev1.PodPending
		c.made++
		c.pods = append(c.pods, p)
	}
	a := Account(plan, slices.Clone(c.pods), true)
	c.write(a.Status)
	c.backoff = plan.Backoff
	for _, p := range a.Release {
		c.edit(p, func(p *corev1.Pod) { p.Finalizers = nil })
	}
	final, _ := a.Settle(c.pods)
	c.write(final)
	active := podset.Count(c.pods, podset.IsActive)
	c.most = max(c.most, int(active))
}

// write holds what the API's validation does.
func (c *cluster) write(s batchv1.JobStatus) {
	c.t.Helper()
	was := c.job.Status
	if s.Failed < was.Failed || !isIndexed(c.job) && s.Succeeded < was.Succeeded {
		c.t.Fatalf("counted back: %+v after %+v", s, was)
	}
	if ptr.Deref(s.Ready, 0) > s.Active {
		c.t.Fatalf("more ready than active: %+v", s)
	}
	if slices.ContainsFunc(s.Conditions, func(cond batchv1.JobCondition) bool {
		return cond.Type == batchv1.JobComplete || cond.Type == batchv1.JobFailed
	}) && (s.Active > 0 || ptr.Deref(s.Terminating, 0) > 0 || len(s.UncountedTerminatedPods.Failed)+len(s.UncountedTerminatedPods.Succeeded) > 0) {
		c.t.Fatalf("finished with Pods left: %+v", s)
	}
	c.job = c.job.DeepCopy()
	c.job.Status = s
}

func (c *cluster) edit(p *corev1.Pod, fn func(*corev1.Pod)) {
	for i := range c.pods {
		if c.pods[i].UID == p.UID {
			c.pods[i] = c.pods[i].DeepCopy()
			fn(c.pods[i])
		}
	}
}

func (c *cluster) remove(p *corev1.Pod) {
	c.edit(p, func(p *corev1.Pod) {
		if p.DeletionTimestamp == nil {
			p.DeletionTimestamp = &metav1.Time{Time: c.now}
		}
	})
}

// live lets the Pods end and those that are deleted go.
func (c *cluster) live() {
	for _, p := range slices.Clone(c.pods) {
		n, _ := strconv.Atoi(p.Name[1:])
		phase := c.fate(n, p)
		c.edit(p, func(p *corev1.Pod) {
			switch {
			case p.DeletionTimestamp != nil && !podset.IsFinished(p):
				p.Status.Phase = corev1.PodFailed
			case !podset.IsFinished(p):
				p.Status.Phase = phase
			}
			if podset.IsFinished(p) && len(p.Status.ContainerStatuses) == 0 {
				code := int32(0)
				if p.Status.Phase == corev1.PodFailed {
					code = c.exit
				}
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.NewTime(c.now)}}}}
			}
		})
	}
	c.pods = slices.DeleteFunc(c.pods, func(p *corev1.Pod) bool {
		return p.DeletionTimestamp != nil && podset.IsFinished(p) && len(p.Finalizers) == 0
	})
}

// run goes on until the Job is over.
func (c *cluster) run() *batchv1.JobCondition {
	c.t.Helper()
	for range 500 {
		c.step()
		if end, ok := IsFinished(c.job); ok {
			return end
		}
		c.live()
		c.now = c.now.Add(7 * time.Second)
	}
	c.t.Fatalf("the Job is not over: %+v", c.job.Status)
	return nil
}

func always(p corev1.PodPhase) func(int, *corev1.Pod) corev1.PodPhase {
	return func(int, *corev1.Pod) corev1.PodPhase { return p }
}

func TestJobsEnd(t *testing.T) {
	const ok, bad = corev1.PodSucceeded, corev1.PodFailed
	perIndex := func(limit int32) func(*batchv1.JobSpec) {
		return func(s *batchv1.JobSpec) {
			indexed(s)
			s.BackoffLimitPerIndex = &limit
			s.BackoffLimit = ptr.To[int32](1000)
		}
	}
	onExit := func(action batchv1.PodFailurePolicyAction) func(*batchv1.JobSpec) {
		return func(s *batchv1.JobSpec) {
			s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{3}}}}}
		}
	}
	odd := func(n int, p *corev1.Pod) corev1.PodPhase { // indexes 1, 3 ... fail
		if i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation]); err == nil && i%2 == 1 {
			return bad
		}
		return ok
	}
	for _, tc := range []struct {
		name string
		job  *batchv1.Job
		fate func(int, *corev1.Pod) corev1.PodPhase
		want string // condition reason succeeded failed Pods-made indexes
	}{
		{"one", newJob(), always(ok), "Complete CompletionsReached 1 0 1"},
		{"ten by three", newJob(size(3, 10)), always(ok), "Complete CompletionsReached 10 0 10"},
		{"a queue of work", newJob(func(s *batchv1.JobSpec) { s.Parallelism, s.Completions = ptr.To[int32](3), nil }), always(ok), "Complete CompletionsReached 3 0 3"},
		{"nothing to do", newJob(size(1, 0)), always(ok), "Complete CompletionsReached 0 0 0"},
		{"fails twice", newJob(), func(n int, _ *corev1.Pod) corev1.PodPhase {
			if n < 2 {
				return bad
			}
			return ok
		}, "Complete CompletionsReached 1 2 3"},
		{"fails for ever", newJob(func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](2) }), always(bad), "Failed BackoffLimitExceeded 0 3 3"},
		{"fails side by side", newJob(size(5, 5), func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](0) }), func(n int, _ *corev1.Pod) corev1.PodPhase {
			if n == 0 {
				return bad
			}
			return corev1.PodRunning
		}, "Failed BackoffLimitExceeded 0 5 5"},
		{"too slow", newJob(func(s *batchv1.JobSpec) { s.ActiveDeadlineSeconds = ptr.To[int64](60) }), always(corev1.PodRunning), "Failed DeadlineExceeded 0 1 1"},
		{"by index", newJob(size(2, 5), indexed), always(ok), "Complete CompletionsReached 5 0 5 0-4"},
		{"limit by index", newJob(size(4, 4), perIndex(1)), odd, "Failed FailedIndexes 2 4 6 0,2 !1,3"},
		{"too many indexes", newJob(size(1, 100), perIndex(0), func(s *batchv1.JobSpec) { s.MaxFailedIndexes = ptr.To[int32](1) }), odd, "Failed MaxFailedIndexesExceeded 2 2 4 0,2 !1,3"},
		{"policy: fail the Job", newJob(onExit(batchv1.PodFailurePolicyActionFailJob)), always(bad), "Failed PodFailurePolicy 0 1 1"},
		{"policy: fail the index", newJob(size(2, 2), perIndex(9), onExit(batchv1.PodFailurePolicyActionFailIndex)), odd, "Failed FailedIndexes 1 1 2 0 !1"},
		{"policy: ignore", newJob(func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](0) }, onExit(batchv1.PodFailurePolicyActionIgnore)), func(n int, _ *corev1.Pod) corev1.PodPhase {
			if n < 3 {
				return bad
			}
			return ok
		}, "Complete CompletionsReached 1 0 4"},
		{"success policy", newJob(size(3, 3), indexed, func(s *batchv1.JobSpec) {
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0,2"), SucceededCount: ptr.To[int32](1)}}}
		}), func(_ int, p *corev1.Pod) corev1.PodPhase {
			if p.Annotations[batchv1.JobCompletionIndexAnnotation] == "2" {
				return ok
			}
			return corev1.PodRunning
		}, "Complete SuccessPolicy 1 0 3 2"},
		{"replaced only when ended", newJob(size(2, 4), func(s *batchv1.JobSpec) { s.PodReplacementPolicy = ptr.To(batchv1.Failed) }), func(n int, _ *corev1.Pod) corev1.PodPhase {
			if n == 0 {
				return bad
			}
			return ok
		}, "Complete CompletionsReached 4 1 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &cluster{t: t, job: tc.job, now: epoch, fate: tc.fate, exit: 3}
			end := c.run()
			s := c.job.Status
			got := fmt.Sprintf("%s %s %d %d %d", end.Type, end.Reason, s.Succeeded, s.Failed, c.made)
			if isIndexed(c.job) {
				got += " " + s.CompletedIndexes
			}
			if s.FailedIndexes != nil && *s.FailedIndexes != "" {
				got += " !" + *s.FailedIndexes
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if c.most > int(*tc.job.Spec.Parallelism) {
				t.Errorf("%d Pods were active at once", c.most)
			}
			if slices.ContainsFunc(c.pods, isTracked) {
				t.Error("a Pod kept its finalizer")
			}
		})
	}
}

// TestCountsOnce: whatever happens to Pods, each end counts once, and no status
// breaks a rule of the API (cluster.write).
func TestCountsOnce(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		job := newJob(size(int32(1+rnd.IntN(4)), int32(1+rnd.IntN(6))), func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](1000) })
		if rnd.IntN(2) == 0 {
			indexed(&job.Spec)
			if rnd.IntN(2) == 0 {
				job.Spec.BackoffLimitPerIndex = ptr.To[int32](1000)
			}
		}
		if rnd.IntN(2) == 0 {
			job.Spec.PodReplacementPolicy = ptr.To(batchv1.Failed)
		}
		ended := map[types.UID]corev1.PodPhase{}
		c := &cluster{t: t, job: job, now: epoch}
		c.fate = func(_ int, p *corev1.Pod) corev1.PodPhase {
			switch rnd.IntN(6) {
			case 0:
				return corev1.PodFailed
			case 1:
				c.remove(p) // somebody deletes it
				return corev1.PodRunning
			case 2, 3:
				return corev1.PodSucceeded
			}
			return corev1.PodRunning
		}
		for i := 0; ; i++ {
			if i == 2000 {
				t.Fatalf("seed %d: not over: %+v", seed, c.job.Status)
			}
			if rnd.IntN(20) == 0 {
				c.job = c.job.DeepCopy()
				c.job.Spec.Suspend = ptr.To(!isSuspended(c.job))
			}
			c.step()
			if _, over := IsFinished(c.job); over {
				break
			}
			c.live()
			for _, p := range c.pods {
				if podset.IsFinished(p) {
					ended[p.UID] = p.Status.Phase
				}
			}
			c.now = c.now.Add(time.Duration(rnd.IntN(1000)) * time.Second)
		}
		good := int32(0)
		for _, phase := range ended {
			if phase == corev1.PodSucceeded {
				good++
			}
		}
		if s := c.job.Status; s.Succeeded < *job.Spec.Completions || s.Succeeded > good {
			t.Errorf("seed %d: %d counted as succeeded, %d did, %d wanted", seed, s.Succeeded, good, *job.Spec.Completions)
		}
	}
}

func TestSuspend(t *testing.T) {
	c := &cluster{t: t, job: newJob(size(2, 2)), now: epoch, fate: always(corev1.PodRunning)}
	c.step()
	c.live()
	c.job = c.job.DeepCopy()
	c.job.Spec.Suspend = ptr.To(true)
	for range 3 {
		c.step()
		c.live()
	}
	if s := c.job.Status; s.Active != 0 || s.Failed != 0 || s.StartTime != nil || condition(&s, batchv1.JobSuspended).Status != corev1.ConditionTrue {
		t.Errorf("suspended: %+v", s)
	}
	c.job = c.job.DeepCopy()
	c.job.Spec.Suspend = ptr.To(false)
	c.now = c.now.Add(time.Hour)
	c.fate = always(corev1.PodSucceeded)
	c.step()
	if s := c.job.Status; s.StartTime == nil || !s.StartTime.Time.Equal(c.now) || condition(&s, batchv1.JobSuspended).Status != corev1.ConditionFalse {
		t.Errorf("resumed: %+v", s)
	}
	if end := c.run(); end.Type != batchv1.JobComplete {
		t.Error(end)
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{}
	var got []time.Duration
	for n := range 8 {
		b = Backoff{Failures: n, Last: epoch}
		got = append(got, b.left(epoch)/time.Second)
	}
	if want := []time.Duration{0, 10, 20, 40, 80, 160, 320, 600}; !slices.Equal(got, want) {
		t.Error(got)
	}
	if left := (Backoff{Failures: 1, Last: epoch.Add(1000 * time.Hour)}).left(epoch); left != firstBackoff {
		t.Errorf("a failure in the future holds up for %v", left)
	}
}

func TestIndexes(t *testing.T) {
	x := parseIndexes("1,3-5,7,8,x,20-30", 25)
	if x.String() != "1,3-5,7,8,20-24" || x.count() != 11 || !x.has(4) || x.has(6) {
		t.Errorf("%v %d", x, x.count())
	}
	if y := x.add(2, 2).add(6, 6); y.String() != "1-8,20-24" {
		t.Error(y)
	}
	if got := x.missing(4, 25); !slices.Equal(got, []int{0, 2, 6, 9}) {
		t.Error(got)
	}
	for seed := range uint64(100) { // against a plain set
		rnd := rand.New(rand.NewPCG(seed, 2))
		var x indexes
		plain := map[int]bool{}
		for range 30 {
			first := rnd.IntN(40)
			last := first + rnd.IntN(4)
			x = x.add(first, last)
			for i := first; i <= last; i++ {
				plain[i] = true
			}
		}
		back := parseIndexes(x.String(), 100)
		for i := range 50 {
			if x.has(i) != plain[i] || back.has(i) != plain[i] {
				t.Fatalf("seed %d: %v has %d: %v", seed, x, i, plain[i])
			}
		}
		if x.count() != len(plain) {
			t.Fatalf("seed %d: %v counts %d, not %d", seed, x, x.count(), len(plain))
		}
	}
}

func TestExpiry(t *testing.T) {
	j := newJob(func(s *batchv1.JobSpec) { s.TTLSecondsAfterFinished = ptr.To[int32](60) })
	end := &batchv1.JobCondition{LastTransitionTime: metav1.NewTime(epoch)}
	if left, ok := untilExpiry(j, end, epoch.Add(20*time.Second)); !ok || left != 40*time.Second {
		t.Error(left, ok)
	}
}
