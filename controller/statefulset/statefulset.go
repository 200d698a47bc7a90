package statefulset

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
	"edged/controller/revision"
)

// hashLabel is what upstream marks the revisions of a StatefulSet with.
const hashLabel = "controller.kubernetes.io/hash"

type controller struct {
	env       loop.Env
	sets      registry.Client[*appsv1.StatefulSet]
	pods      registry.Client[*corev1.Pod]
	claims    registry.Client[*corev1.PersistentVolumeClaim]
	revisions registry.Client[*appsv1.ControllerRevision]
	events    *recorder.Recorder
}

// Run is the StatefulSet controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:       env,
		sets:      registry.For[*appsv1.StatefulSet](env.Registry),
		pods:      registry.For[*corev1.Pod](env.Registry),
		claims:    registry.For[*corev1.PersistentVolumeClaim](env.Registry),
		revisions: registry.For[*appsv1.ControllerRevision](env.Registry),
		events:    env.Events.Component("statefulset-controller"),
	}
	q := loop.NewQueue(loop.Config{Name: "statefulset", Reconcile: c.sync, Logger: env.Logger})
	defer c.sets.Subscribe(func(e registry.Event[*appsv1.StatefulSet]) { q.Add(loop.KeyOf(e.Object)) })()
	selecting := podset.Selecting(c.sets, func(s *appsv1.StatefulSet) labels.Selector { return podset.Selector(s.Spec.Selector) })
	defer c.pods.Subscribe(func(e registry.Event[*corev1.Pod]) { podset.Keys(e, Kind.Kind, selecting, q.Add) })()
	defer c.revisions.Subscribe(func(e registry.Event[*appsv1.ControllerRevision]) { revision.Keys(e, Kind.Kind, selecting, q.Add) })()
	defer c.claims.Subscribe(func(e registry.Event[*corev1.PersistentVolumeClaim]) {
		if e.Type != watch.Deleted {
			return
		}
		for _, set := range c.sets.List(e.Object.Namespace) { // one may wait for it to go, or need it again
			if len(set.Spec.VolumeClaimTemplates) > 0 {
				q.Add(loop.KeyOf(set))
			}
		}
	})()
	return q.Run(ctx)
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	set, ok := c.sets.Get(ns, name)
	if !ok {
		return 0, nil
	}
	selector := podset.Selector(set.Spec.Selector)
	ref := *metav1.NewControllerRef(set, Kind)
	revisions, err := podset.Match(set, selector, c.revisions.List(ns)).Apply(ctx, c.revisions, set, ref)
	if err != nil {
		return 0, err
	}
	pods, err := c.claim(set, selector).Apply(ctx, c.pods, set, ref)
	if err != nil {
		return 0, err
	}
	h, current, update, collisions, err := c.history(ctx, set, revisions)
	if err != nil {
		return 0, err
	}
	w := World{Set: set, Pods: pods, Now: c.env.Now(), Claim: func(name string) *corev1.PersistentVolumeClaim {
		claim, _ := c.claims.Get(ns, name)
		return claim
	}}
	if w.Current, err = restore(current); err != nil {
		return 0, err
	}
	w.Update = Revision{update.Name, &set.Spec.Template}
	failure := c.perform(ctx, set, Reconcile(w))
	again, err := c.writeStatus(ctx, w, collisions)
	if failure == nil && err == nil {
		failure = c.truncate(ctx, set, append(h.Old, h.Same...), pods, current, update)
	}
	return again, errors.Join(failure, err)
}

func restore(r *appsv1.ControllerRevision) (Revision, error) {
	template, err := revision.Template(r)
	return Revision{r.Name, template}, err
}

// claim matches the Pods of the set. A Pod without one of its names is nobody's
// to adopt.
func (c *controller) claim(set *appsv1.StatefulSet, selector labels.Selector) podset.Claim[*corev1.Pod] {
	claim := podset.Match(set, selector, c.pods.List(set.Namespace))
	members := claim.Adopt[:0]
	for _, p := range claim.Adopt {
		if _, ok := ordinal(set, p); ok {
			members = append(members, p)
		}
	}
	claim.Adopt = members
	return claim
}

