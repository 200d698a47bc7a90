// Package rootca publishes the cluster's CA in every namespace, as the
// ConfigMap kube-root-ca.crt that Pods mount next to their token, and in
// kube-system how servers of aggregated APIs tell who asks them, as the ConfigMap
// extension-apiserver-authentication.
//
// It is not where trust begins: devices and users get the CA from the device's
// identity.
//
// Reconcile is the decision. Goroutines: those of the loop.Queue and one that
// waits for another CA. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher.
package rootca

import (
	"context"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/controller/loop"
	"edged/controller/podset"
)

// Names of the ConfigMaps.
const (
	Name               = "kube-root-ca.crt"
	AuthenticationName = "extension-apiserver-authentication"
)

const (
	descriptionKey = "kubernetes.io/description"
	description    = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Reconcile changes cm, a private copy of the stored ConfigMap or a new one, to
// hold the CA.
func Reconcile(cm *corev1.ConfigMap, ca []byte) {
	want := map[string]string{"ca.crt": string(ca)}
	if !maps.Equal(cm.Data, want) {
		cm.Data = want
	}
	if cm.Annotations[descriptionKey] != description {
		if cm.Annotations == nil {
			cm.Annotations = map[string]string{}
		}
		cm.Annotations[descriptionKey] = description
	}
}

// ReconcileAuthentication changes cm to tell that the cluster's CA signs the
// certificates of users, and that who shows one for the front proxy's name is
// believed what its headers say of users.
func ReconcileAuthentication(cm *corev1.ConfigMap, ca []byte, frontProxy string) {
	want := map[string]string{
		"client-ca-file":                     string(ca),
		"requestheader-client-ca-file":       string(ca),
		"requestheader-allowed-names":        `["` + frontProxy + `"]`,
		"requestheader-username-headers":     `["X-Remote-User"]`,
		"requestheader-uid-headers":          `["X-Remote-Uid"]`,
		"requestheader-group-headers":        `["X-Remote-Group"]`,
		"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
	}
	if !maps.Equal(cm.Data, want) {
		cm.Data = want
	}
}

// Source tells the cluster's CA.
type Source interface {
	// CAPEM is the CA that is trusted, in PEM; more than one while it is being
	// replaced.
	CAPEM() []byte
	// CAChanged is closed when CAPEM changes.
	CAChanged() <-chan struct{}
	// FrontProxyName is in the certificate that the API server shows to servers
	// of aggregated APIs.
	FrontProxyName() string
}

// Run returns the controller that publishes the CA of source.
func Run(source Source) loop.Run {
	return func(ctx context.Context, env loop.Env) error {
		changed := source.CAChanged()
		namespaces := registry.For[*corev1.Namespace](env.Registry)
		maps := registry.For[*corev1.ConfigMap](env.Registry)
		q := loop.NewQueue(loop.Config{Name: "rootca", Logger: env.Logger, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
			ns, ok := namespaces.Get("", key)
			if !ok || ns.DeletionTimestamp != nil {
				return 0, nil
			}
			ca := source.CAPEM()
			err := publish(ctx, maps, key, Name, func(cm *corev1.ConfigMap) { Reconcile(cm, ca) })
			if err != nil || key != metav1.NamespaceSystem {
				return 0, err
			}
			return 0, publish(ctx, maps, key, AuthenticationName, func(cm *corev1.ConfigMap) { ReconcileAuthentication(cm, ca, source.FrontProxyName()) })
		}})
		defer namespaces.Subscribe(func(e registry.Event[*corev1.Namespace]) { q.Add(e.Object.Name) })()
		defer maps.Subscribe(func(e registry.Event[*corev1.ConfigMap]) {
			if e.Object.Name == Name || e.Object.Name == AuthenticationName && e.Object.Namespace == metav1.NamespaceSystem {
				q.Add(e.Object.Namespace)
			}
		})()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-changed:
					changed = source.CAChanged()
					for _, ns := range namespaces.List("") {
						q.Add(ns.Name)
					}
				}
			}
		})
		g.Go(func() error { return q.Run(ctx) })
		return g.Wait()
	}
}

func publish(ctx context.Context, maps registry.Client[*corev1.ConfigMap], ns, name string, reconcile func(*corev1.ConfigMap)) error {
	if _, ok := maps.Get(ns, name); !ok {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}
		reconcile(cm)
		_, err := maps.Create(ctx, cm)
		if podset.IsNamespaceEnding(err) {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	_, err := maps.Update(ctx, ns, name, func(cm *corev1.ConfigMap) error { reconcile(cm); return nil })
	return err
}
