package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"edged/internal/atomicfile"
)

const (
	// servingTTL and clientTTL are long because a device may sleep for months;
	// they are renewed in use.
	servingTTL = 365 * 24 * time.Hour
	clientTTL  = 365 * 24 * time.Hour
	// adminTTL bounds the use of a stolen admin.kubeconfig.
	adminTTL = 7 * 24 * time.Hour
	// adminCheck is how often Run looks at the kubeconfig: often enough that a
	// clock set forward by NTP is noticed within the hour.
	adminCheck = time.Hour

	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"
)

// Config says where an identity lives and what it is for.
type Config struct {
	// Dir holds the PEM files; it is made, mode 0700, if it is not there.
	Dir string
	// NodeName is the device's name in the cluster.
	NodeName string
	// IPs and DNSNames are what the API and kubelet ports are reached by,
	// beside localhost and the node's name.
	IPs      []netip.Addr
	DNSNames []string
	// AdminKubeconfig is the file that Run keeps fresh; APIServer is the URL
	// that it names.
	AdminKubeconfig string
	APIServer       string
	Now             func() time.Time
	Logger          *slog.Logger
}

// Identity is the device's keys and certificates.
type Identity struct {
	cfg Config
	sa  crypto.Signer
	key *ecdsa.PrivateKey         // the device's
	ca  atomic.Pointer[authority] // stored with mu held

	mu sync.Mutex
	// guarded by mu
	serving, client, apiServer, frontProxy *tls.Certificate

	ips     []netip.Addr
	changed chan struct{} // closed when ca is replaced

	look chan struct{} // holds one: see Look
}

// Open reads the identity in cfg.Dir and makes what is missing.
func Open(cfg Config) (*Identity, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for keys: %w", err)
	}
	ca, err := loadOrMakeCA(filepath.Join(cfg.Dir, caCertFile), filepath.Join(cfg.Dir, caKeyFile), "edged-ca")
	if err != nil {
		return nil, err
	}
	sa, err := loadOrMakeKey(filepath.Join(cfg.Dir, "sa.key"))
	if err != nil {
		return nil, err
	}
	key, err := loadOrMakeKey(filepath.Join(cfg.Dir, deviceKeyFile))
	if err != nil {
		return nil, err
	}
	id := &Identity{cfg: cfg, sa: sa, key: key, ips: slices.Clone(cfg.IPs), changed: make(chan struct{}), look: make(chan struct{}, 1)}
	id.ca.Store(ca)
	return id, id.forgetOldKey()
}

func (i *Identity) now() time.Time {
	if now := i.cfg.Now(); now.After(BuildTime) {
		return now
	}
	return BuildTime
}

// CAPEM is the cluster's CA certificate; while it is being replaced, the new one
// and the old one.
func (i *Identity) CAPEM() []byte { return i.ca.Load().pem() }

// CAPool verifies certificates of the cluster, as of now.
func (i *Identity) CAPool() *x509.CertPool { return i.ca.Load().pool() }

// ServiceAccountKey signs ServiceAccount tokens.
func (i *Identity) ServiceAccountKey() crypto.Signer { return i.sa }

// SetIPs replaces the addresses that the serving certificate names. The next
// handshake uses a new certificate if they differ.
func (i *Identity) SetIPs(ips []netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !slices.Equal(i.ips, ips) {
		i.ips, i.serving = slices.Clone(ips), nil
	}
}

// stale reports that less than a third of cert's life of ttl is left.
func stale(cert *tls.Certificate, now time.Time, ttl time.Duration) bool {
	return cert == nil || cert.Leaf.NotAfter.Sub(now) < ttl/3 || cert.Leaf.NotAfter.Sub(now) > ttl+time.Hour
}

