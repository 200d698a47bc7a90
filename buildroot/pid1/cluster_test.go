package pid1

import (
	"bytes"
	"maps"
	"reflect"
	"strings"
	"testing"
)

const fleetConfig = `# ours
cluster: home
secret: a long and random text
bootstrap-expect: 3
labels: {room: cellar, board: pi}
taints: ["dedicated=io:NoSchedule"]
ntp: [10.0.0.1] # clock
`

func TestSecretsLeaveTheFile(t *testing.T) {
	for _, text := range []string{fleetConfig, strings.Replace(fleetConfig, "secret", "Secret", 1), "# ours\njoin: ['10.0.0.2:6443']\ntoken: a long and random text\nntp: [10.0.0.1] # clock\n"} {
		padded, err := PadConfig([]byte(text))
		if err != nil || len(padded) != ConfigBytes {
			t.Fatalf("%d bytes, %v", len(padded), err)
		}
		c, err := ParseConfig(padded)
		if err != nil || c.Secret+c.Token != "a long and random text" {
			t.Fatalf("read: %+v, %v", c, err)
		}
		clean, err := wiped(padded, c)
		if err != nil || len(clean) != ConfigBytes {
			t.Fatalf("%d bytes, %v", len(clean), err)
		}
		if bytes.Contains(clean, []byte("random text")) {
			t.Errorf("the secret is still there: %.200s", clean)
		}
		if !bytes.Contains(clean, []byte("# ours\n")) || !bytes.Contains(clean, []byte("ntp: [10.0.0.1] # clock\n")) {
			t.Errorf("other lines changed: %.200s", clean)
		}
		c, err = ParseConfig(clean)
		if err != nil || c.Secret != "" || c.Token != "" || len(c.NTP) != 1 {
			t.Errorf("read again: %+v, %v", c, err)
		}
	}
	folded := []byte("cluster: home\nsecret:\n  a long and random text\n")
	c, err := ParseConfig(folded)
	if err != nil || c.Secret == "" {
		t.Fatal(c, err)
	}
	if clean, err := wiped(folded, c); err == nil {
		t.Errorf("a secret that stayed was taken for wiped: %.100s", clean)
	}
	if _, err := PadConfig(bytes.Repeat([]byte("x"), ConfigBytes)); err == nil {
		t.Error("a config that does not fit was taken")
	}
}

func TestClusterRefused(t *testing.T) {
	for text, want := range map[string]string{
		"secret: a long and random text":                           "without cluster",
		"cluster: home\nsecret: short":                             "want at least 16",
		"bootstrap-expect: 3":                                      "want a number of devices",
		"cluster: home\nbootstrap-expect: -1":                      "want a number of devices",
		"cluster: home\njoin: ['10.0.0.2:6443']":                   "by one of them",
		"token: abcdefghijklmnopqrst":                              "without join",
		"labels: [room=cellar]":                                    "labels",
		"cluster: home\nsecret: a long and random text\nsecret: b": "secret",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", text, err, want)
		}
	}
}

func TestDaemonFlags(t *testing.T) {
	all := map[string]bool{stateDir + "/cluster-secret": true, stateDir + "/join-token": true}
	for name, c := range map[string]struct {
		text  string
		files map[string]bool
		want  map[string]any
	}{
		"nothing": {"", nil, map[string]any{}},
		"cluster": {fleetConfig, all, map[string]any{
			"cluster-name": "home", "discovery": "mdns", "cluster-secret-file": stateDir + "/cluster-secret", "bootstrap-expect": 3,
			"node-label": []string{"board=pi", "room=cellar"}, "node-taint": []string{"dedicated=io:NoSchedule"},
		}},
		"join": {"join: ['10.0.0.2:6443', 'pi:6443']", all, map[string]any{
			"join": []string{"10.0.0.2:6443", "pi:6443"}, "token-file": stateDir + "/join-token",
		}},
		"secret of before":  {"", all, map[string]any{}},
		"its own word wins": {"cluster: home\nedged: {discovery: none, voters: 3}", nil, map[string]any{"cluster-name": "home", "discovery": "none", "voters": 3.0}},
	} {
		parsed, err := ParseConfig([]byte(c.text))
		if err != nil {
			t.Fatal(name, err)
		}
		got := parsed.daemonFlags(func(path string) bool { return c.files[path] })
		if clock := got["set-clock"]; clock != "always" {
			t.Errorf("%s: set-clock %v", name, clock)
		}
		delete(got, "set-clock")
		if !maps.EqualFunc(got, c.want, func(a, b any) bool { return reflect.DeepEqual(a, b) }) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
