package cniplugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"edged/internal/netns/netnstest"
	"edged/net/bridge"
	"edged/net/cniplugin"
	"edged/net/nft"
)

// TestMain is also the plugin, under its name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == cniplugin.Name {
		os.Exit(cniplugin.Main(context.Background(), os.Getenv, os.Stdin, os.Stdout))
	}
	netnstest.Main(m)
}

// network is a configuration with a bridge and state of its own.
func network(t *testing.T, version string, more string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	t.Cleanup(func() {
		netnstest.Host().Run(t, "sh", "-c", "ip link del cni-test || true; nft flush ruleset")
	})
	return fmt.Sprintf(`{"cniVersion":%q,"name":"test","type":"edged-bridge","bridge":"cni-test","stateDir":%q,"podCIDRs":["10.44.0.0/24","fd44::/64"]%s}`, version, dir, more)
}

// call runs the plugin as a runtime does.
func call(t *testing.T, config, command string, ns *netnstest.NS, id string) (out map[string]any, code int) {
	t.Helper()
	env := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": id, "CNI_IFNAME": "eth0"}
	if ns != nil {
		env["CNI_NETNS"] = ns.Path
	}
	var stdout bytes.Buffer
	code = cniplugin.Main(t.Context(), func(k string) string { return env[k] }, strings.NewReader(config), &stdout)
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
			t.Fatalf("%s printed %q: %v", command, stdout.String(), err)
		}
	}
	return out, code
}

func mustCall(t *testing.T, config, command string, ns *netnstest.NS, id string) map[string]any {
	t.Helper()
	out, code := call(t, config, command, ns, id)
	if code != 0 {
		t.Fatalf("%s %s: %v", command, id, out)
	}
	return out
}

// addresses of a result.
func addresses(t *testing.T, result map[string]any) (out []string) {
	t.Helper()
	ips, _ := result["ips"].([]any)
	for _, ip := range ips {
		a, _, _ := strings.Cut(ip.(map[string]any)["address"].(string), "/")
		out = append(out, a)
	}
	if len(out) != 2 {
		t.Fatalf("result %v, want two addresses", result)
	}
	return out
}

// withPrev is the configuration with the result of ADD, as CHECK gets it.
func withPrev(t *testing.T, config string, prev map[string]any) string {
	t.Helper()
	data, err := json.Marshal(prev)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(config, "}") + `,"prevResult":` + string(data) + "}"
}

