package bridge_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"edged/internal/netns/netnstest"
	"edged/net/bridge"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var (
	v4   = []netip.Prefix{netip.MustParsePrefix("10.42.3.0/24")}
	v6   = []netip.Prefix{netip.MustParsePrefix("fd42:0:0:3::/64")}
	dual = append(slices.Clone(v4), v6...)
)

// open makes a bridge that goes with the test, and checks that nothing is left.
func open(t testing.TB, cfg bridge.Config) *bridge.Bridge {
	t.Helper()
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if err := bridge.Cleanup(t.Context(), bridge.DefaultName, cfg.StateDir); err != nil {
			t.Error(err)
		}
		links, err := netlink.LinkList()
		if err != nil {
			t.Error(err)
		}
		for _, l := range links {
			if l.Attrs().Name != "lo" && !strings.HasPrefix(l.Attrs().Name, "sit") && !strings.Contains(l.Attrs().Name, "tnl") {
				t.Errorf("link %s (%s) is left", l.Attrs().Name, l.Type())
			}
		}
		if _, err := os.Stat(cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state folder is left: %v", err)
		}
	})
	return b
}

func config(t testing.TB, cidrs []netip.Prefix) bridge.Config {
	return bridge.Config{PodCIDRs: cidrs, StateDir: filepath.Join(t.TempDir(), "bridge")}
}

func attach(t testing.TB, b *bridge.Bridge, id string, ns netnstest.NS) bridge.Attachment {
	t.Helper()
	att, err := b.Attach(t.Context(), bridge.AttachRequest{ID: id, NetNS: ns.Path})
	if err != nil {
		t.Fatal(err)
	}
	return att
}

func TestPodsReachEachOther(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cidrs []netip.Prefix
	}{{"IPv4", v4}, {"IPv6", v6}, {"dual stack", dual}} {
		t.Run(tt.name, func(t *testing.T) {
			b := open(t, config(t, tt.cidrs))
			one, two := netnstest.New(t), netnstest.New(t)
			a1, a2 := attach(t, b, "pod-1", one), attach(t, b, "pod-2", two)
			if len(a1.IPs) != len(tt.cidrs) || len(a2.IPs) != len(tt.cidrs) {
				t.Fatalf("addresses %v and %v, want one for each of %v", a1.IPs, a2.IPs, tt.cidrs)
			}
			two.Serve(t, "two", ":7000")
			for i, ip := range a2.IPs {
				if !tt.cidrs[i].Contains(ip) {
					t.Errorf("address %s is not in %s", ip, tt.cidrs[i])
				}
				to := netip.AddrPortFrom(ip, 7000).String()
				for _, network := range []string{"tcp", "udp"} {
					name, client, err := one.Ask(network, to)
					if err != nil || name != "two" {
						t.Fatalf("%s to %s: %q, %v", network, to, name, err)
					}
					if host, _, _ := net.SplitHostPort(client); host != a1.IPs[i].String() {
						t.Errorf("%s: pod seen as %s, want its own address %s", network, host, a1.IPs[i])
					}
				}
				for _, target := range []netip.Addr{ip, a1.Gateways[i]} {
					if err := one.Ping(target.String()); err != nil {
						t.Error(err)
					}
				}
			}
			one.Serve(t, "self", "localhost:7001")
			if name, _, err := one.Ask("tcp", "127.0.0.1:7001"); err != nil || name != "self" {
				t.Errorf("loopback inside the pod: %q, %v", name, err)
			}
		})
	}
}

// TestPodsCannotPassTheHost: an isolated port keeps a Pod that adds its own
// route from reaching its neighbor below IP, where policy does not look.
func TestPodsCannotPassTheHost(t *testing.T) {
	netnstest.BridgeNF(t, "0")
	b := open(t, config(t, v4))
	one, two := netnstest.New(t), netnstest.New(t)
	a1, a2 := attach(t, b, "pod-1", one), attach(t, b, "pod-2", two)
	one.Run(t, "ip", "route", "add", a2.IPs[0].String(), "dev", "eth0", "scope", "link")
	two.Run(t, "ip", "route", "add", a1.IPs[0].String(), "dev", "eth0", "scope", "link")
	if _, err := one.Dial("tcp", a2.IPs[0].String()+":9"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dialing the neighbor on the link: %v, want %v", err, syscall.EHOSTUNREACH)
	}
}

func TestRefreshFollowsBridgeNF(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		t.Skip("this kernel has no br_netfilter")
	}
	netnstest.BridgeNF(t, "0")
	b := open(t, config(t, v4))
	att := attach(t, b, "pod", netnstest.New(t))
	for _, tt := range []struct{ value, isolated, hairpin string }{{"0", "1", "0"}, {"1", "0", "1"}, {"0", "1", "0"}} {
		netnstest.BridgeNF(t, tt.value)
		if err := b.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]string{"isolated": tt.isolated, "hairpin_mode": tt.hairpin} {
			got := netnstest.Host().Run(t, "bridge", "-d", "-j", "link", "show", "dev", att.HostLink)
			word := map[string]string{"isolated": "isolated", "hairpin_mode": "hairpin"}[file]
			if !strings.Contains(got, fmt.Sprintf("%q:%v", word, want == "1")) {
				t.Errorf("bridge-nf %s: want %s %s: %s", tt.value, word, want, got)
			}
		}
	}
}

