package join

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// The parts of a token, in bytes. An id names a token in lists and logs; a
// secret has 160 bits, so that it cannot be guessed and its hash needs no salt.
const (
	idBytes     = 5
	secretBytes = 20
)

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token allows a device to join. Its text is ID.Secret.Pin.
type Token struct {
	ID, Secret string
	// Pin is the SHA-256 of the CA's public key (SubjectPublicKeyInfo), as in
	// RFC 7469.
	Pin [sha256.Size]byte
}

// NewToken makes a token for the cluster of ca.
func NewToken(ca *x509.Certificate) Token {
	var b [idBytes + secretBytes]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return Token{ID: letters.EncodeToString(b[:idBytes]), Secret: letters.EncodeToString(b[idBytes:]), Pin: PinOf(ca)}
}

// PinOf names a CA by its key.
func PinOf(ca *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(ca.RawSubjectPublicKeyInfo) }

// String is the token as operators carry it. It must not be logged.
func (t Token) String() string {
	return t.ID + "." + t.Secret + "." + letters.EncodeToString(t.Pin[:])
}

// ParseToken reads what String wrote. Errors do not repeat the text.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 {
		return Token{}, errors.New("not a token: want the text that `edged token create` printed, ID.SECRET.PIN")
	}
	for i, want := range []int{idBytes, secretBytes, sha256.Size} {
		b, err := letters.DecodeString(parts[i])
		if err != nil || len(b) != want {
			return Token{}, fmt.Errorf("not a token: its %s is damaged or incomplete", [...]string{"id", "secret", "CA pin"}[i])
		}
	}
	t := Token{ID: parts[0], Secret: parts[1]}
	pin, _ := letters.DecodeString(parts[2])
	copy(t.Pin[:], pin)
	return t, nil
}

// hash is what is kept of a secret.
func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// matches compares in constant time.
func matches(secret, kept string) bool {
	return subtle.ConstantTimeCompare([]byte(hash(secret)), []byte(kept)) == 1
}
