package gc

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/controller/foreign"
)

// node is an object and where it is held: in this cluster's store, or by the server
// of an aggregated API.
type node struct {
	metav1.Object
	k *registry.Kind
	f *foreign.Resource // instead of k
}

// foreignPrefix begins the keys of what others hold.
const foreignPrefix = "foreign|"

func (n node) key() string {
	if n.f != nil {
		return foreignPrefix + string(n.GetUID())
	}
	return strings.Join([]string{n.k.GVK.Group, n.k.Resource, n.GetNamespace(), n.GetName()}, "|")
}

func (n node) namespaced() bool {
	if n.f != nil {
		return n.f.Namespaced
	}
	return n.k.Namespaced
}

func (n node) kind() (apiVersion, kind string) {
	if n.f != nil {
		return n.f.GroupVersion().String(), n.f.Kind
	}
	return n.k.GVK.GroupVersion().String(), n.k.GVK.Kind
}

func (n node) resource() string {
	if n.f != nil {
		return n.f.GroupResource().String()
	}
	return n.k.Resource
}

// remove deletes what was judged, and nothing else: its owners may have changed
// since.
func (c *controller) remove(ctx context.Context, n node, propagation metav1.DeletionPropagation) error {
	opts := metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: ptr.To(n.GetUID()), ResourceVersion: ptr.To(n.GetResourceVersion())}, PropagationPolicy: &propagation,
	}
	if n.f != nil {
		return tidy(c.others.client.Delete(ctx, *n.f, n.GetNamespace(), n.GetName(), opts), "deleting", n)
	}
	_, _, err := c.reg.Delete(ctx, n.k.GroupResource(), n.GetNamespace(), n.GetName(), opts)
	return tidy(err, "deleting", n)
}

// update changes owners and finalizers of the object if it still is the same one.
func (c *controller) update(ctx context.Context, n node, fn func(metav1.Object)) error {
	if n.f != nil {
		cur := &metav1.PartialObjectMetadata{}
		cur.OwnerReferences = append(cur.OwnerReferences, n.GetOwnerReferences()...)
		cur.Finalizers = append(cur.Finalizers, n.GetFinalizers()...)
		fn(cur)
		return tidy(c.others.client.Patch(ctx, *n.f, n, map[string]any{"ownerReferences": cur.OwnerReferences, "finalizers": cur.Finalizers}), "updating", n)
	}
	_, _, err := c.reg.Update(ctx, n.k.GroupResource(), n.GetNamespace(), n.GetName(), "", func(cur runtime.Object) (runtime.Object, error) {
		m, err := meta.Accessor(cur)
		if err == nil && m.GetUID() == n.GetUID() {
			fn(m)
		}
		return cur, err
	}, registry.UpdateOptions{})
	return tidy(err, "updating", n)
}

// tidy makes an error of a write; that the object is gone is none.
func tidy(err error, what string, n node) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s %s %s/%s: %w", what, n.resource(), n.GetNamespace(), n.GetName(), err)
}
