package discovery

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	service = "_edged._tcp.local."
	// ttlSeconds and hostTTLSeconds are RFC 6762, 10.
	ttlSeconds     = 4500
	hostTTLSeconds = 120
	// cacheFlush marks records of which there is one set (RFC 6762, 10.2).
	cacheFlush = 1 << 15
	// maxAddrs bounds the addresses of one device.
	maxAddrs = 8
	// macBytes of an HMAC are enough for what only saves work.
	macBytes = 16
)

// Announcement is what a device tells on a link.
type Announcement struct {
	ID      ID
	Cluster string // its name
	// Port is the API's, PeerPort the store's.
	Port, PeerPort uint16
	// Member is its id in the store, 0 while it is of no cluster.
	Member uint64
	Addrs  []netip.Addr
}

func (a Announcement) sign(key []byte) string {
	addrs := slices.Clone(a.Addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	var text bytes.Buffer
	for _, ip := range addrs {
		fmt.Fprintln(&text, ip.WithZone(""))
	}
	n := binary.BigEndian.AppendUint16(nil, a.Port)
	n = binary.BigEndian.AppendUint16(n, a.PeerPort)
	n = binary.BigEndian.AppendUint64(n, a.Member)
	return hex.EncodeToString(mac(key, []byte("announcement"), a.ID[:], []byte(a.Cluster), n, text.Bytes())[:macBytes])
}

func (a Announcement) instance() string { return a.ID.String() + "." + service }
func (a Announcement) host() string     { return "edged-" + a.ID.String() + ".local." }

// pack makes the response that tells it. id is that of the question if it came by
// unicast.
func (a Announcement) pack(key []byte, id uint16) ([]byte, error) {
	if len(a.Addrs) > maxAddrs {
		a.Addrs = a.Addrs[:maxAddrs]
	}
	var names [3]dnsmessage.Name
	for i, s := range []string{service, a.instance(), a.host()} {
		name, err := dnsmessage.NewName(s)
		if err != nil {
			return nil, err
		}
		names[i] = name
	}
	head := func(name dnsmessage.Name, ttl uint32, flush dnsmessage.Class) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET | flush, TTL: ttl}
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true, Authoritative: true})
	b.EnableCompression()
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	if err := b.PTRResource(head(names[0], ttlSeconds, 0), dnsmessage.PTRResource{PTR: names[1]}); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	if err := b.SRVResource(head(names[1], hostTTLSeconds, cacheFlush), dnsmessage.SRVResource{Port: a.Port, Target: names[2]}); err != nil {
		return nil, err
	}
	txt := []string{"v=1", "c=" + a.Cluster, "p=" + strconv.Itoa(int(a.PeerPort)), "n=" + strconv.FormatUint(a.Member, 16), "m=" + a.sign(key)}
	if err := b.TXTResource(head(names[1], ttlSeconds, cacheFlush), dnsmessage.TXTResource{TXT: txt}); err != nil {
		return nil, err
	}
	for _, ip := range a.Addrs {
		var err error
		if ip.Is4() {
			err = b.AResource(head(names[2], hostTTLSeconds, cacheFlush), dnsmessage.AResource{A: ip.As4()})
		} else {
			err = b.AAAAResource(head(names[2], hostTTLSeconds, cacheFlush), dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
		if err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// askPacket asks who is there.
func askPacket() []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
	// A constant message always fits.
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(service), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET})
	out, _ := b.Finish()
	return out
}

// heard is what a packet said.
type heard struct {
	id     uint16
	asks   bool // for devices of ours, and does not know self already
	others []Announcement
}

// parse reads a packet. Announcements of other clusters, and those whose sender
// does not know key, are not in it.
func parse(packet []byte, cluster string, key []byte, self ID) (h heard, err error) {
	var p dnsmessage.Parser
	head, err := p.Start(packet)
	if err != nil {
		return h, err
	}
	h.id = head.ID
	own := self.String() + "." + service
	host := "edged-" + self.String() + ".local."
	for {
		q, err := p.Question()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return h, err
		}
		name := strings.ToLower(q.Name.String())
		h.asks = h.asks || !head.Response && (name == service || name == own || name == host)
	}
	t := tables{map[string]*Announcement{}, map[string]string{}, map[string]string{}, map[string][]netip.Addr{}}
	answers, err := p.AllAnswers()
	if err != nil {
		return h, err
	}
	for _, r := range answers {
		if ptr, ok := r.Body.(*dnsmessage.PTRResource); ok && !head.Response && strings.EqualFold(ptr.PTR.String(), own) && r.Header.TTL >= ttlSeconds/2 {
			h.asks = false // RFC 6762, 7.1: it knows
		}
	}
	if !head.Response {
		return h, nil
	}
	if err := p.SkipAllAuthorities(); err != nil {
		return h, err
	}
	more, err := p.AllAdditionals()
	if err != nil {
		return h, err
	}
	for _, r := range append(answers, more...) {
		t.add(r)
	}
	for instance, a := range t.devices {
		a.Addrs = t.addrs[t.target[instance]]
		want, err := hex.DecodeString(t.mac[instance])
		got, _ := hex.DecodeString(a.sign(key))
		if err != nil || a.Cluster != cluster || len(a.Addrs) > maxAddrs || a.ID == self || !hmac.Equal(got, want) {
			continue
		}
		h.others = append(h.others, *a)
	}
	return h, nil
}

// tables collect a packet's records by name.
type tables struct {
	devices     map[string]*Announcement
	target, mac map[string]string // by instance
	addrs       map[string][]netip.Addr
}

func (t *tables) device(name string) *Announcement {
	label, rest, _ := strings.Cut(name, ".")
	var id ID
	if rest != service || id.UnmarshalText([]byte(label)) != nil {
		return nil
	}
	if t.devices[name] == nil {
		t.devices[name] = &Announcement{ID: id}
	}
	return t.devices[name]
}

func (t *tables) add(r dnsmessage.Resource) {
	name := strings.ToLower(r.Header.Name.String())
	switch body := r.Body.(type) {
	case *dnsmessage.SRVResource:
		if a := t.device(name); a != nil {
			a.Port, t.target[name] = body.Port, strings.ToLower(body.Target.String())
		}
	case *dnsmessage.TXTResource:
		a := t.device(name)
		if a == nil {
			return
		}
		for _, s := range body.TXT {
			key, value, _ := strings.Cut(s, "=")
			switch key {
			case "c":
				a.Cluster = value
			case "p":
				port, _ := strconv.ParseUint(value, 10, 16) // what is wrong is not signed
				a.PeerPort = uint16(port)
			case "n":
				a.Member, _ = strconv.ParseUint(value, 16, 64)
			case "m":
				t.mac[name] = value
			}
		}
	case *dnsmessage.AResource:
		t.addrs[name] = append(t.addrs[name], netip.AddrFrom4(body.A))
	case *dnsmessage.AAAAResource:
		t.addrs[name] = append(t.addrs[name], netip.AddrFrom16(body.AAAA))
	}
}
