package authn

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	authenticationapi "k8s.io/kubernetes/pkg/apis/authentication"
	conversion "k8s.io/kubernetes/pkg/apis/authentication/v1"
	"k8s.io/kubernetes/pkg/apis/authentication/validation"
)

const (
	// warnOnlyBoundTokenExpirationSeconds is the lifetime that the
	// ServiceAccount admission asks for; a token of exactly this lifetime is
	// honored for a year, for Pods that never read their token again.
	warnOnlyBoundTokenExpirationSeconds = 60*60 + 7
	expirationExtensionSeconds          = 365 * 24 * 60 * 60

	defaultExpirationSeconds = 60 * 60
)

// IssuerConfig is what an Issuer needs.
type IssuerConfig struct {
	// Issuer is the "iss" of tokens, an https URL, e.g.
	// https://kubernetes.default.svc.cluster.local.
	Issuer string
	// JWKSURI is where the key set is found; empty is Issuer + /openid/v1/jwks.
	JWKSURI string
	// Audiences are the API server's own; empty is the issuer alone.
	Audiences []string
	// SigningKey signs new tokens (RSA or ECDSA).
	SigningKey crypto.Signer
	// VerifyKeys are further public keys under which tokens are accepted:
	// those of a rotation in progress.
	VerifyKeys []crypto.PublicKey
	Objects    Objects
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Issuer makes and verifies ServiceAccount tokens.
type Issuer struct {
	issuer, jwksURI string
	audiences       authenticator.Audiences
	signer          jose.Signer
	keys            []verifyKey // the signing key's first
	objects         Objects
	now             func() time.Time
	checked         checkedTokens
}

// NewIssuer returns an Issuer.
func NewIssuer(cfg IssuerConfig) (*Issuer, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("issuer URL must be https without query and fragment, got: %s", cfg.Issuer)
	}
	signer, own, err := newSigner(cfg.SigningKey)
	if err != nil {
		return nil, fmt.Errorf("token signing key: %w", err)
	}
	i := &Issuer{
		issuer: cfg.Issuer, jwksURI: cfg.JWKSURI, audiences: cfg.Audiences,
		signer: signer, keys: []verifyKey{own}, objects: cfg.Objects, now: cfg.Now,
	}
	if i.jwksURI == "" {
		i.jwksURI = cfg.Issuer + "/openid/v1/jwks"
	}
	if len(i.audiences) == 0 {
		i.audiences = authenticator.Audiences{cfg.Issuer}
	}
	if i.now == nil {
		i.now = time.Now
	}
	for _, pub := range cfg.VerifyKeys {
		k, err := newVerifyKey(pub)
		if err != nil {
			return nil, fmt.Errorf("token verification key: %w", err)
		}
		if k.id != own.id {
			i.keys = append(i.keys, k)
		}
	}
	return i, nil
}

// Audiences are the audiences of the API server itself.
func (i *Issuer) Audiences() authenticator.Audiences { return i.audiences }

var tokenRequestKind = schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}

// TokenRequest answers the token subresource of a ServiceAccount: it checks
// the request against the account and the object to bind to and returns a copy
// with the token in its status.
func (i *Issuer) TokenRequest(ctx context.Context, namespace, name string, in *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	if err := matchURL(namespace, name, in); err != nil {
		return nil, err
	}
	sa, err := lookup[*corev1.ServiceAccount](ctx, i.objects, "serviceaccounts", namespace, name)
	if err != nil {
		return nil, err
	}
	if in.UID != "" && in.UID != sa.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Group: tokenRequestKind.Group, Resource: tokenRequestKind.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", in.UID, sa.UID))
	}
	now := i.now()
	req := in.DeepCopy()
	i.complete(req, sa, now)
	if err := validate(req); err != nil {
		return nil, err
	}
	b, err := i.bind(ctx, namespace, name, req.Spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	lifetime, warnAfter := *req.Spec.ExpirationSeconds, int64(0)
	if b.pod != nil && lifetime == warnOnlyBoundTokenExpirationSeconds && i.ownAudiences(req.Spec.Audiences) {
		lifetime, warnAfter = expirationExtensionSeconds, lifetime
	}
	token, err := i.sign(sa, b, req.Spec.Audiences, now, lifetime, warnAfter)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("failed to generate token: %v", err))
	}
	req.Status = authenticationv1.TokenRequestStatus{
		Token:               token,
		ExpirationTimestamp: metav1.NewTime(now.Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second)),
	}
	return req, nil
}

// matchURL requires name and namespace of the body, if given, to be the URL's.
func matchURL(namespace, name string, req *authenticationv1.TokenRequest) error {
	meta := field.NewPath("metadata")
	if req.Name != "" && req.Name != name {
		return apierrors.NewInvalid(tokenRequestKind, name, field.ErrorList{
			field.Invalid(meta.Child("name"), req.Name, "must match the service account name if specified")})
	}
	if req.Namespace != "" && req.Namespace != namespace {
		return apierrors.NewInvalid(tokenRequestKind, name, field.ErrorList{
			field.Invalid(meta.Child("namespace"), req.Namespace, "must match the service account namespace if specified")})
	}
	return nil
}