// history returns the revision that the set is at and the one of its template,
// which is made if it is missing.
func (c *controller) history(ctx context.Context, set *appsv1.StatefulSet, revisions []*appsv1.ControllerRevision) (h revision.History, current, update *appsv1.ControllerRevision, collisions int32, err error) {
	data, err := revision.Data(&set.Spec.Template)
	if err != nil {
		return h, nil, nil, 0, err
	}
	if set.Status.CollisionCount != nil {
		collisions = *set.Status.CollisionCount
	}
	h = revision.Of(revisions, data)
	if set.DeletionTimestamp != nil && h.Current == nil {
		h.Current = &appsv1.ControllerRevision{Data: runtime.RawExtension{Raw: data}, Revision: h.Number} // nothing is made any more
		h.Current.Name = set.Status.UpdateRevision
	}
	update, collisions, err = revision.Ensure(ctx, c.revisions, set, h, collisions, func(n int32) *appsv1.ControllerRevision {
		hash := revisionHash(data, n)
		return &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{
				Name: revision.Name(set.Name, hash), Namespace: set.Namespace, Annotations: set.Annotations,
				Labels:          podset.WithLabel(set.Spec.Template.Labels, hashLabel, hash),
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, Kind)},
			},
			Data: runtime.RawExtension{Raw: data},
		}
	})
	if err != nil {
		return h, nil, nil, collisions, err
	}
	current = update
	for _, r := range revisions {
		if r.Name == set.Status.CurrentRevision {
			current = r
		}
	}
	return h, current, update, collisions, nil
}

// perform takes the step. Pods are made side by side, in order if the set wants
// that, since then there is only one.
func (c *controller) perform(ctx context.Context, set *appsv1.StatefulSet, plan Plan) error {
	about := recorder.Reference("apps/v1", Kind.Kind, set, "")
	for _, name := range plan.Conflicts {
		c.events.Eventf(about, corev1.EventTypeWarning, "ConflictingController", "PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim", name)
	}
	for _, claim := range plan.Claims {
		if err := c.createClaim(ctx, set, about, claim); err != nil {
			return err
		}
	}
	for _, o := range plan.Own {
		if err := c.own(ctx, o); err != nil {
			return err
		}
	}
	next := make(chan *corev1.Pod, len(plan.Create))
	for _, p := range plan.Create {
		next <- p
	}
	_, failure := podset.SlowStart(len(plan.Create), func() error { return c.create(ctx, set, about, <-next) })
	for _, p := range plan.Label {
		if _, err := c.pods.Update(ctx, p.Namespace, p.Name, func(cur *corev1.Pod) error {
			n, ok := ordinal(set, cur)
			if cur.UID != p.UID || !ok {
				return nil
			}
			cur.Labels = podset.WithLabel(podset.WithLabel(cur.Labels, appsv1.StatefulSetPodNameLabel, cur.Name), appsv1.PodIndexLabel, fmt.Sprint(n))
			return nil
		}); err != nil && !apierrors.IsNotFound(err) {
			failure = errors.Join(failure, fmt.Errorf("labeling Pod %s: %w", p.Name, err))
		}
	}
	if len(plan.Delete) == 0 {
		return failure
	}
	_, err := podset.Each(len(plan.Delete), func(i int) error { return c.delete(ctx, set, about, plan.Delete[i]) })
	return errors.Join(failure, err)
}

func (c *controller) createClaim(ctx context.Context, set *appsv1.StatefulSet, about corev1.ObjectReference, claim *corev1.PersistentVolumeClaim) error {
	_, err := c.claims.Create(ctx, claim)
	switch {
	case err == nil:
		c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulCreate", "Create Claim %s in StatefulSet %s success", claim.Name, set.Name)
		return nil
	case apierrors.IsAlreadyExists(err) || podset.IsNamespaceEnding(err):
		return nil
	}
	c.events.Eventf(about, corev1.EventTypeWarning, "FailedCreate", "Create Claim %s in StatefulSet %s failed error: %v", claim.Name, set.Name, err)
	return fmt.Errorf("making claim %s: %w", claim.Name, err)
}

