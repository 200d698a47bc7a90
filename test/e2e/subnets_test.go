package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// tunnelled is how many bytes a device's tunnel has carried both ways; 0 without one.
func tunnelled(t *testing.T, d *harness.Device) int {
	t.Helper()
	out, err := d.Run("sh", "-c", "ip -j -s link show edged-vx4 2>/dev/null || echo '[{}]'")
	var links []struct {
		Stats64 map[string]struct{ Bytes int }
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &links)
	}
	if err != nil || len(links) != 1 {
		t.Fatalf("%v %s", err, out)
	}
	return links[0].Stats64["rx"].Bytes + links[0].Stats64["tx"].Bytes
}

// TestSubnets: the devices of a cluster are on one link; one after the other moves
// behind a router, until no two share a link, loses its power there, and comes back.
// All the time each Pod reaches each other, by address, Service and name, with large
// packets, too.
func TestSubnets(t *testing.T) {
	if os.Getenv("EDGED_CLUSTER") == "" {
		t.Skip("make test-cluster runs it")
	}
	all := newClusterWith(t, 3, onDisks(t))
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[0])
	for i, d := range all {
		p.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: on-%d, labels: {app: files}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, 'mkdir /tmp/www; hostname > /tmp/www/name; dd if=/dev/zero of=/tmp/www/big bs=1k count=300 2>/dev/null; exec httpd -f -p 8080 -h /tmp/www']
    readinessProbe: {httpGet: {path: /name, port: 8080}, periodSeconds: 1}
`, i, d.Name))
	}
	p.apply(`
apiVersion: v1
kind: Service
metadata: {name: files}
spec:
  selector: {app: files}
  ports: [{port: 80, targetPort: 8080}]
`)
	for i := range all {
		p.waitReady(fmt.Sprint("on-", i))
	}
	exec := func(via *harness.Device, pod int, command ...string) (string, error) {
		return via.Kubectl("", append([]string{"-n", p.ns, "exec", fmt.Sprint("on-", pod), "--"}, command...)...)
	}
	// connected wants every Pod to reach every other, and the MTU to fit the way.
	connected := func(t *testing.T, mtu func(i int) string) {
		t.Helper()
		for _, d := range all {
			allReady(t, d, 3)
		}
		for i, d := range all {
			d.Eventually(60*time.Second, "reaching all Pods from its own", func() error {
				for j := range all {
					ip := p.pod(fmt.Sprint("on-", j)).Status.PodIP
					out, err := exec(all[(i+1)%3], i, "sh", "-c", "fetch http://"+ip+":8080/big | wc -c")
					if err != nil || strings.TrimSpace(out) != "307200" {
						return fmt.Errorf("from Pod %d to Pod %d: %v %s", i, j, err, out)
					}
				}
				seen := map[string]bool{}
				for range 30 {
					if out, err := exec(d, i, "fetch", "http://files."+p.ns+".svc.cluster.local/name"); err != nil {
						return fmt.Errorf("the Service from Pod %d: %v %s", i, err, out)
					} else if seen[strings.TrimSpace(out)] = true; len(seen) == 3 {
						break
					}
				}
				if len(seen) != 3 {
					return fmt.Errorf("the Service from Pod %d leads to %v", i, seen)
				}
				if out, err := exec(d, i, "cat", "/sys/class/net/eth0/mtu"); err != nil || strings.TrimSpace(out) != mtu(i) {
					return fmt.Errorf("the MTU of Pod %d is %v %s, want %s", i, err, out, mtu(i))
				}
				return nil
			})
		}
	}
	same := func(mtu string) func(int) string { return func(int) string { return mtu } }
	connected(t, same("1500"))
	for _, d := range all {
		if n := tunnelled(t, d); n > 0 {
			t.Errorf("%s sent %d bytes through a tunnel on one link", d.Name, n)
		}
	}

	t.Run("one behind a router", func(t *testing.T) {
		all[2].MoveTo(1, 12)
		connected(t, same("1450"))
		if n := tunnelled(t, all[2]); n < 4*307200 {
			t.Errorf("%d bytes went through the tunnel", n)
		}
		if out, err := all[0].Run("ip", "route", "get", p.pod("on-1").Status.PodIP); err != nil || !strings.Contains(out, "dev eth0") {
			t.Errorf("those on one link are not routed: %v %s", err, out)
		}
	})
	t.Run("no two on a link", func(t *testing.T) {
		all[1].MoveTo(2, 11)
		connected(t, same("1450"))
		for i := range all {
			if pod := p.pod(fmt.Sprint("on-", i)); pod.Status.ContainerStatuses[0].RestartCount != 0 {
				t.Errorf("%s was restarted", pod.Name)
			}
		}
	})
	t.Run("all lose their power there", func(t *testing.T) {
		for _, d := range all {
			d.PowerOff()
		}
		for _, d := range all {
			d.Reboot()
		}
		for _, d := range all {
			d.WaitReady()
		}
		connected(t, same("1450"))
	})
	t.Run("back on one link", func(t *testing.T) {
		all[1].MoveTo(0, 11)
		all[2].MoveTo(0, 12)
		connected(t, same("1500"))
		before := tunnelled(t, all[0])
		connected(t, same("1500"))
		if now := tunnelled(t, all[0]); now > before {
			t.Errorf("%d bytes went through the tunnel on one link", now-before)
		}
	})
}
