package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// simpleTTL is how long a simple token lives after its last use.
const simpleTTL = 5 * time.Minute

// Tokens gives out tokens and tells whose they are. Its methods may be called
// from any goroutine.
type Tokens struct {
	jwt *jwtKey // nil: simple tokens
	ttl time.Duration
	now func() time.Time

	mu sync.Mutex
	// guarded by mu
	simple map[string]*session
}

type session struct {
	user  string
	until time.Time
}

// NewTokens makes tokens of the kind that an --auth-token of etcd's says:
// "simple", or "jwt,sign-method=...,priv-key=file,pub-key=file,ttl=duration".
// ttl is that of simple tokens, 0 for five minutes.
func NewTokens(spec string, ttl time.Duration, now func() time.Time) (*Tokens, error) {
	kind, rest, _ := strings.Cut(spec, ",")
	t := &Tokens{ttl: ttl, now: now, simple: map[string]*session{}}
	if ttl <= 0 {
		t.ttl = simpleTTL
	}
	switch kind {
	case "", "simple":
		return t, nil
	case "jwt":
		var err error
		t.jwt, err = parseJWT(rest)
		return t, err
	}
	return nil, fmt.Errorf("auth token %q: want simple, or jwt with its options", spec)
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// Prefix is the part of a new token that is chosen by chance, before it is
// replicated.
func (t *Tokens) Prefix() string {
	if t.jwt != nil {
		return ""
	}
	b := make([]byte, 16)
	rand.Read(b) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}

// Name is the token that the entry at index made of a prefix.
func Name(prefix string, index uint64) string {
	return prefix + "." + strconv.FormatUint(index, 10)
}

// Index is the entry that made a simple token; ok is false for other tokens.
func Index(token string) (index uint64, ok bool) {
	_, number, found := strings.Cut(token, ".")
	if !found {
		return 0, false
	}
	index, err := strconv.ParseUint(number, 10, 64)
	return index, err == nil
}

// Assign notes that a simple token is a user's. With jwt it notes nothing.
func (t *Tokens) Assign(token, user string) {
	if t.jwt != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for k, s := range t.simple {
		if now.After(s.until) {
			delete(t.simple, k)
		}
	}
	t.simple[token] = &session{user, now.Add(t.ttl)}
}

// Forget ends the simple tokens of a user, or of everybody if user is empty.
func (t *Tokens) Forget(user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, s := range t.simple {
		if user == "" || s.user == user {
			delete(t.simple, k)
		}
	}
}

// Simple reports whether tokens are replicated and remembered.
func (t *Tokens) Simple() bool { return t.jwt == nil }

// Sign makes a jwt for a user, worth what the permissions of revision are.
func (t *Tokens) Sign(user string, revision uint64) (string, error) {
	if t.jwt.verifyOnly {
		return "", errors.New("auth: token signing attempted with verify-only key")
	}
	return jwt.NewWithClaims(t.jwt.method, jwt.MapClaims{
		"username": user, "revision": revision, "exp": t.now().Add(t.jwt.ttl).Unix(),
	}).SignedString(t.jwt.key)
}

// Caller tells whose token it is. revision is what simple tokens are worth: the
// present one.
func (t *Tokens) Caller(token string, revision uint64) (Caller, bool) {
	if t.jwt != nil {
		return t.jwt.caller(token, t.now)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.simple[token]
	if s == nil || t.now().After(s.until) {
		return Caller{}, false
	}
	s.until = t.now().Add(t.ttl)
	return Caller{s.user, revision}, true
}

type jwtKey struct {
	method     jwt.SigningMethod
	key        any
	public     any
	ttl        time.Duration
	verifyOnly bool
}

func (k *jwtKey) caller(token string, now func() time.Time) (Caller, bool) {
	p := jwt.NewParser(jwt.WithValidMethods([]string{k.method.Alg()}), jwt.WithTimeFunc(now))
	claims := jwt.MapClaims{}
	if _, err := p.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return k.public, nil }); err != nil {
		return Caller{}, false
	}
	user, ok := claims["username"].(string)
	if !ok {
		return Caller{}, false
	}
	revision, ok := claims["revision"].(float64)
	return Caller{user, uint64(revision)}, ok
}

