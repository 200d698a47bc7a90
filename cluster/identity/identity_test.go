package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string, now func() time.Time) *Identity {
	t.Helper()
	id, err := Open(Config{
		Dir: filepath.Join(dir, "pki"), NodeName: "pi-1",
		IPs:             []netip.Addr{netip.MustParseAddr("192.0.2.7")},
		DNSNames:        []string{"kubernetes.default.svc"},
		AdminKubeconfig: filepath.Join(dir, "admin.kubeconfig"), APIServer: "https://127.0.0.1:6443",
		Now: now, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func at(s string) func() time.Time {
	tm, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return tm }
}

// handshake connects a client that trusts the CA to a server of id by name,
// and returns the name that the server saw in the client's certificate.
func handshake(t *testing.T, id *Identity, name string, clientClock func() time.Time) (string, error) {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	server := tls.Server(s, id.ServerTLS())
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	client := tls.Client(c, &tls.Config{RootCAs: id.CAPool(), ServerName: name,
		GetClientCertificate: id.ClientCertificate, Time: clientClock})
	if err := client.Handshake(); err != nil {
		return "", err
	}
	if err := <-done; err != nil {
		return "", err
	}
	return server.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func TestReopenedIdentityIsTheSame(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, time.Now)
	b := open(t, dir, time.Now)
	if !bytes.Equal(a.CAPEM(), b.CAPEM()) {
		t.Fatal("another CA after reopening")
	}
	for _, f := range []string{"ca.key", "sa.key", "device.key"} {
		fi, err := os.Stat(filepath.Join(dir, "pki", f))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", f, fi.Mode(), err)
		}
	}
}

func TestHandshakeByEveryNameAndAddress(t *testing.T) {
	id := open(t, t.TempDir(), time.Now)
	for _, name := range []string{"localhost", "127.0.0.1", "pi-1", "192.0.2.7", "kubernetes.default.svc"} {
		if cn, err := handshake(t, id, name, time.Now); err != nil || cn != "system:node:pi-1" {
			t.Errorf("%s: client seen as %q, %v", name, cn, err)
		}
	}
	if _, err := handshake(t, id, "198.51.100.1", time.Now); err == nil {
		t.Error("an address that is not the device's was accepted")
	}
	id.SetIPs([]netip.Addr{netip.MustParseAddr("198.51.100.1")})
	if _, err := handshake(t, id, "198.51.100.1", time.Now); err != nil {
		t.Errorf("after the device's address changed: %v", err)
	}
}

func TestClocksApart(t *testing.T) {
	// Issued in 1970, used by a client whose clock is right, and the reverse.
	id := open(t, t.TempDir(), at("1970-01-02"))
	if _, err := handshake(t, id, "pi-1", at("2026-12-01")); err != nil {
		t.Errorf("device at 1970, client at 2026: %v", err)
	}
	id = open(t, t.TempDir(), at("2026-12-01"))
	if _, err := handshake(t, id, "pi-1", at("1970-01-02")); err != nil {
		t.Errorf("device at 2026, client at 1970: %v", err)
	}
}

func TestCertificatesAreRenewedWhenTheClockMoves(t *testing.T) {
	now := at("2026-12-01")
	clock := func() time.Time { return now() }
	id := open(t, t.TempDir(), clock)
	if _, err := handshake(t, id, "pi-1", clock); err != nil {
		t.Fatal(err)
	}
	now = at("2031-12-01")
	if _, err := handshake(t, id, "pi-1", clock); err != nil {
		t.Fatalf("after five years asleep: %v", err)
	}
}

func TestAdminKubeconfigIsKeptWhileFresh(t *testing.T) {
	dir, now := t.TempDir(), at("2026-12-01")
	id := open(t, dir, func() time.Time { return now() })
	path := filepath.Join(dir, "admin.kubeconfig")
	read := func() string {
		if err := id.WriteAdminKubeconfig(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	first := read()
	if again := read(); again != first {
		t.Error("rewritten although it was fresh")
	}
	now = at("2026-12-07")
	renewed := read()
	if renewed == first {
		t.Error("not renewed with a day left of seven")
	}
	_, _, cert, err := decodeKubeconfig([]byte(renewed))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: id.CAPool(), CurrentTime: at("2026-12-13")(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("renewed certificate: %v", err)
	}
	if cert.Subject.CommonName != "admin" || strings.Join(cert.Subject.Organization, ",") != "system:masters" {
		t.Errorf("subject %v", cert.Subject)
	}
}

func TestDamagedFilesAreRefusedAndKept(t *testing.T) {
	for _, name := range []string{"ca.crt", "ca.key", "sa.key", "device.key"} {
		dir := t.TempDir()
		open(t, dir, time.Now)
		path := filepath.Join(dir, "pki", name)
		if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Config{Dir: filepath.Join(dir, "pki"), NodeName: "pi-1", Now: time.Now})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s damaged: error %v does not name it", name, err)
		}
		if data, _ := os.ReadFile(path); string(data) != "garbage" {
			t.Errorf("%s was replaced", name)
		}
	}
}

func TestCutBetweenKeyAndCertificateIsCompleted(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, time.Now)
	if err := os.Remove(filepath.Join(dir, "pki", "ca.crt")); err != nil {
		t.Fatal(err)
	}
	open(t, dir, time.Now)
}

// TestDevicesMeetWhateverTheirClocksSay: also when the certificate of one has ended
// by the clock of the other. Strangers do not, and neither do users.
func TestDevicesMeetWhateverTheirClocksSay(t *testing.T) {
	old := open(t, t.TempDir(), at("1970-01-02"))
	shared, err := old.Share()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, err := NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := Install(filepath.Join(dir, "pki"), shared, key); err != nil {
		t.Fatal(err)
	}
	young := open(t, dir, at("2061-12-01"))
	meet := func(server, client *tls.Config) error {
		c, s := net.Pipe()
		defer c.Close()
		defer s.Close()
		done := make(chan error, 1)
		go func() {
			conn := tls.Server(s, server)
			err := conn.Handshake()
			if err == nil {
				_, err = conn.Write([]byte("x"))
			}
			s.Close()
			done <- err
		}()
		_, err := tls.Client(c, client).Read(make([]byte, 1))
		c.Close()
		return errors.Join(err, <-done)
	}
	for _, pair := range [][2]*Identity{{old, young}, {young, old}} {
		if err := meet(pair[0].PeerServerTLS(), pair[1].PeerClientTLS()); err != nil {
			t.Errorf("devices of one cluster: %v", err)
		}
	}
	if err := meet(young.ServerTLS(), old.PeerClientTLS()); err == nil {
		t.Error("the port for users took a certificate that has ended")
	}
	stranger := open(t, t.TempDir(), at("2061-12-01"))
	if err := meet(young.PeerServerTLS(), stranger.PeerClientTLS()); err == nil {
		t.Error("a stranger was let in")
	}
	if err := meet(young.PeerServerTLS(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}); err == nil {
		t.Error("nobody in particular was let in")
	}
}
