package controller_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

func workTemplate(app, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A DaemonSet follows Nodes that come and go, and its update rolls back by its
// history; then nothing is written any more.
func TestDaemonSetLife(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	sets, nodes, revisions := registry.For[*appsv1.DaemonSet](reg), registry.For[*corev1.Node](reg), registry.For[*appsv1.ControllerRevision](reg)
	for _, name := range []string{"a", "b"} {
		_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		must(t, err)
	}
	_, err := sets.Create(ctx, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "ds", Namespace: "default"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ds"}}, Template: workTemplate("ds", "one"),
	}})
	must(t, err)
	on := func(n int32) func() string {
		return func() string {
			ds, _ := sets.Get("default", "ds")
			s := ds.Status
			if s.ObservedGeneration != ds.Generation || s.DesiredNumberScheduled != n || s.NumberAvailable != n || s.UpdatedNumberScheduled != n {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}
	}
	await(t, "Pods on both Nodes", on(2))
	_, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
	must(t, err)
	await(t, "a Pod on the new Node", on(3))
	_, err = nodes.Update(ctx, "", "c", func(n *corev1.Node) error {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
		return nil
	})
	must(t, err)
	await(t, "none where it must not be", on(2))
	image := func(name string) {
		_, err := sets.Update(ctx, "default", "ds", func(ds *appsv1.DaemonSet) error {
			ds.Spec.Template.Spec.Containers[0].Image = name
			return nil
		})
		must(t, err)
	}
	image("two")
	await(t, "the update", on(2))
	image("one")
	await(t, "the rollback", on(2))
	numbers := map[int64]bool{}
	for _, r := range revisions.List("default") {
		numbers[r.Revision] = true
	}
	if len(numbers) != 2 || !numbers[2] || !numbers[3] {
		t.Errorf("revisions %v, want 2 and 3", numbers)
	}
	quiet(t, reg)

	// Somebody hands over a further revision of the same template, with its owner,
	// and takes away the old one in his own time.
	var cur *appsv1.ControllerRevision
	for _, r := range revisions.List("default") {
		if r.Revision == 3 {
			cur = r.DeepCopy()
		}
	}
	handed := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Name: "ds-handed", Namespace: "default", Labels: map[string]string{"app": "ds", appsv1.ControllerRevisionHashLabelKey: "handed"}, OwnerReferences: cur.OwnerReferences},
		Data:       cur.Data, Revision: 4,
	}
	_, err = revisions.Create(ctx, handed)
	must(t, err)
	quiet(t, reg)
	must(t, revisions.Delete(ctx, "default", cur.Name, metav1.DeleteOptions{}))
	image("three")
	await(t, "an update by a history that goes on", on(2))
	await(t, "its revision", func() string {
		got := ""
		for _, r := range revisions.List("default") {
			got = max(got, fmt.Sprint(r.Revision))
		}
		return map[bool]string{false: "the newest is " + got}[got == "5"]
	})
	quiet(t, reg)
}

// A StatefulSet comes up in order, updates, scales, and keeps its claims.
func TestStatefulSetLife(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	sets, pods := registry.For[*appsv1.StatefulSet](reg), registry.For[*corev1.Pod](reg)
	_, err := sets.Create(ctx, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default"}, Spec: appsv1.StatefulSetSpec{
		Replicas: ptr.To[int32](3), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}, Template: workTemplate("db", "one"),
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}},
	}})
	must(t, err)
	done := func(n int32) func() string {
		return func() string {
			set, _ := sets.Get("default", "db")
			s := set.Status
			if s.ObservedGeneration != set.Generation || s.Replicas != n || s.AvailableReplicas != n || s.UpdatedReplicas != n || s.CurrentRevision != s.UpdateRevision {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}
	}
	await(t, "three Pods", done(3))
	var was []string
	for _, p := range pods.List("default") {
		was = append(was, p.Name+"/"+p.Spec.Hostname+"/"+p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
	}
	if got := strings.Join(was, " "); got != "db-0/db-0/data-db-0 db-1/db-1/data-db-1 db-2/db-2/data-db-2" {
		t.Errorf("identities: %s", got)
	}
	first, _ := pods.Get("default", "db-0")
	_, err = sets.Update(ctx, "default", "db", func(s *appsv1.StatefulSet) error {
		s.Spec.Template.Spec.Containers[0].Image = "two"
		return nil
	})
	must(t, err)
	await(t, "the update", done(3))
	if p, _ := pods.Get("default", "db-0"); p.UID == first.UID || p.Spec.Containers[0].Image != "two" {
		t.Errorf("db-0 was not made anew: %+v", p)
	}
	_, err = sets.Update(ctx, "default", "db", func(s *appsv1.StatefulSet) error { s.Spec.Replicas = ptr.To[int32](1); return nil })
	must(t, err)
	await(t, "one Pod", done(1))
	if n := len(registry.For[*corev1.PersistentVolumeClaim](reg).List("default")); n != 3 {
		t.Errorf("%d claims are left, want 3", n)
	}
	quiet(t, reg)
}

// ends ends every Pod as its label "end" says.
func ends(t *testing.T, reg *registry.Registry) {
	t.Helper()
	pods := registry.For[*corev1.Pod](reg)
	ctx, cancel := context.WithCancel(t.Context())
	work := make(chan *corev1.Pod, 10000)
	done := make(chan struct{})
	stop := pods.Subscribe(func(e registry.Event[*corev1.Pod]) { work <- e.Object })
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case p := <-work:
				if phase := corev1.PodPhase(p.Labels["end"]); phase != "" && p.Status.Phase == corev1.PodPending {
					_, _ = pods.UpdateStatus(ctx, p.Namespace, p.Name, func(pod *corev1.Pod) error { pod.Status.Phase = phase; return nil })
				}
			}
		}
	}()
	t.Cleanup(func() { stop(); cancel(); <-done })
}

