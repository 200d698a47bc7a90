package discovery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"edged/internal/linknews"
)

const (
	// settleLinks is how long links may go on changing before they are looked at.
	settleLinks = 200 * time.Millisecond
	// answerPause is between two answers on one link (RFC 6762, 6).
	answerPause = time.Second
	// announceTimes is how often what is new is told, a second apart (RFC 6762,
	// 8.3).
	announceTimes = 2
)

// beacon speaks and hears mDNS on all links. Without a question, a change of a
// link or a call of ask it sleeps.
type beacon struct {
	cluster string
	key     []byte
	// self is what is told, without addresses.
	self func() Announcement
	// found takes what others tell, on one goroutine.
	found func(Announcement)
	log   *slog.Logger
	asks  chan struct{} // ask now

	// owned by run
	links map[int]*ear
	due   time.Time // of the next thing that an ear has to do; zero: nothing
	told  string    // the last complaint
}

// ear is the beacon on one link.
type ear struct {
	link     link
	conns    []net.PacketConn // by group; nil: that family is not there
	answered time.Time
	answer   time.Time // when to tell; zero: not asked
	tells    int       // more times to tell
}

type packet struct {
	index int
	from  net.Addr
	data  []byte
	conn  net.PacketConn
}

func newBeacon(cluster string, key []byte, self func() Announcement, found func(Announcement), log *slog.Logger) *beacon {
	return &beacon{cluster: cluster, key: key, self: self, found: found, log: log, asks: make(chan struct{}, 1), links: map[int]*ear{}}
}

// ask asks on all links who is there; it never waits.
func (b *beacon) ask() {
	select {
	case b.asks <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (b *beacon) run(ctx context.Context) error {
	notices, err := linknews.Open(noticeGroups)
	if err != nil {
		return err
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer notices.Close()
	defer func() {
		for _, e := range b.links {
			e.close()
		}
	}()
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	readers.Go(func() {
		linknews.Watch(notices, matters, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	packets := make(chan packet)
	hear := func(index int, conn net.PacketConn) {
		readers.Go(func() { listen(ctx, index, conn, packets) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var settle <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if settle == nil {
				settle = time.After(settleLinks)
			}
			if len(b.links) > 0 {
				continue
			}
			settle = nil // the first ones at once
			b.follow(time.Now(), hear)
		case <-settle:
			settle = nil
			b.follow(time.Now(), hear)
		case <-b.asks:
			for _, e := range b.links {
				b.send(e, askPacket())
			}
		case p := <-packets:
			b.hear(time.Now(), p)
		case <-timer.C:
			b.work(time.Now())
		}
		timer.Stop()
		if b.due = b.next(); !b.due.IsZero() {
			timer.Reset(time.Until(b.due))
		}
	}
}

// listen reads one socket until it is closed.
func listen(ctx context.Context, index int, conn net.PacketConn, out chan<- packet) {
	buf := make([]byte, packetBytes)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			// The link is down: its notice closes the socket.
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case out <- packet{index, from, slices.Clone(buf[:n]), conn}:
		case <-ctx.Done():
			return
		}
	}
}

func (e *ear) close() {
	for _, c := range e.conns {
		if c != nil {
			c.Close()
		}
	}
}

// follow makes the ears those of the links that there are.
func (b *beacon) follow(now time.Time, hear func(int, net.PacketConn)) {
	links, err := findLinks()
	if err != nil {
		b.complain(err)
		return
	}
	for index, e := range b.links {
		if !slices.ContainsFunc(links, func(l link) bool { return l.index == index && l.name == e.link.name }) {
			e.close()
			delete(b.links, index)
		}
	}
	for _, l := range links {
		e := b.links[l.index]
		if e != nil && slices.Equal(e.link.addrs, l.addrs) && !e.deaf() {
			continue
		}
		if e == nil {
			e = &ear{conns: make([]net.PacketConn, len(groups))}
			b.links[l.index] = e
		}
		e.link = l
		for i, group := range groups {
			if e.conns[i] != nil || !slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return a.Is4() == group.Is4() }) {
				continue
			}
			conn, err := openLink(l, group)
			if err != nil {
				b.complain(err)
				continue
			}
			e.conns[i] = conn
			hear(l.index, conn)
		}
		e.tells, e.answer = announceTimes, now
		b.send(e, askPacket())
	}
	b.work(now)
}

// deaf says that the link has an address of a family without a socket.
func (e *ear) deaf() bool {
	for i, group := range groups {
		if e.conns[i] == nil && slices.ContainsFunc(e.link.addrs, func(a netip.Addr) bool { return a.Is4() == group.Is4() }) {
			return true
		}
	}
	return false
}

func (b *beacon) complain(err error) {
	if err.Error() != b.told {
		b.told = err.Error()
		b.log.Warn("devices on a link may not be found", "err", err)
	}
}

func (b *beacon) hear(now time.Time, p packet) {
	e := b.links[p.index]
	if e == nil {
		return
	}
	h, err := parse(p.data, b.cluster, b.key, b.self().ID)
	if err != nil {
		return // many speak mDNS, some badly
	}
	for _, a := range h.others {
		for i, ip := range a.Addrs {
			if ip.IsLinkLocalUnicast() && ip.Is6() {
				a.Addrs[i] = ip.WithZone(e.link.name)
			}
		}
		b.found(a)
	}
	if !h.asks {
		return
	}
	if from, ok := p.from.(*net.UDPAddr); ok && from.Port != mdnsPort {
		// RFC 6762, 6.7: a resolver that knows unicast only.
		b.reply(e, p, h.id)
		return
	}
	if e.answer.IsZero() {
		e.answer = now.Add(20*time.Millisecond + rand.N(100*time.Millisecond))
		if again := e.answered.Add(answerPause); e.answer.Before(again) {
			e.answer = again
		}
	}
}

func (b *beacon) announcement(e *ear) Announcement {
	a := b.self()
	for _, ip := range e.link.addrs {
		if len(a.Addrs) < maxAddrs && !ip.IsLoopback() {
			a.Addrs = append(a.Addrs, ip)
		}
	}
	return a
}

func (b *beacon) reply(e *ear, p packet, id uint16) {
	data, err := b.announcement(e).pack(b.key, id)
	if err != nil {
		b.complain(err)
		return
	}
	_, _ = p.conn.WriteTo(data, p.from) // who asked asks again
}

// work tells where that is due.
func (b *beacon) work(now time.Time) {
	for _, e := range b.links {
		if e.answer.IsZero() || now.Before(e.answer) {
			continue
		}
		data, err := b.announcement(e).pack(b.key, 0)
		if err != nil {
			b.complain(err)
			e.answer, e.tells = time.Time{}, 0
			continue
		}
		b.send(e, data)
		e.answered, e.answer = now, time.Time{}
		if e.tells > 0 {
			if e.tells--; e.tells > 0 {
				e.answer = now.Add(answerPause)
			}
		}
	}
}

func (b *beacon) next() (at time.Time) {
	for _, e := range b.links {
		if !e.answer.IsZero() && (at.IsZero() || e.answer.Before(at)) {
			at = e.answer
		}
	}
	return at
}

func (b *beacon) send(e *ear, data []byte) {
	for i, conn := range e.conns {
		if conn == nil {
			continue
		}
		to := &net.UDPAddr{IP: groups[i].AsSlice(), Port: mdnsPort}
		if groups[i].Is6() {
			to.Zone = e.link.name
		}
		if _, err := conn.WriteTo(data, to); err != nil && !errors.Is(err, net.ErrClosed) {
			b.complain(err)
		}
	}
}
