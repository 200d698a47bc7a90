package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"
)

// tlsConfig is one of the two sets of TLS flags that etcd has: towards clients
// and, with a prefix, towards members.
type tlsConfig struct {
	prefix                           string
	cert, key, ca, crl               string
	clientCert, clientKey            string
	certAuth, auto, skipSAN          bool
	allowedCNs, allowedHosts, cipher []string
	minVersion, maxVersion           string
}

func (t *tlsConfig) flags(fs *pflag.FlagSet, prefix string) {
	t.prefix = prefix
	fs.StringVar(&t.cert, prefix+"cert-file", "", "`file` of the certificate")
	fs.StringVar(&t.key, prefix+"key-file", "", "`file` of its key")
	fs.StringVar(&t.ca, prefix+"trusted-ca-file", "", "`file` of the CAs that the other side's certificates are checked with")
	fs.StringVar(&t.crl, map[string]string{"": "client-crl-file", "peer-": "peer-crl-file"}[prefix], "", "`file` of certificates that are revoked")
	fs.StringVar(&t.clientCert, prefix+"client-cert-file", "", "`file` of the certificate for calling (default the other one)")
	fs.StringVar(&t.clientKey, prefix+"client-key-file", "", "`file` of its key")
	fs.BoolVar(&t.certAuth, prefix+"client-cert-auth", false, "refuse callers without a certificate")
	fs.BoolVar(&t.auto, map[string]string{"": "auto-tls", "peer-": "peer-auto-tls"}[prefix], false, "make a certificate at start")
	if prefix == "" {
		fs.StringVar(&t.minVersion, "tls-min-version", "TLS1.2", "`TLS1.2` or TLS1.3")
		fs.StringVar(&t.maxVersion, "tls-max-version", "", "`TLS1.2` or TLS1.3")
		fs.StringSliceVar(&t.cipher, "cipher-suites", nil, "`names` of the cipher suites of TLS 1.2")
		fs.StringSliceVar(&t.allowedHosts, "client-cert-allowed-hostname", nil, "`names` that a client's certificate must have one of")
		return
	}
	fs.BoolVar(&t.skipSAN, "peer-skip-client-san-verification", false, "do not compare a member's certificate with its address")
	fs.StringSliceVar(&t.allowedCNs, "peer-cert-allowed-cn", nil, "`names` of which a member's certificate must have one as common name")
	fs.StringSliceVar(&t.allowedHosts, "peer-cert-allowed-hostname", nil, "`names` that a member's certificate must have one of")
}

// on reports whether there is a certificate.
func (t *tlsConfig) on() bool { return t.auto || t.cert != "" || t.key != "" }

// server returns what to serve with, nil for plain text. Files are read again
// for each connection, so that certificates can be replaced.
func (t *tlsConfig) server() (*tls.Config, error) {
	if !t.on() {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.maxVersion == "TLS1.2" {
		conf.MaxVersion = tls.VersionTLS12
	}
	if t.minVersion == "TLS1.3" {
		conf.MinVersion = tls.VersionTLS13
	}
	for _, name := range t.cipher {
		all := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
		// Go's names say the hash, the older ones that etcd knows too do not.
		i := slices.IndexFunc(all, func(c *tls.CipherSuite) bool { return c.Name == name || c.Name == name+"_SHA256" })
		if i < 0 {
			return nil, misusef("--cipher-suites: unexpected TLS cipher suite %q", name)
		}
		conf.CipherSuites = append(conf.CipherSuites, all[i].ID)
	}
	if err := t.certificates(conf); err != nil {
		return nil, err
	}
	if t.ca != "" || t.certAuth {
		pool, err := readPool(t.ca)
		if err != nil {
			return nil, fmt.Errorf("--%strusted-ca-file: %w", t.prefix, err)
		}
		conf.ClientCAs, conf.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	conf.VerifyPeerCertificate = t.verify
	return conf, nil
}

// certificates says where the own certificate comes from.
func (t *tlsConfig) certificates(conf *tls.Config) error {
	if t.cert == "" && t.key == "" {
		c, err := selfSigned()
		conf.Certificates = []tls.Certificate{c}
		return err
	}
	if _, err := tls.LoadX509KeyPair(t.cert, t.key); err != nil {
		return fmt.Errorf("--%scert-file: %w", t.prefix, err)
	}
	conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(t.cert, t.key)
		return &c, err
	}
	return nil
}

func readPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return x509.SystemCertPool()
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

// verify refuses certificates that are revoked or have none of the names that
// are asked for.
func (t *tlsConfig) verify(_ [][]byte, chains [][]*x509.Certificate) error {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return nil
	}
	leaf := chains[0][0]
	if t.crl != "" {
		if err := revoked(t.crl, leaf); err != nil {
			return err
		}
	}
	if len(t.allowedCNs) > 0 && !slices.Contains(t.allowedCNs, leaf.Subject.CommonName) {
		return errors.New("client certificate authentication failed")
	}
	if len(t.allowedHosts) > 0 && !slices.ContainsFunc(t.allowedHosts, func(h string) bool { return leaf.VerifyHostname(h) == nil }) {
		return errors.New("client certificate authentication failed")
	}
	return nil
}

func revoked(file string, leaf *x509.Certificate) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(data); block != nil && bytes.HasPrefix(data, []byte("-----")) {
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, r := range list.RevokedCertificateEntries {
		if r.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return fmt.Errorf("transport: certificate serial %x revoked", r.SerialNumber)
		}
	}
	return nil
}

// selfSigned makes a certificate for this machine's loopback names: callers
// cannot check it, it only keeps listeners out.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"etcd"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
