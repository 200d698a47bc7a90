package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlRoot is where the kernel shows the settings of the calling thread's
// network namespace.
const sysctlRoot = "/proc/sys/net"

// setSysctl writes only what differs: /proc/sys may be read-only where it
// already holds the right value (in a container).
func setSysctl(path, value string) error {
	file := filepath.Join(sysctlRoot, path)
	have, err := os.ReadFile(file)
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting sysctl net/%s to %s: %w", path, value, err)
	}
	return nil
}

// setSysctlIfPresent is for settings of features that a kernel may not have,
// such as IPv6.
func setSysctlIfPresent(path, value string) error {
	err := setSysctl(path, value)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// bridgeNF are the settings of br_netfilter that matter here.
var bridgeNF = [...]string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"}

// bridgedNAT says whether the kernel runs the packet filter on frames that a
// bridge forwards (br_netfilter is there and on, as docker leaves it).
func bridgedNAT() bool {
	for _, name := range bridgeNF {
		if v, err := os.ReadFile(filepath.Join(sysctlRoot, "bridge", name)); err == nil && strings.TrimSpace(string(v)) == "1" {
			return true
		}
	}
	return false
}

// hostSysctls turns the device into a router for its Pods.
func hostSysctls(link string, has6 bool) error {
	v4 := "ipv4/conf/" + link + "/"
	for _, s := range [][2]string{
		{"ipv4/ip_forward", "1"},
		// The next hop of a packet between two Pods is the bridge it came
		// from; without this the kernel tells Pods to go directly, which
		// isolated ports do not allow.
		{v4 + "send_redirects", "0"},
		// Answers to host ports used on 127.0.0.1 come back through the bridge.
		{v4 + "route_localnet", "1"},
	} {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if !has6 {
		return setSysctlIfPresent("ipv6/conf/"+link+"/disable_ipv6", "1")
	}
	if err := keepRouterAdvertisements(); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/" + link + "/disable_ipv6", "0"},
		{"ipv6/conf/" + link + "/accept_ra", "0"},
		{"ipv6/conf/" + link + "/accept_dad", "0"},
	} {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// keepRouterAdvertisements lets links that learn their address and default
// route from a router go on doing so: a kernel that forwards ignores routers
// unless accept_ra is 2.
func keepRouterAdvertisements() error {
	dir := filepath.Join(sysctlRoot, "ipv6/conf")
	links, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("IPv6 Pod CIDR: this kernel has no IPv6: %w", err)
	}
	for _, l := range links {
		name := l.Name()
		data, err := os.ReadFile(filepath.Join(dir, name, "accept_ra"))
		if err != nil || strings.TrimSpace(string(data)) != "1" || name == "lo" || name == "all" {
			continue
		}
		if err := setSysctlIfPresent("ipv6/conf/"+name+"/accept_ra", "2"); err != nil {
			return err
		}
	}
	return nil
}

// podSysctls are set inside a Pod's namespace.
func podSysctls(link string, has6 bool) error {
	for _, name := range []string{"all", link} {
		if err := setSysctl("ipv4/conf/"+name+"/accept_redirects", "0"); err != nil {
			return err
		}
	}
	if !has6 {
		return nil
	}
	for _, s := range [][2]string{
		{"ipv6/conf/" + link + "/disable_ipv6", "0"},
		{"ipv6/conf/" + link + "/accept_ra", "0"},
		{"ipv6/conf/" + link + "/accept_redirects", "0"},
		{"ipv6/conf/" + link + "/accept_dad", "0"},
	} {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}
