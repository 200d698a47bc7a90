package join_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/cluster/identity"
	"edged/cluster/join"
)

func newIdentity(t *testing.T, name string) *identity.Identity {
	t.Helper()
	id, err := identity.Open(identity.Config{Dir: filepath.Join(t.TempDir(), "pki"), NodeName: name, Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// cluster is one device that others may join.
type cluster struct {
	id     *identity.Identity
	tokens *join.Tokens
	addr   string
	now    atomic.Pointer[time.Time]
	// asked counts requests whose body the server read.
	asked atomic.Int32
	admit func(join.Request) (join.Answer, error)
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{id: newIdentity(t, "first")}
	reg := registrytest.New(t)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}); err != nil {
		t.Fatal(err)
	}
	c.tokens = join.NewTokens(reg, c.id.CA, func() time.Time {
		if p := c.now.Load(); p != nil {
			return *p
		}
		return time.Now()
	})
	c.admit = func(r join.Request) (join.Answer, error) {
		shared, err := c.id.Share()
		return join.Answer{
			CA: shared.CA, CAKey: shared.CAKey, ServiceAccountKey: shared.ServiceAccountKey,
			Settings: map[string]string{"cluster-cidr": "10.42.0.0/16"},
			Members:  []join.Member{{ID: 7, Name: r.NodeName, PeerURLs: r.PeerURLs}},
		}, err
	}
	s := &join.Server{Check: c.tokens.Check, Logger: slog.New(slog.DiscardHandler), Admit: func(_ context.Context, r join.Request) (join.Answer, error) { return c.admit(r) }}
	c.addr = serve(t, c.id.ServerTLS(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.asked.Add(1)
		s.ServeHTTP(w, r)
	}))
	return c
}

