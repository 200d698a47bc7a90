package authn

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Objects is how this package reads the objects that a token is bound to.
type Objects interface {
	Get(ctx context.Context, gr schema.GroupResource, namespace, name string, opts metav1.GetOptions) (runtime.Object, error)
}

// Config is what an Authenticator needs.
type Config struct {
	// ClientCAs verify client certificates; nil turns them off.
	ClientCAs *x509.CertPool
	// Issuer verifies ServiceAccount tokens; nil turns them off.
	Issuer *Issuer
	// Tokens are further bearer token authenticators, tried in order after the
	// issuer's.
	Tokens []authenticator.Token
	// Anonymous lets requests without any credential through as
	// system:anonymous; false answers them with 401.
	Anonymous bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Authenticator identifies the sender of a request. It implements
// authenticator.Request and authenticator.Token.
type Authenticator struct {
	certs     *certVerifier
	issuer    *Issuer
	tokens    []authenticator.Token
	anonymous bool
}

// ErrInvalidToken is returned for a bearer token that nobody recognizes.
var ErrInvalidToken = errors.New("invalid bearer token")

// New returns an Authenticator.
func New(cfg Config) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Authenticator{issuer: cfg.Issuer, tokens: cfg.Tokens, anonymous: cfg.Anonymous}
	if cfg.ClientCAs != nil {
		a.certs = newCertVerifier(cfg.ClientCAs, cfg.Now)
	}
	return a
}

// TrustClientCAs replaces the CAs that verify client certificates, of an
// Authenticator that was made with some.
func (a *Authenticator) TrustClientCAs(pool *x509.CertPool) { a.certs.trust(pool) }

// AuthenticateRequest tells who sent the request. It removes the
// Authorization header of a request that it accepted, so that a proxied
// request does not carry the caller's credential on.
func (a *Authenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if a.certs != nil && req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		resp, ok, err := a.certs.authenticate(req.TLS.PeerCertificates)
		if ok {
			return authenticated(resp), true, nil
		}
		if err != nil && bearerToken(req) == "" {
			return nil, false, err
		}
	}
	if token := bearerToken(req); token != "" {
		resp, ok, err := a.AuthenticateToken(req.Context(), token)
		if !ok {
			return nil, false, err
		}
		req.Header.Del("Authorization")
		removeTokenProtocol(req)
		return resp, true, nil
	}
	if a.anonymous {
		return &authenticator.Response{User: &user.DefaultInfo{
			Name:   user.Anonymous,
			Groups: []string{user.AllUnauthenticated},
		}}, true, nil
	}
	return nil, false, nil
}

// AuthenticateToken tells whom a bearer token stands for. The audiences wanted
// are taken from ctx; none means the API server's own. A token that stands for nobody
// is an error.
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	var errs []error
	if a.issuer != nil {
		resp, ok, err := a.issuer.AuthenticateToken(ctx, token)
		if ok {
			return authenticated(resp), true, nil
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, t := range a.tokens {
		resp, ok, err := t.AuthenticateToken(ctx, token)
		if ok {
			return authenticated(resp), true, nil
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil, false, ErrInvalidToken
	}
	return nil, false, errors.Join(errs...)
}

// authenticated adds the group that everybody with a credential is in.
func authenticated(resp *authenticator.Response) *authenticator.Response {
	u := resp.User
	for _, g := range u.GetGroups() {
		if g == user.AllAuthenticated || g == user.AllUnauthenticated {
			return resp
		}
	}
	groups := make([]string, 0, len(u.GetGroups())+1)
	groups = append(append(groups, u.GetGroups()...), user.AllAuthenticated)
	return &authenticator.Response{
		Audiences: resp.Audiences,
		User:      &user.DefaultInfo{Name: u.GetName(), UID: u.GetUID(), Groups: groups, Extra: u.GetExtra()},
	}
}

// tokenProtocolPrefix marks a WebSocket subprotocol that carries a bearer
// token, the only place where a browser can put one.
const tokenProtocolPrefix = "base64url.bearer.authorization.k8s.io."

func bearerToken(req *http.Request) string {
	auth := strings.TrimSpace(req.Header.Get("Authorization"))
	if auth == "" {
		return protocolToken(req)
	}
	scheme, token, ok := strings.Cut(auth, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
