package rotation_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"edged/cluster/identity"
	"edged/cluster/rotation"
)

// memory is the replicated record.
type memory struct {
	mu      sync.Mutex
	data    []byte
	rev     int64
	changed chan struct{}
}

func (m *memory) Load(context.Context) ([]byte, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data, m.rev, nil
}

func (m *memory) Save(_ context.Context, data []byte, rev int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev != m.rev {
		return rotation.ErrConflict
	}
	m.data, m.rev = data, rev+1
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

func (m *memory) Wait(ctx context.Context, rev int64) error {
	m.mu.Lock()
	changed, same := m.changed, m.rev == rev
	m.mu.Unlock()
	if !same {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
		return nil
	}
}

type device struct {
	dir, name string
	id        *identity.Identity
	r         *rotation.Rotation
}

type cluster struct {
	t     *testing.T
	store *memory
	all   []*device
}

func (c *cluster) add(name string) *device {
	d := &device{dir: c.t.TempDir(), name: name}
	if len(c.all) > 0 {
		shared, err := c.all[0].id.Share()
		if err != nil {
			c.t.Fatal(err)
		}
		if err := identity.Install(filepath.Join(d.dir, "pki"), shared, deviceKey(c.t)); err != nil {
			c.t.Fatal(err)
		}
	}
	c.all = append(c.all, d)
	c.reopen(d)
	return d
}

// reopen is the device's daemon started again.
func (c *cluster) reopen(d *device) {
	id, err := identity.Open(identity.Config{
		Dir: filepath.Join(d.dir, "pki"), NodeName: d.name, AdminKubeconfig: filepath.Join(d.dir, "kubeconfig"),
		APIServer: "https://127.0.0.1:6443", Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	d.id = id
	d.r = &rotation.Rotation{Name: d.name, Identity: id, Store: c.store, Logger: slog.New(slog.DiscardHandler), Members: func(context.Context) ([]string, error) {
		var names []string
		for _, d := range c.all {
			names = append(names, d.name)
		}
		return names, nil
	}}
}

// run runs a device's part for the rest of the test, or until the returned
// function is called.
func (c *cluster) run(d *device) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); d.r.Run(ctx) }()
	stop = func() { cancel(); <-done }
	c.t.Cleanup(stop)
	return stop
}

func newCluster(t *testing.T, names ...string) *cluster {
	c := &cluster{t: t, store: &memory{changed: make(chan struct{})}}
	for _, n := range names {
		c.add(n)
	}
	return c
}

func (c *cluster) eventually(what string, f func() bool) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// handshake connects server and client over TLS.
func handshake(server, client *tls.Config) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	errs := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		errs <- err
		a.Close()
	}()
	cl := tls.Client(b, client)
	err := cl.Handshake()
	if err == nil {
		_, err = cl.Read(make([]byte, 1)) // the server has judged the client
	}
	b.Close()
	if serverErr := <-errs; serverErr != nil {
		return serverErr
	}
	return err
}

// meet checks that two devices talk to each other, in both directions.
func meet(t *testing.T, a, b *device, want bool) {
	t.Helper()
	for _, p := range [][2]*device{{a, b}, {b, a}} {
		err := handshake(p[0].id.PeerServerTLS(), p[1].id.PeerClientTLS())
		if (err == nil) != want {
			t.Errorf("%s connects to %s: %v, want success %v", p[1].name, p[0].name, err, want)
		}
	}
}

func TestNobodyNoticesAndTheOldCAIsGone(t *testing.T) {
	c := newCluster(t, "a", "b", "away")
	a, b, away := c.all[0], c.all[1], c.all[2]
	c.run(a)
	c.run(b)
	oldCA := a.id.CA()
	oldUser := a.id.CAPool() // of a kubeconfig that was printed before
	if err := a.r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.eventually("both sign with the new CA", func() bool { return !a.id.CA().Equal(oldCA) && a.id.CA().Equal(b.id.CA()) })
	c.eventually("the record knows", func() bool {
		s, err := b.r.Status(t.Context())
		return err == nil && slices.Equal(s.Adopted, []string{"a", "b"}) && slices.Equal(s.Missing, []string{"away"})
	})
	if err := a.r.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second rotation: %v", err)
	}
	if err := handshake(a.id.ServerTLS(), &tls.Config{RootCAs: oldUser, ServerName: "localhost"}); err != nil {
		t.Errorf("a user who knows the old CA: %v", err)
	}
	meet(t, a, b, true)
	meet(t, a, away, true) // it has not heard of any of this
	if err := a.r.Finish(t.Context(), false); err == nil || !strings.Contains(err.Error(), "away") {
		t.Errorf("finished without the device that is away: %v", err)
	}
	// A device that joins meanwhile.
	late := c.add("late")
	c.run(late)
	meet(t, late, away, true)
	c.reopen(away)
	c.run(away)
	c.eventually("nobody is missing", func() bool {
		s, err := a.r.Status(t.Context())
		return err == nil && len(s.Missing) == 0
	})
	if err := a.r.Finish(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	for _, d := range c.all {
		c.eventually(d.name+" trusts one CA", func() bool { return len(d.id.CAs()) == 1 })
		c.eventually(d.name+" has forgotten the old key", func() bool {
			key, err := os.ReadFile(filepath.Join(d.dir, "pki", "ca.key"))
			return err == nil && bytes.Count(key, []byte("BEGIN")) == 1
		})
		meet(t, a, d, true)
	}
	if err := handshake(a.id.ServerTLS(), &tls.Config{RootCAs: oldUser, ServerName: "localhost"}); err == nil {
		t.Error("who knows the old CA alone is still let in")
	}
	if err := a.r.Start(t.Context()); err != nil {
		t.Errorf("the next rotation: %v", err)
	}
}

