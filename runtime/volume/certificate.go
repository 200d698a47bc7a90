package volume

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// certificateSpread is within what time after the signer's word a certificate is
	// asked for anew, so that not all devices do so at once; upstream's, as is the next.
	certificateSpread = 5 * time.Minute
	// requestLost is after what time a request that this device's replica does not
	// show is taken for deleted, not for late.
	requestLost = 10 * time.Minute
	// certificateRetry is when what failed is tried again while a certificate is there.
	certificateRetry = time.Minute
)

// certificate is what the device knows of one podCertificate source. It is kept on
// the tmpfs, where only root sees it: a daemon that starts asks for nothing anew.
//
//	(nothing) -> pending -> issued -> issued and pending -> issued ...
//	                |                        |
//	                +------> refused <-------+
type certificate struct {
	Issued  *credential `json:"issued,omitempty"`
	Pending *asked      `json:"pending,omitempty"`
	// Refused is why there will be none: a signer's last word.
	Refused string `json:"refused,omitempty"`
}

// credential is a key and the certificates for it, as PEM.
type credential struct {
	Key       []byte    `json:"key"`
	Chain     []byte    `json:"chain"`
	RefreshAt time.Time `json:"refreshAt"`
}

// asked is a PodCertificateRequest that has no answer yet, and its key as PEM.
type asked struct {
	Key    []byte    `json:"key"`
	Name   string    `json:"name"`
	UID    types.UID `json:"uid"`
	LostAt time.Time `json:"lostAt"`
}

// podCertificate adds a key made on this device and its certificate. It returns when
// to look again; an answer to a request has the Pod look at once.
func (m *Manager) podCertificate(ctx context.Context, pod *corev1.Pod, volume string, source int, s *corev1.PodCertificateProjection, def fs.FileMode, p payload) (again time.Time, err error) {
	path := filepath.Join(m.PodRunDir(string(pod.UID)), certificatesDir, volume+"."+strconv.Itoa(source)+".json")
	c, err := readCertificate(path)
	if err != nil {
		return again, err
	}
	now := m.cfg.Now()
	changed := false
	if c.Pending != nil {
		req, _ := m.cfg.Objects.PodCertificateRequest(pod.Namespace, c.Pending.Name)
		changed = c.settle(req, now)
	}
	if c.due(now) {
		next, err := m.askCertificate(ctx, pod, s, now)
		switch {
		case err == nil:
			c.Pending, changed = next, true
		case c.Issued == nil:
			return again, err
		default: // the one that is there is still good
			m.cfg.Logger.Warn("a Pod's certificate is not renewed yet", "pod", pod.Namespace+"/"+pod.Name, "signer", s.SignerName, "err", err)
			again = now.Add(certificateRetry)
		}
	}
	if changed {
		if err := c.write(path); err != nil {
			return again, err
		}
	}
	switch {
	case c.Refused != "":
		return again, errors.New(c.Refused)
	case c.Issued == nil:
		return again, errors.New("credential bundle is not issued yet")
	case c.Pending != nil:
		again = c.Pending.LostAt
	case again.IsZero():
		again = c.Issued.RefreshAt
	}
	return again, c.Issued.project(pod, s, def, p)
}

// due says whether a certificate is to be asked for.
func (c *certificate) due(now time.Time) bool {
	return c.Refused == "" && c.Pending == nil && (c.Issued == nil || !now.Before(c.Issued.RefreshAt))
}

// settle takes what became of the request that is pending; req is nil if this
// device's replica shows none. It says whether c changed.
func (c *certificate) settle(req *certificatesv1.PodCertificateRequest, now time.Time) bool {
	if req == nil || req.UID != c.Pending.UID {
		if now.Before(c.Pending.LostAt) {
			return false
		}
		c.Pending = nil
		return true
	}
	for _, cond := range req.Status.Conditions {
		switch cond.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied:
			c.Refused = fmt.Sprintf("PodCertificateRequest was permanently denied: reason=%q message=%q", cond.Reason, cond.Message)
		case certificatesv1.PodCertificateRequestConditionTypeFailed:
			c.Refused = fmt.Sprintf("PodCertificateRequest was permanently failed: reason=%q message=%q", cond.Reason, cond.Message)
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			refresh := now.Add(certificateSpread)
			if at := req.Status.BeginRefreshAt; at != nil {
				refresh = at.Time
			}
			c.Issued = &credential{
				Key: c.Pending.Key, Chain: cleanChain(req.Status.CertificateChain), RefreshAt: refresh.Add(mathrand.N(certificateSpread)),
			}
		default:
			continue
		}
		c.Pending = nil
		return true
	}
	return false
}

