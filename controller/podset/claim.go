package podset

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"edged/apiserver/registry"
)

// Object is what can be owned.
type Object interface {
	runtime.Object
	metav1.Object
}

// Claim says which objects belong to an owner.
type Claim[T Object] struct {
	Mine    []T // owned and selected
	Adopt   []T // selected, without a controller
	Release []T // owned, no longer selected
	// Finalizer, if not empty, is given to what is adopted and taken from what
	// is released.
	Finalizer string
}

// Match compares the objects of the owner's namespace with its selector.
// Nothing is adopted or released by an owner that is being deleted, and an
// object that is being deleted is not adopted.
func Match[T Object](owner metav1.Object, selector labels.Selector, objects []T) Claim[T] {
	var c Claim[T]
	for _, o := range objects {
		selected := selector.Matches(labels.Set(o.GetLabels()))
		ref := metav1.GetControllerOfNoCopy(o)
		switch {
		case ref != nil && ref.UID != owner.GetUID():
		case ref != nil && selected:
			c.Mine = append(c.Mine, o)
		case owner.GetDeletionTimestamp() != nil:
		case ref != nil:
			c.Release = append(c.Release, o)
		case selected && o.GetDeletionTimestamp() == nil:
			c.Adopt = append(c.Adopt, o)
		}
	}
	return c
}

// Apply adopts and releases, and returns what is the owner's then. A race that
// is lost is left for the next round.
func (c Claim[T]) Apply(ctx context.Context, client registry.Client[T], owner metav1.Object, ref metav1.OwnerReference) ([]T, error) {
	mine := slices.Clone(c.Mine)
	for _, o := range c.Adopt {
		adopted, err := client.Update(ctx, o.GetNamespace(), o.GetName(), func(cur T) error {
			if cur.GetUID() != o.GetUID() || cur.GetDeletionTimestamp() != nil || metav1.GetControllerOfNoCopy(cur) != nil {
				return errChanged
			}
			cur.SetOwnerReferences(append(cur.GetOwnerReferences(), ref))
			if c.Finalizer != "" && !slices.Contains(cur.GetFinalizers(), c.Finalizer) {
				cur.SetFinalizers(append(cur.GetFinalizers(), c.Finalizer))
			}
			return nil
		})
		switch {
		case err == nil:
			mine = append(mine, adopted)
		case !moot(err):
			return nil, fmt.Errorf("adopting %s: %w", o.GetName(), err)
		}
	}
	for _, o := range c.Release {
		_, err := client.Update(ctx, o.GetNamespace(), o.GetName(), func(cur T) error {
			if cur.GetUID() != o.GetUID() {
				return errChanged
			}
			cur.SetOwnerReferences(slices.DeleteFunc(cur.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.GetUID() }))
			if c.Finalizer != "" {
				cur.SetFinalizers(slices.DeleteFunc(cur.GetFinalizers(), func(f string) bool { return f == c.Finalizer }))
			}
			return nil
		})
		if err != nil && !moot(err) {
			return nil, fmt.Errorf("releasing %s: %w", o.GetName(), err)
		}
	}
	return mine, nil
}

// errChanged aborts a write whose object is not what it was decided on.
var errChanged = fmt.Errorf("the object has changed meanwhile")

// moot reports that the object of a write is gone or another one.
func moot(err error) bool { return err == errChanged || apierrors.IsNotFound(err) }

// Selector parses a selector; nothing matches one that is not valid.
func Selector(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}
