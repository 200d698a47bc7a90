// Package serviceaccounttoken fills the Secrets of type
// kubernetes.io/service-account-token that users make for programs outside of Pods: a
// token without an end, the cluster's CA and the namespace. One whose ServiceAccount is
// gone is deleted.
//
// Pods' own tokens are bound to them and issued on demand; nobody needs a Secret for
// those, and none is made.
//
// Reconcile is the decision. Goroutines: those of the loop.Queue and one that waits for
// another CA. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/serviceaccount/tokens_controller.go. Unlike
// there, an account's list of Secrets is left alone.
package serviceaccounttoken

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// Issuer signs.
type Issuer interface {
	SecretToken(sa *corev1.ServiceAccount, secret *corev1.Secret) (string, error)
}

// Authority tells the cluster's CA.
type Authority interface {
	CAPEM() []byte
	CAChanged() <-chan struct{}
}

// Of names the ServiceAccount of a Secret's token and the account's UID, "" if the
// Secret does not say it; ok is false for a Secret of another type.
func Of(s *corev1.Secret) (name, uid string, ok bool) {
	if s.Type != corev1.SecretTypeServiceAccountToken {
		return "", "", false
	}
	return s.Annotations[corev1.ServiceAccountNameKey], s.Annotations[corev1.ServiceAccountUIDKey], true
}

// Lacks reports whether something is missing in a Secret or not as it is now.
func Lacks(s *corev1.Secret, ca []byte) bool {
	return len(s.Data[corev1.ServiceAccountTokenKey]) == 0 || len(s.Data[corev1.ServiceAccountNamespaceKey]) == 0 || !bytes.Equal(s.Data[corev1.ServiceAccountRootCAKey], ca)
}

// Reconcile fills s, a private copy.
func Reconcile(s *corev1.Secret, sa *corev1.ServiceAccount, ca []byte, tokens Issuer) error {
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[corev1.ServiceAccountRootCAKey] = ca
	if len(s.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		s.Data[corev1.ServiceAccountNamespaceKey] = []byte(s.Namespace)
	}
	if len(s.Data[corev1.ServiceAccountTokenKey]) == 0 {
		token, err := tokens.SecretToken(sa, s)
		if err != nil {
			return err
		}
		s.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	s.Annotations[corev1.ServiceAccountNameKey], s.Annotations[corev1.ServiceAccountUIDKey] = sa.Name, string(sa.UID)
	return nil
}

type controller struct {
	secrets  registry.Client[*corev1.Secret]
	accounts registry.Client[*corev1.ServiceAccount]
	tokens   Issuer
	ca       Authority
}

// Run is the controller.
func Run(tokens Issuer, ca Authority) loop.Run {
	return func(ctx context.Context, env loop.Env) error {
		c := &controller{registry.For[*corev1.Secret](env.Registry), registry.For[*corev1.ServiceAccount](env.Registry), tokens, ca}
		q := loop.NewQueue(loop.Config{Name: "serviceaccounttoken", Reconcile: c.sync, Logger: env.Logger})
		defer c.secrets.Subscribe(func(e registry.Event[*corev1.Secret]) {
			if _, _, ok := Of(e.Object); ok && e.Type != watch.Deleted {
				q.Add(loop.KeyOf(e.Object))
			}
		})()
		defer c.accounts.Subscribe(func(e registry.Event[*corev1.ServiceAccount]) {
			if e.Type == watch.Modified {
				return
			}
			for _, s := range c.secrets.List(e.Object.Namespace) {
				if name, _, ok := Of(s); ok && name == e.Object.Name {
					q.Add(loop.KeyOf(s))
				}
			}
		})()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			for {
				changed := ca.CAChanged()
				for _, s := range c.secrets.List("") {
					if _, _, ok := Of(s); ok {
						q.Add(loop.KeyOf(s))
					}
				}
				select {
				case <-ctx.Done():
					return nil
				case <-changed:
				}
			}
		})
		g.Go(func() error { return q.Run(ctx) })
		return g.Wait()
	}
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, name := loop.SplitKey(key)
	s, ok := c.secrets.Get(ns, name)
	if !ok || s.DeletionTimestamp != nil {
		return 0, nil
	}
	account, uid, ok := Of(s)
	if !ok {
		return 0, nil
	}
	sa, ok := c.accounts.Get(ns, account)
	if !ok || uid != "" && uid != string(sa.UID) {
		err := c.secrets.Delete(ctx, ns, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return 0, nil
		}
		return 0, err
	}
	ca := c.ca.CAPEM()
	if !Lacks(s, ca) {
		return 0, nil
	}
	_, err := c.secrets.Update(ctx, ns, name, func(cur *corev1.Secret) error {
		if _, _, ok := Of(cur); !ok || cur.UID != s.UID || !Lacks(cur, ca) {
			return nil
		}
		return Reconcile(cur, sa, ca, c.tokens)
	})
	switch {
	case apierrors.IsNotFound(err):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("fill the token Secret %s: %w", key, err)
	}
	return 0, nil
}
