package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"edged/apiserver"
	"edged/apiserver/admission"
	"edged/apiserver/authn"
	"edged/apiserver/authz"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

// env is an API server over TLS with a registry of its own, and the authority
// of its clients' certificates.
type env struct {
	t        testing.TB
	reg      *registry.Registry
	server   *apiserver.Server
	url      string
	serverCA []byte
	ca       *x509.Certificate
	caKey    *ecdsa.PrivateKey
}

const issuer = "https://kubernetes.default.svc.cluster.local"

// newEnv starts a server with upstream's bootstrap roles. change may alter its
// configuration.
func newEnv(t testing.TB, change func(*apiserver.Config)) *env {
	t.Helper()
	e := &env{t: t, reg: registrytest.New(t)}
	e.caKey = newKey(t)
	e.ca = certificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, e.caKey, e.caKey)
	pool := x509.NewCertPool()
	pool.AddCert(e.ca)
	tokens, err := authn.NewIssuer(authn.IssuerConfig{Issuer: issuer, SigningKey: newKey(t), Objects: e.reg})
	must(t, err)
	decide, err := authz.New(authz.FromRegistry(e.reg))
	must(t, err)
	chain, err := admission.New(admission.Config{Registry: e.reg, Escalation: decide})
	must(t, err)
	e.reg.SetAdmission(chain)
	cfg := apiserver.Config{
		Admission:     chain,
		Registry:      e.reg,
		Authenticator: authn.New(authn.Config{ClientCAs: pool, Issuer: tokens, Anonymous: true}),
		Authorizer:    decide,
		Tokens:        tokens,
		Version:       version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2+edged"},
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := apiserver.New(cfg)
	must(t, err)
	e.server = srv
	ts := httptest.NewUnstartedServer(srv)
	ts.EnableHTTP2 = true
	ts.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	ts.StartTLS()
	t.Cleanup(func() {
		ts.CloseClientConnections()
		ts.Close()
	})
	e.url = ts.URL
	e.serverCA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	e.bootstrap()
	return e
}

// bootstrap writes upstream's roles and the namespaces that tests use.
func (e *env) bootstrap() {
	e.t.Helper()
	objs, err := authz.BootstrapObjects()
	must(e.t, err)
	for _, name := range []string{"default", "kube-system", "kube-public"} {
		objs = append(objs, &corev1.Namespace{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	objs = append(objs, &corev1.ServiceAccount{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}})
	for _, o := range namespacesFirst(objs) {
		gvk := o.GetObjectKind().GroupVersionKind()
		for _, k := range e.reg.Kinds() {
			if k.GVK != gvk {
				continue
			}
			if _, err := e.reg.Create(context.Background(), k.GroupResource(), o.(metav1.Object).GetNamespace(), o, registry.CreateOptions{}); err != nil {
				e.t.Fatalf("bootstrapping %s: %v", gvk.Kind, err)
			}
		}
	}
}

func namespacesFirst(objs []runtime.Object) []runtime.Object {
	slices.SortStableFunc(objs, func(a, b runtime.Object) int {
		_, first := a.(*corev1.Namespace)
		_, second := b.(*corev1.Namespace)
		switch {
		case first && !second:
			return -1
		case second && !first:
			return 1
		}
		return 0
	})
	return objs
}

// config is a client configuration for a user with a certificate.
func (e *env) config(user string, groups ...string) *rest.Config {
	e.t.Helper()
	key := newKey(e.t)
	cert := certificate(e.t, &x509.Certificate{
		Subject: pkix.Name{CommonName: user, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, e.ca, key, e.caKey)
	der, err := x509.MarshalECPrivateKey(key)
	must(e.t, err)
	return &rest.Config{Host: e.url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData:   e.serverCA,
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}}
}

func (e *env) admin() *rest.Config { return e.config("admin", "system:masters") }

func (e *env) clientset(cfg *rest.Config) *kubernetes.Clientset {
	e.t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	must(e.t, err)
	return c
}

// do sends one request and returns the response, its body still open.
func (e *env) do(cfg *rest.Config, method, path string, header http.Header) *http.Response {
	e.t.Helper()
	tr, err := rest.HTTPClientFor(cfg)
	must(e.t, err)
	req, err := http.NewRequest(method, e.url+path, nil)
	must(e.t, err)
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := tr.Do(req)
	must(e.t, err)
	e.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}

func certificate(t testing.TB, tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
