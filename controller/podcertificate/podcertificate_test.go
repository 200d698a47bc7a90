package podcertificate_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/controller/loop"
	"edged/controller/podcertificate"
)

func TestReconcile(t *testing.T) {
	made := time.Unix(1_800_000_000, 0)
	req := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.Time{Time: made}}}
	for age, want := range map[time.Duration]time.Duration{0: 15 * time.Minute, 14 * time.Minute: time.Minute, 15 * time.Minute: 0, time.Hour: -45 * time.Minute} {
		if got := podcertificate.Reconcile(req, made.Add(age)); got != want {
			t.Errorf("at %v: %v, want %v", age, got, want)
		}
	}
}

// An old request goes when the controller starts, and no young one does.
func TestOldRequestsGo(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		gone bool
	}{{podcertificate.MaxAge + time.Minute, true}, {podcertificate.MaxAge - time.Minute, false}} {
		reg := registrytest.New(t)
		requests := registry.For[*certificatesv1.PodCertificateRequest](reg)
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		req, err := requests.Create(t.Context(), &certificatesv1.PodCertificateRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", GenerateName: "req-"},
			Spec: certificatesv1.PodCertificateRequestSpec{
				SignerName: "a.example/s", PodName: "p", PodUID: "uid-p", ServiceAccountName: "default", ServiceAccountUID: "uid-a",
				NodeName: "n", NodeUID: "uid-n", StubPKCS10Request: proof,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		deleted := make(chan string, 1)
		cancel := requests.Subscribe(func(e registry.Event[*certificatesv1.PodCertificateRequest]) {
			if e.Type == watch.Deleted {
				deleted <- e.Object.Name
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		looked, done := make(chan struct{}, 8), make(chan error, 1)
		env := loop.Env{Registry: reg, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time {
			looked <- struct{}{}
			return req.CreationTimestamp.Add(c.age)
		}}
		go func() { done <- podcertificate.Run(ctx, env) }()
		<-looked
		if c.gone {
			select {
			case name := <-deleted:
				if name != req.Name {
					t.Errorf("%s is gone", name)
				}
			case <-time.After(10 * time.Second):
				t.Error("the old request is still there")
			}
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel()
		if _, there := requests.Get("ns", req.Name); there == c.gone {
			t.Errorf("of age %v: is there %v", c.age, there)
		}
	}
}