func (c *controller) own(ctx context.Context, o Owners) error {
	_, err := c.claims.Update(ctx, o.Claim.Namespace, o.Claim.Name, func(cur *corev1.PersistentVolumeClaim) error {
		if cur.UID != o.Claim.UID || cur.ResourceVersion != o.Claim.ResourceVersion {
			return apierrors.NewConflict(corev1.Resource("persistentvolumeclaims"), cur.Name, errors.New("it was changed after it was read"))
		}
		cur.OwnerReferences = o.Refs
		return nil
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("giving claim %s its owners: %w", o.Claim.Name, err)
	}
	return nil
}

func (c *controller) create(ctx context.Context, set *appsv1.StatefulSet, about corev1.ObjectReference, pod *corev1.Pod) error {
	_, err := c.pods.Create(ctx, pod)
	switch {
	case err == nil:
		c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulCreate", "Create Pod %s in StatefulSet %s successful", pod.Name, set.Name)
		return nil
	case podset.IsNamespaceEnding(err):
		return nil
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("making Pod %s: %w", pod.Name, err) // somebody else's: tried again later
	}
	c.events.Eventf(about, corev1.EventTypeWarning, "FailedCreate", "Create Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
	return fmt.Errorf("making Pod %s: %w", pod.Name, err)
}

func (c *controller) delete(ctx context.Context, set *appsv1.StatefulSet, about corev1.ObjectReference, pod *corev1.Pod) error {
	err := c.pods.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	switch {
	case err == nil:
		c.events.Eventf(about, corev1.EventTypeNormal, "SuccessfulDelete", "Delete Pod %s in StatefulSet %s successful", pod.Name, set.Name)
		return nil
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err): // another Pod has the name
		return nil
	}
	c.events.Eventf(about, corev1.EventTypeWarning, "FailedDelete", "Delete Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
	return fmt.Errorf("deleting Pod %s: %w", pod.Name, err)
}

// truncate deletes old revisions beyond the limit that nothing is of.
func (c *controller) truncate(ctx context.Context, set *appsv1.StatefulSet, old []*appsv1.ControllerRevision, pods []*corev1.Pod, current, update *appsv1.ControllerRevision) error {
	if set.Spec.RevisionHistoryLimit == nil || set.DeletionTimestamp != nil {
		return nil
	}
	live := map[string]bool{current.Name: true, update.Name: true}
	for _, p := range pods {
		live[revisionOf(p)] = true
	}
	inUse := func(r *appsv1.ControllerRevision) bool { return live[r.Name] }
	unused := revision.Excess(old, inUse, len(old))
	return revision.Remove(ctx, c.revisions, unused[:max(0, len(unused)-int(*set.Spec.RevisionHistoryLimit))])
}

// writeStatus writes the status of the Pods that are there now.
func (c *controller) writeStatus(ctx context.Context, w World, collisions int32) (again time.Duration, err error) {
	observed := w.Set
	_, err = c.sets.UpdateStatus(ctx, observed.Namespace, observed.Name, func(cur *appsv1.StatefulSet) error {
		if cur.UID != observed.UID {
			return nil
		}
		w.Set, w.Now = cur, c.env.Now()
		w.Pods = podset.Match(cur, podset.Selector(cur.Spec.Selector), c.pods.ByIndex(registry.IndexOwner, string(cur.UID))).Mine
		var status appsv1.StatefulSetStatus
		status, again = Status(w, collisions)
		status.ObservedGeneration = observed.Generation // what this round acted on
		if !equality.Semantic.DeepEqual(status, cur.Status) {
			cur.Status = status
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return again, err
}
