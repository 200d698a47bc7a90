package gc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/foreign"
	"edged/controller/loop"
)

type controller struct {
	env    loop.Env
	reg    *registry.Registry
	events *recorder.Recorder
	queue  *loop.Queue
	others *others
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, reg: env.Registry, events: env.Events.Component("garbage-collector-controller")}
	c.queue = loop.NewQueue(loop.Config{Name: "gc", Reconcile: c.sync, Logger: env.Logger})
	c.others = newOthers(c, foreign.New(env.Foreign, "generic-garbage-collector"))
	defer c.reg.SubscribeAll(c.on)()
	return c.others.run(ctx, c.queue.Run)
}

// The key of an object is [node.key]; goneKey is of the dependents of one that is
// gone.
const gonePrefix = "gone|"

func (c *controller) on(e registry.AnyEvent) {
	obj, err := meta.Accessor(e.Object)
	if err != nil {
		return
	}
	var was metav1.Object
	if e.Old != nil {
		was, _ = meta.Accessor(e.Old)
	}
	if e.Kind.GVK.Group == "apiregistration.k8s.io" {
		c.others.ring()
	}
	c.changed(e.Type == watch.Deleted, node{k: e.Kind, Object: obj}, was)
}

// changed looks at what may follow from a change of an object. was is what it was
// before, nil if that is not known.
func (c *controller) changed(deleted bool, obj node, was metav1.Object) {
	if deleted {
		c.queue.Add(gonePrefix + string(obj.GetUID()))
		for _, ref := range obj.GetOwnerReferences() {
			c.addOwner(obj, ref)
		}
		return
	}
	refsChanged := was == nil || !equality.Semantic.DeepEqual(was.GetOwnerReferences(), obj.GetOwnerReferences())
	if len(obj.GetOwnerReferences()) > 0 && refsChanged {
		c.queue.Add(obj.key())
	}
	if was != nil && refsChanged {
		for _, ref := range was.GetOwnerReferences() {
			c.addOwner(obj, ref) // it may have waited for this one
		}
	}
	if obj.GetDeletionTimestamp() != nil && (Orphans(obj) || WaitsForDependents(obj)) {
		c.queue.Add(obj.key())
	}
}

// addOwner looks again at an owner that may wait for its dependents.
func (c *controller) addOwner(obj metav1.Object, ref metav1.OwnerReference) {
	if k, owner := c.find(obj, ref); owner != nil && owner.GetUID() == ref.UID && owner.GetDeletionTimestamp() != nil {
		c.queue.Add(node{k: k, Object: owner}.key())
	} else if k == nil {
		c.others.addOwner(ref.UID)
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
		for _, d := range c.dependents(types.UID(uid)) {
			errs = append(errs, c.judge(ctx, d))
		}
		return 0, errors.Join(errs...)
	}
	n, ok := c.lookup(key)
	if !ok {
		return 0, nil
	}
	switch {
	case n.GetDeletionTimestamp() != nil && Orphans(n):
		return 0, c.orphan(ctx, n)
	case WaitsForDependents(n):
		return 0, c.foreground(ctx, n)
	}
	return 0, c.judge(ctx, n)
}

// lookup returns the object that a key names.
func (c *controller) lookup(key string) (node, bool) {
	if uid, ok := strings.CutPrefix(key, foreignPrefix); ok {
		return c.others.known(types.UID(uid))
	}
	p := strings.SplitN(key, "|", 4)
	k, ok := c.reg.Kind(schema.GroupResource{Group: p[0], Resource: p[1]})
	if !ok {
		return node{}, false
	}
	obj, ok := c.reg.Cached(k, p[2], p[3])
	if !ok {
		return node{}, false
	}
	m, err := meta.Accessor(obj)
	return node{k: k, Object: m}, err == nil
}

// dependents are all objects that name the owner, wherever they are held.
func (c *controller) dependents(owner types.UID) []node {
	var out []node
	for _, d := range c.reg.Dependents(string(owner)) {
		if m, err := meta.Accessor(d.Object); err == nil {
			out = append(out, node{k: d.Kind, Object: m})
		}
	}
	return append(out, c.others.dependents(owner)...)
}

