package signing_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/controller/loop"
	"edged/controller/signing"
)

const client = certificatesv1.KubeAPIServerClientSignerName

func TestReconcile(t *testing.T) {
	made := time.Unix(1_800_000_000, 0)
	approved, denied, failed := certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed
	for _, c := range []struct {
		what   string
		signer string
		conds  []certificatesv1.RequestConditionType // each an hour after it was made
		cert   string
		sign   bool
		gone   time.Duration // after it was made
	}{
		{"new", client, nil, "", false, 24 * time.Hour},
		{"approved", client, []certificatesv1.RequestConditionType{approved}, "", true, 25 * time.Hour},
		{"approved for another signer", "a.example/s", []certificatesv1.RequestConditionType{approved}, "", false, 25 * time.Hour},
		{"signed", client, []certificatesv1.RequestConditionType{approved}, "cert", false, 2 * time.Hour},
		{"denied", client, []certificatesv1.RequestConditionType{denied}, "", false, 2 * time.Hour},
		{"failed", client, []certificatesv1.RequestConditionType{approved, failed}, "", false, 2 * time.Hour},
	} {
		csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}, Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: c.signer}}
		for _, typ := range c.conds {
			csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: typ, Status: corev1.ConditionTrue, LastUpdateTime: metav1.NewTime(made.Add(time.Hour))})
		}
		csr.Status.Certificate = []byte(c.cert)
		sign, left := signing.Reconcile(csr, made.Add(10*time.Minute))
		if sign != c.sign || left != c.gone-10*time.Minute {
			t.Errorf("%s: sign %v, gone in %v; want %v, %v", c.what, sign, left, c.sign, c.gone-10*time.Minute)
		}
	}
}

// clerk certifies everybody but mallory.
type clerk struct{ cert []byte }

func (c clerk) SignClient(req *x509.CertificateRequest, _ x509.KeyUsage, ttl time.Duration) ([]byte, error) {
	if req.Subject.CommonName == "mallory" || ttl != time.Hour {
		return nil, errors.New("not this one")
	}
	return c.cert, nil
}

func newRequest(t *testing.T, name string, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	hour := int32(3600)
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: client, Usages: usages, ExpirationSeconds: &hour,
		},
	}
}

// Approved requests are answered, with a certificate or with why not, and go an
// hour later.
func TestApprovedRequests(t *testing.T) {
	reg := registrytest.New(t)
	requests := registry.For[*certificatesv1.CertificateSigningRequest](reg)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: nil}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for _, csr := range []*certificatesv1.CertificateSigningRequest{
		newRequest(t, "jane", certificatesv1.UsageClientAuth), newRequest(t, "mallory", certificatesv1.UsageClientAuth),
		newRequest(t, "server", certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth),
	} {
		if _, err := requests.Create(t.Context(), csr); err != nil {
			t.Fatal(err)
		}
		_, _, err := reg.Update(t.Context(), requests.Kind().GroupResource(), "", csr.Name, "approval", func(cur runtime.Object) (runtime.Object, error) {
			r := cur.(*certificatesv1.CertificateSigningRequest)
			r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", LastUpdateTime: metav1.Now()})
			return r, nil
		}, registry.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	answered, gone := make(chan *certificatesv1.CertificateSigningRequest, 16), make(chan string, 16)
	defer requests.Subscribe(func(e registry.Event[*certificatesv1.CertificateSigningRequest]) {
		switch {
		case e.Type == watch.Deleted:
			gone <- e.Object.Name
		case len(e.Object.Status.Certificate) > 0 || len(e.Object.Status.Conditions) > 1:
			answered <- e.Object
		}
	})()
	run := func(after time.Duration) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		env := loop.Env{Registry: reg, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(after) }}
		go func() { done <- signing.Run(clerk{cert})(ctx, env) }()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	stop := run(0)
	for range 3 {
		select {
		case csr := <-answered:
			last := csr.Status.Conditions[len(csr.Status.Conditions)-1]
			if signed := len(csr.Status.Certificate) > 0; signed != (csr.Name == "jane") || !signed && (last.Type != certificatesv1.CertificateFailed || last.Reason != "SignerValidationFailure") {
				t.Errorf("%s: signed %v, %v", csr.Name, signed, last)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("not all are answered")
		}
	}
	stop()
	defer run(time.Hour + time.Minute)()
	for range 3 {
		select {
		case <-gone:
		case <-time.After(60 * time.Second):
			t.Fatal("not all are gone")
		}
	}
}
