package deployment

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
	"edged/controller/podset"
)

type controller struct {
	env         loop.Env
	deployments registry.Client[*appsv1.Deployment]
	sets        registry.Client[*appsv1.ReplicaSet]
	pods        registry.Client[*corev1.Pod]
	events      *recorder.Recorder
}

// Run is the Deployment controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:         env,
		deployments: registry.For[*appsv1.Deployment](env.Registry),
		sets:        registry.For[*appsv1.ReplicaSet](env.Registry),
		pods:        registry.For[*corev1.Pod](env.Registry),
		events:      env.Events.Component("deployment-controller"),
	}
	q := loop.NewQueue(loop.Config{Name: "deployment", Reconcile: c.sync, Logger: env.Logger})
	defer c.deployments.Subscribe(func(e registry.Event[*appsv1.Deployment]) { q.Add(loop.KeyOf(e.Object)) })()
	selecting := podset.Selecting(c.deployments, func(d *appsv1.Deployment) labels.Selector { return podset.Selector(d.Spec.Selector) })
	defer c.sets.Subscribe(func(e registry.Event[*appsv1.ReplicaSet]) { podset.Keys(e, Kind.Kind, selecting, q.Add) })()
	return q.Run(ctx)
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	d, ok := c.deployments.Get(ns, name)
	if !ok {
		return 0, nil
	}
	claim := podset.Match(d, podset.Selector(d.Spec.Selector), c.sets.List(ns))
	sets, err := claim.Apply(ctx, c.sets, d, *metav1.NewControllerRef(d, Kind))
	if err != nil {
		return 0, err
	}
	var pods []*corev1.Pod
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		for _, rs := range sets {
			pods = append(pods, c.pods.ByIndex(registry.IndexOwner, string(rs.UID))...)
		}
	}
	plan := Reconcile(d, sets, pods, c.env.Now())
	if err := c.perform(ctx, d, &plan); err != nil {
		return 0, err
	}
	about := recorder.Reference("apps/v1", Kind.Kind, d, "")
	for _, e := range plan.Events {
		c.events.Event(about, e.Type, e.Reason, e.Message)
	}
	return plan.Again, c.writeStatus(ctx, d, plan)
}

func (c *controller) perform(ctx context.Context, d *appsv1.Deployment, plan *Plan) error {
	if plan.Create != nil {
		if err := c.create(ctx, d, plan); err != nil {
			return err
		}
	}
	for _, rs := range plan.Update {
		_, err := c.sets.Update(ctx, rs.Namespace, rs.Name, func(cur *appsv1.ReplicaSet) error {
			if cur.UID != rs.UID || cur.ResourceVersion != rs.ResourceVersion {
				return stale("replicasets", rs.Name)
			}
			cur.Annotations, cur.Spec.Replicas, cur.Spec.MinReadySeconds = rs.Annotations, rs.Spec.Replicas, rs.Spec.MinReadySeconds
			return nil
		})
		if err != nil {
			return fmt.Errorf("updating ReplicaSet %s: %w", rs.Name, err)
		}
	}
	for _, rs := range plan.Delete {
		err := c.sets.Delete(ctx, rs.Namespace, rs.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(rs.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting ReplicaSet %s: %w", rs.Name, err)
		}
	}
	return nil
}

// create makes the new ReplicaSet. If its name is taken by another one, the
// hash collided: the next round tries with another.
func (c *controller) create(ctx context.Context, d *appsv1.Deployment, plan *Plan) error {
	_, err := c.sets.Create(ctx, plan.Create)
	switch {
	case err == nil || podset.IsNamespaceEnding(err):
		return err
	case apierrors.IsAlreadyExists(err):
		if rs, ok := c.sets.Get(d.Namespace, plan.Create.Name); ok && metav1.IsControlledBy(rs, d) && equalIgnoringHash(&rs.Spec.Template, &d.Spec.Template) {
			return err // the cache was behind: the next round sees it
		}
		status := *d.Status.DeepCopy()
		collisions := int32(1)
		if status.CollisionCount != nil {
			collisions += *status.CollisionCount
		}
		status.CollisionCount = &collisions
		return errors.Join(err, c.writeStatus(ctx, d, Plan{Status: status, Revision: d.Annotations[RevisionAnnotation]}))
	}
	message := fmt.Sprintf("Failed to create new replica set %q: %v", plan.Create.Name, err)
	c.events.Event(recorder.Reference("apps/v1", Kind.Kind, d, ""), corev1.EventTypeWarning, "ReplicaSetCreateError", message)
	if hasDeadline(d) {
		r := &round{d: d, now: c.env.Now(), plan: Plan{Status: *d.Status.DeepCopy(), Revision: d.Annotations[RevisionAnnotation]}}
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", message)
		err = errors.Join(err, c.writeStatus(ctx, d, r.plan))
	}
	return err
}

// writeStatus writes over d and nothing newer: what others wrote meanwhile has
// to be seen first.
func (c *controller) writeStatus(ctx context.Context, d *appsv1.Deployment, plan Plan) error {
	_, err := c.deployments.UpdateStatus(ctx, d.Namespace, d.Name, func(cur *appsv1.Deployment) error {
		if cur.ResourceVersion != d.ResourceVersion {
			return stale("deployments", d.Name)
		}
		cur.Status = plan.Status
		if cur.Annotations[RevisionAnnotation] != plan.Revision {
			cur.Annotations = podset.WithLabel(cur.Annotations, RevisionAnnotation, plan.Revision)
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func stale(resource, name string) error {
	return apierrors.NewConflict(appsv1.Resource(resource), name, errors.New("it was changed after it was read"))
}
