package nft_test

import (
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"edged/internal/netns/netnstest"
	"edged/net/nft"
)

// foreign are the chains that other programs leave, in nft's language.
const foreign = `
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		iifname "docker0" accept
	}
	chain INPUT {
		type filter hook input priority filter; policy drop;
		ct state established accept
	}
	chain OUTPUT {
		type filter hook output priority filter; policy accept;
		oifname "eth7" accept
	}
}
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}
table ip6 harmless {
	chain FORWARD {
		type filter hook forward priority filter; policy accept;
		iifname "eth7" drop
	}
}
`

// uncounted is a listing but for what rules have counted.
func uncounted(s string) string {
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(s, "")
}

func TestAdmit(t *testing.T) {
	host := netnstest.Host()
	before := func() string {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(foreign)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return list(t)
	}()
	t.Cleanup(func() { host.Run(t, "nft", "flush", "ruleset") })
	client, server := netnstest.New(t), netnstest.New(t)
	for link, end := range map[string]struct {
		ns          netnstest.NS
		host, there string
	}{"edgedX": {client, "192.0.2.1", "192.0.2.2"}, "up0": {server, "198.51.100.1", "198.51.100.2"}} {
		host.Run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", end.ns.Path)
		t.Cleanup(func() { host.Run(t, "ip", "link", "del", link) })
		host.Run(t, "ip", "addr", "add", end.host+"/24", "dev", link)
		host.Run(t, "ip", "link", "set", link, "up")
		end.ns.Run(t, "ip", "link", "set", "lo", "up")
		end.ns.Run(t, "ip", "addr", "add", end.there+"/24", "dev", "eth0")
		end.ns.Run(t, "ip", "link", "set", "eth0", "up")
		end.ns.Run(t, "ip", "route", "add", "default", "via", end.host)
	}
	host.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	pods := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("fd42::/64")}
	server.Serve(t, "server", "198.51.100.2:80")
	host.Serve(t, "device", "192.0.2.1:53")

	changed, err := nft.Admit("edgedX", pods)
	if err != nil || len(changed) != 3 {
		t.Fatalf("changed %v, %v; want FORWARD, INPUT and firewalld's", changed, err)
	}
	for _, c := range changed {
		if c.Err != nil || c.Table == "harmless" || c.Chain == "OUTPUT" {
			t.Errorf("changed %+v", c)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		if _, _, err := client.Ask(network, "198.51.100.2:80"); err != nil {
			t.Errorf("through the device: %v", err)
		}
		if _, _, err := client.Ask(network, "192.0.2.1:53"); err != nil {
			t.Errorf("to the device: %v", err)
		}
	}
	// Past the device's own Pods, to one of another device.
	other := netnstest.New(t)
	host.Run(t, "ip", "link", "add", "down0", "type", "veth", "peer", "name", "eth0", "netns", other.Path)
	t.Cleanup(func() { host.Run(t, "ip", "link", "del", "down0") })
	host.Run(t, "ip", "link", "set", "down0", "up")
	host.Run(t, "ip", "route", "add", "203.0.113.7/32", "dev", "down0")
	other.Run(t, "ip", "addr", "add", "203.0.113.7/32", "dev", "eth0")
	other.Run(t, "ip", "link", "set", "eth0", "up")
	other.Run(t, "ip", "route", "add", "198.51.100.2/32", "dev", "eth0")
	host.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.proxy_arp=1")
	other.Serve(t, "other", "203.0.113.7:80")
	if _, _, err := server.Ask("tcp", "203.0.113.7:80"); err != nil {
		t.Errorf("to a Pod of another device: %v", err)
	}
	once := list(t)
	if changed, err := nft.Admit("edgedX", pods); err != nil || len(changed) != 0 || list(t) != once {
		t.Errorf("the second time changed %v, %v", changed, err)
	}
	// An older edged put fewer rules there.
	if changed, err := nft.Admit("edgedX", nil); err != nil || len(changed) != 2 {
		t.Errorf("an older edged changed %v, %v", changed, err)
	}
	if changed, err := nft.Admit("edgedX", pods); err != nil || len(changed) != 2 || uncounted(list(t)) != uncounted(once) {
		t.Errorf("after an older edged changed %v, %v\n%s", changed, err, list(t))
	}
	// The other program builds its chain anew.
	host.Run(t, "nft", "flush", "chain", "ip", "filter", "FORWARD")
	if changed, err := nft.Admit("edgedX", pods); err != nil || len(changed) != 1 {
		t.Errorf("after a flush changed %v, %v", changed, err)
	}
	host.Run(t, "nft", "add", "rule", "ip", "filter", "FORWARD", "iifname", "docker0", "accept")
	if err := nft.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if after := list(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
