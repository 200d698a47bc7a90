package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"edged/test/harness"
)

// warnings are those that an API sent.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

// onDisks builds devices with disks of their own, so that one of the machine that is
// nearly full does not end their Pods.
func onDisks(t *testing.T) func(sw *harness.Switch, i int, flags ...string) *harness.Device {
	return func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		return harness.NewOnDisk(t, sw, i, 512, flags...)
	}
}

// TestTwoDevices: one of two votes. Without the other all goes on and nothing is
// evicted; without it the other runs what it ran, answers reads with a warning and
// names, and refuses writes with a reason.
func TestTwoDevices(t *testing.T) {
	all := newClusterWith(t, 2, onDisks(t))
	p := placeOn(t, all[0])
	for i, d := range all {
		d.ImportBusybox()
		pod := fmt.Sprintf("on-%d", i+1)
		p.kubectl("run", pod, "--image=edged.example/busybox:1", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0}}`, d.Name), "--", "sleep", "3600")
		p.waitReady(pod)
	}
	out, err := all[1].Edged("status", "--run-dir", all[1].RunDir())
	if err != nil || !strings.Contains(out, "Of two devices one has the vote") || strings.Count(out, "learner") != 1 {
		t.Errorf("status: %v\n%s", err, out)
	}

	all[1].Unplug()
	p.eventually(30*time.Second, "told that the other is gone", func() error {
		n, err := p.Client().CoreV1().Nodes().Get(t.Context(), all[1].Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
				return nil
			}
		}
		return fmt.Errorf("%+v", n.Status.Conditions)
	})
	p.kubectl("create", "configmap", "written")
	time.Sleep(12 * time.Second) // longer than its Pods bear by default: nothing may happen
	if pod := p.pod("on-2"); pod.DeletionTimestamp != nil {
		t.Error("a Pod of half of the devices was evicted")
	}
	all[1].Plug()
	allReady(t, all[0], 2)
	p.waitReady("on-2")

	all[0].PowerOff()
	cfg, err := all[1].RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	heard := &warnings{}
	cfg.WarningHandler = heard
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	write := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		_, err := client.CoreV1().ConfigMaps(p.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "impossible"}}, metav1.CreateOptions{})
		if err == nil {
			t.Fatal("it accepted a write")
		}
		if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "does not reach most of the cluster's devices") {
			return err
		}
		return nil
	}
	all[1].Eventually(60*time.Second, "refusing writes", write)
	t.Logf("writes are refused since %v", time.Since(began).Round(100*time.Millisecond))
	// From now on at once: each of these would have its 7 seconds.
	began = time.Now()
	for range 20 {
		if err := write(); err != nil {
			t.Errorf("a write: %v", err)
		}
	}
	took := time.Since(began)
	t.Logf("20 writes were refused in %v", took.Round(time.Millisecond))
	if took > 60*time.Second {
		t.Errorf("20 writes were refused in %v", took)
	}
	if _, err := client.CoreV1().ConfigMaps(p.ns).Get(t.Context(), "written", metav1.GetOptions{}); err != nil {
		t.Errorf("a read: %v", err)
	}
	heard.mu.Lock()
	if text := strings.Join(heard.all, "\n"); !strings.Contains(text, "may be out of date") {
		t.Errorf("warnings: %q", text)
	}
	heard.mu.Unlock()
	out, err = all[1].Kubectl("", "-n", p.ns, "exec", "on-2", "--", "nslookup", "kubernetes.default.svc.cluster.local")
	if err != nil || !strings.Contains(out, "10.43.0.1") {
		t.Errorf("a name: %v %s", err, out)
	}
	all[0].Reboot()
	all[0].WaitReady()
	allReady(t, all[1], 2)
	p.waitReady("on-1")
}

// hardware is the address of the link that a device's neighbor finds at ip.
func hardware(from *harness.Device, ip string) (string, error) {
	out, err := from.Run("cat", "/proc/net/arp")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == ip && f[3] != "00:00:00:00:00:00" {
			return f[3], err
		}
	}
	return "", fmt.Errorf("%s is not known: %w\n%s", ip, err, out)
}

// TestAddressesMove: who is not of the cluster reaches the API at --api-vip and a
// Service at an address of --lb-pool, also after the device that has them has lost
// its power.
func TestAddressesMove(t *testing.T) {
	const vip, lb = "10.99.0.200", "10.99.0.201"
	all := newClusterWith(t, 3, onDisks(t), "--api-vip", vip, "--lb-pool", lb)
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[1])
	p.apply(strings.Replace(strings.ReplaceAll(webDeployment, "replicas: 2", "replicas: 6"), "  selector: {app: web}\n  ports", "  type: LoadBalancer\n  selector: {app: web}\n  ports", 1))
	p.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	p.eventually(60*time.Second, "three voters", func() error {
		for _, s := range status(t, all[1]).Devices {
			if s.Role == "learner" || !s.Ready || !s.Reached {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	stranger := harness.New(t, sw(all), 9)
	api := func() error {
		tr := &http.Transport{DialContext: stranger.Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // who answers is not asked
		resp, err := (&http.Client{Transport: tr, Timeout: time.Second}).Get("https://" + vip + ":6443/readyz")
		if err != nil {
			return err
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	}
	service := func() error { return fetch(stranger, lb) }
	p.eventually(30*time.Second, "reached at both addresses", func() error {
		if err := api(); err != nil {
			return err
		}
		return service()
	})
	// Clients find the certificate good for the address.
	cfg, err := all[1].RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.Dial = "https://"+vip+":6443", stranger.Dial
	client, err := kubernetes.NewForConfig(cfg)
	if err == nil {
		_, err = client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	}
	if err != nil {
		t.Errorf("by %s: %v", vip, err)
	}

	for name, at := range map[string]struct {
		ip    string
		works func() error
	}{"API": {vip, api}, "load balancer": {lb, service}} {
		t.Run(name, func(t *testing.T) {
			for _, d := range all { // each one's hardware is to be known
				conn, err := stranger.Dial(t.Context(), "tcp", d.Addr.String()+":6443")
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			holds, err := hardware(stranger, at.ip)
			if err != nil {
				t.Fatal(err)
			}
			var lost *harness.Device
			for _, d := range all {
				if mac, err := hardware(stranger, d.Addr.String()); err == nil && mac == holds {
					lost = d
				}
			}
			if lost == nil {
				t.Fatalf("nobody has %s at %s", at.ip, holds)
			}
			if name == "API" && lost != leaderOf(t, all[0], all) {
				t.Errorf("%s has the address of the API and does not lead", lost.Name)
			}
			lost.PowerOff()
			began := time.Now()
			since := func() time.Duration { return time.Since(began).Round(100 * time.Millisecond) }
			var moved time.Duration
			stranger.Eventually(60*time.Second, "served at "+at.ip+" by another", func() error {
				if now, err := hardware(stranger, at.ip); err != nil || now == holds {
					return fmt.Errorf("it is at %s: %v", now, err)
				}
				if moved == 0 {
					moved = since()
				}
				return at.works()
			})
			t.Logf("without %s %s was another's after %v and served after %v", lost.Name, at.ip, moved, since())
			lost.Reboot()
			lost.WaitReady()
			allReady(t, without(all, lost)[0], 3)
		})
	}
}
