package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"

	"edged/apiserver/authn"
)

// objects are a cluster of a few objects, by resource/namespace/name.
type objects map[string]runtime.Object

func (o objects) Get(_ context.Context, gr schema.GroupResource, ns, name string, _ metav1.GetOptions) (runtime.Object, error) {
	if obj, ok := o[gr.Resource+"/"+ns+"/"+name]; ok {
		return obj, nil
	}
	return nil, apierrors.NewNotFound(gr, name)
}

func cluster() objects {
	return objects{
		"serviceaccounts/ns/robot": &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "robot", UID: "u-robot"}},
		"pods/ns/p": &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u-p"},
			Spec: corev1.PodSpec{ServiceAccountName: "robot", NodeName: "n1"}},
		"nodes//n1":    &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u-n1"}},
		"secrets/ns/s": &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s", UID: "u-s"}},
	}
}

const (
	issuerURL = "https://kubernetes.default.svc.cluster.local"
	other     = "https://vault.example"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newIssuer(t *testing.T, o objects, c *clock, extra ...any) *authn.Issuer {
	t.Helper()
	cfg := authn.IssuerConfig{Issuer: issuerURL, SigningKey: ecKey(t), Objects: o, Now: c.Now}
	for _, x := range extra {
		if k, ok := x.(*ecdsa.PrivateKey); ok {
			cfg.SigningKey = k
		}
		if k, ok := x.(*ecdsa.PublicKey); ok {
			cfg.VerifyKeys = append(cfg.VerifyKeys, k)
		}
	}
	i, err := authn.NewIssuer(cfg)
	must(t, err)
	return i
}

func token(t *testing.T, i *authn.Issuer, spec authenticationv1.TokenRequestSpec) string {
	t.Helper()
	tr, err := i.TokenRequest(context.Background(), "ns", "robot", &authenticationv1.TokenRequest{Spec: spec})
	must(t, err)
	return tr.Status.Token
}

func bound(kind, name string) authenticationv1.TokenRequestSpec {
	return authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name}}
}

// TestBoundToken: a token lives as long as what it is bound to, with that UID.
func TestBoundToken(t *testing.T) {
	for _, tt := range []struct{ kind, name, key string }{
		{"Pod", "p", "pods/ns/p"}, {"Secret", "s", "secrets/ns/s"}, {"Node", "n1", "nodes//n1"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			o, c := cluster(), &clock{time.Now()}
			i := newIssuer(t, o, c)
			tok := token(t, i, bound(tt.kind, tt.name))
			resp, ok, err := i.AuthenticateToken(context.Background(), tok)
			if !ok || err != nil {
				t.Fatalf("fresh token: %v %v", ok, err)
			}
			if resp.User.GetName() != "system:serviceaccount:ns:robot" || resp.User.GetUID() != "u-robot" {
				t.Errorf("user %v", resp.User)
			}
			extra := resp.User.GetExtra()
			if tt.kind == "Pod" && (extra["authentication.kubernetes.io/pod-name"][0] != "p" || extra["authentication.kubernetes.io/node-uid"][0] != "u-n1") {
				t.Errorf("extra %v", extra)
			}
			if id := extra["authentication.kubernetes.io/credential-id"]; len(id) != 1 || !strings.HasPrefix(id[0], "JTI=") {
				t.Errorf("credential %v", id)
			}
			gone := o[tt.key]
			delete(o, tt.key)
			if _, ok, err := i.AuthenticateToken(context.Background(), tok); ok || err == nil {
				t.Error("the token outlived its object")
			}
			again := gone.DeepCopyObject()
			again.(metav1.Object).SetUID("another")
			o[tt.key] = again
			if _, ok, err := i.AuthenticateToken(context.Background(), tok); ok || err == nil || !strings.Contains(err.Error(), "does not match service account") {
				t.Errorf("the token is honored for another object of that name: %v", err)
			}
		})
	}
}

