package identity

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// longestRequested is the longest that a requested certificate is valid:
	// upstream's --cluster-signing-duration.
	longestRequested  = 365 * 24 * time.Hour
	shortestRequested = 10 * time.Minute
	// backdate is for clients whose clock is behind, and is taken off the end of
	// what is valid for longer than short: upstream's.
	backdate = 5 * time.Minute
	short    = 8 * time.Hour
)

// ErrReserved is the refusal to certify a name that the cluster's own parts go by.
var ErrReserved = errors.New("the name is one that the cluster's own parts go by")

// SignClient certifies the subject of a request, whose signature was checked, as
// a user of the API, for ttl; zero is as long as may be, a year. Whoever approved
// the request vouches for the subject, but nobody becomes a device, an
// administrator or the front proxy in this way: [ErrReserved].
//
// The result is PEM, with a cross certificate behind it while the CA is replaced.
func (i *Identity) SignClient(req *x509.CertificateRequest, usage x509.KeyUsage, ttl time.Duration) ([]byte, error) {
	for _, reserved := range []string{nodesGroup, mastersGroup} {
		if slices.Contains(req.Subject.Organization, reserved) {
			return nil, fmt.Errorf("organization %q: %w", reserved, ErrReserved)
		}
	}
	if req.Subject.CommonName == frontProxyName {
		return nil, fmt.Errorf("common name %q: %w", frontProxyName, ErrReserved)
	}
	if ttl == 0 {
		ttl = longestRequested
	}
	ttl = min(max(ttl, shortestRequested), longestRequested)
	if ttl >= short {
		ttl -= backdate
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ca, now := i.ca.Load(), i.now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: req.Subject, NotBefore: now.Add(-backdate), NotAfter: now.Add(ttl),
		KeyUsage: usage, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		DNSNames: req.DNSNames, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses, URIs: req.URIs,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, req.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", req.Subject.CommonName, err)
	}
	return slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), encodeCerts(ca.cross)), nil
}
