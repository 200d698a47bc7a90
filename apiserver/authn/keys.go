package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// verifyKey is a public key under which tokens are accepted.
type verifyKey struct {
	id  string
	alg jose.SignatureAlgorithm
	key crypto.PublicKey
}

// tokenAlgorithms are the signature algorithms that a token may name, all of
// them asymmetric: upstream's list.
var tokenAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

func newVerifyKey(pub crypto.PublicKey) (verifyKey, error) {
	alg, err := algorithm(pub)
	if err != nil {
		return verifyKey{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return verifyKey{}, fmt.Errorf("failed to serialize public key to DER format: %v", err)
	}
	sum := sha256.Sum256(der)
	return verifyKey{id: base64.RawURLEncoding.EncodeToString(sum[:]), alg: alg, key: pub}, nil
}

func algorithm(pub crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
		return "", errors.New("unknown private key curve, must be 256, 384, or 521")
	}
	return "", fmt.Errorf("unknown key type %T, must be RSA or ECDSA", pub)
}

func newSigner(private crypto.Signer) (jose.Signer, verifyKey, error) {
	pub, err := newVerifyKey(private.Public())
	if err != nil {
		return nil, verifyKey{}, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: pub.alg,
		Key:       &jose.JSONWebKey{Algorithm: string(pub.alg), Key: private, KeyID: pub.id, Use: "sig"},
	}, nil)
	if err != nil {
		return nil, verifyKey{}, fmt.Errorf("failed to create signer: %v", err)
	}
	return signer, pub, nil
}

// openIDConfig is the part of an OpenID provider's metadata that a relying
// party needs to verify ServiceAccount tokens.
type openIDConfig struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	SigningAlgs   []string `json:"id_token_signing_alg_values_supported"`
}

// OpenIDConfig renders /.well-known/openid-configuration.
func (i *Issuer) OpenIDConfig() ([]byte, error) {
	algs := make([]string, 0, len(i.keys))
	for _, k := range i.keys {
		algs = append(algs, string(k.alg))
	}
	slices.Sort(algs)
	return json.Marshal(openIDConfig{
		Issuer:        i.issuer,
		JWKSURI:       i.jwksURI,
		ResponseTypes: []string{"id_token"},
		SubjectTypes:  []string{"public"},
		SigningAlgs:   slices.Compact(algs),
	})
}

// Keyset renders /openid/v1/jwks: the public keys under which tokens of this
// cluster are accepted.
func (i *Issuer) Keyset() ([]byte, error) {
	set := jose.JSONWebKeySet{}
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Algorithm: string(k.alg), Key: k.key, KeyID: k.id, Use: "sig"})
	}
	return json.Marshal(set)
}
