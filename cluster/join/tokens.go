package join

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

const (
	// secretType and secretPrefix tell a token's Secret from others.
	secretType   = corev1.SecretType("edged.dev/join-token")
	secretPrefix = "edged-join-"

	keyHash        = "hash"
	keyExpires     = "expires" // RFC 3339; not there: never
	keyDescription = "description"
)

// ErrRefused is all that a client with a wrong token learns.
var ErrRefused = errors.New("the token is not valid here: it is unknown, expired or deleted")

// Info is what can be told of a token.
type Info struct {
	ID          string    `json:"id"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"` // zero: never
}

// Tokens are the cluster's. Its methods may be called from any goroutine.
type Tokens struct {
	secrets registry.Client[*corev1.Secret]
	ca      func() *x509.Certificate
	now     func() time.Time
}

// NewTokens keeps tokens for the cluster of ca as Secrets in kube-system.
func NewTokens(r *registry.Registry, ca func() *x509.Certificate, now func() time.Time) *Tokens {
	return &Tokens{registry.For[*corev1.Secret](r), ca, now}
}

// Create makes a token that is good for ttl, or until it is deleted if ttl is 0.
// Only its hash is kept.
func (t *Tokens) Create(ctx context.Context, ttl time.Duration, description string) (Token, error) {
	if ttl < 0 {
		return Token{}, fmt.Errorf("a token cannot be good for %v", ttl)
	}
	tok := NewToken(t.ca())
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: secretPrefix + tok.ID},
		Type:       secretType,
		Data:       map[string][]byte{keyHash: []byte(hash(tok.Secret))},
	}
	if description != "" {
		s.Data[keyDescription] = []byte(description)
	}
	if ttl > 0 {
		s.Data[keyExpires] = []byte(t.now().Add(ttl).UTC().Format(time.RFC3339))
	}
	if _, err := t.secrets.Create(ctx, s); err != nil {
		return Token{}, fmt.Errorf("keep the token: %w", err)
	}
	return tok, nil
}

// List returns the tokens that have not expired, oldest first.
func (t *Tokens) List() []Info {
	var out []Info
	for _, s := range t.secrets.List(metav1.NamespaceSystem) {
		info, ok := infoOf(s)
		if ok && (info.Expires.IsZero() || t.now().Before(info.Expires)) {
			out = append(out, info)
		}
	}
	slices.SortFunc(out, func(a, b Info) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out
}

func infoOf(s *corev1.Secret) (Info, bool) {
	id, ok := strings.CutPrefix(s.Name, secretPrefix)
	if !ok || s.Type != secretType {
		return Info{}, false
	}
	info := Info{ID: id, Description: string(s.Data[keyDescription]), Created: s.CreationTimestamp.Time}
	if at, ok := s.Data[keyExpires]; ok {
		expires, err := time.Parse(time.RFC3339, string(at))
		if err != nil {
			return Info{}, false // not what Create wrote: no token
		}
		info.Expires = expires
	}
	return info, true
}

// Delete revokes a token by its id, or by its whole text.
func (t *Tokens) Delete(ctx context.Context, token string) error {
	id, _, _ := strings.Cut(token, ".")
	s, ok := t.secrets.Get(metav1.NamespaceSystem, secretPrefix+id)
	if ok {
		_, ok = infoOf(s)
	}
	if !ok {
		return fmt.Errorf("there is no token %q", id)
	}
	err := t.secrets.Delete(ctx, metav1.NamespaceSystem, s.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the token: %w", err)
	}
	return nil
}

// Check returns ErrRefused unless the secret is that of a valid token.
func (t *Tokens) Check(id, secret string) error {
	s, ok := t.secrets.Get(metav1.NamespaceSystem, secretPrefix+id)
	var info Info
	kept := ""
	if ok {
		if info, ok = infoOf(s); ok {
			kept = string(s.Data[keyHash])
		}
	}
	// Compared in any case, so that an unknown id takes as long.
	if same := matches(secret, kept); !ok || !same {
		return ErrRefused
	}
	if !info.Expires.IsZero() && !t.now().Before(info.Expires) {
		return ErrRefused
	}
	return nil
}

// DeleteExpired removes tokens that are of no use any more.
func (t *Tokens) DeleteExpired(ctx context.Context) error {
	var errs []error
	for _, s := range t.secrets.List(metav1.NamespaceSystem) {
		if info, ok := infoOf(s); ok && !info.Expires.IsZero() && !t.now().Before(info.Expires) {
			errs = append(errs, t.Delete(ctx, info.ID))
		}
	}
	return errors.Join(errs...)
}
