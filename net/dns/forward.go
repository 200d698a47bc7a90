package dns

import (
	"container/list"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// maxForwards bounds queries that wait for upstream servers; more are
	// refused with SERVFAIL at once. Each costs a socket and some 10 KB.
	maxForwards = 256
	// maxWaiting bounds queries that wait for an answer from outside, those for what
	// another asked already among them; more get what is known of old, or SERVFAIL. Each
	// costs a goroutine and some 10 KB.
	maxWaiting = 1024
	// upstreamTimeout is what one server gets before the next is asked:
	// resolvers give up after 5 s, so there is time for two more.
	upstreamTimeout = 1500 * time.Millisecond
	// avoidFor is how long a server that did not answer is asked last.
	avoidFor = 10 * time.Second
	// maxCached bounds the cache, at some 500 bytes each.
	maxCached = 1000
	// maxTTL bounds how long an answer from outside is believed.
	maxTTL = time.Hour
	// maxNegativeTTL bounds it for names that do not exist.
	maxNegativeTTL = 5 * time.Minute
	// staleFor is how long an answer is given after its time if no server
	// answers, with staleTTL (RFC 8767).
	staleFor = 24 * time.Hour
	staleTTL = 30 * time.Second
	// rereadEvery bounds how often resolv.conf is looked at.
	rereadEvery = 2 * time.Second
)

// forwarder asks upstream servers.
type forwarder struct {
	cfg     *Config
	slots   chan struct{}      // one for each question that is out
	waiting chan struct{}      // one for each query that waits
	group   singleflight.Group // one question at a time goes out once

	mu        sync.Mutex // guards the following
	upstreams []netip.AddrPort
	read      time.Time // when resolv.conf was looked at
	modified  time.Time
	avoid     map[netip.AddrPort]time.Time
	cache     map[string]*list.Element // to *cached in order
	order     list.List                // most recently used first
}

// cached is an answer as it came, packed: unpacked it is several times larger.
type cached struct {
	key    string
	msg    []byte
	stored time.Time
	ttl    time.Duration
}

func newForwarder(cfg *Config) *forwarder {
	return &forwarder{cfg: cfg, slots: make(chan struct{}, maxForwards), waiting: make(chan struct{}, maxWaiting), avoid: map[netip.AddrPort]time.Time{}, cache: map[string]*list.Element{}}
}

// ask returns an answer from the cache or upstream, nil if there is none.
func (f *forwarder) ask(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	do := false
	if opt := q.IsEdns0(); opt != nil {
		do = opt.Do()
	}
	key := fmt.Sprintf("%s/%d/%t/%t", strings.ToLower(question.Name), question.Qtype, do, q.CheckingDisabled)
	old, fresh := f.cached(key, time.Now())
	if fresh {
		return old
	}
	select {
	case f.waiting <- struct{}{}:
		defer func() { <-f.waiting }()
	default:
		return old
	}
	v, _, _ := f.group.Do(key, func() (any, error) {
		m := f.exchange(q)
		if m != nil {
			f.store(key, m, time.Now())
		}
		return m, nil
	})
	if m := v.(*dns.Msg); m != nil {
		return m.Copy() // shared with those who asked the same
	}
	m, _ := f.cached(key, time.Now())
	return m
}

// exchange tries the servers, those that answered last first.
func (f *forwarder) exchange(q *dns.Msg) *dns.Msg {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil
	}
	var refused *dns.Msg
	for _, server := range f.servers() {
		m, err := f.exchangeWith(server, q)
		if err != nil {
			f.mark(server, time.Now().Add(avoidFor))
			continue
		}
		f.mark(server, time.Time{})
		if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
			return m
		}
		refused = m
	}
	if refused != nil && refused.Rcode != dns.RcodeServerFailure {
		return refused
	}
	return nil
}

func (f *forwarder) exchangeWith(server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	asked := q.IsEdns0() != nil
	q = q.Copy()
	if !asked {
		q.SetEdns0(1232, false) // what fits through every path unfragmented
	}
	m, err := exchangeOnce(server, q)
	if err == nil && !asked && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) && m.IsEdns0() == nil {
		// A server from before EDNS0, in a router perhaps (RFC 6891, 7).
		q.Extra = nil
		m, err = exchangeOnce(server, q)
	}
	return m, err
}

