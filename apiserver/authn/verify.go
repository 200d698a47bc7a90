package authn

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
)

// claims are the private claims of a ServiceAccount token.
type claims struct {
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
}

type kubernetesClaims struct {
	Namespace string           `json:"namespace,omitempty"`
	Account   ref              `json:"serviceaccount,omitempty"`
	Pod       *ref             `json:"pod,omitempty"`
	Secret    *ref             `json:"secret,omitempty"`
	Node      *ref             `json:"node,omitempty"`
	WarnAfter *jwt.NumericDate `json:"warnafter,omitempty"`
}

type ref struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

var errInvalidated = errors.New("service account token has been invalidated")

// AuthenticateToken tells which ServiceAccount a token stands for. A token of
// another issuer is none of its business: no answer, no error.
func (i *Issuer) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if iss := issuerOf(token); iss != i.issuer && iss != secretIssuer {
		return nil, false, nil
	}
	t, err := i.checkSignature(token)
	if err != nil {
		return nil, false, err
	}
	requested, ok := authenticator.AudiencesFrom(ctx)
	if !ok {
		requested = i.audiences
	}
	audiences := authenticator.Audiences(t.public.Audience)
	if len(audiences) == 0 && t.public.Issuer == secretIssuer {
		audiences = i.audiences
	}
	auds := audiences.Intersect(requested)
	if len(auds) == 0 && len(requested) > 0 {
		return nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(audiences), []string(requested))
	}
	now := i.now()
	if err := checkTimes(t.public, now); err != nil {
		return nil, false, err
	}
	var info *serviceaccount.ServiceAccountInfo
	if t.public.Issuer == secretIssuer {
		info, err = i.checkSecret(ctx, token, t)
	} else {
		info, err = i.checkObjects(ctx, t, now)
	}
	if err != nil {
		return nil, false, err
	}
	return &authenticator.Response{User: info.UserInfo(), Audiences: auds}, true, nil
}

// issuerOf peeks at the unverified payload for the issuer's name; "": it is no token.
func issuerOf(token string) string {
	if strings.HasPrefix(strings.TrimSpace(token), "{") {
		return ""
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return ""
	}
	return c.Issuer
}

func (i *Issuer) checkSignature(token string) (checkedToken, error) {
	key := sha256.Sum256([]byte(token))
	if t, ok := i.checked.get(key); ok {
		return t, nil
	}
	parsed, err := jwt.ParseSigned(token, tokenAlgorithms)
	if err != nil {
		return checkedToken{}, err
	}
	id := ""
	for _, h := range parsed.Headers {
		if h.KeyID != "" {
			id = h.KeyID
			break
		}
	}
	err = errors.New("invalid signature, no keys found")
	for _, k := range i.keys {
		if id != "" && id != k.id {
			continue
		}
		t := checkedToken{}
		if err = parsed.Claims(k.key, &t.public, &t.private, &t.secret); err == nil {
			if t.public.Issuer != i.issuer && t.public.Issuer != secretIssuer {
				return checkedToken{}, fmt.Errorf("token issuer %q is invalid", t.public.Issuer)
			}
			i.checked.put(key, t)
			return t, nil
		}
	}
	return checkedToken{}, err
}

func checkTimes(c jwt.Claims, now time.Time) error {
	err := c.Validate(jwt.Expected{Time: now})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrExpired):
		return errors.New("service account token has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return errors.New("service account token is not valid yet")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return errors.New("service account token is issued in the future")
	}
	return fmt.Errorf("service account token claims could not be validated: %w", err)
}

// checkObjects requires that the account and what the token is bound to still
// exist, with the UIDs that the token names.
func (i *Issuer) checkObjects(ctx context.Context, t checkedToken, now time.Time) (*serviceaccount.ServiceAccountInfo, error) {
	c := t.private.Kubernetes
	deletedBefore := now.Add(-jwt.DefaultLeeway)
	sa, err := lookup[*corev1.ServiceAccount](ctx, i.objects, "serviceaccounts", c.Namespace, c.Account.Name)
	if err != nil {
		return nil, err
	}
	if string(sa.UID) != c.Account.UID {
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", sa.UID, c.Account.UID)
	}
	if gone(&sa.ObjectMeta, deletedBefore) {
		return nil, fmt.Errorf("service account %s/%s has been deleted", c.Namespace, c.Account.Name)
	}
	info := &serviceaccount.ServiceAccountInfo{Namespace: c.Namespace, Name: c.Account.Name, UID: c.Account.UID}
	if t.public.ID != "" {
		info.CredentialID = "JTI=" + t.public.ID
	}
	if c.Secret != nil {
		secret, err := lookup[*corev1.Secret](ctx, i.objects, "secrets", c.Namespace, c.Secret.Name)
		if err != nil {
			return nil, errInvalidated
		}
		if err := sameObject("secret", &secret.ObjectMeta, c.Secret, deletedBefore); err != nil {
			return nil, err
		}
	}
	if c.Pod != nil {
		pod, err := lookup[*corev1.Pod](ctx, i.objects, "pods", c.Namespace, c.Pod.Name)
		if err != nil {
			return nil, errInvalidated
		}
		if err := sameObject("pod", &pod.ObjectMeta, c.Pod, deletedBefore); err != nil {
			return nil, err
		}
		info.PodName, info.PodUID = c.Pod.Name, c.Pod.UID
	}
	if c.Node == nil {
		return info, nil
	}
	if c.Pod == nil {
		node, err := lookup[*corev1.Node](ctx, i.objects, "nodes", "", c.Node.Name)
		if err != nil {
			return nil, errInvalidated
		}
		if err := sameObject("node", &node.ObjectMeta, c.Node, deletedBefore); err != nil {
			return nil, err
		}
	}
	info.NodeName, info.NodeUID = c.Node.Name, c.Node.UID
	return info, nil
}

func sameObject(what string, meta *metav1.ObjectMeta, want *ref, deletedBefore time.Time) error {
	if string(meta.UID) != want.UID {
		return fmt.Errorf("%s UID (%s) does not match service account %s ref claim (%s)", what, meta.UID, what, want.UID)
	}
	if gone(meta, deletedBefore) {
		return errInvalidated
	}
	return nil
}

func gone(meta *metav1.ObjectMeta, deletedBefore time.Time) bool {
	return meta.DeletionTimestamp != nil && meta.DeletionTimestamp.Time.Before(deletedBefore)
}

// maxCheckedTokens bounds the memory of verified tokens: one per Pod that
// talks to the API, about 1 KB each.
const maxCheckedTokens = 256

// checkedTokens remembers tokens whose signature was found good.
type checkedTokens struct {
	mu sync.Mutex // guards m
	m  map[[sha256.Size]byte]checkedToken
}

type checkedToken struct {
	public  jwt.Claims
	private claims
	secret  secretClaims
}

func (c *checkedTokens) get(key [sha256.Size]byte) (checkedToken, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.m[key]
	return t, ok
}

func (c *checkedTokens) put(key [sha256.Size]byte, t checkedToken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[[sha256.Size]byte]checkedToken{}
	}
	if len(c.m) >= maxCheckedTokens {
		for old := range c.m { // any one: the map's order is random
			delete(c.m, old)
			break
		}
	}
	c.m[key] = t
}
