package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"edged/cluster/join"
)

const (
	// tickEvery is how often a fresh device looks what is due.
	tickEvery = 200 * time.Millisecond
	// askFirst and askMost are the pauses between its questions on the links.
	askFirst = time.Second
	askMost  = 30 * time.Second
	// joinPause is between two requests to be let in.
	joinPause = time.Second
	// maxQueue bounds what waits to be said to one device; what does not fit is
	// lost, as on a bad link.
	maxQueue = 8
)

// Form is what a fresh device brings.
type Form struct {
	// Dir is the data-dir: what is promised is kept there.
	Dir string
	// Listener is the API's, not yet used for that.
	Listener *net.TCPListener
	// Name, Port, PeerPort and Expect are the device's; PeerURLs are where its
	// store will be, now.
	Name           string
	Port, PeerPort uint16
	Expect, Voters int
	PeerURLs       func() []string
	// PublicKey is join.Request's.
	PublicKey []byte
	// Found makes keys for a cluster.
	Found func() (*Genesis, error)
}

// Formed says what a device is to do.
type Formed struct {
	ID ID
	// Genesis is the cluster that it is one of the first voters of; else Joined is
	// the answer of the cluster that let it in.
	Genesis *Genesis
	Joined  *join.Answer
}

// forming is Form at work; one goroutine owns it.
type forming struct {
	d       *Discovery
	cfg     Form
	id      ID
	key     []byte
	m       *Machine
	ctx     context.Context
	running *sync.WaitGroup

	announced chan Announcement
	asked     chan asked
	answered  chan Message
	joined    chan joined
	callers   map[ID]*caller
	joining   bool
	joinAt    time.Time
	told      string
}

// asked is another device's question, from an address.
type asked struct {
	q      Message
	from   netip.Addr
	answer chan Message
}

type joined struct {
	answer *join.Answer
	err    error
}

// caller speaks to one device.
type caller struct {
	queue chan Message
	mu    sync.Mutex
	addrs []netip.AddrPort // guarded by mu: newest first
}

// Form finds the others and returns when this device is one of a cluster's first
// voters or was let into one. When it returns, what it promised is on disk, and
// stays there until [Forget].
func (d *Discovery) Form(ctx context.Context, cfg Form) (Formed, error) {
	key, err := d.key()
	if err != nil {
		return Formed{}, err
	}
	state, err := loadState(cfg.Dir)
	if err != nil {
		return Formed{}, err
	}
	defer cfg.Listener.SetDeadline(time.Time{}) // as it was
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	self := Device{Name: cfg.Name, PeerURLs: cfg.PeerURLs(), Port: cfg.Port, Expect: cfg.Expect}
	f := &forming{
		d: d, cfg: cfg, id: state.ID, key: key, ctx: ctx, running: &running,
		announced: make(chan Announcement), asked: make(chan asked), answered: make(chan Message), joined: make(chan joined), callers: map[ID]*caller{},
	}
	f.m = NewMachine(self, cfg.Voters, state, time.Now(), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), func(first []Founder) (*Genesis, error) {
		g, err := cfg.Found()
		if err == nil {
			g.Token, g.Founders = NewID().String(), first
		}
		return g, err
	})
	if g := f.m.Decided(); g != nil {
		return Formed{ID: state.ID, Genesis: g}, nil
	}
	whoami := Announcement{ID: state.ID, Cluster: d.cfg.Name, Port: cfg.Port, PeerPort: cfg.PeerPort}
	b := newBeacon(d.cfg.Name, key, func() Announcement { return whoami }, func(a Announcement) {
		select {
		case f.announced <- a:
		case <-ctx.Done():
		}
	}, d.log)
	failed := make(chan error, 2)
	running.Go(func() { failed <- b.run(ctx) })
	running.Go(func() { failed <- f.listen() })
	running.Go(func() {
		<-ctx.Done()
		_ = cfg.Listener.SetDeadline(time.Unix(1, 0)) // end listen's waiting
	})
	d.log.Info("looking for devices of the cluster", "cluster", d.cfg.Name, "expect", cfg.Expect, "device", state.ID)
	return f.run(b, failed)
}

func (f *forming) run(b *beacon, failed <-chan error) (Formed, error) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	pause := askFirst
	nextAsk := time.Now().Add(pause)
	for {
		save := false
		var reply func()
		select {
		case <-f.ctx.Done():
			return Formed{}, f.ctx.Err()
		case err := <-failed:
			if err != nil {
				return Formed{}, err
			}
		case a := <-f.announced:
			f.m.Announced(a.ID)
			f.call(a.ID, a.Addrs, a.Port)
		case q := <-f.asked:
			f.m.Announced(q.q.From.ID)
			f.call(q.q.From.ID, []netip.Addr{q.from}, q.q.From.Port)
			var answer Message
			answer, save = f.m.Handle(time.Now(), q.q)
			reply = func() { q.answer <- answer }
		case a := <-f.answered:
			save = f.m.Answered(time.Now(), a)
		case j := <-f.joined:
			f.joining, f.joinAt = false, time.Now().Add(joinPause)
			if j.err == nil {
				return Formed{ID: f.id, Joined: j.answer}, nil
			}
			f.say("the cluster does not let this device in yet, trying again", "err", j.err)
		case now := <-tick.C:
			f.m.SetSelf(f.cfg.PeerURLs())
			if now.After(nextAsk) {
				pause = min(2*pause, askMost)
				nextAsk = now.Add(pause)
				b.ask()
			}
		}
		if err := f.save(save); err != nil {
			return Formed{}, err
		}
		if reply != nil {
			reply()
		}
		out, save, err := f.m.Tick(time.Now())
		if err != nil {
			return Formed{}, fmt.Errorf("found a cluster: %w", err)
		}
		if err := f.save(save); err != nil {
			return Formed{}, err
		}
		for _, o := range out {
			if c := f.callers[o.To]; c != nil {
				select {
				case c.queue <- o.Message:
				default:
				}
			}
		}
		if g := f.m.Decided(); g != nil {
			return Formed{ID: f.id, Genesis: g}, nil
		}
		f.join()
		f.report()
	}
}