// TestBridgeNFWithoutNeed: the kernel's default is turned off for a device's only
// bridge, and left alone where there are others.
func TestBridgeNFWithoutNeed(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		t.Skip("this kernel has no br_netfilter")
	}
	for _, tt := range []struct {
		name   string
		others bool
		want   string
	}{{"alone", false, "0"}, {"beside another", true, "1"}} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.BridgeNF(t, "1")
			if tt.others {
				host := netnstest.Host()
				host.Run(t, "ip", "link", "add", "docker0", "type", "bridge")
				defer host.Run(t, "ip", "link", "del", "docker0") // before open looks for what is left
			}
			open(t, config(t, v4))
			for _, name := range []string{"iptables", "ip6tables"} {
				got, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + name)
				if err != nil || strings.TrimSpace(string(got)) != tt.want {
					t.Errorf("bridge-nf-call-%s is %q (%v), want %s", name, got, err, tt.want)
				}
			}
		})
	}
}

func TestAttachIsIdempotent(t *testing.T) {
	b := open(t, config(t, dual))
	ns := netnstest.New(t)
	first := attach(t, b, "pod", ns)
	again := attach(t, b, "pod", ns)
	if !slices.Equal(first.IPs, again.IPs) {
		t.Errorf("addresses changed from %v to %v", first.IPs, again.IPs)
	}
	ns.Run(t, "ip", "link", "del", "eth0")
	mended := attach(t, b, "pod", ns)
	if !slices.Equal(first.IPs, mended.IPs) {
		t.Errorf("addresses changed from %v to %v after the link was lost", first.IPs, mended.IPs)
	}
	if err := ns.Ping(mended.Gateway.String()); err != nil {
		t.Error(err)
	}
}

// TestRestart: the daemon dies without a word, in four states of memory, and
// open connections and addresses are as before.
func TestRestart(t *testing.T) {
	for _, lost := range []string{"nothing", "files", "alias", "files and alias"} {
		t.Run(lost+" lost", func(t *testing.T) {
			cfg := config(t, dual)
			b := open(t, cfg)
			one, two := netnstest.New(t), netnstest.New(t)
			a1, a2 := attach(t, b, "pod-1", one), attach(t, b, "pod-2", two)
			l := two.Listen(t, ":7000")
			c, err := one.Dial("tcp", netip.AddrPortFrom(a2.IPs[0], 7000).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()

			b.Close() // all that a SIGKILL does to the kernel's state
			if strings.Contains(lost, "files") {
				if err := os.RemoveAll(cfg.StateDir); err != nil {
					t.Fatal(err)
				}
			}
			if strings.Contains(lost, "alias") {
				for _, a := range []bridge.Attachment{a1, a2} {
					if err := netlink.LinkSetAlias(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: a.HostLink}}, "edged:?"); err != nil {
						t.Fatal(err)
					}
				}
			}
			b, err = bridge.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			// In the other order, so that equal addresses are not luck.
			for _, p := range []struct {
				id  string
				ns  netnstest.NS
				ips []netip.Addr
			}{{"pod-2", two, a2.IPs}, {"pod-1", one, a1.IPs}} {
				if got := attach(t, b, p.id, p.ns); !slices.Equal(got.IPs, p.ips) {
					t.Errorf("%s has %v after the restart, had %v", p.id, got.IPs, p.ips)
				}
			}
			if _, err := fmt.Fprintln(c, "alive"); err != nil {
				t.Fatal(err)
			}
			var word string
			if _, err := fmt.Fscan(s, &word); err != nil || word != "alive" {
				t.Errorf("connection from before: %q, %v", word, err)
			}
			if third := attach(t, b, "pod-3", netnstest.New(t)); slices.Contains(a1.IPs, third.IPs[0]) || slices.Contains(a2.IPs, third.IPs[0]) {
				t.Errorf("address %s was given twice", third.IPs[0])
			}
		})
	}
}