// complete fills in what the caller left out.
func (i *Issuer) complete(req *authenticationv1.TokenRequest, sa *corev1.ServiceAccount, now time.Time) {
	req.Name, req.Namespace, req.UID = sa.Name, sa.Namespace, sa.UID
	req.CreationTimestamp = metav1.NewTime(now)
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = i.audiences
	}
	if req.Spec.ExpirationSeconds == nil {
		seconds := int64(defaultExpirationSeconds)
		req.Spec.ExpirationSeconds = &seconds
	}
	req.Status = authenticationv1.TokenRequestStatus{}
}

func validate(req *authenticationv1.TokenRequest) error {
	internal := &authenticationapi.TokenRequest{}
	if err := conversion.Convert_v1_TokenRequest_To_authentication_TokenRequest(req, internal, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidateTokenRequest(internal); len(errs) > 0 {
		return apierrors.NewInvalid(tokenRequestKind, "", errs)
	}
	return nil
}

// binding is what a token's life depends on besides its ServiceAccount.
type binding struct {
	pod    *corev1.Pod
	secret *corev1.Secret
	node   *ref // of a Pod's token: where it runs; alone: bound to the Node
}

func (i *Issuer) bind(ctx context.Context, namespace, account string, to *authenticationv1.BoundObjectReference) (binding, error) {
	var b binding
	if to == nil {
		return b, nil
	}
	gvk := schema.FromAPIVersionAndKind(to.APIVersion, to.Kind)
	var uid types.UID
	switch {
	case gvk.Group == "" && gvk.Kind == "Pod":
		pod, err := lookup[*corev1.Pod](ctx, i.objects, "pods", namespace, to.Name)
		if err != nil {
			return b, err
		}
		if account != pod.Spec.ServiceAccountName {
			return b, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", account))
		}
		b.pod, uid = pod, pod.UID
		if pod.Spec.NodeName != "" {
			b.node = &ref{Name: pod.Spec.NodeName}
			if node, err := lookup[*corev1.Node](ctx, i.objects, "nodes", "", pod.Spec.NodeName); err == nil {
				b.node.UID = string(node.UID)
			}
		}
	case gvk.Group == "" && gvk.Kind == "Node":
		node, err := lookup[*corev1.Node](ctx, i.objects, "nodes", "", to.Name)
		if err != nil {
			return b, err
		}
		b.node, uid = &ref{Name: node.Name, UID: string(node.UID)}, node.UID
	case gvk.Group == "" && gvk.Kind == "Secret":
		secret, err := lookup[*corev1.Secret](ctx, i.objects, "secrets", namespace, to.Name)
		if err != nil {
			return b, err
		}
		b.secret, uid = secret, secret.UID
	default:
		return b, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
	}
	if to.UID != "" && to.UID != uid {
		return b, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, to.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", to.UID))
	}
	return b, nil
}

func (i *Issuer) ownAudiences(auds []string) bool {
	return len(i.audiences.Intersect(auds)) == len(auds)
}

func (i *Issuer) sign(sa *corev1.ServiceAccount, b binding, audiences []string, now time.Time, lifetime, warnAfter int64) (string, error) {
	public := jwt.Claims{
		Issuer:    i.issuer,
		Subject:   serviceaccount.MakeUsername(sa.Namespace, sa.Name),
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(now.Add(time.Duration(lifetime) * time.Second)),
		ID:        newUUID(),
	}
	private := claims{Kubernetes: kubernetesClaims{
		Namespace: sa.Namespace,
		Account:   ref{Name: sa.Name, UID: string(sa.UID)},
		Node:      b.node,
	}}
	switch {
	case b.pod != nil:
		private.Kubernetes.Pod = &ref{Name: b.pod.Name, UID: string(b.pod.UID)}
	case b.secret != nil:
		private.Kubernetes.Secret = &ref{Name: b.secret.Name, UID: string(b.secret.UID)}
	}
	if warnAfter != 0 {
		private.Kubernetes.WarnAfter = jwt.NewNumericDate(now.Add(time.Duration(warnAfter) * time.Second))
	}
	// A list also if it is one, as in Kubernetes' tokens: there are readers that take
	// no string. jwt.Audience would be one.
	whom := struct {
		Audience []string `json:"aud"`
	}{audiences}
	return jwt.Signed(i.signer).Claims(private).Claims(public).Claims(whom).Serialize()
}

// newUUID returns a random UUID (RFC 9562 version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// lookup reads one object, from the replica first. An object that is not there
// may have been made a moment ago on another device, so it is asked for again.
func lookup[T any](ctx context.Context, objects Objects, resource, namespace, name string) (T, error) {
	var zero T
	gr := schema.GroupResource{Resource: resource}
	obj, err := objects.Get(ctx, gr, namespace, name, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = objects.Get(ctx, gr, namespace, name, metav1.GetOptions{})
	}
	if err != nil {
		return zero, err
	}
	t, ok := obj.(T)
	if !ok {
		return zero, apierrors.NewInternalError(errors.New("unexpected type of " + resource))
	}
	return t, nil
}
