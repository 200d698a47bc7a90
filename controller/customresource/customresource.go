package customresource

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// emptyAgain is how long objects whose finalizers keep them are waited for
// before they are looked at again.
const emptyAgain = time.Second

type controller struct {
	env         loop.Env
	definitions registry.Client[*definition]
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	c := &controller{env: env, definitions: registry.For[*definition](env.Registry)}
	// One at a time: two definitions must not be given the same name.
	q := loop.NewQueue(loop.Config{Name: "customresource", Workers: 1, Reconcile: c.sync, Logger: env.Logger})
	defer c.definitions.Subscribe(func(e registry.Event[*definition]) {
		q.Add(e.Object.Name)
		if e.Type == watch.Deleted || e.Type == watch.Modified {
			q.Add(groupKey(e.Object.Spec.Group)) // names may have become free
		}
	})()
	return q.Run(ctx)
}

// groupKey stands for all definitions of a group; no definition has such a name.
func groupKey(group string) string { return "/" + group }

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	all := c.definitions.List("")
	slices.SortStableFunc(all, func(a, b *definition) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	if key[0] == '/' {
		var errs []error
		for _, crd := range all {
			if groupKey(crd.Spec.Group) == key && !is(crd, apiextensionsv1.NamesAccepted) {
				errs = append(errs, c.accept(ctx, crd.Name, all))
			}
		}
		return 0, errors.Join(errs...)
	}
	crd, ok := c.definitions.Get("", key)
	if !ok {
		return 0, nil
	}
	if crd.DeletionTimestamp != nil {
		return c.empty(ctx, crd)
	}
	return 0, c.accept(ctx, key, all)
}

func (c *controller) accept(ctx context.Context, name string, all []*definition) error {
	_, err := c.definitions.UpdateStatus(ctx, "", name, func(crd *definition) error {
		if crd.DeletionTimestamp == nil {
			Accept(crd, all, metav1.NewTime(c.env.Now()).Rfc3339Copy())
		}
		return nil
	})
	return gone(err)
}

func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// empty deletes the objects of a definition and lets go of it once the store
// has none.
func (c *controller) empty(ctx context.Context, crd *definition) (time.Duration, error) {
	if !slices.Contains(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
		return 0, nil
	}
	left, err := c.deleteAll(ctx, crd)
	if err != nil {
		return 0, fmt.Errorf("emptying %s: %w", crd.Name, err)
	}
	if left > 0 {
		_, err := c.definitions.UpdateStatus(ctx, "", crd.Name, func(crd *definition) error {
			set(crd, condition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionInProgress", Message: "CustomResource deletion is in progress"}, metav1.NewTime(c.env.Now()).Rfc3339Copy())
			return nil
		})
		return emptyAgain, gone(err)
	}
	_, err = c.definitions.Update(ctx, "", crd.Name, func(crd *definition) error {
		crd.Finalizers = slices.DeleteFunc(crd.Finalizers, func(f string) bool { return f == apiextensionsv1.CustomResourceCleanupFinalizer })
		return nil
	})
	return 0, gone(err)
}

// deleteAll deletes the objects of a definition and counts those that stay.
func (c *controller) deleteAll(ctx context.Context, crd *definition) (left int, err error) {
	if !is(crd, apiextensionsv1.Established) {
		return 0, nil // nobody could make any
	}
	gr := schema.GroupResource{Group: crd.Spec.Group, Resource: crd.Status.AcceptedNames.Plural}
	if _, ok := c.env.Registry.Kind(gr); !ok {
		return 0, fmt.Errorf("%s is not served yet", gr)
	}
	found, err := c.env.Registry.List(ctx, gr, "", registry.ListOptions{})
	if err != nil {
		return 0, err
	}
	for _, obj := range found.Items {
		m, err := meta.Accessor(obj)
		if err != nil {
			return 0, err
		}
		if m.GetDeletionTimestamp() != nil {
			left++
			continue
		}
		_, removed, err := c.env.Registry.Delete(ctx, gr, m.GetNamespace(), m.GetName(), metav1.DeleteOptions{})
		if gone(err) != nil {
			return 0, err
		}
		if err == nil && !removed {
			left++
		}
	}
	return left, nil
}