// exchangeOnce asks by UDP, and by TCP for an answer that is too long for that.
func exchangeOnce(server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	q.Id = dns.Id()
	udp := dns.Client{Timeout: upstreamTimeout, UDPSize: maxUDPBytes}
	m, _, err := udp.Exchange(q, server.String())
	if err == nil && m.Truncated {
		tcp := dns.Client{Net: "tcp", Timeout: upstreamTimeout}
		m, _, err = tcp.Exchange(q, server.String())
	}
	return m, err
}

func (f *forwarder) mark(server netip.AddrPort, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if until.IsZero() {
		delete(f.avoid, server)
	} else {
		f.avoid[server] = until
	}
}

// servers are the upstream servers in the order in which to try them.
func (f *forwarder) servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.reload(now)
	out := slices.Clone(f.upstreams)
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int {
		return boolOrder(f.avoid[a].After(now), f.avoid[b].After(now))
	})
	return out
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// reload reads resolv.conf if it changed. Our own addresses in it would be
// a circle.
func (f *forwarder) reload(now time.Time) {
	if len(f.cfg.Upstreams) > 0 {
		f.upstreams = f.cfg.Upstreams
		return
	}
	if now.Sub(f.read) < rereadEvery {
		return
	}
	f.read = now
	st, err := os.Stat(f.cfg.ResolvConf)
	if err != nil {
		f.upstreams, f.modified = nil, time.Time{} // it may come back as it was
		return
	}
	if st.ModTime().Equal(f.modified) {
		return
	}
	conf, err := dns.ClientConfigFromFile(f.cfg.ResolvConf)
	if err != nil {
		f.cfg.Logger.Warn("servers for names outside of the cluster not read", "file", f.cfg.ResolvConf, "err", err)
		return
	}
	f.modified = st.ModTime()
	f.upstreams = nil
	clear(f.avoid)
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err == nil && !slices.Contains(f.cfg.Addrs, a) {
			f.upstreams = append(f.upstreams, netip.AddrPortFrom(a, DefaultPort))
		}
	}
}

// cached returns what is known, with its remaining time, and whether that is
// not over. What is stale is given with staleTTL.
func (f *forwarder) cached(key string, now time.Time) (m *dns.Msg, fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.cache[key]
	if e == nil {
		return nil, false
	}
	c := e.Value.(*cached)
	age := now.Sub(c.stored)
	if age > c.ttl+staleFor {
		f.drop(e)
		return nil, false
	}
	f.order.MoveToFront(e)
	m = new(dns.Msg)
	if err := m.Unpack(c.msg); err != nil {
		f.drop(e)
		return nil, false
	}
	left := c.ttl - age
	fresh = left > 0
	if !fresh {
		left = staleTTL
	}
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl = min(h.Ttl, uint32(left/time.Second))
				if !fresh {
					h.Ttl = uint32(staleTTL / time.Second)
				}
			}
		}
	}
	return m, fresh
}

func (f *forwarder) drop(e *list.Element) {
	delete(f.cache, e.Value.(*cached).key)
	f.order.Remove(e)
}

// store keeps an answer for as long as its records say.
func (f *forwarder) store(key string, m *dns.Msg, now time.Time) {
	ttl, ok := lifetime(m)
	if !ok {
		return
	}
	packed, err := m.Pack()
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.cache[key]; e != nil {
		f.drop(e)
	}
	f.cache[key] = f.order.PushFront(&cached{key: key, msg: packed, stored: now, ttl: ttl})
	for f.order.Len() > maxCached {
		f.drop(f.order.Back())
	}
}

// lifetime of an answer: the least of its records', or for a negative one
// what the SOA says (RFC 2308), and without one not at all.
func lifetime(m *dns.Msg) (time.Duration, bool) {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	least := uint32(maxTTL / time.Second)
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		for _, rr := range m.Answer {
			least = min(least, rr.Header().Ttl)
		}
		return time.Duration(least) * time.Second, true
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegativeTTL), true
		}
	}
	return 0, false
}
