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

// authority is a CA certificate with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
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
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block; restore it from a backup or run `edged reset`", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, want an ECDSA key", path, parsed)
	}
	return key, nil
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
	key, keyErr := loadOrMakeKey(keyPath)
	if keyErr != nil {
		return nil, keyErr
	}
	if err == nil {
		return parseCA(certPath, data, key)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             epoch,
		NotAfter:              noExpiry,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA certificate: %w", err)
	}
	data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := atomicfile.Write(certPath, data, 0o644); err != nil {
		return nil, err
	}
	return parseCA(certPath, data, key)
}

func parseCA(path string, data []byte, key *ecdsa.PrivateKey) (*authority, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block; restore it from a backup or run `edged reset`", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s does not belong to the key beside it", path)
	}
	return &authority{cert: cert, key: key, pem: data}, nil
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
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}
