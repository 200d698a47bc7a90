package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"edged/cluster/identity"
	"edged/cluster/join"
)

// MinSecret is how short a secret may be: 16 random letters are 75 bits.
const MinSecret = 16

// Config is what a device was told.
type Config struct {
	// Name is the cluster's, Secret what its devices have in common.
	Name   string
	Secret []byte
	Logger *slog.Logger
}

// Discovery is a device's part in finding others.
type Discovery struct {
	cfg   Config
	log   *slog.Logger
	key   func() ([]byte, error)
	guard guard

	mu sync.Mutex
	// guarded by mu
	member *Member // nil: not of a cluster, or not ready
	beacon *beacon
}

// New does nothing yet.
func New(cfg Config) *Discovery {
	return &Discovery{cfg: cfg, log: cfg.Logger, key: sync.OnceValues(func() ([]byte, error) { return deriveKey(cfg.Name, cfg.Secret) })}
}

// Member is a device that is of a cluster.
type Member struct {
	Device Device
	// Cluster names its cluster, 0 until it knows.
	Cluster func() uint64
	// MemberID is its id in the store, PeerPort the store's port.
	MemberID uint64
	PeerPort uint16
	// Founding is how its cluster came to be, if by discovery.
	Founding *Founding
	Settings map[string]string
	// Share hands out the cluster's keys.
	Share func() (identity.Shared, error)
	// Admit lets a device in.
	Admit func(context.Context, join.Request) (join.Answer, error)
	// Found tells where another member of the cluster said that it is.
	Found func(member uint64, addrs []netip.AddrPort)
}

// Serve tells fresh devices of this one's cluster until ctx ends. Its
// connections come by [Discovery.ServeConn].
func (d *Discovery) Serve(ctx context.Context, m Member) error {
	key, err := d.key()
	if err != nil {
		return err
	}
	self := Announcement{ID: m.Device.ID, Cluster: d.cfg.Name, Port: m.Device.Port, PeerPort: m.PeerPort, Member: m.MemberID}
	b := newBeacon(d.cfg.Name, key, func() Announcement { return self }, heardOf(m.MemberID, m.Found), d.log)
	d.mu.Lock()
	d.member, d.beacon = &m, b
	d.mu.Unlock()
	return b.run(ctx)
}

// Ask asks on all links where the other devices are.
func (d *Discovery) Ask() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.beacon != nil {
		d.beacon.ask()
	}
}

// ServeConn serves a connection that negotiated [ALPN], until it ends.
func (d *Discovery) ServeConn(ctx context.Context, conn *tls.Conn) {
	d.mu.Lock()
	m := d.member
	d.mu.Unlock()
	if m != nil && d.guard.enter(remoteAddr(conn), time.Now()) {
		d.serveConn(ctx, conn, m.Device.ID, m.answer)
	}
}

// serveConn lets the other side, which the guard has let in, prove that it knows
// the secret, and then ask.
func (d *Discovery) serveConn(ctx context.Context, conn *tls.Conn, self ID, answer func(context.Context, question, netip.Addr) reply) {
	from := remoteAddr(conn)
	ch, err := d.welcome(conn, self)
	d.guard.leave(from, errors.Is(err, errProof))
	if err != nil {
		if errors.Is(err, errProof) {
			d.log.Warn("a device that does not know the cluster's secret was turned away", "address", from)
		}
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ch.serve(ctx, answer)
}

func (d *Discovery) welcome(conn *tls.Conn, self ID) (*channel, error) {
	key, err := d.key()
	if err != nil {
		return nil, err
	}
	return welcome(conn, key, self)
}

func (m *Member) answer(ctx context.Context, q question, _ netip.Addr) reply {
	switch {
	case q.Found != nil:
		var g *Genesis
		if m.Founding != nil && m.Founding.Has(q.Found.From.ID) {
			shared, err := m.Share()
			if err != nil {
				return reply{Error: err.Error()}
			}
			g = &Genesis{Founding: *m.Founding, Settings: m.Settings, Shared: shared}
		}
		cluster := m.Cluster()
		if cluster == 0 {
			return reply{Error: "this device has joined and does not know the cluster yet"}
		}
		msg := memberAnswer(m.Device, fmt.Sprintf("%x", cluster), g, *q.Found)
		return reply{Found: &msg}
	case q.Join != nil:
		ctx, cancel := context.WithTimeout(ctx, joinTime)
		defer cancel()
		answer, err := m.Admit(ctx, *q.Join)
		if err != nil {
			return reply{Error: err.Error()}
		}
		return reply{Join: &answer}
	}
	return reply{Error: "the question is not known: use the same release of edged"}
}

// memberAnswer is what a member of cluster says to a question about founding: to
// one of the first voters, which genesis names, that it is one.
func memberAnswer(self Device, cluster string, genesis *Genesis, q Message) Message {
	if genesis != nil && genesis.Has(q.From.ID) {
		return Message{Kind: kindDecided, From: self, Cluster: cluster, Genesis: genesis}
	}
	return Message{Kind: kindMember, From: self, Cluster: cluster}
}

// askToJoin asks a member to let this device in.
func askToJoin(ctx context.Context, addrs []netip.AddrPort, key []byte, self ID, req join.Request) (*join.Answer, error) {
	last := errors.New("no address of it is known")
	for _, addr := range addrs {
		ch, err := dial(ctx, addr, key, self)
		if err != nil {
			last = err
			continue
		}
		r, err := ch.call(question{Join: &req}, joinTime)
		ch.conn.Close()
		if err == nil && r.Join == nil {
			err = errors.New("it answered something else")
		}
		if err != nil {
			return nil, fmt.Errorf("join by %s: %w", addr, err)
		}
		return r.Join, nil
	}
	return nil, last
}
