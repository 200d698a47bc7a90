package discovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"edged/cluster/join"
)

// ALPN is what connections between devices of one secret negotiate.
const ALPN = "edged-form/1"

const (
	channelVersion = 1
	// pbkdf2Rounds is what a guess of the secret costs; half a second on the
	// slowest board, once after each start.
	pbkdf2Rounds = 50_000
	// maxFrame is far above any founding's or answer's.
	maxFrame = 256 << 10
	// proofTime bounds what a stranger can hold open.
	proofTime = 5 * time.Second
	// callTime bounds a question of founding, joinTime one that needs a leader.
	callTime = 5 * time.Second
	joinTime = 20 * time.Second
	// idleTime is when a connection without questions ends.
	idleTime = 10 * time.Second
)

// question and reply are what goes through a channel.
type question struct {
	Found *Message      `json:"found,omitempty"`
	Join  *join.Request `json:"join,omitempty"`
}

type reply struct {
	Found *Message     `json:"found,omitempty"`
	Join  *join.Answer `json:"join,omitempty"`
	Error string       `json:"error,omitempty"`
}

// deriveKey makes the key that proves the secret.
func deriveKey(name string, secret []byte) ([]byte, error) {
	key, err := pbkdf2.Key(sha256.New, string(secret), []byte("edged forming 1\x00"+name), pbkdf2Rounds, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("make a key of the cluster's secret: %w", err)
	}
	return key, nil
}

// mac is over parts of any length, each of which keeps its place.
func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum(nil)
}

var (
	errProof   = errors.New("the other side does not know the cluster's secret")
	errVersion = errors.New("the other side speaks another version: use the same release of edged")
)

// channel is a connection whose other side has proven the secret.
type channel struct {
	conn *tls.Conn
	peer ID
}

// material is what only the two ends of a connection know.
func material(conn *tls.Conn) ([]byte, error) {
	cs := conn.ConnectionState()
	if cs.NegotiatedProtocol != ALPN || cs.Version != tls.VersionTLS13 {
		return nil, errVersion
	}
	return cs.ExportKeyingMaterial("EXPORTER-edged-form", nil, 32)
}

// dial connects to a device and proves the secret first.
func dial(ctx context.Context, addr netip.AddrPort, key []byte, self ID) (*channel, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN},
		// What the certificate would prove is proven below.
		InsecureSkipVerify: true,
	}}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	ch := &channel{conn: c.(*tls.Conn)}
	if err := ch.prove(key, self); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return ch, nil
}

func (ch *channel) prove(key []byte, self ID) error {
	secret, err := material(ch.conn)
	if err != nil {
		return err
	}
	if err := ch.conn.SetDeadline(time.Now().Add(proofTime)); err != nil {
		return err
	}
	hello := append([]byte{channelVersion}, self[:]...)
	hello = append(hello, mac(key, []byte("dialler"), secret, self[:])...)
	if _, err := ch.conn.Write(hello); err != nil {
		return err
	}
	var back [len(ID{}) + sha256.Size]byte
	if _, err := io.ReadFull(ch.conn, back[:]); err != nil {
		return errProof
	}
	ch.peer = ID(back[:len(ID{})])
	if !hmac.Equal(back[len(ID{}):], mac(key, []byte("listener"), secret, self[:], ch.peer[:])) {
		return errProof
	}
	return nil
}

// welcome is the listener's side of prove.
func welcome(conn *tls.Conn, key []byte, self ID) (*channel, error) {
	secret, err := material(conn)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(proofTime)); err != nil {
		return nil, err
	}
	var hello [1 + len(ID{}) + sha256.Size]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return nil, err
	}
	if hello[0] != channelVersion {
		return nil, errVersion
	}
	peer := ID(hello[1 : 1+len(ID{})])
	if !hmac.Equal(hello[1+len(ID{}):], mac(key, []byte("dialler"), secret, peer[:])) {
		return nil, errProof
	}
	if _, err := conn.Write(append(self[:], mac(key, []byte("listener"), secret, peer[:], self[:])...)); err != nil {
		return nil, err
	}
	return &channel{conn, peer}, nil
}

func (ch *channel) write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = ch.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}

func (ch *channel) read(v any) error {
	var head [4]byte
	if _, err := io.ReadFull(ch.conn, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("a message of %d bytes", n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(ch.conn, data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// call asks and waits for the reply.
func (ch *channel) call(q question, within time.Duration) (r reply, err error) {
	if err := ch.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return r, err
	}
	if err := ch.write(q); err != nil {
		return r, err
	}
	if err := ch.read(&r); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// serve answers questions until the other side has none.
func (ch *channel) serve(ctx context.Context, answer func(context.Context, question, netip.Addr) reply) {
	from := remoteAddr(ch.conn)
	for ctx.Err() == nil {
		if ch.conn.SetDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		var q question
		if ch.read(&q) != nil {
			return
		}
		r := answer(ctx, q, from)
		if ch.conn.SetDeadline(time.Now().Add(callTime)) != nil || ch.write(r) != nil {
			return
		}
	}
}

func remoteAddr(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

const (
	// maxUnproven and maxUnprovenEach bound connections that have proven nothing
	// yet, together and from one address.
	maxUnproven     = 64
	maxUnprovenEach = 4
	// failuresPerMinute is how many wrong proofs an address may show.
	failuresPerMinute = 10
	// maxStrangers bounds the addresses that failures are counted for.
	maxStrangers = 1024
)

// guard bounds what strangers can use up.
type guard struct {
	mu sync.Mutex
	// guarded by mu
	open     map[netip.Addr]int
	total    int
	minute   time.Time
	failures map[netip.Addr]int // in this minute
}

// enter lets a connection prove itself, or not.
func (g *guard) enter(from netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures == nil || now.Sub(g.minute) >= time.Minute || len(g.failures) >= maxStrangers {
		g.minute, g.failures = now, map[netip.Addr]int{}
	}
	if g.open == nil {
		g.open = map[netip.Addr]int{}
	}
	if g.failures[from] >= failuresPerMinute || g.total >= maxUnproven || g.open[from] >= maxUnprovenEach {
		return false
	}
	g.open[from]++
	g.total++
	return true
}

// leave ends what enter began; failed counts against the address.
func (g *guard) leave(from netip.Addr, failed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.open[from]--; g.open[from] <= 0 {
		delete(g.open, from)
	}
	if failed {
		g.failures[from]++
	}
}

// throwaway is the certificate of a device that has none yet.
func throwaway() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
