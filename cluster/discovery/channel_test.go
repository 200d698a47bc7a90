package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"edged/cluster/identity"
	"edged/cluster/join"
)

// lets is a member behind a TLS port.
type lets struct {
	d        *Discovery
	addr     netip.AddrPort
	admitted atomic.Int32
}

func newMember(t *testing.T, secret string, founding *Founding) *lets {
	t.Helper()
	m := &lets{d: New(Config{Name: "box", Secret: []byte(secret), Logger: slog.New(slog.DiscardHandler)})}
	m.d.member = &Member{
		Device: Device{ID: NewID(), Name: "member"}, Cluster: func() uint64 { return 0xc1 }, Founding: founding,
		Share: func() (identity.Shared, error) { return identity.Shared{CAKey: []byte("the CA's key")}, nil },
		Admit: func(_ context.Context, r join.Request) (join.Answer, error) {
			m.admitted.Add(1)
			if r.NodeName == "taken" {
				return join.Answer{}, errors.New("the name is taken")
			}
			return join.Answer{CAKey: []byte("the CA's key")}, nil
		},
	}
	m.addr = serveTLS(t, func(ctx context.Context, c *tls.Conn) { m.d.ServeConn(ctx, c) })
	return m
}

// serveTLS accepts on loopback.
func serveTLS(t *testing.T, serve func(context.Context, *tls.Conn)) netip.AddrPort {
	t.Helper()
	cert, err := throwaway()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPN}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if c.(*tls.Conn).HandshakeContext(t.Context()) == nil {
					serve(t.Context(), c.(*tls.Conn))
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func keyOf(t *testing.T, secret string) []byte {
	t.Helper()
	key, err := deriveKey("box", []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestJoinBySecret(t *testing.T) {
	m := newMember(t, "a secret of the cluster", nil)
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	key := keyOf(t, "a secret of the cluster")
	answer, err := askToJoin(t.Context(), []netip.AddrPort{nobody, m.addr}, key, NewID(), join.Request{NodeName: "new"})
	if err != nil || string(answer.CAKey) != "the CA's key" {
		t.Errorf("%+v, %v", answer, err)
	}
	if _, err := askToJoin(t.Context(), []netip.AddrPort{m.addr}, key, NewID(), join.Request{NodeName: "taken"}); err == nil {
		t.Error("no reason why it was not let in")
	}
}

// A member tells the keys to first voters only, and others that it is one.
func TestFirstVoters(t *testing.T) {
	first := NewID()
	m := newMember(t, "a secret of the cluster", &Founding{Token: "x", Founders: []Founder{{ID: first}}})
	for _, id := range []ID{first, NewID()} {
		ch, err := dial(t.Context(), m.addr, keyOf(t, "a secret of the cluster"), id)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ch.call(question{Found: &Message{Kind: kindHello, From: Device{ID: id}}}, callTime)
		ch.conn.Close()
		switch {
		case err != nil || r.Found == nil || r.Found.Cluster != "c1":
			t.Errorf("%+v, %v", r, err)
		case id == first && (r.Found.Kind != kindDecided || string(r.Found.Genesis.Shared.CAKey) != "the CA's key"):
			t.Errorf("a first voter is told %+v", r.Found)
		case id != first && (r.Found.Kind != kindMember || r.Found.Genesis != nil):
			t.Errorf("another is told %+v", r.Found)
		}
	}
}

// Who has another secret learns nothing and is told nothing, on either side.
func TestWrongSecret(t *testing.T) {
	m := newMember(t, "a secret of the cluster", nil)
	if _, err := askToJoin(t.Context(), []netip.AddrPort{m.addr}, keyOf(t, "a guess that is wrong"), NewID(), join.Request{}); !errors.Is(err, errProof) {
		t.Errorf("with a wrong secret: %v", err)
	}
	// A listener that knows nothing gets a proof, and no question.
	var got atomic.Int32
	stranger := serveTLS(t, func(_ context.Context, c *tls.Conn) {
		buf := make([]byte, 1024)
		for {
			n, err := c.Read(buf)
			got.Add(int32(n))
			if err != nil {
				return
			}
			if got.Load() == 1+16+32 {
				c.Write(make([]byte, 16+32))
			}
		}
	})
	if _, err := askToJoin(t.Context(), []netip.AddrPort{stranger}, keyOf(t, "a secret of the cluster"), NewID(), join.Request{NodeName: "new"}); !errors.Is(err, errProof) {
		t.Errorf("a listener without the secret: %v", err)
	}
	if n := got.Load(); n != 1+16+32 {
		t.Errorf("it was told %d bytes", n)
	}
	if m.admitted.Load() != 0 {
		t.Error("somebody was let in")
	}
}

// One who stands between two devices that know the secret, and speaks TLS to
// both, passes their proofs on in vain.
func TestInTheMiddle(t *testing.T) {
	m := newMember(t, "a secret of the cluster", nil)
	middle := serveTLS(t, func(ctx context.Context, c *tls.Conn) {
		out, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}}}).DialContext(ctx, "tcp", m.addr.String())
		if err != nil {
			return
		}
		defer out.Close()
		go io.Copy(out, c)
		io.Copy(c, out)
	})
	if _, err := askToJoin(t.Context(), []netip.AddrPort{middle}, keyOf(t, "a secret of the cluster"), NewID(), join.Request{}); !errors.Is(err, errProof) {
		t.Errorf("through one in the middle: %v", err)
	}
	if m.admitted.Load() != 0 {
		t.Error("the request got through")
	}
}

// After ten wrong proofs an address is not listened to for a minute, not even
// with the right one.
func TestGuessing(t *testing.T) {
	m := newMember(t, "a secret of the cluster", nil)
	wrong := keyOf(t, "a guess that is wrong")
	for i := range failuresPerMinute {
		if _, err := dial(t.Context(), m.addr, wrong, NewID()); !errors.Is(err, errProof) {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	if _, err := dial(t.Context(), m.addr, keyOf(t, "a secret of the cluster"), NewID()); err == nil {
		t.Error("the eleventh was listened to")
	}
	from := netip.MustParseAddr("127.0.0.1")
	if m.d.guard.enter(from, time.Now()) || !m.d.guard.enter(from, time.Now().Add(time.Minute)) {
		t.Error("not for a minute")
	}
}

// Connections that prove nothing are few at a time.
func TestUnproven(t *testing.T) {
	var g guard
	now := time.Now()
	for i := range 1000 {
		g.enter(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now)
	}
	if g.total != maxUnproven {
		t.Errorf("%d, want %d", g.total, maxUnproven)
	}
	var one guard
	from := netip.MustParseAddr("10.0.0.1")
	for range 100 {
		one.enter(from, now)
	}
	if one.total != maxUnprovenEach {
		t.Errorf("%d from one address, want %d", one.total, maxUnprovenEach)
	}
	for range maxUnprovenEach {
		one.leave(from, false)
	}
	if !one.enter(from, now) {
		t.Error("those that are gone still count")
	}
}

// A message that claims to be huge is not read.
func TestHugeMessage(t *testing.T) {
	m := newMember(t, "a secret of the cluster", nil)
	ch, err := dial(t.Context(), m.addr, keyOf(t, "a secret of the cluster"), NewID())
	if err != nil {
		t.Fatal(err)
	}
	defer ch.conn.Close()
	if _, err := ch.conn.Write([]byte{0xff, 0xff, 0xff, 0xff, '{'}); err != nil {
		t.Fatal(err)
	}
	ch.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var timeout net.Error
	if _, err := ch.conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection was not ended: %v", err)
	}
}