// ServingCertificate is a tls.Config.GetCertificate for every port of the
// device.
func (i *Identity) ServingCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if !stale(i.serving, now, servingTTL) {
		return i.serving, nil
	}
	cert, err := i.ca.Load().tlsCertificate(now, i.key, leaf{
		commonName:   "system:node:" + i.cfg.NodeName,
		organization: []string{nodesGroup},
		ips:          append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, i.ips...),
		dnsNames:     append([]string{"localhost", i.cfg.NodeName}, i.cfg.DNSNames...),
		usage:        []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		ttl:          servingTTL,
	})
	if err != nil {
		return nil, err
	}
	// The CA goes along for devices that know it by its hash only (cluster/join).
	for _, root := range i.ca.Load().roots {
		cert.Certificate = append(cert.Certificate, root.Raw)
	}
	i.serving = cert
	return cert, nil
}

// ClientCertificate is a tls.Config.GetClientCertificate that presents this
// device as the node it is.
func (i *Identity) ClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if !stale(i.client, now, clientTTL) {
		return i.client, nil
	}
	cert, err := i.ca.Load().tlsCertificate(now, i.key, leaf{
		commonName:   "system:node:" + i.cfg.NodeName,
		organization: []string{nodesGroup},
		usage:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ttl:          clientTTL,
	})
	if err != nil {
		return nil, err
	}
	i.client = cert
	return cert, nil
}

// ServerTLS is the configuration of a port that asks for client certificates
// and leaves the decision on them, or on their absence, to the authenticator.
func (i *Identity) ServerTLS() *tls.Config {
	return i.following(&tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: i.ServingCertificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		Time:           i.now,
		NextProtos:     []string{"h2", "http/1.1"},
	})
}

// following makes a server's ClientCAs those of the moment.
func (i *Identity) following(conf *tls.Config) *tls.Config {
	made := i.ca.Load()
	conf.ClientCAs = made.pool()
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		ca := i.ca.Load()
		if ca == made {
			return nil, nil
		}
		now := conf.Clone()
		now.ClientCAs, now.GetConfigForClient = ca.pool(), nil
		return now, nil
	}
	return conf
}

// Kubeconfig returns a kubeconfig for server, with a new key and a client
// certificate for user that is good for ttl.
func (i *Identity) Kubeconfig(server, user string, groups []string, ttl time.Duration) ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("make a key for %s: %w", user, err)
	}
	ca := i.ca.Load()
	cert, err := ca.issue(i.now(), key.Public(), leaf{
		commonName: user, organization: groups, ttl: ttl,
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	return encodeKubeconfig(server, ca.pem(), cert, key)
}

// WriteAdminKubeconfig writes the administrator's kubeconfig unless the one
// that is there names the same server and CA and has life left.
func (i *Identity) WriteAdminKubeconfig() error {
	if old, err := os.ReadFile(i.cfg.AdminKubeconfig); err == nil && i.fresh(old) {
		return nil
	}
	data, err := i.Kubeconfig(i.cfg.APIServer, "admin", []string{mastersGroup}, adminTTL)
	if err != nil {
		return err
	}
	return atomicfile.Write(i.cfg.AdminKubeconfig, data, 0o600)
}

// fresh reports whether kubeconfig can go on being used as it is.
func (i *Identity) fresh(kubeconfig []byte) bool {
	server, caPEM, cert, err := decodeKubeconfig(kubeconfig)
	ca := i.ca.Load()
	if err != nil || server != i.cfg.APIServer || string(caPEM) != string(ca.pem()) || cert.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	return !stale(&tls.Certificate{Leaf: cert}, i.now(), adminTTL)
}

// Look has Run look now whether the kubeconfig is good: the clock was set.
func (i *Identity) Look() {
	select {
	case i.look <- struct{}{}:
	default:
	}
}

// Run renews the administrator's kubeconfig until ctx ends.
func (i *Identity) Run(ctx context.Context) error {
	t := time.NewTicker(adminCheck)
	defer t.Stop()
	for {
		changed := i.CAChanged()
		if err := i.WriteAdminKubeconfig(); err != nil {
			i.cfg.Logger.Error("administrator's kubeconfig not renewed", "file", i.cfg.AdminKubeconfig, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-i.look:
		case <-t.C:
		}
	}
}
