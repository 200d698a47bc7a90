package pid1

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edged/buildroot/fat"
)

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]byte("hostname: x-{serial}\nntp: [10.0.0.1]\nnetwork:\n  links: [{name: eth0, address: 10.0.0.5/24, gateway: 10.0.0.1}]\n  dns: [10.0.0.1]\nedged: {node-label: [a=b]}\n\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Network.Links[0].Address != netip.MustParsePrefix("10.0.0.5/24") || c.Edged["node-label"] == nil {
		t.Errorf("read as %+v", c)
	}
	if _, err := ParseConfig(nil); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	for _, good := range []string{"hostname: PI-{serial}.cellar", "labels: {floor: 3}", "Cluster: home"} {
		if _, err := ParseConfig([]byte(good)); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, want := range map[string]string{
		"hostnam: x":                       `there is no key "hostnam"`,
		"network: {wifi: x}":               `there is no key "wifi"`,
		"cluster home":                     "want keys with values, not a text",
		"join: 10.0.0.2:6443":              "join: want a list like [a, b], not a text",
		"labels: [a=b]":                    "labels: want keys with values, not a list",
		"hostname: {serial}":               "hostname: want a text, not keys with values",
		"bootstrap-expect: all":            "bootstrap-expect: want a whole number, not a text",
		"hostname: Bad_Name":               `hostname: "Bad_Name" is none`,
		"hostname: a-{serail}":             `hostname: "a-{serail}" is none`,
		"data: delete":                     `"delete" is not recreate`,
		"kubeconfig: everywhere":           `"everywhere" is not boot`,
		"network: {links: [{name: eth0}]}": "a name and an IPv4 address",
		"network: {links: [{name: eth0, address: 'fd00::1/64'}]}":                              "a name and an IPv4 address",
		"network: {links: [{name: eth0, address: 10.0.0.5}]}":                                  `with their length, 10.0.0.2/24: netip.ParsePrefix("10.0.0.5")`,
		"network: {links: [{name: eth0, address: 10.0.0.5/24, gateway: 10.0.1.1}]}":            "eth0: the gateway 10.0.1.1 is not in 10.0.0.0/24",
		"network: {links: [{name: e, address: 10.0.0.5/24}, {name: e, address: 10.0.0.6/24}]}": "e is there twice",
		"edged: {data-dir: /tmp}":                  "data-dir is fixed",
		"cluster: home\nsecret: 12345678901234567": "secret: YAML does not take it for a text",
		"data: recreate\ndata: recreate":           `line 2: key "data" already set`,
		"[":                                        "yaml: ",
	} {
		if _, err := ParseConfig([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want it to say %q on one line", bad, err, want)
		}
	}
}

// TestHolds: a device that is of no cluster yet does not found one for a file that it
// cannot read; one that is goes on.
func TestHolds(t *testing.T) {
	_, bad := ParseConfig([]byte("hostnam: x"))
	fresh, member := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(member, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err  error
		dir  string
		want bool
	}{
		"fresh, a good file": {nil, fresh, false},
		"fresh, a bad one":   {bad, fresh, true},
		"fresh, none":        {fmt.Errorf("read: %w", fat.ErrNotExist), fresh, false},
		"a member":           {bad, member, false},
	} {
		if got := holds(c.err, c.dir); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestOptions(t *testing.T) {
	o := parseOptions("console=ttyS0,115200 ro root=PARTUUID=ed6ed001-02 edged.slot=b\n")
	if o["root"] != "PARTUUID=ed6ed001-02" || o["edged.slot"] != "b" || o["console"] != "ttyS0,115200" {
		t.Errorf("read as %v", o)
	}
}

func TestSerial(t *testing.T) {
	for in, want := range map[string]string{
		"100000003d1d1c36": "3d1d1c36", "52:54:00:12:34:56": "00123456", "To Be Filled By O.E.M.": "", "0000000000000000": "", "Not Specified": "", "": "", "VMware-42 1f": "mware421f"[1:],
	} {
		if got := cleanSerial(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

var testMAC = [6]byte{0x52, 0x54, 0, 1, 2, 3}

// reply is a server's message with options.
func reply(kind byte, options ...byte) []byte {
	b := make([]byte, 240)
	b[0], b[1], b[2] = 2, 1, 6
	binary.BigEndian.PutUint32(b[4:], 77)
	copy(b[16:], []byte{192, 168, 7, 9})
	copy(b[28:], testMAC[:])
	copy(b[236:], dhcpCookie[:])
	return append(append(append(b, optType, 1, kind), options...), optEnd)
}

func TestDHCP(t *testing.T) {
	b := reply(dhcpACK, optMask, 4, 255, 255, 255, 0, optRouter, 4, 192, 168, 7, 1, optDNS, 8, 1, 1, 1, 1, 8, 8, 8, 8, 0, 0, optNTP, 4, 192, 168, 7, 2, optServer, 4, 192, 168, 7, 1, optLease, 4, 0, 0, 14, 16)
	l, err := decodeDHCP(b, testMAC)
	if err != nil {
		t.Fatal(err)
	}
	if l.address != netip.MustParsePrefix("192.168.7.9/24") || l.xid != 77 || l.valid != time.Hour || l.renewal != 30*time.Minute || l.rebind != 52*time.Minute+30*time.Second ||
		len(l.dns) != 2 || l.routers[0] != netip.MustParseAddr("192.168.7.1") || l.ntp[0] != netip.MustParseAddr("192.168.7.2") {
		t.Errorf("read as %+v", l)
	}
	for name, bad := range map[string][]byte{
		"short":       b[:200],
		"no mask":     reply(dhcpOffer),
		"a bad mask":  reply(dhcpOffer, optMask, 4, 255, 0, 255, 0),
		"cut option":  reply(dhcpACK, optMask, 200, 1),
		"not a reply": reply(dhcpDiscover, optMask, 4, 255, 255, 255, 0),
	} {
		if l, err := decodeDHCP(bad, testMAC); err == nil {
			t.Errorf("%s was read as %+v", name, l)
		}
	}
	if _, err := decodeDHCP(b, [6]byte{1}); !errors.Is(err, errDHCP) {
		t.Errorf("another device's reply: %v", err)
	}
	if l, err := decodeDHCP(reply(dhcpNAK), testMAC); err != nil || l.kind != dhcpNAK {
		t.Errorf("a refusal: %+v, %v", l, err)
	}
}

func TestDHCPRequest(t *testing.T) {
	b := request{kind: dhcpRequest, xid: 5, mac: testMAC, hostname: "edged-1", wanted: netip.MustParseAddr("10.0.0.9"), server: netip.MustParseAddr("10.0.0.1")}.encode()
	if len(b) < 300 || b[0] != 1 || b[10] != 0x80 || !bytes.Equal(b[28:34], testMAC[:]) {
		t.Errorf("head % x", b[:34])
	}
	for _, want := range [][]byte{{optRequested, 4, 10, 0, 0, 9}, {optServer, 4, 10, 0, 0, 1}, append([]byte{optHostname, 7}, "edged-1"...)} {
		if !bytes.Contains(b[240:], want) {
			t.Errorf("option % x is missing", want)
		}
	}
	renew := request{kind: dhcpRequest, client: netip.MustParseAddr("10.0.0.9")}.encode()
	if renew[10] != 0 || !slices.Equal(renew[12:16], []byte{10, 0, 0, 9}) {
		t.Errorf("a renewal wants a broadcast or has no address: % x", renew[:20])
	}
}

func FuzzDHCP(f *testing.F) {
	f.Add(reply(dhcpACK, optMask, 4, 255, 255, 255, 0, optLease, 4, 0, 0, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeDHCP(b, testMAC)
		if err == nil && l.kind != dhcpNAK && (!l.address.IsValid() || l.renewal <= 0 || l.renewal > l.rebind || l.rebind > l.valid) {
			t.Errorf("taken: %+v", l)
		}
	})
}

// ntpReply is a server's whose clock is ahead.
func ntpReply(cookie uint64, at time.Time) []byte {
	b := make([]byte, ntpBytes)
	b[0], b[1] = 4<<3|4, 2
	binary.BigEndian.PutUint64(b[24:], cookie)
	for _, off := range []int{32, 40} {
		binary.BigEndian.PutUint32(b[off:], uint32(at.Unix()+ntpEpoch))
		binary.BigEndian.PutUint32(b[off+4:], uint32(uint64(at.Nanosecond())<<32/1e9))
	}
	return b
}

func TestNTP(t *testing.T) {
	real := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, own := range []time.Time{time.Unix(0, 0), real.Add(-time.Second), real.Add(time.Hour)} {
		got, err := ntpOffset(ntpReply(9, real), 9, own, own.Add(20*time.Millisecond))
		want := real.Sub(own) - 10*time.Millisecond
		if err != nil || (got-want).Abs() > time.Millisecond {
			t.Errorf("clock at %v: off by %v, %v; want %v", own, got, err, want)
		}
	}
	later := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC) // the second era
	if got, err := ntpOffset(ntpReply(9, later), 9, real, real); err != nil || (got-later.Sub(real)).Abs() > time.Millisecond {
		t.Errorf("in 2040: %v, %v", got, err)
	}
	good := ntpReply(9, real)
	for name, change := range map[string]func([]byte) []byte{
		"short":          func(b []byte) []byte { return b[:40] },
		"a client's":     func(b []byte) []byte { b[0] = 4<<3 | 3; return b },
		"not in step":    func(b []byte) []byte { b[0] |= 3 << 6; return b },
		"kiss of death":  func(b []byte) []byte { b[1] = 0; return b },
		"another cookie": func(b []byte) []byte { b[30]++; return b },
		"from 1970":      func([]byte) []byte { return ntpReply(9, time.Unix(5, 0)) },
	} {
		if _, err := ntpOffset(change(bytes.Clone(good)), 9, real, real); !errors.Is(err, errNTP) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLastKnownTime: the newest of an orderly stop and of the store's files.
func TestLastKnownTime(t *testing.T) {
	state, data := t.TempDir(), t.TempDir()
	if got := lastKnownTime(state, data); !got.IsZero() {
		t.Errorf("an empty partition knows %v", got)
	}
	if err := os.MkdirAll(filepath.Join(data, "store", "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := saveTime(state); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(data, "store", "wal", "0.wal")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, path := range []string{filepath.Join(data, "store", "wal"), filepath.Join(data, "store"), filepath.Join(state, clockFile), log} {
		if err := os.Chtimes(path, before, before); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{log, filepath.Join(state, clockFile)} {
		before = before.Add(time.Hour)
		if err := os.Chtimes(path, before, before); err != nil {
			t.Fatal(err)
		}
		if got := lastKnownTime(state, data); !got.Equal(before) {
			t.Errorf("after %s was written at %v the last known time is %v", path, before, got)
		}
	}
}

func TestPowerButton(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, eventBytes)
		binary.NativeEndian.PutUint16(b[eventType:], kind)
		binary.NativeEndian.PutUint16(b[eventType+2:], code)
		binary.NativeEndian.PutUint32(b[eventType+4:], value)
		return b
	}
	for name, c := range map[string]struct {
		event []byte
		want  bool
	}{
		"pressed":         {event(eventKey, keyPower, 1), true},
		"let go":          {event(eventKey, keyPower, 0), false},
		"another key":     {event(eventKey, keyPower+1, 1), false},
		"not of a button": {event(eventKey+1, keyPower, 1), false},
	} {
		if got := pressed(c.event); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
