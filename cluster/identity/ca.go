package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"time"

	"edged/internal/atomicfile"
)

// BuildTime is a lower bound of the true time: no certificate is issued as if
// it were earlier. It need only be raised now and then.
var BuildTime = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// noExpiry is RFC 5280's "no well-defined expiration date" (4.1.2.5). The CA is
// replaced by rotation, not by a date that a card in a drawer would miss.
var noExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

var epoch = time.Unix(0, 0).UTC()

// authority is what this device issues and verifies certificates with. It is
// replaced as a whole, never changed.
type authority struct {
	// cert and key sign.
	cert *x509.Certificate
	key  crypto.Signer
	// roots are trusted: cert, and while the CA is being replaced the one before.
	roots []*x509.Certificate
	// cross are certificates of cert's key, issued by an earlier root: who trusts
	// only that one follows them.
	cross []*x509.Certificate
}

// pool verifies certificates of the cluster.
func (a *authority) pool() *x509.CertPool { return poolOf(a.roots) }

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// pem is what clients need to trust.
func (a *authority) pem() []byte { return encodeCerts(a.roots) }

func encodeCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// bundle is the authority's certificates as ca.crt holds them: the one that
// signs, those that lead to it, earlier roots.
func (a *authority) bundle() []*x509.Certificate {
	return slices.Concat(a.roots[:1], a.cross, a.roots[1:])
}

// leaf says what a certificate is for. TTL counts from now; no more than that
// of it can differ between two devices of a cluster.
type leaf struct {
	commonName   string
	organization []string
	ips          []netip.Addr
	dnsNames     []string
	usage        []x509.ExtKeyUsage
	ttl          time.Duration
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// loadOrMakeKey reads the private key at path, or makes and stores one.
func loadOrMakeKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		key, err := newKey()
		if err != nil {
			return nil, fmt.Errorf("make a key for %s: %w", path, err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode the key for %s: %w", path, err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		return key, atomicfile.Write(path, block, 0o600)
	case err != nil:
		return nil, fmt.Errorf("read private key: %w", err)
	}
	keys, err := parseKeys(path, data)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// parseKeys reads the private keys of a file, of which there is at least one.
func parseKeys(path string, data []byte) (keys []*ecdsa.PrivateKey, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		key, ok := parsed.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s holds a %T, want an ECDSA key", path, parsed)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no PEM block; restore it from a backup or run `edged reset`", path)
	}
	return keys, nil
}

// loadOrMakeCA reads the authority at certPath and keyPath, or makes one. The
// key is written first: a cut between the two leaves a key without a
// certificate, which is completed, never a certificate nobody can sign for.
func loadOrMakeCA(certPath, keyPath, commonName string) (*authority, error) {
	data, err := os.ReadFile(certPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	if err == nil {
		if _, statErr := os.Stat(keyPath); statErr != nil {
			return nil, fmt.Errorf("%s is there but its key is not: %w", certPath, statErr)
		}
	}
	if err == nil {
		keys, err := os.ReadFile(keyPath)
		if err != nil {
			return nil, fmt.Errorf("read private key: %w", err)
		}
		return parseAuthority(certPath, data, keyPath, keys)
	}
	key, err := loadOrMakeKey(keyPath)
	if err != nil {
		return nil, err
	}
	cert, err := newRoot(key, commonName)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(certPath, encodeCerts([]*x509.Certificate{cert}), 0o644); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, roots: []*x509.Certificate{cert}}, nil
}

// caTemplate is a CA certificate without a signature.
func caTemplate(commonName string) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             epoch,
		NotAfter:              noExpiry,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

// newRoot makes key a CA.
func newRoot(key *ecdsa.PrivateKey, commonName string) (*x509.Certificate, error) {
	template, err := caTemplate(commonName)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// isRoot says whether cert is signed by itself.
func isRoot(cert *x509.Certificate) bool {
	return cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// parseAuthority reads ca.crt and ca.key. The first certificate signs, with the
// key of several that is its own.
func parseAuthority(certPath string, certs []byte, keyPath string, keys []byte) (*authority, error) {
	a := &authority{}
	for {
		var block *pem.Block
		if block, certs = pem.Decode(certs); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", certPath, err)
		case !cert.IsCA:
			return nil, fmt.Errorf("%s: %q is not a CA", certPath, cert.Subject.CommonName)
		case isRoot(cert):
			a.roots = append(a.roots, cert)
		case len(a.roots) == 0:
			return nil, fmt.Errorf("%s does not begin with a root", certPath)
		default:
			a.cross = append(a.cross, cert)
		}
	}
	if len(a.roots) == 0 {
		return nil, fmt.Errorf("%s holds no PEM block; restore it from a backup or run `edged reset`", certPath)
	}
	a.cert = a.roots[0]
	parsed, err := parseKeys(keyPath, keys)
	if err != nil {
		return nil, err
	}
	for _, key := range parsed {
		if key.PublicKey.Equal(a.cert.PublicKey) {
			a.key = key
			return a, nil
		}
	}
	return nil, fmt.Errorf("%s does not belong to the key beside it", certPath)
}

// issue signs a certificate for pub.
func (a *authority) issue(now time.Time, pub crypto.PublicKey, l leaf) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: l.commonName, Organization: l.organization},
		NotBefore:             epoch,
		NotAfter:              now.Add(l.ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           l.usage,
		BasicConstraintsValid: true,
		DNSNames:              l.dnsNames,
	}
	for _, ip := range l.ips {
		template.IPAddresses = append(template.IPAddresses, ip.Unmap().AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", l.commonName, err)
	}
	return x509.ParseCertificate(der)
}

// tlsCertificate issues for a key that is at hand.
func (a *authority) tlsCertificate(now time.Time, key crypto.Signer, l leaf) (*tls.Certificate, error) {
	cert, err := a.issue(now, key.Public(), l)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	for _, c := range a.cross {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
