package dns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/internal/netns/netnstest"
	"edged/net/dns"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var (
	serverAddr = netip.MustParseAddr("127.0.0.10")
	inside     = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112"), netip.MustParsePrefix("fd42::/48")}
)

// start runs a server until the test ends and waits until it answers.
func start(t *testing.T, cfg dns.Config) *dns.Server {
	t.Helper()
	cfg.Domain = "cluster.local"
	if cfg.Addrs == nil {
		cfg.Addrs = []netip.Addr{serverAddr}
	}
	cfg.Inside = inside
	s, err := dns.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	others := goleak.IgnoreCurrent()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, others)
	})
	return s
}

// exchange asks until somebody listens.
func exchange(t *testing.T, network, server string, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	deadline := time.Now().Add(20 * time.Second)
	for {
		r, _, err := c.Exchange(m, server)
		if err == nil {
			return r
		}
		if !strings.Contains(err.Error(), "refused") || time.Now().After(deadline) {
			t.Fatalf("%s: %v", m.Question[0].Name, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func query(t *testing.T, network, name string, qtype uint16) *mdns.Msg {
	t.Helper()
	return exchange(t, network, serverAddr.String()+":53", new(mdns.Msg).SetQuestion(name, qtype))
}

// text is an answer on one line, addresses sorted.
func text(m *mdns.Msg) string {
	var parts []string
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		parts = append(parts, strings.Join(f[3:], " "))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		soa := ""
		if len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == mdns.TypeSOA {
			soa = " SOA"
		}
		return mdns.RcodeToString[m.Rcode] + soa
	}
	return strings.Join(parts, ", ")
}

func object(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func ptr[T any](v T) *T { return &v }

// fill puts a small cluster into the zone.
func fill(r *dns.Records) {
	r.SetService(nil, &corev1.Service{ObjectMeta: object("default", "web"), Spec: corev1.ServiceSpec{
		ClusterIP: "10.43.0.7", ClusterIPs: []string{"10.43.0.7", "fd43::7"},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("db", "pg"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("db", "early"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, PublishNotReadyAddresses: true}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("db", "empty"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("default", "ext"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com"}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("default", "alias"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.default.svc.cluster.local"}})
	r.SetService(nil, &corev1.Service{ObjectMeta: object("default", "loop"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "loop.default.svc.cluster.local"}})
	r.SetSlice(nil, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "pg-1", Labels: map[string]string{discoveryv1.LabelServiceName: "pg"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("sql"), Port: ptr(int32(5432)), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.0.5"}, Hostname: ptr("pg-0")},
			{Addresses: []string{"10.42.1.6"}},
			{Addresses: []string{"10.42.1.7"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
		}})
	r.SetSlice(nil, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "pg-6", Labels: map[string]string{discoveryv1.LabelServiceName: "pg"}},
		AddressType: discoveryv1.AddressTypeIPv6,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"fd42::5"}, Hostname: ptr("pg-0")}}})
	r.SetSlice(nil, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "early-1", Labels: map[string]string{discoveryv1.LabelServiceName: "early"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.42.1.7"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}}}})
}

func TestSpecification(t *testing.T) {
	s := start(t, dns.Config{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.99:1")}})
	fill(s.Records())
	const A, AAAA, SRV, PTR, CNAME = mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeCNAME
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"dns-version.cluster.local.", mdns.TypeTXT, `TXT "1.1.0"`},
		{"cluster.local.", mdns.TypeSOA, "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
		{"cluster.local.", mdns.TypeNS, "NS ns.dns.cluster.local."},
		{"ns.dns.cluster.local.", A, "A 127.0.0.10"},

		{"web.default.svc.cluster.local.", A, "A 10.43.0.7"},
		{"WEB.Default.svc.CLUSTER.local.", A, "A 10.43.0.7"},
		{"web.default.svc.cluster.local.", AAAA, "AAAA fd43::7"},
		{"_http._tcp.web.default.svc.cluster.local.", SRV, "SRV 0 100 80 web.default.svc.cluster.local."},
		{"_dns._udp.web.default.svc.cluster.local.", SRV, "SRV 0 100 53 web.default.svc.cluster.local."},
		{"_http._udp.web.default.svc.cluster.local.", SRV, "NXDOMAIN SOA"},
		{"_http._tcp.web.default.svc.cluster.local.", A, "NOERROR SOA"},
		{"_tcp.web.default.svc.cluster.local.", A, "NOERROR SOA"},
		{"web.default.svc.cluster.local.", SRV, "SRV 0 100 53 web.default.svc.cluster.local., SRV 0 100 80 web.default.svc.cluster.local."},
		{"7.0.43.10.in-addr.arpa.", PTR, "PTR web.default.svc.cluster.local."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa.", PTR, "PTR web.default.svc.cluster.local."},

		{"pg.db.svc.cluster.local.", A, "A 10.42.0.5, A 10.42.1.6"},
		{"pg.db.svc.cluster.local.", AAAA, "AAAA fd42::5"},
		{"pg-0.pg.db.svc.cluster.local.", A, "A 10.42.0.5"},
		{"pg-0.pg.db.svc.cluster.local.", AAAA, "AAAA fd42::5"},
		{"10-42-1-6.pg.db.svc.cluster.local.", A, "A 10.42.1.6"},
		{"_sql._tcp.pg.db.svc.cluster.local.", SRV, "SRV 0 100 5432 10-42-1-6.pg.db.svc.cluster.local., SRV 0 100 5432 pg-0.pg.db.svc.cluster.local."},
		{"5.0.42.10.in-addr.arpa.", PTR, "PTR pg-0.pg.db.svc.cluster.local."},
		{"6.1.42.10.in-addr.arpa.", PTR, "NXDOMAIN SOA"},
		{"early.db.svc.cluster.local.", A, "A 10.42.1.7"},
		{"empty.db.svc.cluster.local.", A, "NXDOMAIN SOA"},

		{"ext.default.svc.cluster.local.", CNAME, "CNAME www.example.com."},
		{"ext.default.svc.cluster.local.", A, "CNAME www.example.com."}, // and the uplink is down
		{"alias.default.svc.cluster.local.", A, "A 10.43.0.7, CNAME web.default.svc.cluster.local."},

		{"nothing.default.svc.cluster.local.", A, "NXDOMAIN SOA"},
		{"web.default.svc.cluster.local.", mdns.TypeMX, "NOERROR SOA"},
		{"default.svc.cluster.local.", A, "NOERROR SOA"},
		{"nowhere.svc.cluster.local.", A, "NXDOMAIN SOA"},
		{"svc.cluster.local.", A, "NOERROR SOA"},
		{"example.com.default.svc.cluster.local.", A, "NXDOMAIN SOA"},
		{"example.com.cluster.local.", A, "NXDOMAIN SOA"},
		{"9.9.43.10.in-addr.arpa.", PTR, "NXDOMAIN SOA"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := query(t, network, tt.name, tt.qtype)
			if got := text(m); got != tt.want {
				t.Errorf("%s %s by %s: %s, want %s", tt.name, mdns.TypeToString[tt.qtype], network, got, tt.want)
			}
			for _, rr := range append(m.Answer, m.Ns...) {
				if rr.Header().Ttl != 5 {
					t.Errorf("%s: TTL %d, want 5", tt.name, rr.Header().Ttl)
				}
			}
			if !m.Authoritative {
				t.Errorf("%s: not authoritative", tt.name)
			}
		}
	}
	if m := query(t, "udp", "loop.default.svc.cluster.local.", A); len(m.Answer) == 0 || len(m.Answer) > 20 {
		t.Errorf("a circle of aliases: %d records", len(m.Answer))
	}
	m := query(t, "udp", "_sql._tcp.pg.db.svc.cluster.local.", SRV)
	if len(m.Extra) != 2 { // the IPv6 endpoint has no port
		t.Errorf("addresses of SRV targets: %v", m.Extra)
	}
}

func TestChangesAreSeen(t *testing.T) {
	s := start(t, dns.Config{})
	r := s.Records()
	old := &corev1.Service{ObjectMeta: object("a", "b"), Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.1", ClusterIPs: []string{"10.43.0.1"}}}
	r.SetService(nil, old)
	now := old.DeepCopy()
	now.Spec.ClusterIPs = []string{"10.43.0.2"}
	r.SetService(old, now)
	if got := text(query(t, "udp", "b.a.svc.cluster.local.", mdns.TypeA)); got != "A 10.43.0.2" {
		t.Errorf("changed: %s", got)
	}
	if got := text(query(t, "udp", "1.0.43.10.in-addr.arpa.", mdns.TypePTR)); got != "NXDOMAIN SOA" {
		t.Errorf("old address: %s", got)
	}
	r.SetService(now, nil)
	for _, name := range []string{"b.a.svc.cluster.local.", "a.svc.cluster.local."} {
		if got := text(query(t, "udp", name, mdns.TypeA)); got != "NXDOMAIN SOA" {
			t.Errorf("%s after the deletion: %s", name, got)
		}
	}
}

func TestTruncationAndEDNS0(t *testing.T) {
	s := start(t, dns.Config{})
	s.Records().SetService(nil, &corev1.Service{ObjectMeta: object("a", "many"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	sl := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "many-1", Labels: map[string]string{discoveryv1.LabelServiceName: "many"}}}
	for i := range 100 {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.0.%d", i+1)}})
	}
	s.Records().SetSlice(nil, sl)
	const name = "many.a.svc.cluster.local."
	m := query(t, "udp", name, mdns.TypeA)
	if m.Compress = true; !m.Truncated || m.Len() > 512 || len(m.Answer) == 0 {
		t.Errorf("plain UDP: truncated %v, %d bytes, %d answers", m.Truncated, m.Len(), len(m.Answer))
	}
	if m := query(t, "tcp", name, mdns.TypeA); m.Truncated || len(m.Answer) != 100 {
		t.Errorf("TCP: truncated %v, %d answers", m.Truncated, len(m.Answer))
	}
	q := new(mdns.Msg).SetQuestion(name, mdns.TypeA).SetEdns0(4096, false)
	if m := exchange(t, "udp", serverAddr.String()+":53", q); m.Truncated || len(m.Answer) != 100 || m.IsEdns0() == nil {
		t.Errorf("EDNS0: truncated %v, %d answers, OPT %v", m.Truncated, len(m.Answer), m.IsEdns0())
	}
}

// upstream is a server for outside names that counts.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int32
	rcode atomic.Int32
	old   atomic.Bool // it does not know EDNS0
	srv   *mdns.Server
}

func newUpstream(t *testing.T, addr string) *upstream {
	t.Helper()
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: netip.MustParseAddrPort(p.LocalAddr().String())}
	u.srv = &mdns.Server{PacketConn: p, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		u.asked.Add(1)
		m := new(mdns.Msg).SetReply(q)
		m.Rcode = int(u.rcode.Load())
		name := q.Question[0].Name
		if u.old.Load() && q.IsEdns0() != nil {
			m.Rcode = mdns.RcodeFormatError
		}
		switch {
		case m.Rcode != 0:
		case strings.HasPrefix(name, "missing."):
			m.Rcode = mdns.RcodeNameError
			soa, _ := mdns.NewRR("example.com. 60 IN SOA ns.example.com. x. 1 2 3 4 60")
			m.Ns = []mdns.RR{soa}
		default:
			rr, _ := mdns.NewRR(name + " 1 IN A 192.0.2.1")
			m.Answer = []mdns.RR{rr}
		}
		w.WriteMsg(m)
	})}
	started := make(chan struct{})
	u.srv.NotifyStartedFunc = func() { close(started) }
	done := make(chan struct{})
	go func() { defer close(done); u.srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { u.srv.Shutdown(); <-done })
	return u
}

func TestForwarding(t *testing.T) {
	one, two := newUpstream(t, "127.0.0.21:0"), newUpstream(t, "127.0.0.22:0")
	dead := netip.MustParseAddrPort("127.0.0.23:9")
	s := start(t, dns.Config{Upstreams: []netip.AddrPort{dead, one.addr, two.addr}})
	fill(s.Records())
	if got := text(query(t, "udp", "www.example.com.", mdns.TypeA)); got != "A 192.0.2.1" {
		t.Errorf("outside name with the first server dead: %s", got)
	}
	if got := text(query(t, "udp", "ext.default.svc.cluster.local.", mdns.TypeA)); got != "A 192.0.2.1, CNAME www.example.com." {
		t.Errorf("ExternalName: %s", got)
	}
	if n := one.asked.Load(); n != 1 {
		t.Errorf("asked %d times for one name, want once", n)
	}
	for range 2 {
		if got := text(query(t, "tcp", "missing.example.com.", mdns.TypeA)); got != "NXDOMAIN SOA" {
			t.Errorf("name that does not exist: %s", got)
		}
	}
	if n := one.asked.Load(); n != 2 {
		t.Errorf("asked %d times, want 2: the negative answer is remembered", n)
	}
	one.rcode.Store(mdns.RcodeServerFailure)
	if got := text(query(t, "udp", "other.example.com.", mdns.TypeA)); got != "A 192.0.2.1" || two.asked.Load() != 1 {
		t.Errorf("failover from a failing server: %s, second server asked %d times", got, two.asked.Load())
	}
	two.old.Store(true)
	if got := text(query(t, "udp", "old.example.com.", mdns.TypeA)); got != "A 192.0.2.1" {
		t.Errorf("from a server that does not know EDNS0: %s", got)
	}
	two.rcode.Store(mdns.RcodeServerFailure)
	if got := text(query(t, "udp", "third.example.com.", mdns.TypeA)); got != "SERVFAIL" {
		t.Errorf("nobody answers: %s", got)
	}
	// Known and over its time, with nobody to ask: the island.
	deadline := time.Now().Add(20 * time.Second)
	for {
		m := query(t, "udp", "www.example.com.", mdns.TypeA)
		if text(m) != "A 192.0.2.1" {
			t.Fatalf("stale answer: %s", text(m))
		}
		if m.Answer[0].Header().Ttl == 30 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("TTL of the stale answer is %d, want 30", m.Answer[0].Header().Ttl)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// What is the cluster's never goes out.
	before := one.asked.Load() + two.asked.Load()
	query(t, "udp", "nothing.default.svc.cluster.local.", mdns.TypeA)
	query(t, "udp", "1.1.42.10.in-addr.arpa.", mdns.TypePTR)
	if after := one.asked.Load() + two.asked.Load(); after != before {
		t.Errorf("%d questions about the cluster went outside", after-before)
	}
}

func TestResolvConfIsFollowed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(server string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("nameserver "+serverAddr.String()+"\nnameserver "+server+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("127.0.0.31")
	one, two := newUpstream(t, "127.0.0.31:53"), newUpstream(t, "127.0.0.32:53")
	start(t, dns.Config{ResolvConf: file})
	if got := text(query(t, "udp", "a.example.com.", mdns.TypeA)); got != "A 192.0.2.1" || one.asked.Load() != 1 {
		t.Errorf("%s, asked %d times", got, one.asked.Load())
	}
	write("127.0.0.32")
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; two.asked.Load() == 0; i++ {
		if time.Now().After(deadline) {
			t.Fatal("the new server is not asked")
		}
		query(t, "udp", fmt.Sprintf("b%d.example.com.", i), mdns.TypeA)
		time.Sleep(50 * time.Millisecond)
	}
	// Away, and back with the time of change that it had.
	await := func(what, want string) {
		t.Helper()
		for i := 0; text(query(t, "udp", fmt.Sprintf("%s%d.example.com.", what, i), mdns.TypeA)) != want; i++ {
			if time.Now().After(deadline) {
				t.Fatalf("%s: never %s", what, want)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	await("away", "SERVFAIL")
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	await("back", "A 192.0.2.1")
}

func TestBesideAnotherServer(t *testing.T) {
	wild, err := net.ListenPacket("udp", "0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	defer wild.Close()
	redirected := make(chan string, 1)
	s := start(t, dns.Config{Redirect: func(from netip.AddrPort, to uint16) error {
		redirected <- fmt.Sprint(from, " ", to)
		return nil
	}})
	fill(s.Records())
	if got := <-redirected; got != "127.0.0.10:53 10053" {
		t.Errorf("redirect %s", got)
	}
	m := exchange(t, "udp", serverAddr.String()+":10053", new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA))
	if got := text(m); got != "A 10.43.0.7" {
		t.Error(got)
	}
	alone, err := dns.New(dns.Config{Domain: "cluster.local", Addrs: []netip.Addr{serverAddr}})
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("without a redirect: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	start(t, dns.Config{})
	query(t, "udp", "cluster.local.", mdns.TypeSOA) // listening
	chaos := new(mdns.Msg).SetQuestion("version.bind.", mdns.TypeTXT)
	chaos.Question[0].Qclass = mdns.ClassCHAOS
	notify := new(mdns.Msg).SetNotify("cluster.local.")
	norec := new(mdns.Msg).SetQuestion("www.example.com.", mdns.TypeA)
	norec.RecursionDesired = false
	badvers := new(mdns.Msg).SetQuestion("cluster.local.", mdns.TypeSOA).SetEdns0(1232, false)
	badvers.IsEdns0().SetVersion(1)
	for _, tt := range []struct {
		m    *mdns.Msg
		want int
	}{
		{chaos, mdns.RcodeRefused}, {notify, mdns.RcodeNotImplemented}, {norec, mdns.RcodeRefused}, {badvers, mdns.RcodeBadVers},
		{new(mdns.Msg).SetAxfr("cluster.local."), mdns.RcodeRefused},
	} {
		if got := exchange(t, "tcp", serverAddr.String()+":53", tt.m); got.Rcode != tt.want {
			t.Errorf("%v: %s, want %s", tt.m.Question, mdns.RcodeToString[got.Rcode], mdns.RcodeToString[tt.want])
		}
	}
}
