package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"edged/test/harness"
)

// load writes through devices and asks a Service all the time, as users would:
// a write that one device refuses goes to the next.
type load struct {
	stop    chan struct{}
	running sync.WaitGroup

	mu sync.Mutex
	// guarded by mu
	through []*harness.Device
	gap     time.Duration // the longest between two writes that were acknowledged
	last    time.Time
	refused int
	clients map[*harness.Device]kubernetes.Interface
}

func startLoad(p *place, through ...*harness.Device) *load {
	l := &load{stop: make(chan struct{}), through: through, last: time.Now(), clients: map[*harness.Device]kubernetes.Interface{}}
	l.running.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			l.write(p, i)
		}
	})
	p.t.Cleanup(func() { close(l.stop); l.running.Wait() })
	return l
}

func (l *load) write(p *place, i int) {
	l.mu.Lock()
	d := l.through[i%len(l.through)]
	client := l.clients[d]
	if client == nil {
		client = d.Client()
		l.clients[d] = client
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "written"}, Data: map[string]string{"i": fmt.Sprint(i)}}
	_, err := client.CoreV1().ConfigMaps(p.ns).Update(ctx, cm, metav1.UpdateOptions{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.refused++
		delete(l.clients, d) // its connection may be to what is no more
		return
	}
	l.gap = max(l.gap, time.Since(l.last))
	l.last = time.Now()
}

// use says through whom to write from now on, and forgets what was measured.
func (l *load) use(through ...*harness.Device) {
	l.mu.Lock()
	l.through, l.gap, l.refused, l.last = through, 0, 0, time.Now()
	l.mu.Unlock()
}

// again waits for writes after now, and tells the longest gap.
func (l *load) again(p *place) (gap time.Duration, refused int) {
	p.t.Helper()
	since := time.Now()
	p.eventually(30*time.Second, "writing", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		gap, refused = l.gap, l.refused
		if l.last.Before(since) {
			return fmt.Errorf("the last write was %v ago, %d refused", time.Since(l.last), l.refused)
		}
		return nil
	})
	return gap, refused
}

func without(devices []*harness.Device, not ...*harness.Device) []*harness.Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d *harness.Device) bool { return slices.Contains(not, d) })
}

// devicesOf is `edged status -o json`.
type devicesOf struct {
	Devices []struct {
		Node, Address, Role string
		Ready, Reached      bool
		Lag                 uint64
	}
}

func status(t *testing.T, d *harness.Device) (s devicesOf) {
	t.Helper()
	out, err := d.Edged("status", "-o", "json", "--run-dir", d.RunDir())
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return s
}