func (f *forming) save(due bool) error {
	if !due {
		return nil
	}
	return saveState(f.cfg.Dir, f.m.State())
}

// say tells the operator what is new.
func (f *forming) say(msg string, args ...any) {
	if text := msg + fmt.Sprint(args...); text != f.told {
		f.told = text
		f.d.log.Info(msg, args...)
	}
}

// report tells who is there when that changes.
func (f *forming) report() {
	now := time.Now()
	if members, clusters := f.m.Members(now); clusters > 1 {
		f.say("devices of several clusters have this name and secret: this device joins none of them", "members", len(members), "clusters", clusters)
		return
	} else if clusters == 1 {
		return // join says how it goes
	}
	var names []string
	fresh := f.m.Fresh(now)
	for _, d := range fresh {
		names = append(names, d.Name)
	}
	if slices.Sort(names); len(slices.Compact(slices.Clone(names))) < len(names) {
		f.say("two devices have the same name: give one another --node-name", "devices", strings.Join(names, ","))
		return
	}
	f.say("devices that are there", "expect", f.m.Expect(now), "found", len(fresh), "devices", strings.Join(names, ","))
}

// join asks a member to let this device in, one at a time.
func (f *forming) join() {
	members, clusters := f.m.Members(time.Now())
	if f.joining || clusters != 1 || time.Now().Before(f.joinAt) {
		return
	}
	// Any may be the one that is cut off.
	c := f.callers[members[rand.IntN(len(members))]]
	if c == nil {
		return
	}
	f.joining = true
	req := join.Request{NodeName: f.cfg.Name, PeerURLs: f.cfg.PeerURLs(), PublicKey: f.cfg.PublicKey}
	f.running.Go(func() {
		answer, err := askToJoin(f.ctx, c.where(), f.key, f.id, req)
		select {
		case f.joined <- joined{answer, err}:
		case <-f.ctx.Done():
		}
	})
}

// call makes sure that there is somebody who speaks to a device, and knows its
// addresses.
func (f *forming) call(id ID, addrs []netip.Addr, port uint16) {
	c := f.callers[id]
	if c == nil {
		if len(f.callers) >= maxDevices {
			return
		}
		c = &caller{queue: make(chan Message, maxQueue)}
		f.callers[id] = c
		f.running.Go(func() { f.speak(id, c) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ip := range addrs {
		ap := netip.AddrPortFrom(ip, port)
		c.addrs = slices.Insert(slices.DeleteFunc(c.addrs, func(o netip.AddrPort) bool { return o == ap }), 0, ap)
	}
	c.addrs = c.addrs[:min(len(c.addrs), maxAddrs)]
}

func (c *caller) where() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.addrs)
}

// speak asks one device what is queued, on one connection while that lasts.
func (f *forming) speak(id ID, c *caller) {
	var ch *channel
	defer func() {
		if ch != nil {
			ch.conn.Close()
		}
	}()
	for {
		var q Message
		select {
		case <-f.ctx.Done():
			return
		case q = <-c.queue:
		}
		for _, addr := range c.where() {
			if ch != nil {
				break
			}
			var err error
			if ch, err = dial(f.ctx, addr, f.key, f.id); err != nil {
				f.d.log.Debug("a device that was announced is not reached", "device", id, "err", err)
				ch = nil
			}
		}
		if ch == nil {
			continue
		}
		r, err := ch.call(question{Found: &q}, callTime)
		if err != nil || r.Found == nil || r.Found.From.ID != ch.peer {
			ch.conn.Close()
			ch = nil
			continue
		}
		select {
		case f.answered <- *r.Found:
		case <-f.ctx.Done():
			return
		}
	}
}

// listen serves other devices on the API's port until ctx ends.
func (f *forming) listen() error {
	l := f.cfg.Listener
	cert, err := throwaway()
	if err != nil {
		return fmt.Errorf("make a certificate for devices that form a cluster: %w", err)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN}, Certificates: []tls.Certificate{cert}}
	for f.ctx.Err() == nil {
		conn, err := l.Accept()
		if err != nil {
			if f.ctx.Err() != nil {
				return nil
			}
			select {
			case <-f.ctx.Done():
				return nil
			case <-time.After(tickEvery): // out of files
			}
			continue
		}
		f.running.Go(func() {
			defer conn.Close()
			f.greet(tls.Server(conn, tlsConfig))
		})
	}
	return nil
}

func (f *forming) greet(conn *tls.Conn) {
	from := remoteAddr(conn)
	if !f.d.guard.enter(from, time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, proofTime)
	err := conn.HandshakeContext(ctx)
	cancel()
	if err != nil {
		f.d.guard.leave(from, false)
		return
	}
	f.d.serveConn(f.ctx, conn, f.id, f.answer)
}

var errNotMember = errors.New("this device is of no cluster yet")

func (f *forming) answer(ctx context.Context, q question, from netip.Addr) reply {
	if q.Found == nil {
		return reply{Error: errNotMember.Error()}
	}
	a := asked{*q.Found, from, make(chan Message, 1)}
	select {
	case f.asked <- a:
	case <-ctx.Done():
		return reply{Error: errNotMember.Error()}
	}
	select {
	case m := <-a.answer:
		return reply{Found: &m}
	case <-ctx.Done():
		return reply{Error: errNotMember.Error()}
	}
}