// cleanChain leaves of PEM the certificates, and nothing beside them.
func cleanChain(chain string) []byte {
	var out bytes.Buffer
	for b, rest := pem.Decode([]byte(chain)); b != nil; b, rest = pem.Decode(rest) {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes}))
	}
	return out.Bytes()
}

// project adds the files that s wants.
func (c *credential) project(pod *corev1.Pod, s *corev1.PodCertificateProjection, def fs.FileMode, p payload) error {
	fm, uid := tokenAccess(pod, def)
	for _, f := range []struct {
		path string
		data []byte
	}{
		{s.CredentialBundlePath, bytes.Join([][]byte{c.Key, c.Chain}, nil)}, {s.KeyPath, c.Key}, {s.CertificateChainPath, c.Chain},
	} {
		if f.path == "" {
			continue
		}
		name, err := clean(f.path)
		if err != nil {
			return err
		}
		p[name] = file{data: f.data, mode: fm, uid: uid}
	}
	return nil
}

// askCertificate makes a key and asks the signer for a certificate of it.
func (m *Manager) askCertificate(ctx context.Context, pod *corev1.Pod, s *corev1.PodCertificateProjection, now time.Time) (*asked, error) {
	account, ok := m.cfg.Objects.ServiceAccount(pod.Namespace, pod.Spec.ServiceAccountName)
	if !ok {
		return nil, fmt.Errorf("while fetching service account: serviceaccount %q not found", pod.Spec.ServiceAccountName)
	}
	node, ok := m.cfg.Objects.Node()
	if !ok {
		return nil, fmt.Errorf("while getting node object from local cache: node %q not found", pod.Spec.NodeName)
	}
	key, proof, err := newKey(s.KeyType)
	if err != nil {
		return nil, fmt.Errorf("while generating keypair: %w", err)
	}
	req, err := m.cfg.Certificates.RequestPodCertificate(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: s.SignerName, PodName: pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID,
			MaxExpirationSeconds: s.MaxExpirationSeconds, StubPKCS10Request: proof, UnverifiedUserAnnotations: s.UserAnnotations,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("while creating PodCertificateRequest: %w", err)
	}
	return &asked{Key: key, Name: req.Name, UID: req.UID, LostAt: now.Add(requestLost)}, nil
}

// newKey makes a key, as PEM, and a certificate request that is nothing but the
// proof of having it.
func newKey(keyType string) (key, proof []byte, err error) {
	var private crypto.Signer
	switch keyType {
	case "RSA3072":
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		private, err = rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("unknown key type %q", keyType)
	}
	if err != nil {
		return nil, nil, err
	}
	if proof, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), proof, nil
}

// certificatesDir is the folder of certificates, below that of a Pod in the run-dir.
const certificatesDir = "certificates"

// readCertificate reads what is known; what cannot be decoded counts for nothing.
func readCertificate(path string) (certificate, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return certificate{}, nil
	}
	if err != nil {
		return certificate{}, fmt.Errorf("read a Pod's certificate: %w", err)
	}
	var c certificate
	if json.Unmarshal(data, &c) != nil {
		return certificate{}, nil
	}
	return c, nil
}

// write keeps c. A tmpfs forgets at a power cut: there is nothing to sync.
func (c *certificate) write(path string) error {
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode a Pod's certificate: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep a Pod's certificate: %w", err)
	}
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("keep a Pod's certificate: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("keep a Pod's certificate: %w", err)
	}
	return nil
}