// TestTokenTimes: expiry, not-before, and the year of grace for tokens of the
// standard volume.
func TestTokenTimes(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	i := newIssuer(t, o, c)
	start := c.now
	seconds := int64(600)
	short := token(t, i, authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds})
	volume := int64(3607)
	spec := bound("Pod", "p")
	spec.ExpirationSeconds = &volume
	long := token(t, i, spec)
	for _, tt := range []struct {
		after             time.Duration
		shortErr, longErr string
	}{
		{0, "", ""},
		{599 * time.Second, "", ""},
		{700 * time.Second, "has expired", ""},
		{24 * time.Hour, "has expired", ""},
		{366 * 24 * time.Hour, "has expired", "has expired"},
		{-time.Hour, "not valid yet", "not valid yet"},
	} {
		c.now = start.Add(tt.after)
		for tok, want := range map[string]string{short: tt.shortErr, long: tt.longErr} {
			_, ok, err := i.AuthenticateToken(context.Background(), tok)
			if want == "" != ok || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("after %v: %v %v, want %q", tt.after, ok, err, want)
			}
		}
	}
}

func TestAudiences(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	i := newIssuer(t, o, c)
	tok := token(t, i, authenticationv1.TokenRequestSpec{Audiences: []string{other}})
	if _, ok, err := i.AuthenticateToken(context.Background(), tok); ok || err == nil {
		t.Error("a token for somebody else was taken")
	}
	resp, ok, err := i.AuthenticateToken(authenticator.WithAudiences(context.Background(), authenticator.Audiences{other, "x"}), tok)
	if !ok || err != nil || len(resp.Audiences) != 1 || resp.Audiences[0] != other {
		t.Errorf("%v %v %v", resp, ok, err)
	}
}

// TestForgedTokens: other keys, other issuers, no algorithm, changed claims.
func TestForgedTokens(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	i := newIssuer(t, o, c)
	good := token(t, i, authenticationv1.TokenRequestSpec{})
	parts := strings.Split(good, ".")
	var claims map[string]any
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(t, err)
	must(t, json.Unmarshal(payload, &claims))
	claims["sub"] = "system:serviceaccount:kube-system:admin"
	changed, err := json.Marshal(claims)
	must(t, err)
	forged := map[string]string{
		"another key":  token(t, newIssuer(t, o, c), authenticationv1.TokenRequestSpec{}),
		"changed":      parts[0] + "." + base64.RawURLEncoding.EncodeToString(changed) + "." + parts[2],
		"no algorithm": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"cut":          good[:len(good)-4],
	}
	for name, tok := range forged {
		if _, ok, err := i.AuthenticateToken(context.Background(), tok); ok || err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, ok, err := i.AuthenticateToken(context.Background(), "not.a.token"); ok || err != nil {
		t.Errorf("somebody else's token: %v %v", ok, err)
	}
}

// TestKeyRotation: tokens of the former key are accepted as long as it is
// listed; both are in the key set.
func TestKeyRotation(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	former := ecKey(t)
	tok := token(t, newIssuer(t, o, c, former), authenticationv1.TokenRequestSpec{})
	next := newIssuer(t, o, c, &former.PublicKey)
	if _, ok, err := next.AuthenticateToken(context.Background(), tok); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	set, err := next.Keyset()
	must(t, err)
	var jwks struct {
		Keys []struct{ Kty, Alg, Use, Kid, D string }
	}
	must(t, json.Unmarshal(set, &jwks))
	if len(jwks.Keys) != 2 || jwks.Keys[0].Alg != "ES256" || jwks.Keys[0].Use != "sig" || jwks.Keys[0].D != "" {
		t.Errorf("key set %s", set)
	}
	config, err := next.OpenIDConfig()
	must(t, err)
	if !strings.Contains(string(config), `"jwks_uri":"`+issuerURL+`/openid/v1/jwks"`) {
		t.Errorf("configuration %s", config)
	}
}

func TestRSAKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	i, err := authn.NewIssuer(authn.IssuerConfig{Issuer: issuerURL, SigningKey: key, Objects: cluster()})
	must(t, err)
	if _, ok, err := i.AuthenticateToken(context.Background(), token(t, i, authenticationv1.TokenRequestSpec{})); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

// TestTokenRequestRefused lists what a token may not be bound to.
func TestTokenRequestRefused(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	o["pods/ns/alien"] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "alien"}, Spec: corev1.PodSpec{ServiceAccountName: "other"}}
	i := newIssuer(t, o, c)
	wrong := bound("Pod", "p")
	wrong.BoundObjectRef.UID = "former"
	for name, tt := range map[string]struct {
		req  *authenticationv1.TokenRequest
		want string
	}{
		"no account":    {&authenticationv1.TokenRequest{}, ""},
		"other account": {&authenticationv1.TokenRequest{Spec: bound("Pod", "alien")}, "different serviceaccount name"},
		"no pod":        {&authenticationv1.TokenRequest{Spec: bound("Pod", "none")}, "not found"},
		"kind":          {&authenticationv1.TokenRequest{Spec: bound("Service", "s")}, "cannot bind token to object of type"},
		"uid":           {&authenticationv1.TokenRequest{Spec: wrong}, "does not match the UID in record"},
		"account uid":   {&authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: "x"}}, "does not match the UID of the service account"},
		"name":          {&authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, "must match the service account name"},
	} {
		account := "robot"
		if tt.want == "" {
			account, tt.want = "none", "not found"
		}
		_, err := i.TokenRequest(context.Background(), "ns", account, tt.req)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// authority makes client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) client(t *testing.T, cn string, until time.Time, usage x509.ExtKeyUsage, groups ...string) *x509.Certificate {
	t.Helper()
	return makeCert(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: cn, Organization: groups}, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.cert, a.key)
}