// TestRulesOutliveTheDaemons: what the daemon's reset removes is not what containers of
// other runtimes need; rules that a version before left with the daemon's go.
func TestRulesOutliveTheDaemons(t *testing.T) {
	config := network(t, "1.1.0", "")
	one := netnstest.New(t)
	host := netnstest.Host()
	mustCall(t, config, "ADD", &one, "one")
	own := func() string { return host.Run(t, "nft", "list", "table", "inet", "edged-cni") }
	chain := regexp.MustCompile(`cni[0-9a-f]{8}-postrouting`).FindString(own())
	if chain == "" || !strings.Contains(own(), "masquerade") {
		t.Fatalf("no rules of masquerade:\n%s", own())
	}
	host.Run(t, "sh", "-c", "nft add table inet edged; nft add chain inet edged "+chain+"; nft add rule inet edged "+chain+" masquerade; nft add chain inet edged of-the-daemon")
	mustCall(t, config, "ADD", &one, "one")
	if daemons := host.Run(t, "nft", "list", "table", "inet", "edged"); strings.Contains(daemons, chain) || !strings.Contains(daemons, "of-the-daemon") {
		t.Errorf("the daemon's table:\n%s", daemons)
	}
	table := nft.Open()
	defer table.Close()
	if err := table.Remove(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(own(), "masquerade") {
		t.Errorf("gone with the daemon's:\n%s", own())
	}
}

func TestLife(t *testing.T) {
	config := network(t, "1.1.0", "")
	one, two := netnstest.New(t), netnstest.New(t)
	a, b := mustCall(t, config, "ADD", &one, "one"), mustCall(t, config, "ADD", &two, "two")
	one.Serve(t, "one", ":80")
	for _, ip := range addresses(t, a) {
		if name, _, err := two.Ask("tcp", net.JoinHostPort(ip, "80")); err != nil || name != "one" {
			t.Errorf("one at %s: %s %v", ip, name, err)
		}
	}
	if again := mustCall(t, config, "ADD", &one, "one"); addresses(t, again)[0] != addresses(t, a)[0] {
		t.Errorf("ADD again gave %v, before %v", again, a)
	}
	links := a["interfaces"].([]any)
	if in := links[2].(map[string]any); in["sandbox"] != one.Path || in["mtu"] != 1500.0 || in["name"] != "eth0" || a["cniVersion"] != "1.1.0" {
		t.Errorf("result %v", a)
	}

	mustCall(t, withPrev(t, config, a), "CHECK", &one, "one")
	if out, code := call(t, withPrev(t, config, b), "CHECK", &one, "one"); code == 0 || !strings.Contains(fmt.Sprint(out["details"]), "10.44.0.3") {
		t.Errorf("CHECK with another's result: %d %v", code, out)
	}
	one.Run(t, "ip", "addr", "del", addresses(t, a)[0]+"/32", "dev", "eth0")
	if _, code := call(t, withPrev(t, config, a), "CHECK", &one, "one"); code == 0 {
		t.Error("CHECK does not see that an address is gone")
	}
	if strings.Contains(one.Run(t, "ip", "addr"), addresses(t, a)[0]) {
		t.Error("CHECK mends")
	}

	mustCall(t, config, "STATUS", nil, "")
	mustCall(t, strings.TrimSuffix(config, "}")+`,"cni.dev/valid-attachments":[{"containerID":"two","ifname":"eth0"}]}`, "GC", nil, "")
	if out := one.Run(t, "ip", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("GC left one: %s", out)
	}
	mustCall(t, withPrev(t, config, b), "CHECK", &two, "two")
	for range 2 {
		mustCall(t, config, "DEL", &two, "two")
	}
	mustCall(t, config, "DEL", nil, "never")
	if out := two.Run(t, "ip", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("DEL left two: %s", out)
	}
}

func TestRefusals(t *testing.T) {
	config := network(t, "1.1.0", "")
	ns := netnstest.New(t)
	for _, tc := range []struct {
		name, config, command, id string
		code                      float64
	}{
		{"a version of the future", strings.Replace(config, "1.1.0", "2.0.0", 1), "ADD", "x", 1},
		{"STATUS before there was one", strings.Replace(config, "1.1.0", "1.0.0", 1), "STATUS", "", 1},
		{"no container", config, "ADD", "", 4},
		{"no command of ours", config, "MOVE", "x", 4},
		{"no JSON", "{", "ADD", "x", 6},
		{"no addresses", `{"cniVersion":"1.1.0","name":"test","type":"edged-bridge"}`, "ADD", "x", 7},
		{"a name that is a path", strings.Replace(config, `"test"`, `"../test"`, 1), "ADD", "x", 7},
		{"the daemon's bridge", strings.Replace(config, "cni-test", "edged0", 1), "ADD", "x", 7},
		{"CHECK without a result", config, "CHECK", "x", 7},
		{"STATUS where nothing can be made", strings.Replace(config, "cni-test", "far-too-long-for-a-link", 1), "STATUS", "", 50},
	} {
		out, code := call(t, tc.config, tc.command, &ns, tc.id)
		if code != 1 || out["code"] != tc.code || out["msg"] == "" {
			t.Errorf("%s: exit code %d, %v; want code %v", tc.name, code, out, tc.code)
		}
	}
	out := mustCall(t, "", "VERSION", nil, "")
	if fmt.Sprint(out["supportedVersions"]) != "[0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]" {
		t.Errorf("VERSION: %v", out)
	}
	old := mustCall(t, strings.Replace(config, "1.1.0", "0.4.0", 1), "ADD", &ns, "old")
	if old["ips"].([]any)[0].(map[string]any)["version"] != "4" || old["cniVersion"] != "0.4.0" {
		t.Errorf("the result in 0.4.0: %v", old)
	}
}

// TestAtTheSameTime: processes that ADD at once get different addresses.
func TestAtTheSameTime(t *testing.T) {
	config := network(t, "1.1.0", "")
	exe := filepath.Join(t.TempDir(), cniplugin.Name)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, exe); err != nil {
		t.Fatal(err)
	}
	const n = 8
	var wg sync.WaitGroup
	results := make([]string, n)
	for i := range n {
		ns := netnstest.New(t)
		wg.Go(func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", fmt.Sprintf("CNI_CONTAINERID=c%d", i), "CNI_IFNAME=eth0", "CNI_NETNS="+ns.Path)
			cmd.Stdin = strings.NewReader(config)
			out, err := cmd.CombinedOutput()
			var r map[string]any
			if err == nil {
				err = json.Unmarshal(out, &r)
			}
			if err != nil {
				t.Errorf("%v: %s", err, out)
				return
			}
			results[i] = fmt.Sprint(r["ips"])
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, r := range results {
		if seen[r] {
			t.Errorf("two got %s", r)
		}
		seen[r] = true
	}
}

// TestOtherBridgesAreLeftAlone: the daemon's bridge and a network of ours do not
// take each other's attachments for leftovers.
func TestOtherBridgesAreLeftAlone(t *testing.T) {
	config := network(t, "1.1.0", "")
	ns, podNS := netnstest.New(t), netnstest.New(t)
	dir := filepath.Join(t.TempDir(), "daemon")
	br, err := bridge.New(bridge.Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}, StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(br.Close(), bridge.Cleanup(context.Background(), bridge.DefaultName, dir)); err != nil {
			t.Error(err)
		}
	})
	if _, err := br.Attach(t.Context(), bridge.AttachRequest{ID: "pod", NetNS: podNS.Path}); err != nil {
		t.Fatal(err)
	}
	mustCall(t, config, "ADD", &ns, "x")
	if err := br.Sync(t.Context(), []string{"pod"}); err != nil {
		t.Fatal(err)
	}
	if out := ns.Run(t, "ip", "-br", "link"); !strings.Contains(out, "eth0") {
		t.Errorf("the daemon removed the plugin's link: %s", out)
	}
	mustCall(t, config, "GC", nil, "")
	if out := podNS.Run(t, "ip", "-br", "link"); !strings.Contains(out, "eth0") {
		t.Errorf("GC removed the daemon's link: %s", out)
	}
	mustCall(t, config, "ADD", &ns, "x") // GC took it
	if err := bridge.Cleanup(t.Context(), bridge.DefaultName, dir); err != nil {
		t.Error(err)
	}
	if out := ns.Run(t, "ip", "-br", "link"); !strings.Contains(out, "eth0") {
		t.Errorf("the daemon's reset removed the plugin's link: %s", out)
	}
}