// TestForcedFinishShutsOut: a device that was away all the time cannot come back
// by itself, and says why.
func TestForcedFinishShutsOut(t *testing.T) {
	c := newCluster(t, "a", "away")
	a, away := c.all[0], c.all[1]
	c.run(a)
	if err := a.r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.eventually("a has it", func() bool { return len(a.id.CAs()) == 2 })
	if err := a.r.Finish(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c.eventually("a trusts one CA", func() bool { return len(a.id.CAs()) == 1 })
	meet(t, a, away, false)
	next, err := a.id.NewSuccessor()
	if err != nil {
		t.Fatal(err)
	}
	if err := away.id.Adopt(next); err == nil || !strings.Contains(err.Error(), "edged reset") {
		t.Errorf("a successor of a CA that it does not have: %v", err)
	}
}

// TestCutAtEachWrite: whatever of the files is new and whatever old after a cut,
// the device comes back and completes the rotation.
func TestCutAtEachWrite(t *testing.T) {
	c := newCluster(t, "a")
	a := c.all[0]
	read := func() (crt, key []byte) {
		t.Helper()
		crt, err1 := os.ReadFile(filepath.Join(a.dir, "pki", "ca.crt"))
		key, err2 := os.ReadFile(filepath.Join(a.dir, "pki", "ca.key"))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return crt, key
	}
	write := func(crt, key []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(a.dir, "pki", "ca.crt"), crt, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(a.dir, "pki", "ca.key"), key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	crt0, _ := read()
	next, err := a.id.NewSuccessor()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.id.Adopt(next); err != nil {
		t.Fatal(err)
	}
	_, key1 := read()
	if err := a.id.DropOld(); err != nil {
		t.Fatal(err)
	}
	crt2, _ := read()
	for _, step := range []struct {
		name     string
		crt, key []byte
	}{{"Adopt: the key is written", crt0, key1}, {"DropOld: the certificate is written", crt2, key1}} {
		write(step.crt, step.key)
		c.reopen(a)
		if err := a.id.Adopt(next); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := a.id.DropOld(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		root, err := x509.ParseCertificate(next.Root)
		if err != nil || !a.id.CA().Equal(root) {
			t.Errorf("%s: another CA signs (%v)", step.name, err)
		}
		if _, key := read(); bytes.Count(key, []byte("BEGIN")) != 1 {
			t.Errorf("%s: the old key is still there", step.name)
		}
	}
}

func TestDamagedSuccessorIsRefused(t *testing.T) {
	c := newCluster(t, "a")
	a := c.all[0]
	good, err := a.id.NewSuccessor()
	if err != nil {
		t.Fatal(err)
	}
	other, err := a.id.NewSuccessor()
	if err != nil {
		t.Fatal(err)
	}
	sealed := bytes.Clone(good.SealedKey)
	sealed[len(sealed)-1] ^= 1
	for name, s := range map[string]identity.Successor{
		"key changed":        {Root: good.Root, Cross: good.Cross, SealedKey: sealed},
		"key of another":     {Root: good.Root, Cross: good.Cross, SealedKey: other.SealedKey},
		"key cut":            {Root: good.Root, Cross: good.Cross, SealedKey: good.SealedKey[:4]},
		"cross of another":   {Root: good.Root, Cross: other.Cross, SealedKey: good.SealedKey},
		"root for the cross": {Root: good.Root, Cross: good.Root, SealedKey: good.SealedKey},
		"cross for the root": {Root: good.Cross, Cross: good.Cross, SealedKey: good.SealedKey},
		"nothing":            {},
		"not certificates":   {Root: []byte("x"), Cross: []byte("y"), SealedKey: good.SealedKey},
	} {
		before := a.id.CAPEM()
		if err := a.id.Adopt(s); err == nil || !bytes.Equal(before, a.id.CAPEM()) {
			t.Errorf("%s: %v, want an error and no change", name, err)
		}
	}
}

func deviceKey(t *testing.T) identity.DeviceKey {
	t.Helper()
	key, err := identity.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
