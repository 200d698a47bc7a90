package dns

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// TestWaitersAreBounded: while as many wait as may, nobody else is asked for, and one
// that is done makes room.
func TestWaitersAreBounded(t *testing.T) {
	upstream, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up := &dns.Server{PacketConn: upstream, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(m)
	})}
	served := make(chan error, 1)
	go func() { served <- up.ActivateAndServe() }()
	defer func() { upstream.Close(); <-served }()
	f := newForwarder(&Config{Upstreams: []netip.AddrPort{upstream.LocalAddr().(*net.UDPAddr).AddrPort()}})
	for range maxWaiting {
		f.waiting <- struct{}{}
	}
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	if m := f.ask(q); m != nil {
		t.Errorf("one too many is answered: %v", m)
	}
	<-f.waiting
	for range 3 { // the machine may be busy for longer than a server is waited for
		if m := f.ask(q); m != nil && len(m.Answer) == 1 {
			return
		}
	}
	t.Error("with room, no answer")
}
