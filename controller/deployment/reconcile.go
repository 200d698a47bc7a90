package deployment

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/controller/podset"
)

// Plan is one step.
type Plan struct {
	// Create is the ReplicaSet of a new template.
	Create *appsv1.ReplicaSet
	// Update are ReplicaSets as they should be.
	Update []*appsv1.ReplicaSet
	Delete []*appsv1.ReplicaSet
	// Status and Revision are what the Deployment should say once the above is
	// done.
	Status   appsv1.DeploymentStatus
	Revision string
	Events   []Event
	// Again is when to look again though nothing changed; zero for never.
	Again time.Duration
}

// Event is to be told once the plan is done.
type Event struct{ Type, Reason, Message string }

// round is the working state of one Reconcile.
type round struct {
	d    *appsv1.Deployment
	now  time.Time
	new  *appsv1.ReplicaSet
	old  []*appsv1.ReplicaSet
	pods []*corev1.Pod
	plan Plan
}

// Reconcile takes the next step. sets are the Deployment's ReplicaSets and pods
// all of their Pods.
func Reconcile(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, pods []*corev1.Pod, now time.Time) Plan {
	r := &round{d: d, now: now, pods: pods}
	r.plan.Status = *d.Status.DeepCopy()
	r.plan.Revision = d.Annotations[RevisionAnnotation]
	if selector := podset.Selector(d.Spec.Selector); selector.Empty() {
		r.event(corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		r.plan.Status.ObservedGeneration = max(r.plan.Status.ObservedGeneration, d.Generation)
		return r.plan
	}
	r.split(sets)
	if d.DeletionTimestamp != nil {
		r.revise()
		r.syncStatus()
		return r.plan
	}
	r.pausedCondition()
	switch {
	case d.Spec.Paused || r.scaling():
		r.revise()
		r.scale()
		if d.Spec.Paused {
			r.cleanup()
		}
		r.syncStatus()
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
	default:
		r.roll()
	}
	return r.plan
}

func (r *round) event(eventType, reason, format string, args ...any) {
	r.plan.Events = append(r.plan.Events, Event{eventType, reason, fmt.Sprintf(format, args...)})
}

// split finds the ReplicaSet of the current template. The others stay in order
// of age.
func (r *round) split(sets []*appsv1.ReplicaSet) {
	sets = slices.Clone(sets)
	slices.SortStableFunc(sets, byAge)
	for _, rs := range sets {
		if r.new == nil && equalIgnoringHash(&rs.Spec.Template, &r.d.Spec.Template) {
			r.new = rs
		} else {
			r.old = append(r.old, rs)
		}
	}
}

// all are all ReplicaSets, the new one last.
func (r *round) all() []*appsv1.ReplicaSet {
	all := slices.Clone(r.old)
	if r.new != nil {
		all = append(all, r.new)
	}
	return all
}

// edit returns a private copy of rs that is part of the plan from now on.
func (r *round) edit(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	if r.plan.Create == rs || slices.Contains(r.plan.Update, rs) {
		return rs
	}
	c := rs.DeepCopy()
	r.plan.Update = append(r.plan.Update, c)
	if r.new == rs {
		r.new = c
	}
	if i := slices.Index(r.old, rs); i >= 0 {
		r.old[i] = c
	}
	return c
}

// revise gives the new ReplicaSet its revision, annotations and minReadySeconds
// and the Deployment the revision.
func (r *round) revise() {
	if r.new == nil {
		return
	}
	revision := maxRevision(r.old) + 1
	probe := r.new.DeepCopy()
	changed := annotateNew(r.d, probe, revision, true)
	if probe.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		probe.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		changed = true
	}
	if changed {
		r.edit(r.new)
		r.new.Annotations, r.new.Spec.MinReadySeconds = probe.Annotations, probe.Spec.MinReadySeconds
	}
	r.plan.Revision = r.new.Annotations[RevisionAnnotation]
	if hasDeadline(r.d) && condition(&r.plan.Status, appsv1.DeploymentProgressing) == nil {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", r.new.Name))
	}
}

// ensureNew makes the ReplicaSet of the current template if there is none.
func (r *round) ensureNew() {
	if r.new != nil {
		r.revise()
		return
	}
	template := r.d.Spec.Template.DeepCopy()
	hash := podset.TemplateHash(template, r.d.Status.CollisionCount)
	template.Labels = podset.WithLabel(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	selector := r.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = podset.WithLabel(selector.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: setName(r.d.Name, hash), Namespace: r.d.Namespace, Labels: template.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(r.d, Kind)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: r.d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	*rs.Spec.Replicas = r.newSize(rs)
	revision := maxRevision(r.old) + 1
	annotateNew(r.d, rs, revision, false)
	r.new, r.plan.Create = rs, rs
	r.plan.Revision = rs.Annotations[RevisionAnnotation]
	if *rs.Spec.Replicas > 0 {
		r.event(corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", rs.Name, *rs.Spec.Replicas)
	}
	if hasDeadline(r.d) {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", rs.Name))
	}
}

// newSize is how large the new ReplicaSet may be now.
func (r *round) newSize(rs *appsv1.ReplicaSet) int32 {
	want := *r.d.Spec.Replicas
	if !isRolling(r.d) {
		return want
	}
	have := *rs.Spec.Replicas
	room := want + maxSurge(r.d) - sum(r.all(), specReplicas)
	if room <= 0 {
		return have
	}
	return have + min(room, want-have)
}

// setSize scales rs and refreshes what it knows of the Deployment's size.
func (r *round) setSize(rs *appsv1.ReplicaSet, size int32) bool {
	was := *rs.Spec.Replicas
	if was == size && !sizesOutdated(r.d, rs) {
		return false
	}
	rs = r.edit(rs)
	*rs.Spec.Replicas = size
	annotateSizes(r.d, rs)
	if was == size {
		return false
	}
	direction := "down"
	if was < size {
		direction = "up"
	}
	r.event(corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, rs.Name, was, size)
	return true
}

// cleanup deletes old ReplicaSets beyond the history limit.
func (r *round) cleanup() {
	limit := r.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == noLimit {
		return
	}
	alive := slices.DeleteFunc(slices.Clone(r.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	excess := len(alive) - int(*limit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(alive, byRevision)
	for _, rs := range alive[:excess] {
		if rs.Status.Replicas == 0 && *rs.Spec.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			r.plan.Delete = append(r.plan.Delete, rs)
		}
	}
}
