package daemonset

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// Kind is what owns the Pods.
var Kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

type controller struct {
	env       loop.Env
	sets      registry.Client[*appsv1.DaemonSet]
	nodes     registry.Client[*corev1.Node]
	revisions registry.Client[*appsv1.ControllerRevision]
	control   podset.Control
	holds     holds
}

// Run is the DaemonSet controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{
		env:       env,
		sets:      registry.For[*appsv1.DaemonSet](env.Registry),
		nodes:     registry.For[*corev1.Node](env.Registry),
		revisions: registry.For[*appsv1.ControllerRevision](env.Registry),
		control:   podset.Control{Pods: registry.For[*corev1.Pod](env.Registry), Events: env.Events.Component("daemonset-controller")},
	}
	q := loop.NewQueue(loop.Config{Name: "daemonset", Reconcile: c.sync, Logger: env.Logger})
	defer c.sets.Subscribe(func(e registry.Event[*appsv1.DaemonSet]) { q.Add(loop.KeyOf(e.Object)) })()
	selecting := podset.Selecting(c.sets, func(ds *appsv1.DaemonSet) labels.Selector { return podset.Selector(ds.Spec.Selector) })
	defer c.control.Pods.Subscribe(func(e registry.Event[*corev1.Pod]) { podset.Keys(e, Kind.Kind, selecting, q.Add) })()
	defer c.revisions.Subscribe(func(e registry.Event[*appsv1.ControllerRevision]) { revision.Keys(e, Kind.Kind, selecting, q.Add) })()
	defer c.nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Type == watch.Modified && !movesPods(e.Old, e.Object) {
			return
		}
		for _, ds := range c.sets.List("") {
			q.Add(loop.KeyOf(ds))
		}
	})()
	return q.Run(ctx)
}

// movesPods reports whether a Node's change may change who runs there.
func movesPods(was, now *corev1.Node) bool {
	return !maps.Equal(was.Labels, now.Labels) || !equality.Semantic.DeepEqual(was.Spec.Taints, now.Spec.Taints)
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	ds, ok := c.sets.Get(ns, name)
	if !ok || ds.DeletionTimestamp != nil {
		return 0, nil // what it owned may be gone or orphaned by now: its status is nobody's
	}
	about := recorder.Reference("apps/v1", Kind.Kind, ds, "")
	selector := podset.Selector(ds.Spec.Selector)
	if selector.Empty() {
		c.control.Events.Event(about, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	ref := *metav1.NewControllerRef(ds, Kind)
	revisions, err := podset.Match(ds, selector, c.revisions.List(ns)).Apply(ctx, c.revisions, ds, ref)
	if err != nil {
		return 0, err
	}
	pods, err := podset.Match(ds, selector, c.control.Pods.List(ns)).Apply(ctx, c.control.Pods, ds, ref)
	if err != nil {
		return 0, err
	}
	old, cur, collisions, err := c.history(ctx, ds, revisions, pods)
	if err != nil {
		return 0, err
	}
	hash := cur.Labels[appsv1.ControllerRevisionHashLabelKey]
	plan := Reconcile(c.world(ds, pods, hash))
	failure := c.perform(ctx, ds, plan, hash)
	if failure == nil {
		failure = c.truncate(ctx, ds, old, pods)
	}
	again, err := c.writeStatus(ctx, ds, hash, collisions)
	if plan.Again > 0 && (again == 0 || plan.Again < again) {
		again = plan.Again
	}
	return again, errors.Join(failure, err)
}

func (c *controller) world(ds *appsv1.DaemonSet, pods []*corev1.Pod, hash string) World {
	now := c.env.Now()
	return World{Set: ds, Nodes: c.nodes.List(""), Pods: pods, Hash: hash, Now: now, Held: func(node string) time.Duration {
		return c.holds.left(key(ds, node), time.Now())
	}}
}

func key(ds *appsv1.DaemonSet, node string) holdKey {
	return holdKey{string(ds.UID), ds.Status.ObservedGeneration, node}
}

// history makes the current revision what it should be. Further revisions of
// the same template give their Pods to it.
func (c *controller) history(ctx context.Context, ds *appsv1.DaemonSet, revisions []*appsv1.ControllerRevision, pods []*corev1.Pod) (old []*appsv1.ControllerRevision, cur *appsv1.ControllerRevision, collisions int32, err error) {
	data, err := revision.Data(&ds.Spec.Template)
	if err != nil {
		return nil, nil, 0, err
	}
	h := revision.Of(revisions, data)
	if ds.Status.CollisionCount != nil {
		collisions = *ds.Status.CollisionCount
	}
	cur, collisions, err = revision.Ensure(ctx, c.revisions, ds, h, collisions, func(n int32) *appsv1.ControllerRevision {
		count := &n
		if n == 0 {
			count = nil
		}
		hash := podset.TemplateHash(&ds.Spec.Template, count)
		labels := podset.WithLabel(ds.Spec.Template.Labels, appsv1.ControllerRevisionHashLabelKey, hash)
		return &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{
				Name: revision.Name(ds.Name, hash), Namespace: ds.Namespace, Labels: labels, Annotations: ds.Annotations,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(ds, Kind)},
			},
			Data: runtime.RawExtension{Raw: data},
		}
	})
	if err != nil {
		return nil, nil, collisions, err
	}
	for _, same := range h.Same {
		if err := c.take(ctx, pods, same, cur); err != nil {
			return nil, nil, collisions, err
		}
	}
	return h.Old, cur, collisions, revision.Remove(ctx, c.revisions, h.Same)
}