func newAuthority(t *testing.T) *authority {
	a := &authority{key: ecKey(t)}
	a.cert = makeCert(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(100 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key)
	return a
}

func makeCert(t *testing.T, tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	key := ecKey(t)
	if parent == nil {
		parent, key = tmpl, signer
	}
	tmpl.SerialNumber, tmpl.NotBefore = big.NewInt(7), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

func TestClientCertificates(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	c := &clock{time.Now()}
	a := authn.New(authn.Config{ClientCAs: pool, Now: c.Now})
	soon := c.now.Add(time.Hour)
	ask := func(cert *x509.Certificate) (string, error) {
		req := httptest.NewRequest("GET", "/", nil)
		if cert != nil {
			req.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		}
		resp, ok, err := a.AuthenticateRequest(req)
		if !ok {
			return "", err
		}
		return resp.User.GetName() + " " + strings.Join(resp.User.GetGroups(), ","), err
	}
	good := ours.client(t, "ann", soon, x509.ExtKeyUsageClientAuth, "devs")
	for range 2 { // verified, then remembered
		if u, err := ask(good); u != "ann devs,system:authenticated" || err != nil {
			t.Errorf("%q %v", u, err)
		}
	}
	for name, cert := range map[string]*x509.Certificate{
		"another authority": theirs.client(t, "ann", soon, x509.ExtKeyUsageClientAuth),
		"a server's":        ours.client(t, "ann", soon, x509.ExtKeyUsageServerAuth),
		"none":              nil,
		"nameless":          ours.client(t, "", soon, x509.ExtKeyUsageClientAuth),
	} {
		if u, _ := ask(cert); u != "" {
			t.Errorf("%s: let in as %q", name, u)
		}
	}
	c.now = c.now.Add(2 * time.Hour)
	if u, err := ask(good); u != "" || err == nil {
		t.Errorf("a remembered certificate outlives its end: %q", u)
	}
}

// TestWebSocketToken: a browser can only put its token into the subprotocols.
func TestWebSocketToken(t *testing.T) {
	o, c := cluster(), &clock{time.Now()}
	i := newIssuer(t, o, c)
	a := authn.New(authn.Config{Issuer: i})
	req := httptest.NewRequest("GET", "/", nil)
	req.Header = http.Header{"Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {
		"base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token(t, i, authenticationv1.TokenRequestSpec{}))) + ", v5.channel.k8s.io"}}
	resp, ok, err := a.AuthenticateRequest(req)
	if !ok || err != nil || resp.User.GetName() != "system:serviceaccount:ns:robot" {
		t.Fatalf("%v %v", ok, err)
	}
	if got := req.Header.Get("Sec-Websocket-Protocol"); got != "v5.channel.k8s.io" {
		t.Errorf("the token goes on to the device: %q", got)
	}
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
