package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"edged/internal/atomicfile"
)

// nodesGroup is the organization of every device's certificate.
const nodesGroup = "system:nodes"

// mastersGroup is the organization of administrators.
const mastersGroup = "system:masters"

// Shared is what all devices of a cluster have in common, as PEM.
type Shared struct{ CA, CAKey, ServiceAccountKey []byte }

// Share returns what a device must have to be of this cluster.
func (i *Identity) Share() (Shared, error) {
	ca := i.ca.Load()
	caKey, err := encodeKey(ca.key)
	if err != nil {
		return Shared{}, err
	}
	sa, err := encodeKey(i.sa)
	if err != nil {
		return Shared{}, err
	}
	return Shared{CA: encodeCerts(ca.bundle()), CAKey: caKey, ServiceAccountKey: sa}, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Exists tells whether dir holds an identity, whole or cut short.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Install makes dir an identity of the cluster that s is of, with key as the
// device's own. It is there whole or not at all; an identity that is there already is
// not replaced.
func Install(dir string, s Shared, key DeviceKey) error {
	if there, err := Exists(dir); err != nil || there {
		return errors.Join(err, fmt.Errorf("%s is there already: this device is of a cluster; `edged reset` makes it forget that", dir))
	}
	own, err := encodeKey(key.key)
	if err != nil {
		return err
	}
	staging := dir + ".new"
	if err := errors.Join(os.RemoveAll(staging), os.MkdirAll(staging, 0o700)); err != nil {
		return fmt.Errorf("make the folder for keys: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{caKeyFile, s.CAKey, 0o600}, {caCertFile, s.CA, 0o644}, {"sa.key", s.ServiceAccountKey, 0o600}, {deviceKeyFile, own, 0o600}} {
		if err := atomicfile.Write(filepath.Join(staging, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	if _, err := Open(Config{Dir: staging}); err != nil {
		return fmt.Errorf("what the cluster handed over cannot be used: %w", errors.Join(err, os.RemoveAll(staging)))
	}
	if err := os.Rename(staging, dir); err != nil {
		return fmt.Errorf("put the keys in place: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// CA is the CA certificate that signs.
func (i *Identity) CA() *x509.Certificate { return i.ca.Load().cert }

// CAs are the CA certificates that are trusted, the one that signs first.
func (i *Identity) CAs() []*x509.Certificate { return slices.Clone(i.ca.Load().roots) }

// PeerServerTLS is for the port on which devices speak to each other: only
// devices of the cluster get through.
func (i *Identity) PeerServerTLS() *tls.Config {
	return i.following(&tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: i.ServingCertificate,
		// VerifyConnection verifies, by a rule of its own.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return i.verifyDevice(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
		},
	})
}

// PeerClientTLS connects to a device of the cluster, by whatever address it is
// reached: a device is its key and its certificate, not an address.
func (i *Identity) PeerClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: i.ClientCertificate,
		Time:                 i.now,
		// VerifyConnection verifies all but the name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return i.verifyDevice(cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
		},
	}
}

// verifyDevice checks that a chain is a device's of this cluster.
func (i *Identity) verifyDevice(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return errors.New("the device shows no certificate")
	}
	// Each device issues its own certificate, so that a date in it vouches for
	// nothing, and the clock of either device may be anywhere until they have met.
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: i.CAPool(), Intermediates: poolOf(chain[1:]), CurrentTime: chain[0].NotBefore, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return err
	}
	if !slices.Contains(chain[0].Subject.Organization, nodesGroup) {
		return fmt.Errorf("%q is not a device", chain[0].Subject.CommonName)
	}
	return nil
}

// KubeletClientTLS connects to a device's kubelet API as the API server does.
func (i *Identity) KubeletClientTLS() *tls.Config {
	cfg := i.PeerClientTLS()
	cfg.GetClientCertificate = i.apiServerCertificate
	cfg.NextProtos = []string{"http/1.1"} // streams take the connection over
	return cfg
}

const frontProxyName = "front-proxy-client"

// FrontProxyName is who the API server is to servers of aggregated APIs: one
// whose word about who asks is to be taken.
func (i *Identity) FrontProxyName() string { return frontProxyName }

// FrontProxyCertificate is for tls.Config.GetClientCertificate towards such
// servers. As a user of this cluster its name may do nothing.
func (i *Identity) FrontProxyCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if !stale(i.frontProxy, now, clientTTL) {
		return i.frontProxy, nil
	}
	cert, err := i.ca.Load().tlsCertificate(now, i.key, leaf{
		commonName: frontProxyName, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, ttl: clientTTL,
	})
	if err != nil {
		return nil, err
	}
	i.frontProxy = cert
	return cert, nil
}

func (i *Identity) apiServerCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if !stale(i.apiServer, now, clientTTL) {
		return i.apiServer, nil
	}
	cert, err := i.ca.Load().tlsCertificate(now, i.key, leaf{
		commonName:   "kube-apiserver-kubelet-client",
		organization: []string{mastersGroup},
		usage:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ttl:          clientTTL,
	})
	if err != nil {
		return nil, err
	}
	i.apiServer = cert
	return cert, nil
}