// serve runs a server until the test ends, and returns its address.
func serve(t *testing.T, cfg *tls.Config, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: cfg, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

func (c *cluster) token(t *testing.T, ttl time.Duration) join.Token {
	t.Helper()
	tok, err := c.tokens.Create(t.Context(), ttl, "for a test")
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func ask(t *testing.T, tok join.Token, addrs ...string) (*join.Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return join.Client{Addrs: addrs, Token: tok, Logger: slog.New(slog.DiscardHandler)}.Join(ctx, join.Request{NodeName: "second", PeerURLs: []string{"https://192.0.2.2:2380"}})
}

func TestJoin(t *testing.T) {
	c := newCluster(t)
	// The first address is of a device that is down.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := l.Addr().String()
	l.Close()
	answer, err := ask(t, c.token(t, time.Hour), down, c.addr)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Members[0].Name != "second" || answer.Settings["cluster-cidr"] != "10.42.0.0/16" {
		t.Errorf("answer: %+v", answer)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	shared := identity.Shared{CA: answer.CA, CAKey: answer.CAKey, ServiceAccountKey: answer.ServiceAccountKey}
	if err := identity.Install(dir, shared, deviceKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := identity.Install(dir, shared, deviceKey(t)); err == nil {
		t.Error("an identity was replaced")
	}
	second, err := identity.Open(identity.Config{Dir: dir, NodeName: "second", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if !second.CA().Equal(c.id.CA()) {
		t.Error("another CA")
	}
	meet(t, c.id.PeerServerTLS(), second.PeerClientTLS(), "")
	meet(t, second.PeerServerTLS(), c.id.PeerClientTLS(), "")
	stranger := newIdentity(t, "stranger")
	meet(t, c.id.PeerServerTLS(), stranger.PeerClientTLS(), "unknown authority")
	meet(t, stranger.PeerServerTLS(), c.id.PeerClientTLS(), "unknown authority")
}

// meet does a handshake between two devices; want is in the client's or the
// server's error.
func meet(t *testing.T, server, client *tls.Config, want string) {
	t.Helper()
	a, b := net.Pipe()
	errs := make(chan error, 1)
	s := tls.Server(a, server)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		errs <- err
		a.Close()
	}()
	cl := tls.Client(b, client)
	_, err := cl.Read(make([]byte, 1))
	b.Close()
	err = errors.Join(err, <-errs)
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("handshake: %v, want %q", err, want)
	}
}

// A server of another cluster is refused before it gets to read anything.
func TestWrongCA(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	_, err := ask(t, c.token(t, time.Hour), other.addr)
	if err == nil || !strings.Contains(err.Error(), "not of the cluster that the token is for") {
		t.Errorf("got %v", err)
	}
	if n := other.asked.Load(); n != 0 {
		t.Errorf("the other cluster was sent %d requests", n)
	}
	// One that replays the right CA's certificate beside its own leaf is no better.
	replay := newIdentity(t, "replay")
	cfg := replay.ServerTLS()
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := replay.ServingCertificate(h)
		if err != nil {
			return nil, err
		}
		forged := *cert
		forged.Certificate = [][]byte{cert.Certificate[0], c.id.CA().Raw}
		return &forged, nil
	}
	var read atomic.Int32
	addr := serve(t, cfg, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { read.Add(1) }))
	if _, err := ask(t, c.token(t, time.Hour), addr); err == nil || !strings.Contains(err.Error(), "not of the cluster") {
		t.Errorf("a replayed CA: %v", err)
	}
	if read.Load() != 0 {
		t.Error("something was sent to it")
	}
}

func TestTokenEnds(t *testing.T) {
	c := newCluster(t)
	expires, revoked, stays := c.token(t, time.Hour), c.token(t, time.Hour), c.token(t, 0)
	if err := c.tokens.Delete(t.Context(), revoked.String()); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(2 * time.Hour)
	c.now.Store(&later)
	wrong := stays
	wrong.Secret = expires.Secret
	for name, tok := range map[string]join.Token{"expired": expires, "revoked": revoked, "another's secret": wrong} {
		if _, err := ask(t, tok, c.addr); err == nil || !strings.Contains(err.Error(), join.ErrRefused.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ask(t, stays, c.addr); err != nil {
		t.Errorf("one without an end: %v", err)
	}
	if list := c.tokens.List(); len(list) != 1 || list[0].ID != stays.ID || list[0].Description != "for a test" {
		t.Errorf("list: %+v", list)
	}
	if err := c.tokens.DeleteExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.tokens.Delete(t.Context(), expires.ID); err == nil {
		t.Error("an expired token was kept")
	}
}

// What is kept of a token does not let anybody in.
func TestSecretIsNotKept(t *testing.T) {
	reg := registrytest.New(t)
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}); err != nil {
		t.Fatal(err)
	}
	tok, err := join.NewTokens(reg, newIdentity(t, "a").CA, time.Now).Create(t.Context(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range registry.For[*corev1.Secret](reg).List("kube-system") {
		if strings.Contains(s.String(), tok.Secret) {
			t.Error("the secret is in the cluster")
		}
	}
}

func TestGuessingIsSlowedDown(t *testing.T) {
	c := newCluster(t)
	tok := c.token(t, time.Hour)
	wrong := tok
	wrong.Secret = join.NewToken(c.id.CA()).Secret
	for range 10 {
		if _, err := ask(t, wrong, c.addr); err == nil {
			t.Fatal("a guess was right")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := join.Client{Addrs: []string{c.addr}, Token: tok, Logger: slog.New(slog.DiscardHandler)}.Join(ctx, join.Request{NodeName: "second"})
	if err == nil || !strings.Contains(err.Error(), "too many wrong tokens") {
		t.Errorf("the eleventh: %v", err)
	}
}

// What can pass is asked again, what cannot is not.
func TestRetries(t *testing.T) {
	c := newCluster(t)
	right := c.admit
	var n int
	c.admit = func(r join.Request) (join.Answer, error) {
		if n++; n == 1 {
			return join.Answer{}, errors.New("no leader")
		}
		return right(r)
	}
	if _, err := ask(t, c.token(t, 0), c.addr); err != nil || n != 2 {
		t.Errorf("after a passing failure: %v in %d requests", err, n)
	}
	n = 0
	c.admit = func(join.Request) (join.Answer, error) {
		n++
		return join.Answer{}, &join.RequestError{Reason: "the name is taken"}
	}
	if _, err := ask(t, c.token(t, 0), c.addr); err == nil || !strings.Contains(err.Error(), "the name is taken") || n != 1 {
		t.Errorf("after a refusal: %v in %d requests", err, n)
	}
}

func FuzzParseToken(f *testing.F) {
	id, err := identity.Open(identity.Config{Dir: filepath.Join(f.TempDir(), "pki"), NodeName: "a", Now: time.Now})
	if err != nil {
		f.Fatal(err)
	}
	tok := join.NewToken(id.CA())
	f.Add(tok.String())
	f.Add("")
	f.Add("a.b.c")
	f.Add(tok.ID + "." + tok.Secret + ".")
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := join.ParseToken(s)
		if err != nil {
			if tok := strings.Split(s, "."); len(tok) == 3 && len(tok[1]) > 8 && strings.Contains(err.Error(), tok[1]) {
				t.Errorf("the error repeats the secret: %v", err)
			}
			return
		}
		if again, err := join.ParseToken(parsed.String()); err != nil || again != parsed {
			t.Errorf("%q is read back as %v, %v", parsed, again, err)
		}
	})
}

func deviceKey(t *testing.T) identity.DeviceKey {
	t.Helper()
	key, err := identity.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