// judge deletes an object whose owners are gone.
func (c *controller) judge(ctx context.Context, n node) error {
	var unclear error // an owner that could not be asked for
	v := Judge(n, func(ref metav1.OwnerReference) Owner {
		o, err := c.owner(ctx, n, ref)
		if err != nil {
			unclear = err
		}
		return o
	}, c.waiting(n))
	if len(v.Drop) > 0 {
		return errors.Join(unclear, c.update(ctx, n, func(cur metav1.Object) {
			cur.SetOwnerReferences(slices.DeleteFunc(cur.GetOwnerReferences(), func(ref metav1.OwnerReference) bool {
				return slices.ContainsFunc(v.Drop, func(d metav1.OwnerReference) bool { return d.UID == ref.UID })
			}))
		}))
	}
	if v.Unblock {
		err := c.update(ctx, n, func(cur metav1.Object) {
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
		return unclear
	}
	return c.remove(ctx, n, v.Propagation)
}

// owner says what became of an owner. An owner that could not be asked for is
// Unknown, with the reason.
func (c *controller) owner(ctx context.Context, n node, ref metav1.OwnerReference) (Owner, error) {
	ownerKind, found := c.find(n, ref)
	switch {
	case ownerKind == nil:
		return c.others.owner(ctx, n, ref)
	case !n.namespaced() && ownerKind.Namespaced:
		c.invalidNamespace(n, ref)
		return Unknown, nil
	}
	return became(found, ref), nil
}

// became says what an owner is whose name was looked up.
func became(found metav1.Object, ref metav1.OwnerReference) Owner {
	switch {
	case found == nil || found.GetUID() != ref.UID:
		return Absent
	case WaitsForDependents(found):
		return Waiting
	}
	return Present
}

func (c *controller) invalidNamespace(n node, ref metav1.OwnerReference) {
	apiVersion, kind := n.kind()
	c.events.Eventf(recorder.Reference(apiVersion, kind, n, ""), corev1.EventTypeWarning, "OwnerRefInvalidNamespace",
		"ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q", ref.APIVersion, ref.Kind, "", ref.Name, ref.UID, "")
}

func (c *controller) waiting(obj metav1.Object) Dependents {
	var d Dependents
	for _, dep := range c.dependents(obj.GetUID()) {
		d.Any = true
		d.Waiting = d.Waiting || WaitsForDependents(dep)
	}
	return d
}

// foreground lets an owner go once nothing blocks it, and sees to what does.
func (c *controller) foreground(ctx context.Context, owner node) error {
	blocked := false
	var errs []error
	for _, d := range c.dependents(owner.GetUID()) {
		if d.namespaced() && owner.namespaced() && d.GetNamespace() != owner.GetNamespace() {
			continue
		}
		blocked = blocked || Blocks(d, owner)
		errs = append(errs, c.judge(ctx, d))
	}
	if blocked {
		return errors.Join(errs...) // the change of the dependent brings us back
	}
	errs = append(errs, c.removeFinalizer(ctx, owner, metav1.FinalizerDeleteDependents))
	return errors.Join(errs...)
}

// orphan cuts an owner's dependents loose and lets it go.
func (c *controller) orphan(ctx context.Context, owner node) error {
	var errs []error
	for _, d := range c.dependents(owner.GetUID()) {
		errs = append(errs, c.update(ctx, d, func(cur metav1.Object) {
			cur.SetOwnerReferences(slices.DeleteFunc(cur.GetOwnerReferences(), func(ref metav1.OwnerReference) bool { return ref.UID == owner.GetUID() }))
		}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.removeFinalizer(ctx, owner, metav1.FinalizerOrphanDependents)
}

func (c *controller) removeFinalizer(ctx context.Context, obj node, finalizer string) error {
	return c.update(ctx, obj, func(cur metav1.Object) {
		cur.SetFinalizers(slices.DeleteFunc(cur.GetFinalizers(), func(f string) bool { return f == finalizer }))
	})
}
