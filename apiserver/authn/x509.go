package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// maxRememberedCerts bounds the map of verified certificates: more than the
// devices and people of a cluster, and 128 entries are about 40 KB.
const maxRememberedCerts = 128

// certVerifier verifies client certificates. A chain is verified once and its
// result kept until the first certificate of the chain expires: a device
// without elliptic curve instructions spends 2 ms on each verification, which
// a connection would otherwise pay with every request.
type certVerifier struct {
	now func() time.Time

	mu sync.Mutex
	// guarded by mu
	roots *x509.CertPool
	known map[[sha256.Size]byte]knownCert
}

type knownCert struct {
	resp                *authenticator.Response
	notBefore, notAfter time.Time
}

func newCertVerifier(roots *x509.CertPool, now func() time.Time) *certVerifier {
	return &certVerifier{roots: roots, now: now, known: map[[sha256.Size]byte]knownCert{}}
}

func (v *certVerifier) authenticate(peer []*x509.Certificate) (*authenticator.Response, bool, error) {
	leaf := peer[0]
	if leaf.Subject.CommonName == "" {
		return nil, false, nil
	}
	key, now := sha256.Sum256(leaf.Raw), v.now()
	v.mu.Lock()
	k, ok := v.known[key]
	roots := v.roots
	v.mu.Unlock()
	if ok && !now.Before(k.notBefore) && !now.After(k.notAfter) {
		return k.resp, true, nil
	}
	chain, err := verifyChain(roots, peer, now)
	if err != nil {
		return nil, false, err
	}
	k = knownCert{resp: certResponse(leaf, key), notBefore: leaf.NotBefore, notAfter: leaf.NotAfter}
	for _, c := range chain {
		if c.NotBefore.After(k.notBefore) {
			k.notBefore = c.NotBefore
		}
		if c.NotAfter.Before(k.notAfter) {
			k.notAfter = c.NotAfter
		}
	}
	v.remember(roots, key, k)
	return k.resp, true, nil
}

func verifyChain(roots *x509.CertPool, peer []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	opts := x509.VerifyOptions{
		Roots:         roots,
		CurrentTime:   now,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range peer[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := peer[0].Verify(opts)
	if err != nil {
		return nil, fmt.Errorf("verifying certificate %s failed: %w", certificateIdentifier(peer[0]), err)
	}
	return chains[0], nil
}

// trust replaces the roots and forgets what was verified by those before.
func (v *certVerifier) trust(roots *x509.CertPool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.roots, v.known = roots, map[[sha256.Size]byte]knownCert{}
}

func (v *certVerifier) remember(roots *x509.CertPool, key [sha256.Size]byte, k knownCert) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.roots != roots {
		return // they were replaced meanwhile
	}
	if len(v.known) >= maxRememberedCerts {
		for old := range v.known { // any one: the map's order is random
			delete(v.known, old)
			break
		}
	}
	v.known[key] = k
}

func certResponse(leaf *x509.Certificate, sum [sha256.Size]byte) *authenticator.Response {
	return &authenticator.Response{User: &user.DefaultInfo{
		Name:   leaf.Subject.CommonName,
		Groups: leaf.Subject.Organization,
		Extra:  map[string][]string{user.CredentialIDKey: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	}}
}

func certificateIdentifier(c *x509.Certificate) string {
	return fmt.Sprintf("SN=%d, SKID=%s, AKID=%s", c.SerialNumber, colonHex(c.SubjectKeyId), colonHex(c.AuthorityKeyId))
}

func colonHex(b []byte) string {
	parts := make([]string, len(b))
	for i := range b {
		parts[i] = fmt.Sprintf("%02X", b[i])
	}
	return strings.Join(parts, ":")
}