// allVote waits until every device that d knows of is Ready and votes.
func allVote(t *testing.T, d *harness.Device) {
	t.Helper()
	d.Eventually(60*time.Second, "one of voters only", func() error {
		for _, s := range status(t, d).Devices {
			if s.Role == "learner" || !s.Ready || !s.Reached {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
}

// leaderOf finds the device that leads, as d knows it.
func leaderOf(t *testing.T, d *harness.Device, devices []*harness.Device) (leader *harness.Device) {
	t.Helper()
	d.Eventually(20*time.Second, "led", func() error {
		for _, s := range status(t, d).Devices {
			if s.Role == "leader" {
				leader = devices[slices.IndexFunc(devices, func(x *harness.Device) bool { return x.Name == s.Node })]
				return nil
			}
		}
		return fmt.Errorf("no leader")
	})
	return leader
}

// running waits until want Pods of web are ready on devices, and none elsewhere
// counts as ready.
func webOn(p *place, via *harness.Device, want int, devices []*harness.Device) {
	p.t.Helper()
	via.Eventually(2*time.Minute, fmt.Sprintf("running %d Pods", want), func() error {
		pods, err := via.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		n := 0
		for _, pod := range pods.Items {
			if pod.DeletionTimestamp == nil && isReady(&pod) && slices.ContainsFunc(devices, func(d *harness.Device) bool { return d.Name == pod.Spec.NodeName }) {
				n++
			}
		}
		if n != want {
			return fmt.Errorf("%d are ready", n)
		}
		return nil
	})
}

// containers counts the processes of web that run on a device.
func containers(d *harness.Device) (int, error) {
	out, err := d.Run("sh", "-c", `cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -o 'httpd -[f] -p 8080' | wc -l`)
	if err != nil {
		return 0, err
	}
	var n int
	_, err = fmt.Sscan(out, &n)
	return n, err
}

// fetch asks the Service from a device once.
func fetch(d *harness.Device, ip string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := d.Dial(ctx, "tcp", ip+":80")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// TestFiveDevices: what happens to those who write and to those who are served
// when devices, links and the power of all fail. Each part leaves the cluster whole.
func TestFiveDevices(t *testing.T) {
	all := newCluster(t, 5)
	for _, d := range all {
		d.ImportBusybox()
	}
	p := placeOn(t, all[1])
	p.kubectl("create", "configmap", "written")
	p.apply(strings.ReplaceAll(webDeployment, "replicas: 2", "replicas: 3"))
	p.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
	ip := strings.TrimSpace(p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	allVote(t, all[1])
	l := startLoad(p, all...)
	whole := func(t *testing.T) {
		t.Helper()
		allReady(t, all[1], 5)
		webOn(p, all[1], 3, all)
		l.again(p)
	}

	t.Run("leader killed", func(t *testing.T) {
		leader := leaderOf(t, all[1], all)
		others := without(all, leader)
		l.use(others...)
		l.again(p)
		leader.Kill()
		gap, refused := l.again(p)
		t.Logf("longest gap between acknowledged writes %v, %d refused", gap.Round(10*time.Millisecond), refused)
		if refused > 0 {
			t.Errorf("%d writes through the others were refused", refused)
		}
		leader.Start()
		leader.WaitReady()
		whole(t)
	})

	t.Run("cable pulled", func(t *testing.T) {
		pods, err := all[1].Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(d *harness.Device) bool {
			return slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool { return pod.Spec.NodeName == d.Name }) && d != all[1]
		})
		lost := all[i]
		others := without(all, lost)
		l.use(others...)
		lost.Unplug()
		began := time.Now()
		all[1].Eventually(30*time.Second, "rid of its endpoints", func() error {
			slices, err := all[1].Client().DiscoveryV1().EndpointSlices(p.ns).List(context.Background(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, s := range slices.Items {
				for _, e := range s.Endpoints {
					if e.NodeName != nil && *e.NodeName == lost.Name && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
						return fmt.Errorf("%v is ready", e.Addresses)
					}
				}
			}
			return nil
		})
		t.Logf("its endpoints were gone after %v", time.Since(began).Round(100*time.Millisecond))
		for range 10 { // with the dead one gone, every request is answered
			all[1].Eventually(10*time.Second, "served", func() error { return fetch(all[1], ip) })
		}
		webOn(p, all[1], 3, others)
		gap, refused := l.again(p)
		t.Logf("its Pods were replaced after %v; longest gap between writes %v, %d refused", time.Since(began).Round(100*time.Millisecond), gap.Round(10*time.Millisecond), refused)
		if n, err := containers(lost); err != nil || n == 0 {
			t.Errorf("alone, it runs %d containers: %v", n, err)
		}
		lost.Plug()
		began = time.Now()
		allReady(t, all[1], 5)
		lost.Eventually(60*time.Second, "rid of what was given away", func() error {
			n, err := containers(lost)
			if err == nil && n > 0 {
				err = fmt.Errorf("%d containers", n)
			}
			return err
		})
		t.Logf("back, it had ended what was given away after %v", time.Since(began).Round(100*time.Millisecond))
		whole(t)
	})

	t.Run("two of five killed", func(t *testing.T) {
		dead := []*harness.Device{leaderOf(t, all[1], all)}
		dead = append(dead, without(all[2:], dead...)[0])
		l.use(without(all, dead...)...)
		for _, d := range dead {
			d.Kill()
		}
		gap, refused := l.again(p)
		t.Logf("longest gap between acknowledged writes %v, %d refused", gap.Round(10*time.Millisecond), refused)
		for _, d := range dead {
			d.Start()
		}
		whole(t)
	})

	t.Run("two apart from three", func(t *testing.T) {
		few := []*harness.Device{all[3], all[4]}
		l.use(all[0], all[1], all[2])
		sw(all).Split(few...)
		gap, _ := l.again(p)
		few[0].Eventually(30*time.Second, "refusing writes", func() error {
			out, err := few[0].Kubectl("", "-n", p.ns, "create", "configmap", "impossible", "--request-timeout=15s")
			if err == nil {
				t.Fatal("the two accepted a write")
			}
			if !strings.Contains(out, "no leader") && !strings.Contains(out, "timed out") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		if out, err := few[0].Kubectl("", "-n", p.ns, "get", "configmap", "written"); err != nil {
			t.Errorf("reading at the two: %v %s", err, out)
		}
		sw(all).Join(few...)
		t.Logf("longest gap between writes at the three %v", gap.Round(10*time.Millisecond))
		whole(t)
	})

	t.Run("another address", func(t *testing.T) {
		d := all[4]
		before := restarts(t, p, all[1])
		d.Readdress(netip.MustParseAddr("10.99.0.77"))
		began := time.Now()
		all[1].Eventually(30*time.Second, "told of the new address", func() error {
			n, err := all[1].Client().CoreV1().Nodes().Get(context.Background(), d.Name, metav1.GetOptions{})
			if err == nil && n.Status.Addresses[0].Address != d.Addr.String() {
				err = fmt.Errorf("%v", n.Status.Addresses)
			}
			return err
		})
		t.Logf("the cluster knew the new address after %v", time.Since(began).Round(100*time.Millisecond))
		l.use(d)
		l.again(p)
		l.use(all...)
		whole(t)
		if after := restarts(t, p, all[1]); before != after {
			t.Errorf("Pods were %s, are %s", before, after)
		}
	})

	t.Run("power of all", func(t *testing.T) {
		for _, d := range all {
			d.PowerOff()
		}
		began := time.Now()
		order := rand.Perm(len(all))
		for _, i := range order {
			all[i].Reboot()
			all[i].Unplug()
		}
		t.Logf("started in the order %v, all links down", order)
		for _, d := range all {
			d.WaitReady()
		}
		for _, d := range all {
			d.Plug()
		}
		linked := time.Now()
		l.use(all...)
		l.again(p)
		t.Logf("writes were accepted %v after the links came up, %v after the power", time.Since(linked).Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond))
		whole(t)
	})

	t.Run("Node deleted", func(t *testing.T) {
		gone := all[4]
		rest := without(all, gone)
		l.use(rest...)
		all[1].MustKubectl("", "delete", "node", gone.Name, "--wait=false")
		gone.Eventually(60*time.Second, "stopped", func() error {
			if _, ended := gone.Exited(); !ended {
				return fmt.Errorf("its daemon runs")
			}
			return nil
		})
		if log := gone.LogTail(); !strings.Contains(log, "removed from its cluster") {
			t.Errorf("it does not say why:\n%s", log)
		}
		if n, err := containers(gone); err != nil || n > 0 {
			t.Errorf("it runs %d containers: %v", n, err)
		}
		webOn(p, all[1], 3, rest)
		allReady(t, all[1], 4)
		if s := status(t, all[1]); len(s.Devices) != 4 {
			t.Errorf("%+v", s)
		}
	})
}

func sw(devices []*harness.Device) *harness.Switch { return devices[0].Switch() }

// restarts tells which Pods there are and how often their containers started.
func restarts(t *testing.T, p *place, via *harness.Device) string {
	t.Helper()
	pods, err := via.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, pod := range pods.Items {
		for _, c := range pod.Status.ContainerStatuses {
			out = append(out, fmt.Sprintf("%s/%d", pod.UID, c.RestartCount))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
