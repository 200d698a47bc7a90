// Package podcertificate removes PodCertificateRequests that are old: devices ask
// anew each time a certificate is to be renewed, and nobody reads an answer twice.
//
// It signs nothing; signers are what users bring.
//
// Reconcile is the decision. Goroutines: those of the loop.Queue. May be imported
// by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/certificates/cleaner/pcrcleaner.go.
package podcertificate

import (
	"context"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// MaxAge is how long a request is kept, whatever became of it: upstream's.
const MaxAge = 15 * time.Minute

// Reconcile says in what time req is to be removed: not positive is now.
func Reconcile(req *certificatesv1.PodCertificateRequest, now time.Time) time.Duration {
	return req.CreationTimestamp.Add(MaxAge).Sub(now)
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	requests := registry.For[*certificatesv1.PodCertificateRequest](env.Registry)
	q := loop.NewQueue(loop.Config{Name: "podcertificate", Logger: env.Logger, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		ns, name := loop.SplitKey(key)
		req, ok := requests.Get(ns, name)
		if !ok || req.DeletionTimestamp != nil {
			return 0, nil
		}
		if left := Reconcile(req, env.Now()); left > 0 {
			return left, nil
		}
		err := requests.Delete(ctx, ns, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(req.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("remove PodCertificateRequest %s: %w", key, err)
		}
		return 0, nil
	}})
	defer requests.Subscribe(func(e registry.Event[*certificatesv1.PodCertificateRequest]) {
		if e.Type == watch.Added {
			q.Add(loop.KeyOf(e.Object))
		}
	})()
	return q.Run(ctx)
}
