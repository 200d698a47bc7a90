package discovery

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

func announcement() Announcement {
	return Announcement{
		ID: ID{1, 2, 0xfe}, Cluster: "box", Port: 6443, PeerPort: 2380, Member: 0xdeadbeef,
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::7")},
	}
}

func pack(t testing.TB, a Announcement) []byte {
	t.Helper()
	data, err := a.pack(testKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAnnouncement(t *testing.T) {
	a := announcement()
	h, err := parse(pack(t, a), "box", testKey, ID{})
	if err != nil || h.asks || len(h.others) != 1 || !reflect.DeepEqual(h.others[0], a) {
		t.Errorf("%+v, %v; want %+v", h, err, a)
	}
	for name, hears := range map[string]func() (heard, error){
		"itself":              func() (heard, error) { return parse(pack(t, a), "box", testKey, a.ID) },
		"of another cluster":  func() (heard, error) { return parse(pack(t, a), "tin", testKey, ID{}) },
		"with another secret": func() (heard, error) { return parse(pack(t, a), "box", []byte("another"), ID{}) },
		"with another address": func() (heard, error) {
			data := pack(t, a)
			i := strings.Index(string(data), string([]byte{192, 0, 2, 7}))
			data[i+3]++
			return parse(data, "box", testKey, ID{})
		},
	} {
		if h, err := hears(); err != nil || len(h.others) != 0 {
			t.Errorf("a device %s: %+v, %v", name, h, err)
		}
	}
}

// Another implementation reads what RFC 6763 asks for.
func TestRecords(t *testing.T) {
	var m dns.Msg
	if err := m.Unpack(pack(t, announcement())); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range append(m.Answer, m.Extra...) {
		line := strings.ReplaceAll(r.String(), "\t", " ")
		got = append(got, strings.SplitN(line, `"m=`, 2)[0])
	}
	id := "0102fe00000000000000000000000000"
	want := []string{
		"_edged._tcp.local. 4500 IN PTR " + id + "._edged._tcp.local.",
		id + "._edged._tcp.local. 120 CLASS32769 SRV 0 0 6443 edged-" + id + ".local.",
		id + `._edged._tcp.local. 4500 CLASS32769 TXT "v=1" "c=box" "p=2380" "n=deadbeef" `,
		"edged-" + id + ".local. 120 CLASS32769 A 192.0.2.7",
		"edged-" + id + ".local. 120 CLASS32769 AAAA fe80::1",
		"edged-" + id + ".local. 120 CLASS32769 AAAA 2001:db8::7",
	}
	if !m.Response || !m.Authoritative || !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestQuestions(t *testing.T) {
	self := announcement().ID
	query := func(name string, known ...string) []byte {
		var m dns.Msg
		m.SetQuestion(name, dns.TypePTR)
		for _, k := range known {
			r, err := dns.NewRR(k)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, r)
		}
		data, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	own := self.String() + "._edged._tcp.local."
	for name, c := range map[string]struct {
		packet []byte
		asks   bool
	}{
		"its own question":       {askPacket(), true},
		"the service":            {query("_edged._tcp.local."), true},
		"in capitals":            {query("_EDGED._TCP.LOCAL."), true},
		"the device":             {query(own), true},
		"another service":        {query("_http._tcp.local."), false},
		"who knows it":           {query("_edged._tcp.local.", "_edged._tcp.local. 4500 IN PTR "+own), false},
		"who knew it long ago":   {query("_edged._tcp.local.", "_edged._tcp.local. 60 IN PTR "+own), true},
		"who knows another":      {query("_edged._tcp.local.", "_edged._tcp.local. 4500 IN PTR 00._edged._tcp.local."), true},
		"what another announces": {pack(t, announcement()), false},
	} {
		if h, err := parse(c.packet, "box", testKey, self); err != nil || h.asks != c.asks {
			t.Errorf("%s: asks %v, %v", name, h.asks, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(pack(f, announcement()))
	f.Add(askPacket())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parse(data, "box", testKey, ID{})
		if err != nil {
			return
		}
		for _, a := range h.others {
			if len(a.Addrs) > maxAddrs || a.Cluster != "box" {
				t.Errorf("%+v", a)
			}
		}
	})
}

// What was promised is there after a reboot; what cannot be read is not replaced.
func TestStateOnDisk(t *testing.T) {
	dir := t.TempDir()
	st, err := loadState(dir)
	if err != nil || st.ID == (ID{}) {
		t.Fatal(st, err)
	}
	st.Promised, st.Accepted, st.Quorum = Ballot{7, NewID()}, Ballot{5, NewID()}, 3
	st.Genesis = &Genesis{Founding: Founding{Token: "x", Founders: []Founder{{ID: st.ID, Name: "a", PeerURLs: []string{"https://192.0.2.1:2380"}}}}}
	if err := saveState(dir, st); err != nil {
		t.Fatal(err)
	}
	if again, err := loadState(dir); err != nil || !reflect.DeepEqual(again, st) {
		t.Errorf("%+v, %v", again, err)
	}
	path := filepath.Join(dir, stateFile)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi, err)
	}
	for _, bad := range []string{"", "{}", `{"version":2,"id":"` + st.ID.String() + `"}`, `{"version":1}`, `{"version":1,"id":"x"}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadState(dir); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := Forget(dir); err != nil {
		t.Fatal(err)
	}
	if err := Forget(dir); err != nil {
		t.Fatal("once more", err)
	}
}
