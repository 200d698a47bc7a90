package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"edged/test/harness"
)

// By these a process list shows whose container it is: nothing else on the machine has
// them.
const (
	ofStatefulSet = "76001"
	ofDaemonSet   = "76009"
	webPort       = "7609"
)

// chaosSets names its processes: each Pod of the StatefulSet by its ordinal.
const chaosSets = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: edged.example/busybox:1
        env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        command: [sh, -c, 'exec sleep ` + ofStatefulSet + `${POD#db-}']
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "` + ofDaemonSet + `"]}]
`

const chaosJob = `
apiVersion: batch/v1
kind: Job
metadata: {name: job-%d}
spec:
  completions: 3
  backoffLimit: 100 # what a fault ends is no failure of the Job's
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "2"]}]
`

// TestChaos: whatever befalls the devices of a cluster, alone or together, in an order
// that nobody chose, what must never happen does not (DESIGN.md section 8): after each
// round every write that was acknowledged is there, on every device; all runs that is
// wanted and nothing else; no two Pods have one address; and at no moment do two
// containers run as the same Pod of a StatefulSet. `make test-chaos [MINUTES=n]
// [SEED=n]` runs it; a seed gives the same faults again, not the same moments.
func TestChaos(t *testing.T) {
	minutes, err := strconv.ParseFloat(os.Getenv("EDGED_CHAOS"), 64)
	if err != nil {
		t.Skip("make test-chaos runs it")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("EDGED_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // of devices that are cut off, hundreds
	build := onDisks(t)
	all := newClusterWith(t, 5, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		d := build(sw, i, flags...)
		d.SetClock(0, false)
		return d
	})
	for _, d := range all {
		d.ImportBusybox()
	}
	c := &chaos{place: placeOn(t, all[0]), all: all, rng: rand.New(rand.NewPCG(seed, 0)), acknowledged: map[string]bool{}, replicas: 3}
	c.apply(strings.ReplaceAll(webDeployment, "8080", webPort))
	c.apply(chaosSets)
	c.ip = strings.TrimSpace(c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	c.kubectl("scale", "deployment/web", "--replicas=3")
	c.settle()
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { c.write(stop) })
	running.Go(func() { c.watchSafety(stop) })
	for _, d := range all {
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: cache.NewListWatchFromClient(d.Client().CoreV1().RESTClient(), "configmaps", c.ns, fields.Everything()),
			ObjectType:    &corev1.ConfigMap{}, Handler: cache.ResourceEventHandlerFuncs{},
		})
		c.watched = append(c.watched, store)
		running.Go(func() { informer.Run(stop) })
	}
	end := sync.OnceFunc(func() { close(stop); running.Wait() })
	t.Cleanup(end)
	for began, round := time.Now(), 1; time.Since(began).Minutes() < minutes; round++ {
		what := c.round()
		healed := time.Now()
		last := c.settle()
		took := time.Since(healed).Round(100 * time.Millisecond)
		t.Logf("round %d: %s; settled after %v", round, what, took)
		if took > 10*time.Second {
			t.Logf("the last to come right: %v", last)
		}
		if t.Failed() {
			break
		}
	}
	end()
	t.Logf("%d writes were acknowledged, %d refused", len(c.acknowledged), c.refused)
}

type chaos struct {
	*place
	all      []*harness.Device
	rng      *rand.Rand // the round's only
	ip       string     // of Service web
	replicas int        // of Deployment web
	lastAddr byte       // that a device was moved to
	jobs     int        // made so far
	watched  []cache.Store

	mu sync.Mutex
	// guarded by mu
	acknowledged map[string]bool
	refused      int
}

// fault is something that befalls a device until undo.
type fault struct {
	name string
	do   func(c *chaos, d *harness.Device) (undo func())
}

var faults = []fault{
	{"killed", func(_ *chaos, d *harness.Device) func() { d.Kill(); return func() { d.Start() } }},
	{"stopped", func(_ *chaos, d *harness.Device) func() { d.Stop(); return func() { d.Start() } }},
	{"without power", func(_ *chaos, d *harness.Device) func() { d.PowerOff(); return func() { d.Reboot() } }},
	{"paused", func(_ *chaos, d *harness.Device) func() { d.Pause(); return d.Resume }},
	{"unplugged", func(_ *chaos, d *harness.Device) func() { d.Unplug(); return d.Plug }},
	{"with a disk that hangs", func(_ *chaos, d *harness.Device) func() { d.Freeze(); return d.Thaw }},
	{"with a full disk", func(c *chaos, d *harness.Device) func() {
		name := filepath.Join(d.DataDir(), "filler")
		c.fill(name)
		return func() {
			if err := os.Remove(name); err != nil {
				c.t.Fatal(err)
			}
		}
	}},
	{"a year ahead", func(_ *chaos, d *harness.Device) func() {
		d.SetClock(365*24*time.Hour, false)
		return func() { d.SetClock(0, false) }
	}},
	{"at another address", func(c *chaos, d *harness.Device) func() {
		d.Readdress(c.anotherAddr())
		return func() {}
	}},
	{"killed again and again", func(_ *chaos, d *harness.Device) func() {
		for range 3 {
			d.Kill()
			d.Start()
			time.Sleep(300 * time.Millisecond)
		}
		return func() {}
	}},
}

