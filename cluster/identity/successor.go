package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"edged/internal/atomicfile"
)

// sealInfo ties the sealing key to its use (RFC 5869).
const sealInfo = "edged CA successor 1"

// ErrUnknownIssuer says that a successor's predecessor is not this device's CA:
// the device was away while the CA was replaced and the old one given up.
var ErrUnknownIssuer = errors.New("this device does not have the CA that the new one follows: `edged reset` it and let it join again")

// Successor is a CA that is to take the place of the cluster's. Its key is sealed
// under the one before, so that only devices of the cluster can read it.
type Successor struct {
	// Root and Cross are certificates of the new key in DER: signed by itself, and
	// by the CA before.
	Root  []byte `json:"root"`
	Cross []byte `json:"cross"`
	// SealedKey is the key in PKCS #8, by AES-256-GCM, its nonce first.
	SealedKey []byte `json:"sealedKey"`
}

// NewSuccessor makes a CA that follows the one that signs.
func (i *Identity) NewSuccessor() (Successor, error) {
	old := i.ca.Load()
	key, err := newKey()
	if err != nil {
		return Successor{}, fmt.Errorf("make a key for the new CA: %w", err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Successor{}, err
	}
	// A name of its own: many clients look issuers up by their names.
	sum := sha256.Sum256(pub)
	name := "edged-ca-" + hex.EncodeToString(sum[:4])
	root, err := newRoot(key, name)
	if err != nil {
		return Successor{}, err
	}
	template, err := caTemplate(name)
	if err != nil {
		return Successor{}, err
	}
	cross, err := x509.CreateCertificate(rand.Reader, template, old.cert, key.Public(), old.key)
	if err != nil {
		return Successor{}, fmt.Errorf("sign the new CA by the old one: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Successor{}, err
	}
	aead, err := sealer(old.key)
	if err != nil {
		return Successor{}, err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce) // never fails (crypto/rand)
	return Successor{Root: root.Raw, Cross: cross, SealedKey: aead.Seal(nonce, nonce, der, root.Raw)}, nil
}

// sealer derives a cipher from a CA's private key.
func sealer(key any) (cipher.AEAD, error) {
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the CA's key is a %T, want an ECDSA key", key)
	}
	secret, err := ec.Bytes()
	if err != nil {
		return nil, err
	}
	sealing, err := hkdf.Key(sha256.New, secret, nil, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Follows says whether s is the CA that signs.
func (i *Identity) Follows(s Successor) bool { return bytes.Equal(i.ca.Load().cert.Raw, s.Root) }

// Adopt makes s the CA that signs; the one before stays trusted. It is on disk
// when Adopt returns, and a cut at any instant leaves the one or the other.
func (i *Identity) Adopt(s Successor) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.ca.Load()
	if bytes.Equal(old.cert.Raw, s.Root) {
		return nil
	}
	next, err := old.unseal(s)
	if err != nil {
		return fmt.Errorf("take up the new CA: %w", err)
	}
	// The key first: the certificate that is there still finds its own.
	if err := i.writeKeys(next.key, old.key); err != nil {
		return err
	}
	return i.replace(next)
}

// unseal makes the authority of s, which a follows.
func (a *authority) unseal(s Successor) (*authority, error) {
	root, err := x509.ParseCertificate(s.Root)
	if err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	cross, err := x509.ParseCertificate(s.Cross)
	if err != nil {
		return nil, fmt.Errorf("its cross certificate: %w", err)
	}
	if cross.CheckSignatureFrom(a.cert) != nil {
		return nil, ErrUnknownIssuer
	}
	if !root.IsCA || !isRoot(root) || !bytes.Equal(root.RawSubjectPublicKeyInfo, cross.RawSubjectPublicKeyInfo) {
		return nil, errors.New("its certificates are not of one CA")
	}
	aead, err := sealer(a.key)
	if err != nil {
		return nil, err
	}
	if len(s.SealedKey) < aead.NonceSize() {
		return nil, errors.New("its key is cut short")
	}
	nonce, sealed := s.SealedKey[:aead.NonceSize()], s.SealedKey[aead.NonceSize():]
	der, err := aead.Open(nil, nonce, sealed, s.Root)
	if err != nil {
		return nil, fmt.Errorf("its key: %w", err)
	}
	keys, err := parseKeys("its key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return nil, err
	}
	if !keys[0].PublicKey.Equal(root.PublicKey) {
		return nil, errors.New("its key is another CA's")
	}
	return &authority{
		cert: root, key: keys[0],
		roots: append([]*x509.Certificate{root}, a.roots...), cross: append([]*x509.Certificate{cross}, a.cross...),
	}, nil
}

// DropOld trusts nothing any more but the CA that signs.
func (i *Identity) DropOld() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.ca.Load()
	if len(old.roots) == 1 && len(old.cross) == 0 {
		return nil
	}
	if err := i.replace(&authority{cert: old.cert, key: old.key, roots: old.roots[:1:1]}); err != nil {
		return err
	}
	return i.writeKeys(old.key)
}

// writeKeys writes ca.key.
func (i *Identity) writeKeys(keys ...any) error {
	var data []byte
	for _, key := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("encode the CA's key: %w", err)
		}
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	return atomicfile.Write(filepath.Join(i.cfg.Dir, caKeyFile), data, 0o600)
}

// replace puts a new authority in place, on disk first. i.mu is held.
func (i *Identity) replace(a *authority) error {
	if err := atomicfile.Write(filepath.Join(i.cfg.Dir, caCertFile), encodeCerts(a.bundle()), 0o644); err != nil {
		return err
	}
	i.ca.Store(a)
	i.serving, i.client, i.apiServer, i.frontProxy = nil, nil, nil, nil
	close(i.changed)
	i.changed = make(chan struct{})
	return nil
}

// CAChanged is closed when the CA that signs, or those that are trusted, change.
func (i *Identity) CAChanged() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changed
}

// forgetOldKey removes a key of a CA that is not trusted any more: a cut between
// the two writes of DropOld leaves it.
func (i *Identity) forgetOldKey() error {
	a := i.ca.Load()
	if len(a.roots) > 1 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(i.cfg.Dir, caKeyFile))
	if err != nil {
		return fmt.Errorf("read private key: %w", err)
	}
	keys, err := parseKeys(caKeyFile, data)
	if err != nil || len(keys) == 1 {
		return err
	}
	return i.writeKeys(a.key)
}
