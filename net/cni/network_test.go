package cni_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edged/internal/netns/netnstest"
	"edged/net/cni"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// place is a folder of configurations, plugins and what they were called with.
type place struct {
	t   *testing.T
	dir string
}

func newPlace(t *testing.T) *place {
	p := &place{t, t.TempDir()}
	for _, name := range []string{"conf", "bin"} {
		if err := os.Mkdir(filepath.Join(p.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *place) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

// plugin makes one that notes each call, and gives out addresses if it is not the
// chain's second; fails names the commands that it refuses.
func (p *place) plugin(name, address, fails string) {
	p.t.Helper()
	p.write("bin/"+name, `#!/bin/sh
echo "`+name+` $CNI_COMMAND $CNI_CONTAINERID $CNI_ARGS" >> `+p.dir+`/calls
cat > /dev/null
case " `+fails+` " in *" $CNI_COMMAND "*) echo '{"cniVersion":"1.1.0","code":99,"msg":"broken"}'; exit 1;; esac
[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.1.0","interfaces":[{"name":"v"},{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"`+address+`/24","interface":1},{"address":"192.0.2.9/24","interface":0}]}'
`)
}

// calls are the plugins' since the last time.
func (p *place) calls() (out []string) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line) // GC is of no container
		out = append(out, strings.Join(fields[:min(3, len(fields))], " "))
	}
	p.write("calls", "")
	return out
}

func (p *place) expect(when string, want ...string) {
	p.t.Helper()
	if got := p.calls(); !slices.Equal(got, want) {
		p.t.Errorf("%s: called were %q, want %q", when, got, want)
	}
}

// open is the daemon started.
func (p *place) open() *cni.Network {
	p.t.Helper()
	n, err := cni.New(cni.Config{
		ConfDir: filepath.Join(p.dir, "conf"), BinDirs: []string{filepath.Join(p.dir, "none"), filepath.Join(p.dir, "bin")},
		StateDir: filepath.Join(p.dir, "state"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

const chain = `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"one"},{"type":"two"}]}`

func TestLifeOfAPod(t *testing.T) {
	p := newPlace(t)
	n := p.open()
	req := cni.Request{ID: "uid-1", Namespace: "ns", Name: "pod", NetNS: netnstest.New(t).Path}
	if _, err := n.Attach(t.Context(), req); err == nil || n.Ready(t.Context()) == nil || !strings.Contains(err.Error(), "no CNI configuration") {
		t.Errorf("without a configuration: %v", err)
	}
	p.plugin("one", "10.1.0.5", "")
	p.plugin("two", "10.1.0.5", "")
	p.write("conf/05-broken.conflist", "{")
	p.write("conf/10-chain.conflist", chain)
	p.write("conf/99-other.conf", `{"cniVersion":"1.1.0","name":"other","type":"two"}`)
	addrs, err := n.Attach(t.Context(), req)
	if err != nil || !slices.Equal(addrs, []netip.Addr{netip.MustParseAddr("10.1.0.5")}) {
		t.Fatalf("%v, %v", addrs, err)
	}
	data, err := os.ReadFile(filepath.Join(p.dir, "calls"))
	if err != nil || !strings.Contains(string(data), "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;") {
		t.Errorf("arguments: %q, %v", data, err)
	}
	p.expect("attached", "one ADD uid-1", "two ADD uid-1")
	if out, err := os.ReadFile(filepath.Join(p.dir, "state", "bin-dirs")); err != nil || !strings.HasSuffix(string(out), "/bin") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := n.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	p.expect("attached again")

	// A daemon that starts again, with another configuration meanwhile.
	n = p.open()
	p.write("conf/10-chain.conflist", strings.Replace(chain, `,{"type":"two"}`, "", 1))
	if addrs, err := n.Attach(t.Context(), req); err != nil || len(addrs) != 1 {
		t.Errorf("%v, %v", addrs, err)
	}
	p.expect("found again", "one CHECK uid-1", "two CHECK uid-1")
	if got := n.Attached()["uid-1"]; len(got) != 1 {
		t.Errorf("attached are %v", got)
	}

	// What is not as it was is made anew, by the configuration of now.
	n = p.open()
	p.plugin("two", "10.1.0.5", "CHECK")
	if addrs, err := n.Attach(t.Context(), req); err != nil || len(addrs) != 1 {
		t.Errorf("%v, %v", addrs, err)
	}
	p.expect("damaged", "one CHECK uid-1", "two CHECK uid-1", "two DEL uid-1", "one DEL uid-1", "one ADD uid-1")

	if err := n.Sync(t.Context(), []string{"uid-1"}); err != nil {
		t.Fatal(err)
	}
	p.expect("wanted", "one GC")
	for range 2 {
		if err := n.Detach(t.Context(), "uid-1"); err != nil {
			t.Fatal(err)
		}
	}
	p.expect("detached", "one DEL uid-1")
	if len(n.Attached()) != 0 {
		t.Error("it is attached")
	}
}

// TestHalfAnAdd: when the chain's end refuses, its beginning hears of it, and the
// Pod is tried again as if it were new.
func TestHalfAnAdd(t *testing.T) {
	p := newPlace(t)
	p.plugin("one", "10.1.0.5", "")
	p.plugin("two", "10.1.0.5", "ADD")
	p.write("conf/10-chain.conflist", chain)
	n := p.open()
	req := cni.Request{ID: "uid-1", Namespace: "ns", Name: "pod", NetNS: netnstest.New(t).Path}
	if _, err := n.Attach(t.Context(), req); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("%v", err)
	}
	p.expect("refused", "one ADD uid-1", "two ADD uid-1", "two DEL uid-1", "one DEL uid-1")
	p.plugin("two", "10.1.0.5", "")
	if _, err := n.Attach(t.Context(), req); err != nil {
		t.Error(err)
	}
	p.expect("tried again", "one ADD uid-1", "two ADD uid-1")
	if err := cni.Cleanup(t.Context(), filepath.Join(p.dir, "state")); err != nil {
		t.Error(err)
	}
	p.expect("reset", "two DEL uid-1", "one DEL uid-1")
	if _, err := os.Stat(filepath.Join(p.dir, "state")); !os.IsNotExist(err) {
		t.Errorf("the folder is there: %v", err)
	}
}

// TestReady asks the plugins of a chain for their status, those of CNI 1.1.
func TestReady(t *testing.T) {
	p := newPlace(t)
	p.plugin("one", "10.1.0.5", "")
	p.plugin("two", "10.1.0.5", "STATUS")
	p.write("conf/10-chain.conflist", chain)
	n := p.open()
	if err := n.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "broken") || !strings.Contains(err.Error(), "pods") {
		t.Errorf("with a plugin that is not available: %v", err)
	}
	p.plugin("two", "10.1.0.5", "")
	if err := n.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	p.expect("twice asked", "one STATUS", "two STATUS", "one STATUS", "two STATUS")
	p.write("conf/10-chain.conflist", strings.Replace(chain, "1.1.0", "1.0.0", 1))
	if err := n.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	p.expect("before CNI 1.1")
}