// Jobs end well and badly, one is deleted with its Pods, and then nothing is
// written any more.
func TestJobLife(t *testing.T) {
	reg := start(t)
	ends(t, reg)
	ctx := t.Context()
	jobs, pods := registry.For[*batchv1.Job](reg), registry.For[*corev1.Pod](reg)
	job := func(name string, end corev1.PodPhase, edit func(*batchv1.JobSpec)) {
		j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
		j.Spec.Template = workTemplate(name, "one")
		j.Spec.Template.Labels["end"] = string(end)
		j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
		edit(&j.Spec)
		_, err := jobs.Create(ctx, j)
		must(t, err)
	}
	job("good", corev1.PodSucceeded, func(s *batchv1.JobSpec) {
		s.Completions, s.Parallelism, s.CompletionMode = ptr.To[int32](5), ptr.To[int32](2), ptr.To(batchv1.IndexedCompletion)
	})
	job("bad", corev1.PodFailed, func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](0) })
	job("endless", "", func(*batchv1.JobSpec) {})
	job("brief", corev1.PodSucceeded, func(s *batchv1.JobSpec) { s.TTLSecondsAfterFinished = ptr.To[int32](0) })
	await(t, "the Jobs to end", func() string {
		good, _ := jobs.Get("default", "good")
		bad, _ := jobs.Get("default", "bad")
		_, there := jobs.Get("default", "brief")
		if s := good.Status; s.Succeeded != 5 || s.CompletedIndexes != "0-4" || s.CompletionTime == nil || len(s.Conditions) != 2 {
			return fmt.Sprintf("good: %+v", s)
		}
		if s := bad.Status; s.Failed != 1 || len(s.Conditions) != 2 || s.Conditions[1].Type != batchv1.JobFailed || s.Conditions[1].Reason != "BackoffLimitExceeded" {
			return fmt.Sprintf("bad: %+v", s)
		}
		if there {
			return "the Job with no time to live is there"
		}
		return ""
	})
	must(t, jobs.Delete(ctx, "default", "endless", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}))
	await(t, "its Pod to go", func() string {
		for _, p := range pods.List("default") {
			if p.Labels["app"] == "endless" || len(p.Finalizers) > 0 {
				return fmt.Sprintf("%s: finalizers %v", p.Name, p.Finalizers)
			}
		}
		return ""
	})
	quiet(t, reg)
}

// A budget allows what its Deployment can spare, and evictions are held to it.
func TestDisruptionBudget(t *testing.T) {
	reg := start(t)
	kubelet(t, reg)
	ctx := t.Context()
	budgets, pods := registry.For[*policyv1.PodDisruptionBudget](reg), registry.For[*corev1.Pod](reg)
	_, err := registry.For[*appsv1.Deployment](reg).Create(ctx, newDeployment("web", 3))
	must(t, err)
	_, err = budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: ptr.To(intstr.FromInt32(3)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
	}})
	must(t, err)
	allowed := func(n int32) func() string {
		return func() string {
			b, _ := budgets.Get("default", "web")
			if s := b.Status; s.ObservedGeneration != b.Generation || s.DisruptionsAllowed != n || s.CurrentHealthy != 3 {
				return fmt.Sprintf("%+v", s)
			}
			return ""
		}
	}
	await(t, "three healthy Pods", allowed(0))
	name := pods.List("default")[0].Name
	evict := func() error {
		k := pods.Kind().Subresources["eviction"]
		_, err := k.Create(ctx, reg, "default", name, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}, registry.CreateOptions{})
		return err
	}
	if err := evict(); !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Errorf("an eviction beyond the budget: %v", err)
	}
	_, err = budgets.Update(ctx, "default", "web", func(b *policyv1.PodDisruptionBudget) error {
		b.Spec.MinAvailable = ptr.To(intstr.FromInt32(2))
		return nil
	})
	must(t, err)
	await(t, "one to spare", allowed(1))
	must(t, evict())
	await(t, "the Pod to be replaced", func() string {
		if _, ok := pods.Get("default", name); ok {
			return "it is there"
		}
		return allowed(1)()
	})
	quiet(t, reg)
}