func TestAddressesRestBeforeReuse(t *testing.T) {
	cfg := config(t, []netip.Prefix{netip.MustParsePrefix("10.42.3.0/29")}) // five Pods
	b := open(t, cfg)
	seen := map[netip.Addr]bool{}
	for i := range 5 {
		id := fmt.Sprint("pod-", i)
		att := attach(t, b, id, netnstest.New(t))
		if seen[att.IPs[0]] {
			t.Fatalf("address %s was reused at once", att.IPs[0])
		}
		seen[att.IPs[0]] = true
		if err := b.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	b, err := bridge.New(cfg) // a restart does not cut the rest short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	_, err = b.Attach(t.Context(), bridge.AttachRequest{ID: "pod-6", NetNS: netnstest.New(t).Path})
	if err == nil || !strings.Contains(err.Error(), "0 in use, 5 resting") {
		t.Errorf("sixth pod within the time of rest: %v", err)
	}
}

func TestSyncFreesWhatIsNotKept(t *testing.T) {
	cfg := config(t, v4)
	var published []bridge.PortMapping
	cfg.HostPorts = func(m []bridge.PortMapping) { published = m }
	b := open(t, cfg)
	for _, id := range []string{"kept", "lost"} {
		_, err := b.Attach(t.Context(), bridge.AttachRequest{ID: id, NetNS: netnstest.New(t).Path,
			HostPorts: []bridge.HostPort{{HostPort: 80, ContainerPort: 8080, Protocol: "TCP"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(published) != 2 {
		t.Errorf("host ports %v, want those of both pods", published)
	}
	if err := b.Sync(t.Context(), []string{"kept"}); err != nil {
		t.Fatal(err)
	}
	if len(published) != 1 || published[0].PodID != "kept" {
		t.Errorf("host ports %v, want those of the kept pod", published)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	veths := 0
	for _, l := range links {
		if l.Type() == "veth" {
			veths++
		}
	}
	if veths != 1 {
		t.Errorf("%d veth links on the host, want 1", veths)
	}
}

func TestDetachOfAPodWhoseNamespaceIsGone(t *testing.T) {
	b := open(t, config(t, v4))
	ns := netnstest.New(t)
	attach(t, b, "pod", ns)
	ns.Run(t, "ip", "link", "del", "eth0")
	for range 2 {
		if err := b.Detach(t.Context(), "pod"); err != nil {
			t.Error(err)
		}
	}
}

func TestHostHasAWayToServiceAddresses(t *testing.T) {
	cfg := config(t, v4)
	cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	cfg.HostAddrs = []netip.Addr{netip.MustParseAddr("10.43.0.10")}
	b := open(t, cfg)
	routes, err := netlink.RouteGet(net.ParseIP("10.43.7.7"))
	if err != nil || len(routes) != 1 || !routes[0].Src.Equal(net.IP(b.Gateways()[0].AsSlice())) {
		t.Errorf("route to a Service: %v, %v, want source %s", routes, err, b.Gateways()[0])
	}
	ns := netnstest.New(t)
	attach(t, b, "pod", ns)
	if err := ns.Ping("10.43.0.10"); err != nil {
		t.Errorf("the device's own address: %v", err)
	}
}

func TestMTUIsFollowed(t *testing.T) {
	cfg := config(t, v4)
	cfg.MTU = 1450
	b := open(t, cfg)
	ns := netnstest.New(t)
	if att := attach(t, b, "pod", ns); att.MTU != 1450 {
		t.Errorf("MTU %d, want 1450", att.MTU)
	}
	for _, want := range []int{1450, 1400} {
		if err := b.SetMTU(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		for _, link := range []string{"eth0"} {
			if out := ns.Run(t, "ip", "-o", "link", "show", link); !strings.Contains(out, fmt.Sprintf("mtu %d ", want)) {
				t.Errorf("want mtu %d: %s", want, out)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, want string
		cfg        bridge.Config
	}{
		{"no CIDR", "no Pod CIDR", bridge.Config{StateDir: dir}},
		{"two of a family", "more than one Pod CIDR", bridge.Config{StateDir: dir, PodCIDRs: append(slices.Clone(v4), netip.MustParsePrefix("10.9.0.0/24"))}},
		{"no room", "no room", bridge.Config{StateDir: dir, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/31")}}},
		{"foreign link", "is a", bridge.Config{StateDir: dir, PodCIDRs: v4, Name: "lo"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := bridge.New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
	b := open(t, config(t, v4))
	for _, id := range []string{"", "../x", "a b"} {
		if _, err := b.Attach(t.Context(), bridge.AttachRequest{ID: id, NetNS: "/proc/self/ns/net"}); err == nil {
			t.Errorf("attachment %q was accepted", id)
		}
	}
}

// TestFirstPacketArrives: Attach returns when the way is open, or the first
// connection of every Pod would take a second.
func TestFirstPacketArrives(t *testing.T) {
	b := open(t, config(t, v4))
	server := netnstest.New(t)
	to := attach(t, b, "server", server).IPs[0].String() + ":7000"
	server.Serve(t, "server", ":7000")
	for i := range 20 {
		ns := netnstest.New(t)
		attach(t, b, fmt.Sprint("pod-", i), ns)
		start := time.Now()
		if _, _, err := ns.Ask("tcp", to); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 900*time.Millisecond {
			t.Errorf("first connection of pod %d took %s", i, took)
		}
	}
}