// fill takes the room of the disk on which a file lies.
func (c *chaos) fill(name string) {
	f, err := os.Create(name)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); len(buf) > 0; {
		if _, err := f.Write(buf); err != nil {
			buf = buf[:len(buf)/2]
		}
	}
}

// anotherAddr is an address of the link that no device has.
func (c *chaos) anotherAddr() netip.Addr {
	c.lastAddr = (c.lastAddr + 1) % 100
	a := harness.Subnet.Addr().As4()
	a[3] = 100 + c.lastAddr
	return netip.AddrFrom4(a)
}

// round lets something happen, undoes it, and tells what it was.
func (c *chaos) round() string {
	var what []string
	if did := c.disturb(); did != "" {
		what = append(what, did)
	}
	devices := slices.Clone(c.all)
	c.rng.Shuffle(len(devices), func(i, j int) { devices[i], devices[j] = devices[j], devices[i] })
	names := func(list []*harness.Device) string {
		var out []string
		for _, d := range list {
			out = append(out, strings.TrimPrefix(d.Name, "device-"))
		}
		return strings.Join(out, ",")
	}
	pause := func(most time.Duration) time.Duration {
		return time.Duration(c.rng.Int64N(int64(most))).Round(100 * time.Millisecond)
	}
	switch kind := c.rng.IntN(10); {
	case kind == 0: // the whole site
		for _, d := range devices {
			d.PowerOff()
		}
		if c.rng.IntN(2) == 0 {
			what = append(what, "other addresses")
			for _, d := range devices {
				d.Addr = c.anotherAddr()
			}
		}
		slices.Reverse(devices)
		gap := pause(4 * time.Second)
		what = append(what, fmt.Sprintf("no power for any, back as %s every %v", names(devices), gap))
		for _, d := range devices {
			d.Reboot()
			time.Sleep(gap)
		}
	case kind <= 2: // a cut through the switch
		apart := devices[:1+c.rng.IntN(3)]
		lasts := pause(40 * time.Second)
		what = append(what, fmt.Sprintf("%s cut off for %v", names(apart), lasts))
		sw(c.all).Split(apart...)
		time.Sleep(lasts)
		sw(c.all).Join(apart...)
	default:
		n := 1 // mostly
		if k := c.rng.IntN(6); k < 2 {
			n = 2 + k
		}
		var undo []func()
		for _, d := range devices[:n] {
			f := faults[c.rng.IntN(len(faults))]
			what = append(what, fmt.Sprintf("%s %s", names([]*harness.Device{d}), f.name))
			undo = append(undo, f.do(c, d))
			time.Sleep(pause(2 * time.Second))
		}
		most := 40 * time.Second
		if c.rng.IntN(2) == 0 {
			most = 8 * time.Second
		}
		lasts := pause(most)
		what = append(what, fmt.Sprintf("for %v", lasts))
		time.Sleep(lasts)
		for _, f := range undo {
			f()
			time.Sleep(pause(2 * time.Second))
		}
	}
	return strings.Join(what, ", ")
}

// disturb changes what is wanted, in some rounds, through a device that is there.
func (c *chaos) disturb() string {
	via := c.all[c.rng.IntN(len(c.all))]
	kubectl := func(args ...string) string {
		if out, err := via.Kubectl("", append([]string{"-n", c.ns}, args...)...); err != nil {
			c.t.Fatalf("%v: %s", err, out)
		}
		return "kubectl " + strings.Join(args, " ")
	}
	switch c.rng.IntN(9) {
	case 0:
		return kubectl("rollout", "restart", "deployment/web")
	case 1:
		c.replicas = 2 + c.rng.IntN(4)
		return kubectl("scale", "deployment/web", fmt.Sprintf("--replicas=%d", c.replicas))
	case 2:
		return kubectl("delete", "pod", "--wait=false", fmt.Sprintf("db-%d", c.rng.IntN(3)))
	case 3:
		return kubectl("delete", "pod", "--wait=false", "-l", "app=each")
	case 4:
		return kubectl("rollout", "restart", "statefulset/db")
	case 5:
		c.jobs++
		c.apply(fmt.Sprintf(chaosJob, c.jobs))
		return "a Job"
	}
	return ""
}

// write makes ConfigMaps through all devices, in turns, and notes which were
// acknowledged.
func (c *chaos) write(stop <-chan struct{}) {
	clients := make([]kubernetes.Interface, len(c.all))
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		k := i % len(c.all)
		if clients[k] == nil {
			clients[k] = c.all[k].Client()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		name := fmt.Sprintf("w-%d", i)
		_, err := clients[k].CoreV1().ConfigMaps(c.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		cancel()
		c.mu.Lock()
		if err == nil {
			c.acknowledged[name] = true
		} else {
			c.refused++
			clients[k] = nil // its connection may be to what is no more
		}
		c.mu.Unlock()
	}
}

// processes are those on the machine of the containers of a test, by argument.
func processes() (map[string][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	out := map[string][]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if what := processOf(pid); what != "" {
				out[what] = append(out[what], pid)
			}
		}
	}
	return out, nil
}

