package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// others are the tables that docker and ufw, by iptables-nft, and firewalld write, as
// `nft list ruleset` shows them, with the ports open that docs/networking.md names.
const others = `
table ip nat {
	chain DOCKER { iifname "docker0" return; }
	chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump DOCKER; }
	chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }
}
table ip filter {
	chain DOCKER { iifname != "docker0" oifname "docker0" drop; }
	chain DOCKER-ISOLATION-STAGE-2 { oifname "docker0" drop; }
	chain DOCKER-ISOLATION-STAGE-1 { iifname "docker0" oifname != "docker0" jump DOCKER-ISOLATION-STAGE-2; }
	chain DOCKER-USER { return; }
	chain ufw-reject-forward { reject; }
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump DOCKER-USER
		jump DOCKER-ISOLATION-STAGE-1
		oifname "docker0" ct state related,established accept
		oifname "docker0" jump DOCKER
		iifname "docker0" accept
		jump ufw-reject-forward
	}
	chain ufw-user-input { tcp dport { 6443, 2380, 10250 } accept; udp dport 2380 accept; }
	chain INPUT {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		ct state related,established accept
		ct state invalid drop
		icmp type echo-request accept
		jump ufw-user-input
	}
}
table inet firewalld {
	chain filter_IN_public { tcp dport { 6443, 2380, 10250 } accept; udp dport 2380 accept; }
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_IN_public
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
	chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; }
}
`

// whoami answers with its Pod's name and the address of who asks.
const whoami = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: who}
spec:
  selector: {matchLabels: {app: who}}
  template:
    metadata: {labels: {app: who}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: edged.example/busybox:1
        command: [sh, -c, 'mkdir -p /tmp/www/cgi-bin; printf "#!/bin/sh\necho; echo %s \$REMOTE_ADDR\n" $HOSTNAME > /tmp/www/cgi-bin/who; chmod +x /tmp/www/cgi-bin/who; exec httpd -f -p 8080 -h /tmp/www']
        readinessProbe: {httpGet: {path: /cgi-bin/who, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: any}
spec:
  type: NodePort
  selector: {app: who}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: NodePort
  sessionAffinity: ClientIP
  selector: {app: who}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: who}
  ports: [{port: 80, targetPort: 8080, nodePort: 30082}]
---
apiVersion: v1
kind: Service
metadata: {name: alone}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: alone}
  ports: [{port: 80, targetPort: 8080, nodePort: 30083}]
`

// whoAt asks whoami at an address.
func whoAt(from *harness.Device, addr string) (pod, seen string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", "", err
	}
	if _, err := fmt.Fprintf(conn, "GET /cgi-bin/who HTTP/1.0\r\n\r\n"); err != nil {
		return "", "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if f := strings.Fields(string(body)); err == nil && len(f) == 2 {
		return f[0], f[1], nil
	}
	return "", "", fmt.Errorf("%s: %v %q", resp.Status, err, body)
}

// TestBesideOthers: devices that have no default route, a DNS server of somebody
// else's on port 53, and the packet filters of docker, ufw and firewalld form a
// cluster; its Pods reach each other, Services and names, and who is not of the
// cluster reaches NodePorts on each device, by their policies.
func TestBesideOthers(t *testing.T) {
	if os.Getenv("EDGED_CLUSTER") == "" {
		t.Skip("make test-cluster runs it")
	}
	all := newClusterWith(t, 3, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		d := harness.NewOnDisk(t, sw, i, 512, flags...)
		for _, argv := range [][]string{
			{"ip", "route", "del", "default"},
			{"sh", "-c", "echo \"$0\" | nft -f -", others},
		} {
			if out, err := d.Run(argv...); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		}
		l, err := d.Listen("tcp", "0.0.0.0:53")
		if err != nil {
			t.Fatal(err)
		}
		u, err := d.ListenPacket("udp", "0.0.0.0:53")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		return d
	})
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[0])
	p.apply(whoami)
	p.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: alone}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, 'mkdir -p /tmp/www/cgi-bin; printf "#!/bin/sh\necho; echo alone \$REMOTE_ADDR\n" > /tmp/www/cgi-bin/who; chmod +x /tmp/www/cgi-bin/who; exec httpd -f -p 8080 -h /tmp/www']
    readinessProbe: {httpGet: {path: /cgi-bin/who, port: 8080}, periodSeconds: 1}
`, all[1].Name))
	p.waitReady("alone")
	p.kubectl("rollout", "status", "daemonset/who", "--timeout=60s")
	pods, err := p.Client().CoreV1().Pods(p.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=who"})
	if err != nil || len(pods.Items) != 3 {
		t.Fatalf("%v %v", pods, err)
	}
	on := map[string]string{}
	for _, pod := range pods.Items {
		on[pod.Spec.NodeName] = pod.Name
	}
	for i, d := range all {
		d.Eventually(30*time.Second, "reaching all from its Pod", func() error {
			for _, to := range pods.Items {
				if out, err := all[(i+1)%3].Kubectl("", "-n", p.ns, "exec", on[d.Name], "--", "fetch", "http://"+to.Status.PodIP+":8080/cgi-bin/who"); err != nil || !strings.HasPrefix(out, to.Name) {
					return fmt.Errorf("%s: %v %s", to.Name, err, out)
				}
			}
			out, err := d.Kubectl("", "-n", p.ns, "exec", on[d.Name], "--", "fetch", "http://alone."+p.ns+".svc.cluster.local/cgi-bin/who")
			if err != nil || !strings.HasPrefix(out, "alone") {
				return fmt.Errorf("by name: %v %s", err, out)
			}
			return nil
		})
	}

	stranger := harness.New(t, sw(all), 9)
	if out, err := stranger.Run("ip", "route", "del", "default"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for _, d := range all {
		at := d.Addr.String()
		d.Eventually(30*time.Second, "leading to all Pods", func() error {
			seen := map[string]bool{}
			for range 40 {
				pod, _, err := whoAt(stranger, at+":30080")
				if err != nil {
					return err
				}
				if seen[pod] = true; len(seen) == 3 {
					return nil
				}
			}
			return fmt.Errorf("only to %v", seen)
		})
		sticky := map[string]bool{}
		for range 20 {
			pod, _, err := whoAt(stranger, at+":30081")
			if err != nil {
				t.Fatalf("sessionAffinity on %s: %v", d.Name, err)
			}
			sticky[pod] = true
		}
		if len(sticky) != 1 {
			t.Errorf("sessionAffinity on %s led to %v", d.Name, sticky)
		}
		for range 6 {
			pod, seen, err := whoAt(stranger, at+":30082")
			if err != nil || pod != on[d.Name] || strings.Trim(seen, "[]:f") != stranger.Addr.String() {
				t.Errorf("externalTrafficPolicy Local on %s: from %s by %s: %v", d.Name, seen, pod, err)
			}
		}
		pod, _, err := whoAt(stranger, at+":30083")
		if d == all[1] && (err != nil || pod != "alone") {
			t.Errorf("%s, which has the Pod, answers %s %v", d.Name, pod, err)
		} else if d != all[1] && err == nil {
			t.Errorf("%s, which does not have the Pod, leads to it", d.Name)
		}
	}
	// They are as they were but for the rules that let Pods pass.
	for _, d := range all {
		out, err := d.Run("nft", "list", "ruleset")
		if err != nil || !strings.Contains(out, "policy drop") || !strings.Contains(out, "reject with icmpx admin-prohibited") {
			t.Errorf("%s: %v\n%s", d.Name, err, out)
		}
	}
}