// take labels the Pods of one revision as those of another.
func (c *controller) take(ctx context.Context, pods []*corev1.Pod, from, to *appsv1.ControllerRevision) error {
	const label = appsv1.ControllerRevisionHashLabelKey
	for _, p := range pods {
		if p.Labels[label] != from.Labels[label] || from.Labels[label] == to.Labels[label] {
			continue
		}
		_, err := c.control.Pods.Update(ctx, p.Namespace, p.Name, func(cur *corev1.Pod) error {
			if cur.UID == p.UID {
				cur.Labels[label] = to.Labels[label]
			}
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("labeling Pod %s: %w", p.Name, err)
		}
	}
	return nil
}

// perform makes and deletes Pods. A namespace that is being deleted is no
// failure.
func (c *controller) perform(ctx context.Context, ds *appsv1.DaemonSet, plan Plan, hash string) error {
	about := recorder.Reference("apps/v1", Kind.Kind, ds, "")
	for _, e := range plan.Events {
		c.control.Events.Event(about, e.Type, e.Reason, e.Message)
	}
	for _, node := range plan.Failed {
		c.holds.note(key(ds, node), time.Now())
	}
	nodes := plan.Create
	next := make(chan string, len(nodes))
	for _, node := range nodes {
		next <- node
	}
	_, err := podset.SlowStart(len(nodes), func() error {
		_, err := c.control.Create(ctx, newPod(ds, <-next, hash), about)
		if err != nil && podset.IsNamespaceEnding(err) {
			return nil
		}
		return err
	})
	if len(plan.Delete) == 0 {
		return err
	}
	_, deleting := podset.Each(len(plan.Delete), func(i int) error { return c.control.Delete(ctx, plan.Delete[i], about) })
	return errors.Join(err, deleting)
}

func newPod(ds *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	pod := podset.FromTemplate(&ds.Spec.Template, ds, *metav1.NewControllerRef(ds, Kind))
	pod.Spec.Tolerations = withTolerations(&pod.Spec)
	pin(&pod.Spec, node)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = hash
	if generation := ds.Annotations[appsv1.DeprecatedTemplateGeneration]; generation != "" {
		pod.Labels[templateGeneration] = generation
	}
	return pod
}

// truncate deletes old revisions beyond the limit that no Pod is of.
func (c *controller) truncate(ctx context.Context, ds *appsv1.DaemonSet, old []*appsv1.ControllerRevision, pods []*corev1.Pod) error {
	live := map[string]bool{}
	for _, p := range pods {
		live[p.Labels[appsv1.ControllerRevisionHashLabelKey]] = true
	}
	excess := revision.Excess(old, func(r *appsv1.ControllerRevision) bool {
		return live[r.Labels[appsv1.ControllerRevisionHashLabelKey]]
	}, len(old)-int(*ds.Spec.RevisionHistoryLimit))
	return revision.Remove(ctx, c.revisions, excess)
}

// writeStatus writes the status of the Pods that are there now.
func (c *controller) writeStatus(ctx context.Context, ds *appsv1.DaemonSet, hash string, collisions int32) (again time.Duration, err error) {
	_, err = c.sets.UpdateStatus(ctx, ds.Namespace, ds.Name, func(cur *appsv1.DaemonSet) error {
		if cur.UID != ds.UID {
			return nil
		}
		pods := podset.Match(cur, podset.Selector(cur.Spec.Selector), c.control.Pods.ByIndex(registry.IndexOwner, string(cur.UID))).Mine
		var status appsv1.DaemonSetStatus
		status, again = Status(c.world(cur, pods, hash))
		status.ObservedGeneration = ds.Generation // what this round acted on
		if collisions > 0 {
			status.CollisionCount = &collisions
		}
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
