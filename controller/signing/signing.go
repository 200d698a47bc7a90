// Package signing makes users of those whose CertificateSigningRequests for
// kubernetes.io/kube-apiserver-client were approved, and removes requests, of
// whatever signer, that are over.
//
// It approves nothing, and signs for no other signer: devices have their
// certificates from joining. It is not podcertificate, which does the latter for
// Pods' requests.
//
// Reconcile is the decision. Goroutines: those of the loop.Queue. May be imported
// by: controller, cmd/edged.
//
// Sources: k8s.io/kubernetes/pkg/controller/certificates/{signer,cleaner}.
package signing

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/loop"
)

// How long requests are kept: upstream's.
const (
	keepAnswered = time.Hour      // signed, denied or failed
	keepPending  = 24 * time.Hour // neither approved nor denied, or approved and not signed
)

// Signer certifies users. An error is final: the request is one that it does not
// sign.
type Signer interface {
	SignClient(req *x509.CertificateRequest, usage x509.KeyUsage, ttl time.Duration) ([]byte, error)
}

// Reconcile says whether csr is to be signed now, and in what time it is to be
// removed: not positive is now.
func Reconcile(csr *certificatesv1.CertificateSigningRequest, now time.Time) (sign bool, left time.Duration) {
	var kept time.Time
	approved, answered := false, len(csr.Status.Certificate) > 0
	for _, c := range csr.Status.Conditions {
		keep := keepAnswered
		switch c.Type {
		case certificatesv1.CertificateApproved:
			approved = true
			if len(csr.Status.Certificate) == 0 {
				keep = keepPending
			}
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			answered = answered || c.Status == corev1.ConditionTrue
		default:
			continue
		}
		if until := c.LastUpdateTime.Add(keep); kept.IsZero() || until.Before(kept) {
			kept = until
		}
	}
	if kept.IsZero() {
		kept = csr.CreationTimestamp.Add(keepPending)
	}
	return approved && !answered && csr.Spec.SignerName == certificatesv1.KubeAPIServerClientSignerName, kept.Sub(now)
}

// usages is what a client's certificate may be used for.
func usages(csr *certificatesv1.CertificateSigningRequest) (usage x509.KeyUsage, err error) {
	client := false
	for _, u := range csr.Spec.Usages {
		switch u {
		case certificatesv1.UsageDigitalSignature:
			usage |= x509.KeyUsageDigitalSignature
		case certificatesv1.UsageKeyEncipherment:
			usage |= x509.KeyUsageKeyEncipherment
		case certificatesv1.UsageClientAuth:
			client = true
		default:
			return 0, fmt.Errorf("invalid usage for client certificate: %s", u)
		}
	}
	if !client {
		return 0, fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
	}
	return usage, nil
}

// sign is what signer says to csr.
func sign(csr *certificatesv1.CertificateSigningRequest, signer Signer) ([]byte, error) {
	usage, err := usages(csr)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return nil, errors.New("the request is not PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, err
	}
	var ttl time.Duration
	if s := csr.Spec.ExpirationSeconds; s != nil {
		ttl = time.Duration(*s) * time.Second
	}
	return signer.SignClient(req, usage, ttl)
}

// answer puts the certificate, or why there is none, into csr.
func answer(csr *certificatesv1.CertificateSigningRequest, signer Signer, now time.Time) {
	cert, err := sign(csr, signer)
	if err == nil {
		csr.Status.Certificate = cert
		return
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure", Message: err.Error(), LastUpdateTime: metav1.NewTime(now),
	})
}

// Run is the controller.
func Run(signer Signer) loop.Run {
	return func(ctx context.Context, env loop.Env) error {
		requests := registry.For[*certificatesv1.CertificateSigningRequest](env.Registry)
		q := loop.NewQueue(loop.Config{Name: "signing", Logger: env.Logger, Reconcile: func(ctx context.Context, name string) (time.Duration, error) {
			csr, ok := requests.Get("", name)
			if !ok || csr.DeletionTimestamp != nil {
				return 0, nil
			}
			now := env.Now()
			due, left := Reconcile(csr, now)
			if left <= 0 {
				err := requests.Delete(ctx, "", name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(csr.UID))})
				if err != nil && !apierrors.IsNotFound(err) {
					return 0, fmt.Errorf("remove CertificateSigningRequest %s: %w", name, err)
				}
				return 0, nil
			}
			if !due {
				return left, nil
			}
			_, err := requests.UpdateStatus(ctx, "", name, func(csr *certificatesv1.CertificateSigningRequest) error {
				if due, _ := Reconcile(csr, now); due {
					answer(csr, signer, now)
				}
				return nil
			})
			if err != nil && !apierrors.IsNotFound(err) {
				return 0, fmt.Errorf("answer CertificateSigningRequest %s: %w", name, err)
			}
			return left, nil
		}})
		defer requests.Subscribe(func(e registry.Event[*certificatesv1.CertificateSigningRequest]) {
			if e.Type != watch.Deleted {
				q.Add(e.Object.Name)
			}
		})()
		return q.Run(ctx)
	}
}