// processOf is which container's process that is, if it is one's.
func processOf(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // gone
	}
	argv := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	switch {
	case len(argv) == 2 && argv[0] == "sleep" && strings.HasPrefix(argv[1], ofStatefulSet), len(argv) == 2 && argv[0] == "sleep" && argv[1] == ofDaemonSet:
		return argv[1]
	case len(argv) > 3 && argv[0] == "httpd" && argv[3] == webPort:
		return "web"
	}
	return ""
}

// watchSafety looks all the time that no Pod of the StatefulSet runs twice.
func (c *chaos) watchSafety(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Millisecond):
		}
		seen, err := processes()
		if err != nil {
			c.t.Errorf("look at the processes: %v", err)
			return
		}
		for what, pids := range seen {
			if !strings.HasPrefix(what, ofStatefulSet) || len(pids) < 2 {
				continue
			}
			// One may have ended before the other, which was found after it, began.
			alive := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return processOf(pid) != what })
			if len(alive) > 1 {
				c.t.Errorf("db-%s runs twice: processes %v", strings.TrimPrefix(what, ofStatefulSet), alive)
			}
		}
	}
}

// settle waits until all is as it should be, and returns what was wrong last.
func (c *chaos) settle() (last error) {
	c.t.Helper()
	for _, d := range c.all {
		if code, ended := d.Exited(); ended {
			c.t.Fatalf("%s ended by itself: %d\n%s", d.Name, code, d.LogTail())
		}
	}
	c.eventually(3*time.Minute, "settled", func() error {
		var reasons []error
		for _, d := range c.all {
			if err := c.whole(d); err != nil {
				reasons = append(reasons, fmt.Errorf("%s: %w", d.Name, err))
			}
		}
		err := errors.Join(append(reasons, c.justWanted())...)
		if err != nil {
			last = err
		}
		return err
	})
	return last
}

// whole looks at the cluster through one device.
func (c *chaos) whole(d *harness.Device) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c.mu.Lock()
	missing := maps.Clone(c.acknowledged)
	c.mu.Unlock()
	config, err := d.RESTConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
				return fmt.Errorf("%s is not ready: %s", n.Name, cond.Message)
			}
		}
		if len(n.Spec.Taints) > 0 {
			return fmt.Errorf("%s has taints %v", n.Name, n.Spec.Taints)
		}
	}
	if len(nodes.Items) != len(c.all) {
		return fmt.Errorf("%d Nodes", len(nodes.Items))
	}
	written, err := client.CoreV1().ConfigMaps(c.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, m := range written.Items {
		delete(missing, m.Name)
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d acknowledged writes are missing, %v", len(missing), slices.Sorted(maps.Keys(missing)))
	}
	if i := slices.Index(c.all, d); i < len(c.watched) {
		for _, m := range written.Items {
			if _, known, err := c.watched[i].GetByKey(c.ns + "/" + m.Name); err != nil || !known {
				return fmt.Errorf("who watches does not know of %s, %v", m.Name, err)
			}
		}
	}
	jobs, err := client.BatchV1().Jobs(c.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, j := range jobs.Items {
		if j.Status.Succeeded != 3 || j.Status.CompletionTime == nil {
			return fmt.Errorf("of Job %s: %+v", j.Name, j.Status)
		}
	}
	pods, err := client.CoreV1().Pods(c.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	count, at := map[string]int{}, map[string]string{}
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue // evicted, or of a Job: kept to be looked at
		}
		if pod.DeletionTimestamp != nil || !isReady(&pod) {
			return fmt.Errorf("%s is %s, being deleted: %v", pod.Name, pod.Status.Phase, pod.DeletionTimestamp)
		}
		count[pod.Labels["app"]]++
		if other := at[pod.Status.PodIP]; other != "" {
			return fmt.Errorf("%s and %s have one address, %s", pod.Name, other, pod.Status.PodIP)
		}
		at[pod.Status.PodIP] = pod.Name
	}
	if want := map[string]int{"web": c.replicas, "db": 3, "each": len(c.all)}; !maps.Equal(count, want) {
		return fmt.Errorf("%v are ready", count)
	}
	return fetch(d, c.ip)
}

// justWanted looks that what runs on the machine is what the Pods need.
func (c *chaos) justWanted() error {
	seen, err := processes()
	if err != nil {
		return err
	}
	count := map[string]int{}
	for what, pids := range seen {
		count[what] = len(pids)
	}
	want := map[string]int{"web": c.replicas, ofDaemonSet: len(c.all)}
	for i := range 3 {
		want[ofStatefulSet+strconv.Itoa(i)] = 1
	}
	if !maps.Equal(count, want) {
		return fmt.Errorf("processes: %v", count)
	}
	return nil
}
