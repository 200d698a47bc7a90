// Command bench measures the budgets of ARCHITECTURE.md on devices that the
// harness starts, and prints them as a table.
//
// Bytes written are counted at the block layer of a disk of the device's own;
// memory is the PSS of all processes of the device. Times are of one machine and
// one run: compare runs of the same machine, and quote medians.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/test/harness"
)

// tb is the harness' TB of a command.
type tb struct{ cleanups []func() }

func (t *tb) Helper()                           {}
func (t *tb) Logf(format string, args ...any)   { log.Printf(format, args...) }
func (t *tb) Errorf(format string, args ...any) { log.Printf(format, args...) }
func (t *tb) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *tb) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *tb) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
	t.cleanups = nil
}

const mb = 1e6

type row struct{ what, value, budget string }

type bench struct {
	tb   *tb
	idle time.Duration
	pods int
	rows []row
}

func (b *bench) add(what, budget, format string, args ...any) {
	r := row{what, fmt.Sprintf(format, args...), budget}
	b.rows = append(b.rows, r)
	log.Printf("%s: %s", r.what, r.value)
}

func main() {
	log.SetFlags(log.Ltime)
	b := &bench{tb: &tb{}}
	flag.DurationVar(&b.idle, "idle", 10*time.Minute, "how long the idle device is watched")
	flag.IntVar(&b.pods, "pods", 10, "Pods on the device while memory and idling are measured")
	only := flag.String("only", "", "measure only those of binary, start, idle, pod, many, reboot, net, failover, addresses, metered, three, separated by commas")
	flag.Parse()
	defer b.tb.end()
	for _, m := range []struct {
		name string
		run  func() error
	}{
		{"binary", b.binary}, {"start", b.starting}, {"idle", b.memoryAndIdling}, {"pod", b.podLatency}, {"many", b.manyPods}, {"reboot", b.reboot}, {"net", b.network}, {"failover", b.failover}, {"addresses", b.addresses}, {"metered", b.metered}, {"three", b.three},
	} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), m.name) {
			continue
		}
		if err := m.run(); err != nil {
			log.Print("bench: ", err)
			b.tb.end()
			os.Exit(1)
		}
		b.tb.end()
	}
	fmt.Printf("| what | measured | budget |\n|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Printf("| %s | %s | %s |\n", r.what, r.value, r.budget)
	}
}

func (b *bench) binary() error {
	data, err := os.ReadFile(harness.Edged())
	if err != nil {
		return err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	packed := enc.EncodeAll(data, nil)
	b.add("binary, everything inside / zstd", "60 / 20 MB", "%.1f / %.1f MB", float64(len(data))/mb, float64(len(packed))/mb)
	return nil
}

func (b *bench) starting() error {
	d := harness.New(b.tb, harness.NewSwitch(b.tb), 1)
	begin := time.Now()
	d.Start()
	d.WaitReady()
	first := time.Since(begin)
	var again []time.Duration
	for range 5 {
		d.Kill()
		begin = time.Now()
		d.Start()
		d.WaitReady()
		again = append(again, time.Since(begin))
	}
	b.add("exec to API ready, new / existing data (median of 5)", "1 / 0.5 s", "%.2f / %.2f s", first.Seconds(), median(again).Seconds())
	return nil
}

func median(d []time.Duration) time.Duration { return percentile(d, 50) }

func percentile(d []time.Duration, p int) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)*p/100, len(d)-1)]
}

// settle waits until what starting took has been given back.
func settle() { time.Sleep(15 * time.Second) }

// own sums the device's processes that are not containers.
func own(d *harness.Device) (sum harness.Memory, err error) {
	all, err := d.Memory()
	if err != nil {
		return sum, err
	}
	for _, m := range all {
		if m.Command == "edged" || strings.HasPrefix(m.Command, "shim") || strings.HasPrefix(m.Command, "runc") {
			sum.PSS += m.PSS
			sum.RSS += m.RSS
			sum.Anon += m.Anon
		}
	}
	return sum, nil
}

func (b *bench) memoryAndIdling() error {
	d := harness.NewOnDisk(b.tb, harness.NewSwitch(b.tb), 1, 2048)
	d.Start()
	d.WaitReady()
	d.ImportBusybox()
	settle()
	none, err := own(d)
	if err != nil {
		return err
	}
	b.add("memory of an idle device, PSS / of which anonymous", "64 / 20 MB", "%.1f / %.1f MB", float64(none.PSS)/mb, float64(none.Anon)/mb)
	if err := b.deploy(d, b.pods); err != nil {
		return err
	}
	settle()
	with, err := own(d)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("the same with %d Pods, PSS", b.pods), "", "%.1f MB", float64(with.PSS)/mb)
	if err := b.deploy(d, 3*b.pods); err != nil {
		return err
	}
	settle()
	more, err := own(d)
	if err != nil {
		return err
	}
	b.add("memory per further Pod beyond its own processes", "0.5 MB", "%.2f MB", float64(more.PSS-with.PSS)/mb/float64(2*b.pods))
	if err := b.deploy(d, b.pods); err != nil {
		return err
	}
	settle()
	return b.idling(d)
}

