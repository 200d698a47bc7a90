package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// TestDualStack: Pods and Services with an address of each family, reached by
// both and by name, a load balancer's address, and a policy that closes both.
func TestDualStack(t *testing.T) {
	pool := harness.Subnet.Addr()
	for range 200 {
		pool = pool.Next()
	}
	d := harness.Lone(t, "--cluster-cidr=10.42.0.0/16,fd42::/48", "--service-cidr=10.43.0.0/16,fd43::/112", "--cluster-dns=10.43.0.10,fd43::a", "--lb-pool="+pool.String())
	d.ImportBusybox()
	p := placeOn(t, d)
	p.apply(strings.Replace(webDeployment, "  selector: {app: web}\n  ports", "  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n  selector: {app: web}\n  ports", 1))
	p.clientPod("client")
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	for what, list := range map[string]string{
		"Pod":             p.kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIPs[*].ip}"),
		"Service":         p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"),
		"device's Pods":   p.MustKubectl("", "get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDRs[*]}"),
		"slices' address": p.kubectl("get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "jsonpath={.items[*].endpoints[0].addresses[0]}"),
	} {
		fields := strings.Fields(list)
		if len(fields) != 2 || strings.Contains(fields[0], ":") == strings.Contains(fields[1], ":") {
			t.Errorf("%s: %q, want one of each family", what, list)
		}
	}
	fetch := func(url string) error {
		out, err := p.Kubectl("", "-n", p.ns, "exec", "client", "--", "fetch", url)
		if err == nil && !strings.HasPrefix(out, "web-") {
			err = fmt.Errorf("answered %q", out)
		}
		return err
	}
	urls := []string{"http://web/"}
	for _, ip := range strings.Fields(p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		urls = append(urls, "http://"+net.JoinHostPort(ip, "80")+"/")
	}
	for _, url := range urls {
		p.eventually(20*time.Second, url+" answers a Pod", func() error { return fetch(url) })
	}
	p.eventually(20*time.Second, "the load balancer's address answers", func() error {
		if got := p.kubectl("get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); got != pool.String() {
			return fmt.Errorf("has address %q, want %s", got, pool)
		}
		_, err := p.Run("curl", "-fsS", "--max-time", "2", "http://"+pool.String()+"/")
		return err
	})

	p.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
`)
	for _, url := range urls[1:] {
		p.eventually(20*time.Second, url+" is closed", func() error {
			if fetch(url) == nil {
				return errors.New("it answers")
			}
			return nil
		})
	}
	// Probes go on: the device is let through.
	p.kubectl("rollout", "status", "deployment/web", "--timeout=5s")
	p.kubectl("delete", "networkpolicy", "closed")
	for _, url := range urls {
		p.eventually(20*time.Second, url+" answers again", func() error { return fetch(url) })
	}
}
