package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
)

const (
	// envelope begins what Kubernetes' aesgcm provider stores; the name of the key
	// and a colon follow.
	envelope = "k8s:enc:aesgcm:v1:"
	// encrypted begins what any of its providers stores.
	encrypted = "k8s:enc:"
	// keyBytes is AES-256's.
	keyBytes = 32
)

// Key is a data key.
type Key struct {
	Name   string
	Secret []byte
}

// newKey makes a data key.
func newKey() Key {
	secret := make([]byte, keyBytes)
	rand.Read(secret) // never fails (crypto/rand)
	return Key{nameOf(secret), secret}
}

// nameOf is the name of a data key that a device made: it tells whether what was
// unwrapped is what was wrapped, and nothing else of a key of 256 random bits.
func nameOf(secret []byte) string {
	sum := sha256.Sum256(append([]byte("edged data key 1 "), secret...))
	return "e" + hex.EncodeToString(sum[:4])
}

// ownName is what nameOf returns.
var ownName = regexp.MustCompile("^e[0-9a-f]{8}$")

func (k Key) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.Secret)
	if err != nil {
		return nil, fmt.Errorf("data key %s: %w", k.Name, err)
	}
	return cipher.NewGCM(block)
}

// sealedBy is the name of the key that a stored value is sealed under; "" if it is
// not, and ok is false if it is sealed in a way that is not ours.
func sealedBy(value []byte) (name string, ok bool) {
	if !bytes.HasPrefix(value, []byte(encrypted)) {
		return "", true
	}
	rest, ours := bytes.CutPrefix(value, []byte(envelope))
	n, _, ended := bytes.Cut(rest, []byte(":"))
	if !ours || !ended {
		return "", false
	}
	return string(n), true
}

// sealValue seals what is stored under key.
func sealValue(aead cipher.AEAD, name string, key, plain []byte) []byte {
	head := len(envelope) + len(name) + 1
	out := make([]byte, head+aead.NonceSize(), head+aead.NonceSize()+len(plain)+aead.Overhead())
	copy(out, envelope+name+":")
	nonce := out[head:]
	rand.Read(nonce) // never fails (crypto/rand)
	return aead.Seal(out, nonce, plain, key)
}

// openValue opens what sealValue, or a kube-apiserver, has sealed.
func openValue(aead cipher.AEAD, name string, key, value []byte) ([]byte, error) {
	sealed := value[len(envelope)+len(name)+1:]
	if len(sealed) < aead.NonceSize() {
		return nil, errors.New("the sealed value is cut short")
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], key)
}