// idling watches the device do nothing.
func (b *bench) idling(d *harness.Device) error {
	bytes, used := b.watch([]*harness.Device{d})
	b.add(fmt.Sprintf("bytes written by an idle device with %d Pods in %v", b.pods, b.idle), "0", "%d", bytes[0])
	b.add("CPU of an idle device", "0.15 CPU-s a minute", "%.2f CPU-s a minute", used[0])
	return nil
}

// watch lets devices with disks of their own be for b.idle, and says what each has
// written meanwhile, in bytes, and its processor time, in seconds a minute. What
// came before leaves traces for some minutes (a Node lists its images once a
// minute), so that the watch begins after one without a write, or after five.
func (b *bench) watch(devices []*harness.Device) (bytes []int64, used []float64) {
	written := func() (sum int64) {
		for _, d := range devices {
			sum += d.BytesWritten()
		}
		return sum
	}
	before := written()
	for range 5 {
		time.Sleep(time.Minute)
		now := written()
		if now == before {
			break
		}
		before = now
	}
	for _, d := range devices {
		bytes, used = append(bytes, -d.BytesWritten()), append(used, -cpu(d))
	}
	time.Sleep(b.idle)
	for i, d := range devices {
		used[i] = (used[i] + cpu(d)) / b.idle.Minutes()
		bytes[i] += d.BytesWritten()
	}
	return bytes, used
}

// cpu is the processor time, in seconds, that the device's own processes have used.
func cpu(d *harness.Device) (total float64) {
	all, err := d.Memory()
	if err != nil {
		return 0
	}
	for _, m := range all {
		if m.Command == "edged" || strings.HasPrefix(m.Command, "shim") {
			if s, err := harness.CPUSeconds(m.PID); err == nil {
				total += s
			}
		}
	}
	return total
}

// deploy scales the Deployment "bench" and waits until it is there.
func (b *bench) deploy(d *harness.Device, replicas int) error {
	ctx := context.Background()
	c := d.Client()
	n, grace := int32(replicas), int64(0)
	labels := map[string]string{"app": "bench"}
	want := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "bench", Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace,
				Containers:                    []corev1.Container{{Name: "c", Image: harness.Busybox, Command: []string{"sleep", "1000000"}}},
			}},
		},
	}
	if _, err := c.AppsV1().Deployments("default").Create(ctx, want, metav1.CreateOptions{}); err != nil {
		if _, err := c.AppsV1().Deployments("default").Update(ctx, want, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	d.Eventually(5*time.Minute, fmt.Sprintf("running %d Pods", replicas), func() error {
		list, err := c.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=bench"})
		if err != nil {
			return err
		}
		running := 0
		for i := range list.Items {
			if list.Items[i].Status.Phase == corev1.PodRunning {
				running++
			}
		}
		if running != replicas || len(list.Items) != replicas {
			return fmt.Errorf("%d of %d Pods run", running, len(list.Items))
		}
		return nil
	})
	return nil
}

func (b *bench) podLatency() error {
	d := harness.Lone(b.tb)
	d.ImportBusybox()
	ctx := context.Background()
	pods := d.Client().CoreV1().Pods("default")
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	var times []time.Duration
	grace := int64(0)
	for i := range 41 {
		name := fmt.Sprintf("p%d", i)
		begin := time.Now()
		_, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: harness.Busybox, Command: []string{"sleep", "1000000"}}},
		}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		if err := awaitRunning(w, name); err != nil {
			return err
		}
		if i > 0 { // the first one starts the shim
			times = append(times, time.Since(begin))
		}
		if err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
			return err
		}
	}
	b.add("create a Pod to Running, image present, p50 / p99", "0.2 s", "%.3f / %.3f s", percentile(times, 50).Seconds(), percentile(times, 99).Seconds())
	return nil
}

func awaitRunning(w watch.Interface, name string) error {
	timeout := time.After(time.Minute)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return fmt.Errorf("the watch ended")
			}
			if p, ok := e.Object.(*corev1.Pod); ok && p.Name == name && p.Status.Phase == corev1.PodRunning {
				return nil
			}
		case <-timeout:
			return fmt.Errorf("%s does not run", name)
		}
	}
}

func (b *bench) manyPods() error {
	d := harness.Lone(b.tb)
	d.ImportBusybox()
	begin := time.Now()
	if err := b.deploy(d, 100); err != nil {
		return err
	}
	b.add("100 Pods from a Deployment, one device, to Running", "12 s", "%.1f s", time.Since(begin).Seconds())
	return nil
}

func (b *bench) reboot() error {
	d := harness.Lone(b.tb)
	d.ImportBusybox()
	if err := b.deploy(d, 20); err != nil {
		return err
	}
	begin := time.Now()
	d.Reboot()
	d.WaitReady()
	c := d.Client()
	d.Eventually(2*time.Minute, "running again", func() error {
		list, err := c.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var missing bytes.Buffer
		for i := range list.Items {
			s := list.Items[i].Status.ContainerStatuses
			if len(s) != 1 || s[0].State.Running == nil || s[0].RestartCount != 1 {
				fmt.Fprintf(&missing, " %s", list.Items[i].Name)
			}
		}
		if missing.Len() > 0 {
			return fmt.Errorf("not yet:%s", missing.String())
		}
		return nil
	})
	b.add("power-on with 20 Pods: start to all running", "5 s", "%.1f s", time.Since(begin).Seconds())
	return nil
}
