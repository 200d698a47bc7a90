package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
)

type controller struct {
	env    loop.Env
	reg    *registry.Registry
	events *recorder.Recorder
	queue  *loop.Queue
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, reg: env.Registry, events: env.Events.Component("garbage-collector-controller")}
	c.queue = loop.NewQueue(loop.Config{Name: "gc", Reconcile: c.sync, Logger: env.Logger})
	defer c.reg.SubscribeAll(c.on)()
	return c.queue.Run(ctx)
}

// key names an object of any kind; goneKey the dependents of one that is gone.
func key(k *registry.Kind, obj metav1.Object) string {
	return strings.Join([]string{k.GVK.Group, k.Resource, obj.GetNamespace(), obj.GetName()}, "|")
}

const gonePrefix = "gone|"

func (c *controller) on(e registry.AnyEvent) {
	obj, err := meta.Accessor(e.Object)
	if err != nil {
		return
	}
	if e.Type == watch.Deleted {
		c.queue.Add(gonePrefix + string(obj.GetUID()))
		for _, ref := range obj.GetOwnerReferences() {
			c.addOwner(obj, ref)
		}
		return
	}
	var was metav1.Object
	if e.Old != nil {
		was, _ = meta.Accessor(e.Old)
	}
	refsChanged := was == nil || !equality.Semantic.DeepEqual(was.GetOwnerReferences(), obj.GetOwnerReferences())
	if len(obj.GetOwnerReferences()) > 0 && refsChanged {
		c.queue.Add(key(e.Kind, obj))
	}
	if was != nil && refsChanged {
		for _, ref := range was.GetOwnerReferences() {
			c.addOwner(obj, ref) // it may have waited for this one
		}
	}
	if obj.GetDeletionTimestamp() != nil && (Orphans(obj) || WaitsForDependents(obj)) {
		c.queue.Add(key(e.Kind, obj))
	}
}

// addOwner looks again at an owner that may wait for its dependents.
func (c *controller) addOwner(obj metav1.Object, ref metav1.OwnerReference) {
	if k, owner := c.find(obj, ref); owner != nil && owner.GetUID() == ref.UID && owner.GetDeletionTimestamp() != nil {
		c.queue.Add(key(k, owner))
	}
}

// find returns the object that a reference names, nil if there is none, and its
// kind, nil if that is not served.
func (c *controller) find(obj metav1.Object, ref metav1.OwnerReference) (*registry.Kind, metav1.Object) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, nil
	}
	for _, k := range c.reg.Kinds() {
		if k.GVK.Kind != ref.Kind || !slices.ContainsFunc(k.ServedVersions(), func(s schema.GroupVersion) bool { return s.Group == gv.Group }) {
			continue
		}
		ns := ""
		if k.Namespaced {
			ns = obj.GetNamespace()
		}
		found, ok := c.reg.Cached(k, ns, ref.Name)
		if !ok {
			return k, nil
		}
		owner, err := meta.Accessor(found)
		if err != nil {
			return k, nil
		}
		return k, owner
	}
	return nil, nil
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if uid, ok := strings.CutPrefix(key, gonePrefix); ok {
		var errs []error
		for _, d := range c.reg.Dependents(uid) {
			errs = append(errs, c.judge(ctx, d.Kind, d.Object))
		}
		return 0, errors.Join(errs...)
	}
	p := strings.SplitN(key, "|", 4)
	k, ok := c.reg.Kind(schema.GroupResource{Group: p[0], Resource: p[1]})
	if !ok {
		return 0, nil
	}
	obj, ok := c.reg.Cached(k, p[2], p[3])
	if !ok {
		return 0, nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return 0, err
	}
	switch {
	case m.GetDeletionTimestamp() != nil && Orphans(m):
		return 0, c.orphan(ctx, k, m)
	case WaitsForDependents(m):
		return 0, c.foreground(ctx, k, m)
	}
	return 0, c.judge(ctx, k, obj)
}

