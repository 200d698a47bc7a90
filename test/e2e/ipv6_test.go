package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/test/harness"
)

// TestIPv6Only: two devices on a link without a single IPv4 address become a
// cluster, whose Pods reach each other across devices by address, by name and
// through a Service.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	sw := harness.NewSwitch(t)
	flags := []string{"--cluster-cidr=fd42::/48", "--service-cidr=fd43::/112", "--cluster-dns=fd43::a"}
	var devices []*harness.Device
	device := func(n int, more ...string) *harness.Device {
		ip := netip.MustParseAddr(fmt.Sprintf("fd99::%d", n))
		d := harness.New(t, sw, n, append(append([]string{"--node-ip=" + ip.String()}, flags...), more...)...)
		if out, err := d.Run("sh", "-ec", "ip address flush dev eth0; ip address add "+ip.String()+"/64 dev eth0 nodad"); err != nil {
			t.Fatalf("%s: %v\n%s", d.Name, err, out)
		}
		d.Start()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s:\n%s", d.Name, d.LogTail())
			}
		})
		d.WaitReady()
		devices = append(devices, d)
		return d
	}
	first := device(1)
	token, err := first.Edged("token", "create", "--run-dir", first.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	device(2, "--join=[fd99::1]:6443", "--token="+strings.TrimSpace(token))
	allReady(t, first, 2)
	for _, d := range devices {
		d.ImportBusybox()
	}
	p := placeOn(t, first)
	p.apply(webDeployment)
	for i, d := range devices {
		p.kubectl("run", fmt.Sprint("client-", i), "--image="+harness.Busybox, "--overrides", `{"spec":{"terminationGracePeriodSeconds":0,"nodeName":"`+d.Name+`"}}`, "--", "sleep", "100000")
	}
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	clients := []*corev1.Pod{p.waitReady("client-0"), p.waitReady("client-1")}
	ip := strings.TrimSpace(p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	for _, c := range clients {
		if a, err := netip.ParseAddr(c.Status.PodIP); err != nil || !a.Is6() || len(c.Status.PodIPs) != 1 {
			t.Errorf("%s has the addresses %v", c.Name, c.Status.PodIPs)
		}
		for _, url := range []string{"http://" + net.JoinHostPort(ip, "80") + "/", "http://web/"} {
			seen := map[string]bool{}
			p.eventually(30*time.Second, c.Name+" sees both Pods behind "+url, func() error {
				out, err := p.Kubectl("", "-n", p.ns, "exec", c.Name, "--", "fetch", url)
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				if seen[strings.TrimSpace(out)] = true; len(seen) < 2 {
					return fmt.Errorf("answered %q only", out)
				}
				return nil
			})
		}
	}
	if out := p.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}"); strings.TrimSpace(out) != "fd99::1 fd99::2" {
		t.Errorf("Nodes have the addresses %q", out)
	}
	if out := p.kubectl("logs", "client-1"); out != "" {
		t.Errorf("its log: %s", out)
	}
}
