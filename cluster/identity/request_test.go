package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"testing"
	"time"
)

func request(t *testing.T, subject pkix.Name) *x509.CertificateRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: []string{"jane.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// A requested certificate is a client's, its subject's, for as long as it asked,
// and is not a device's.
func TestSignClient(t *testing.T) {
	id := open(t, t.TempDir(), at("2031-05-01"))
	for _, c := range []struct{ ttl, want time.Duration }{
		{time.Hour, time.Hour}, {time.Second, shortestRequested}, {0, longestRequested - backdate}, {5 * longestRequested, longestRequested - backdate},
	} {
		data, err := id.SignClient(request(t, pkix.Name{CommonName: "jane", Organization: []string{"devs"}}), x509.KeyUsageDigitalSignature, c.ttl)
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(data)
		if block == nil || len(rest) > 0 {
			t.Fatalf("not one PEM block: %s", data)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: id.CAPool(), CurrentTime: id.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		if got := cert.NotAfter.Sub(id.now()); got != c.want || cert.Subject.CommonName != "jane" || cert.IsCA {
			t.Errorf("%v: valid for %v, want %v; subject %v", c.ttl, got, c.want, cert.Subject)
		}
		if err := id.verifyDevice([]*x509.Certificate{cert}, x509.ExtKeyUsageClientAuth); err == nil {
			t.Error("a user passes for a device")
		}
	}
}

func TestSignClientRefusesTheClustersOwnNames(t *testing.T) {
	id := open(t, t.TempDir(), at("2031-05-01"))
	for _, subject := range []pkix.Name{
		{CommonName: "system:node:pi-1", Organization: []string{"system:nodes"}},
		{CommonName: "jane", Organization: []string{"devs", "system:masters"}},
		{CommonName: "front-proxy-client"},
	} {
		if _, err := id.SignClient(request(t, subject), x509.KeyUsageDigitalSignature, time.Hour); !errors.Is(err, ErrReserved) {
			t.Errorf("%v: %v", subject, err)
		}
	}
}