// judge deletes an object whose owners are gone.
func (c *controller) judge(ctx context.Context, k *registry.Kind, obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	v := Judge(m, func(ref metav1.OwnerReference) Owner { return c.owner(k, m, ref) }, c.dependents(m))
	if len(v.Drop) > 0 {
		return c.update(ctx, k, m, func(cur metav1.Object) {
			cur.SetOwnerReferences(slices.DeleteFunc(cur.GetOwnerReferences(), func(ref metav1.OwnerReference) bool {
				return slices.ContainsFunc(v.Drop, func(d metav1.OwnerReference) bool { return d.UID == ref.UID })
			}))
		})
	}
	if v.Unblock {
		err := c.update(ctx, k, m, func(cur metav1.Object) {
			refs := cur.GetOwnerReferences()
			for i := range refs {
				if ptr.Deref(refs[i].BlockOwnerDeletion, false) {
					refs[i].BlockOwnerDeletion = ptr.To(false)
				}
			}
			cur.SetOwnerReferences(refs)
		})
		if err != nil {
			return err
		}
	}
	if !v.Delete {
		return nil
	}
	// What was judged, and nothing else: its owners may have changed since.
	_, _, err = c.reg.Delete(ctx, k.GroupResource(), m.GetNamespace(), m.GetName(), metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: ptr.To(m.GetUID()), ResourceVersion: ptr.To(m.GetResourceVersion())}, PropagationPolicy: &v.Propagation,
	})
	return tidy(err, "deleting", k, m)
}

// owner says what became of an owner.
func (c *controller) owner(k *registry.Kind, obj metav1.Object, ref metav1.OwnerReference) Owner {
	ownerKind, found := c.find(obj, ref)
	switch {
	case ownerKind == nil:
		return Unknown
	case !k.Namespaced && ownerKind.Namespaced:
		c.events.Eventf(recorder.Reference(k.GVK.GroupVersion().String(), k.GVK.Kind, obj, ""), corev1.EventTypeWarning, "OwnerRefInvalidNamespace",
			"ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q", ref.APIVersion, ref.Kind, "", ref.Name, ref.UID, "")
		return Unknown
	case found == nil || found.GetUID() != ref.UID:
		return Absent
	case WaitsForDependents(found):
		return Waiting
	}
	return Present
}

func (c *controller) dependents(obj metav1.Object) Dependents {
	var d Dependents
	for _, dep := range c.reg.Dependents(string(obj.GetUID())) {
		d.Any = true
		if m, err := meta.Accessor(dep.Object); err == nil && WaitsForDependents(m) {
			d.Waiting = true
		}
	}
	return d
}

// foreground lets an owner go once nothing blocks it, and sees to what does.
func (c *controller) foreground(ctx context.Context, k *registry.Kind, owner metav1.Object) error {
	blocked := false
	var errs []error
	for _, d := range c.reg.Dependents(string(owner.GetUID())) {
		m, err := meta.Accessor(d.Object)
		if err != nil || d.Kind.Namespaced && k.Namespaced && m.GetNamespace() != owner.GetNamespace() {
			continue
		}
		blocked = blocked || Blocks(m, owner)
		errs = append(errs, c.judge(ctx, d.Kind, d.Object))
	}
	if blocked {
		return errors.Join(errs...) // the change of the dependent brings us back
	}
	errs = append(errs, c.removeFinalizer(ctx, k, owner, metav1.FinalizerDeleteDependents))
	return errors.Join(errs...)
}

// orphan cuts an owner's dependents loose and lets it go.
func (c *controller) orphan(ctx context.Context, k *registry.Kind, owner metav1.Object) error {
	var errs []error
	for _, d := range c.reg.Dependents(string(owner.GetUID())) {
		m, err := meta.Accessor(d.Object)
		if err != nil {
			continue
		}
		errs = append(errs, c.update(ctx, d.Kind, m, func(cur metav1.Object) {
			cur.SetOwnerReferences(slices.DeleteFunc(cur.GetOwnerReferences(), func(ref metav1.OwnerReference) bool { return ref.UID == owner.GetUID() }))
		}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.removeFinalizer(ctx, k, owner, metav1.FinalizerOrphanDependents)
}

func (c *controller) removeFinalizer(ctx context.Context, k *registry.Kind, obj metav1.Object, finalizer string) error {
	return c.update(ctx, k, obj, func(cur metav1.Object) {
		cur.SetFinalizers(slices.DeleteFunc(cur.GetFinalizers(), func(f string) bool { return f == finalizer }))
	})
}

// update changes the metadata of the object if it still is the same one.
func (c *controller) update(ctx context.Context, k *registry.Kind, obj metav1.Object, fn func(metav1.Object)) error {
	_, _, err := c.reg.Update(ctx, k.GroupResource(), obj.GetNamespace(), obj.GetName(), "", func(cur runtime.Object) (runtime.Object, error) {
		m, err := meta.Accessor(cur)
		if err == nil && m.GetUID() == obj.GetUID() {
			fn(m)
		}
		return cur, err
	}, registry.UpdateOptions{})
	return tidy(err, "updating", k, obj)
}

// tidy makes an error of a write; that the object is gone is none.
func tidy(err error, what string, k *registry.Kind, obj metav1.Object) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s %s %s/%s: %w", what, k.Resource, obj.GetNamespace(), obj.GetName(), err)
}
