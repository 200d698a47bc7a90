package authn

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
)

const (
	// secretIssuer is the "iss" of tokens that Secrets hold, in all clusters.
	secretIssuer = "kubernetes/serviceaccount"
	// invalidSinceLabel takes a Secret's token out of use, as upstream's cleaner does.
	invalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
)

// secretClaims are the private claims of a Secret's token. It has no end: it is good
// while the Secret holds it.
type secretClaims struct {
	Namespace   string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
	SecretName  string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	AccountName string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	AccountUID  string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
}

// SecretToken makes the token of a Secret of type kubernetes.io/service-account-token.
// Source: pkg/serviceaccount/legacy.go of k8s.io/kubernetes.
func (i *Issuer) SecretToken(sa *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	public := jwt.Claims{Issuer: secretIssuer, Subject: serviceaccount.MakeUsername(sa.Namespace, sa.Name)}
	private := secretClaims{Namespace: sa.Namespace, SecretName: secret.Name, AccountName: sa.Name, AccountUID: string(sa.UID)}
	return jwt.Signed(i.signer).Claims(private).Claims(public).Serialize()
}

// checkSecret requires that the Secret still holds the token, and that its account is
// there.
func (i *Issuer) checkSecret(ctx context.Context, token string, t checkedToken) (*serviceaccount.ServiceAccountInfo, error) {
	c := t.secret
	if c.Namespace == "" || c.SecretName == "" || c.AccountName == "" || c.AccountUID == "" {
		return nil, errors.New("a claim of the token is missing")
	}
	if t.public.Subject != serviceaccount.MakeUsername(c.Namespace, c.AccountName) {
		return nil, errors.New("sub claim is invalid")
	}
	secret, err := lookup[*corev1.Secret](ctx, i.objects, "secrets", c.Namespace, c.SecretName)
	if err != nil || secret.DeletionTimestamp != nil {
		return nil, errInvalidated
	}
	if subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(token)) == 0 {
		return nil, errors.New("token does not match server's copy")
	}
	sa, err := lookup[*corev1.ServiceAccount](ctx, i.objects, "serviceaccounts", c.Namespace, c.AccountName)
	switch {
	case err != nil:
		return nil, err
	case sa.DeletionTimestamp != nil:
		return nil, fmt.Errorf("service account %s/%s has been deleted", c.Namespace, c.AccountName)
	case string(sa.UID) != c.AccountUID:
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", sa.UID, c.AccountUID)
	case secret.Labels[invalidSinceLabel] != "":
		return nil, fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			c.Namespace, c.SecretName, c.Namespace, c.AccountName, invalidSinceLabel)
	}
	return &serviceaccount.ServiceAccountInfo{Namespace: c.Namespace, Name: c.AccountName, UID: c.AccountUID}, nil
}