func parseJWT(opts string) (*jwtKey, error) {
	k := &jwtKey{ttl: 5 * time.Minute}
	var private, public []byte
	seen := map[string]bool{}
	for opt := range strings.SplitSeq(opts, ",") {
		name, value, ok := strings.Cut(opt, "=")
		if !ok || seen[name] {
			return nil, fmt.Errorf("auth token option %q: want name=value, once", opt)
		}
		seen[name] = true
		var err error
		switch name {
		case "sign-method":
			if k.method = jwt.GetSigningMethod(value); k.method == nil {
				err = errors.New("no such method")
			}
		case "priv-key":
			private, err = os.ReadFile(value)
		case "pub-key":
			public, err = os.ReadFile(value)
		case "ttl":
			if k.ttl, err = time.ParseDuration(value); err == nil && k.ttl <= 0 {
				err = errors.New("must be positive")
			}
		}
		if err != nil {
			return nil, fmt.Errorf("auth token option %q: %w", opt, err)
		}
	}
	if k.method == nil {
		return nil, errors.New("auth token: sign-method is missing")
	}
	if err := k.load(private, public); err != nil {
		return nil, fmt.Errorf("auth token: %w", err)
	}
	return k, nil
}

func (k *jwtKey) load(private, public []byte) (err error) {
	if len(private)+len(public) == 0 {
		return errors.New("neither priv-key nor pub-key is given")
	}
	var signer crypto.Signer
	switch k.method.(type) {
	case *jwt.SigningMethodHMAC:
		if len(private) == 0 {
			return errors.New("priv-key is missing")
		}
		k.key, k.public = private, private
		return nil
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		if len(private) > 0 {
			signer, err = parsed[crypto.Signer](jwt.ParseRSAPrivateKeyFromPEM(private))
		}
		if err == nil && len(public) > 0 {
			k.public, err = parsed[any](jwt.ParseRSAPublicKeyFromPEM(public))
		}
	case *jwt.SigningMethodECDSA:
		if len(private) > 0 {
			signer, err = parsed[crypto.Signer](jwt.ParseECPrivateKeyFromPEM(private))
		}
		if err == nil && len(public) > 0 {
			k.public, err = parsed[any](jwt.ParseECPublicKeyFromPEM(public))
		}
	case *jwt.SigningMethodEd25519:
		if len(private) > 0 {
			signer, err = parsed[crypto.Signer](jwt.ParseEdPrivateKeyFromPEM(private))
		}
		if err == nil && len(public) > 0 {
			k.public, err = parsed[any](jwt.ParseEdPublicKeyFromPEM(public))
		}
	default:
		return fmt.Errorf("sign-method %s is not supported", k.method.Alg())
	}
	if err != nil {
		return err
	}
	return k.pair(signer)
}

// pair makes sure that the two keys belong together.
func (k *jwtKey) pair(signer crypto.Signer) error {
	if signer == nil {
		k.verifyOnly = true
		return nil
	}
	own := signer.Public()
	equal := k.public == nil
	switch p := own.(type) {
	case *rsa.PublicKey:
		equal = equal || p.Equal(k.public)
	case *ecdsa.PublicKey:
		equal = equal || p.Equal(k.public)
	case ed25519.PublicKey:
		equal = equal || p.Equal(k.public)
	}
	if !equal {
		return errors.New("pub-key does not belong to priv-key")
	}
	k.key, k.public = signer, own
	return nil
}

// parsed gives what a parser of jwt's returns the type T.
func parsed[T, V any](v V, err error) (T, error) {
	t, ok := any(v).(T)
	if err == nil && !ok {
		err = fmt.Errorf("a key of type %T", v)
	}
	return t, err
}
