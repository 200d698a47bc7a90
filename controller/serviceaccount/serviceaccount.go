// Package serviceaccount makes the ServiceAccount "default" in every namespace.
//
// It makes no tokens: those are bound to Pods and issued on demand.
//
// Reconcile is the decision. Goroutines: those of the loop.Queue. May be
// imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/serviceaccount.
package serviceaccount

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
	"edged/controller/podset"
)

const name = "default"

// Reconcile returns the account to make, nil if there is nothing to do.
func Reconcile(ns *corev1.Namespace, exists bool) *corev1.ServiceAccount {
	if exists || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil
	}
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns.Name}}
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	namespaces := registry.For[*corev1.Namespace](env.Registry)
	accounts := registry.For[*corev1.ServiceAccount](env.Registry)
	q := loop.NewQueue(loop.Config{Name: "serviceaccount", Logger: env.Logger, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		ns, ok := namespaces.Get("", key)
		if !ok {
			return 0, nil
		}
		_, exists := accounts.Get(key, name)
		want := Reconcile(ns, exists)
		if want == nil {
			return 0, nil
		}
		if _, err := accounts.Create(ctx, want); err != nil && !apierrors.IsAlreadyExists(err) && !podset.IsNamespaceEnding(err) {
			return 0, err
		}
		return 0, nil
	}})
	defer namespaces.Subscribe(func(e registry.Event[*corev1.Namespace]) {
		if e.Type != watch.Deleted {
			q.Add(e.Object.Name)
		}
	})()
	defer accounts.Subscribe(func(e registry.Event[*corev1.ServiceAccount]) {
		if e.Type == watch.Deleted && e.Object.Name == name {
			q.Add(e.Object.Namespace)
		}
	})()
	return q.Run(ctx)
}