// A quota counts what is there, follows what goes, and gives back a charge for
// what never came.
func TestResourceQuota(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	quotas, maps := registry.For[*corev1.ResourceQuota](reg), registry.For[*corev1.ConfigMap](reg)
	newMap := func(name string) {
		_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}})
		must(t, err)
	}
	await(t, "the CA", func() string {
		if _, ok := maps.Get("default", "kube-root-ca.crt"); !ok {
			return "not there"
		}
		return ""
	})
	newMap("a")
	_, err := quotas.Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q", Namespace: "default"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"configmaps": resource.MustParse("5"), "count/pods": resource.MustParse("1")}}})
	must(t, err)
	used := func(n int64) func() string {
		return func() string {
			q, _ := quotas.Get("default", "q")
			if v, ok := q.Status.Used["configmaps"]; !ok || v.Value() != n {
				return fmt.Sprintf("%+v", q.Status)
			}
			return ""
		}
	}
	await(t, "the count", used(2))
	must(t, maps.Delete(ctx, "default", "a", metav1.DeleteOptions{}))
	await(t, "one less", used(1))
	_, err = quotas.UpdateStatus(ctx, "default", "q", func(q *corev1.ResourceQuota) error { // a charge
		q.Status.Used["configmaps"] = resource.MustParse("4")
		return nil
	})
	must(t, err)
	await(t, "the charge to be taken back", used(1))
	quiet(t, reg)
}

// A Pod that gets a deadline leaves the quota of Pods without one for the other's.
func TestResourceQuotaScopes(t *testing.T) {
	reg := start(t)
	ctx := t.Context()
	quotas, pods := registry.For[*corev1.ResourceQuota](reg), registry.For[*corev1.Pod](reg)
	for name, scope := range map[string]corev1.ResourceQuotaScope{"long": corev1.ResourceQuotaScopeNotTerminating, "short": corev1.ResourceQuotaScopeTerminating} {
		_, err := quotas.Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.ResourceQuotaSpec{
			Hard: corev1.ResourceList{"pods": resource.MustParse("5")}, Scopes: []corev1.ResourceQuotaScope{scope},
		}})
		must(t, err)
	}
	used := func(long, short int64) func() string {
		return func() string {
			for name, n := range map[string]int64{"long": long, "short": short} {
				q, _ := quotas.Get("default", name)
				if v, ok := q.Status.Used["pods"]; !ok || v.Value() != n {
					return fmt.Sprintf("%s: %+v", name, q.Status)
				}
			}
			return ""
		}
	}
	await(t, "the ServiceAccount", func() string {
		return map[bool]string{false: "not there"}[len(registry.For[*corev1.ServiceAccount](reg).List("default")) > 0]
	})
	_, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
	must(t, err)
	await(t, "the count", used(1, 0))
	quiet(t, reg)
	_, err = pods.Update(ctx, "default", "p", func(p *corev1.Pod) error { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](3600); return nil })
	must(t, err)
	await(t, "the count of a Pod with a deadline", used(0, 1))
}

// CronJobs whose time has come start one Job, however long ago that was.
func TestCronJobStartsOne(t *testing.T) {
	reg := start(t)
	ends(t, reg)
	ctx := t.Context()
	crons, jobs := registry.For[*batchv1.CronJob](reg), registry.For[*batchv1.Job](reg)
	template := workTemplate("tick", "one")
	template.Labels["end"] = string(corev1.PodSucceeded)
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	_, err := crons.Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "tick", Namespace: "default"}, Spec: batchv1.CronJobSpec{
		Schedule: "0 0 1 1 *", Suspend: ptr.To(true), JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}},
	}})
	must(t, err)
	_, err = crons.UpdateStatus(ctx, "default", "tick", func(cj *batchv1.CronJob) error {
		cj.Status.LastScheduleTime = &metav1.Time{Time: metav1.Unix(0, 0).Time}
		return nil
	})
	must(t, err)
	_, err = crons.Update(ctx, "default", "tick", func(cj *batchv1.CronJob) error { cj.Spec.Suspend = ptr.To(false); return nil })
	must(t, err)
	await(t, "the Job to be done", func() string {
		cj, _ := crons.Get("default", "tick")
		if s := cj.Status; s.LastSuccessfulTime == nil || len(s.Active) > 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	if n := len(jobs.List("default")); n != 1 {
		t.Errorf("%d Jobs, want 1", n)
	}
	quiet(t, reg)
}