func TestCalled(t *testing.T) {
	for _, tc := range []struct {
		args    []string
		command string
		want    bool
	}{
		{[]string{"/opt/cni/bin/edged-bridge"}, "ADD", true}, {[]string{"/opt/cni/bin/edged-bridge"}, "", true},
		{[]string{"/usr/bin/edged"}, "ADD", true}, {[]string{"/usr/bin/edged", "run"}, "ADD", false},
		{[]string{"/usr/bin/edged"}, "", false}, {nil, "ADD", false},
	} {
		if got := cniplugin.Called(tc.args, func(string) string { return tc.command }); got != tc.want {
			t.Errorf("%q with %q: %v", tc.args, tc.command, got)
		}
	}
}

// TestMasquerade: containers keep their addresses among themselves and have the
// device's outside.
func TestMasquerade(t *testing.T) {
	host, outside, ns := netnstest.Host(), netnstest.New(t), netnstest.New(t)
	host.Run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", outside.Path)
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "up0") })
	host.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	host.Run(t, "ip", "link", "set", "up0", "up")
	outside.Run(t, "ip", "link", "set", "lo", "up")
	outside.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "up1")
	outside.Run(t, "ip", "link", "set", "up1", "up")
	outside.Serve(t, "outside", "192.0.2.2:80")
	mustCall(t, network(t, "1.1.0", ""), "ADD", &ns, "x")
	if _, client, err := ns.Ask("tcp", "192.0.2.2:80"); err != nil || !strings.HasPrefix(client, "192.0.2.1:") {
		t.Errorf("seen as %s (%v), want the device's address", client, err)
	}
}

// TestCNITool has the reference caller go through all commands.
func TestCNITool(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "cnitool"), "github.com/containernetworking/cni/cnitool")
	build.Dir = "../../test/cnitool"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building cnitool: %v\n%s", err, out)
	}
	// It keeps results in /var/lib/cni: not the machine's.
	if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/var/lib", unix.MNT_DETACH) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, cniplugin.Name)); err != nil {
		t.Fatal(err)
	}
	list := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"test","plugins":[%s]}`, network(t, "1.1.0", ""))
	if err := os.WriteFile(filepath.Join(dir, "10-test.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	tool := func(command string, ns netnstest.NS) (string, error) {
		cmd := exec.Command(filepath.Join(dir, "cnitool"), command, "test", ns.Path)
		cmd.Env = append(os.Environ(), "CNI_PATH="+dir, "NETCONFPATH="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	one, two := netnstest.New(t), netnstest.New(t)
	for _, step := range []struct {
		command string
		ns      netnstest.NS
	}{{"status", one}, {"add", one}, {"add", two}, {"check", one}, {"del", two}, {"check", one}, {"gc", one}} {
		if out, err := tool(step.command, step.ns); err != nil {
			t.Fatalf("cnitool %s: %v\n%s", step.command, err, out)
		}
	}
	// gc named no attachment as valid: all are gone.
	if out := one.Run(t, "ip", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("after gc: %s", out)
	}
}
