package e2e

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// mainTB is the harness' TB of the device that tests share.
type mainTB struct {
	failed   bool
	cleanups []func()
}

func (tb *mainTB) Helper()                           {}
func (tb *mainTB) Logf(format string, args ...any)   { log.Printf(format, args...) }
func (tb *mainTB) Errorf(format string, args ...any) { tb.failed = true; log.Printf(format, args...) }
func (tb *mainTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (tb *mainTB) Cleanup(f func())                  { tb.cleanups = append(tb.cleanups, f) }

var shared mainTB

var sharedDevice = sync.OnceValue(func() *harness.Device {
	d := harness.Lone(&shared)
	d.ImportBusybox()
	return d
})

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(shared.cleanups) - 1; i >= 0; i-- {
		shared.cleanups[i]()
	}
	if shared.failed && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// place is a namespace on a device, for one test.
type place struct {
	*harness.Device
	t  *testing.T
	ns string
}

// newPlace makes a namespace named after the test on the shared device.
func newPlace(t *testing.T) *place {
	t.Helper()
	return placeOn(t, sharedDevice())
}

func placeOn(t *testing.T, d *harness.Device) *place {
	t.Helper()
	p := &place{d, t, strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	p.MustKubectl("", "create", "namespace", p.ns)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.Kubectl("", "-n", p.ns, "get", "pods,events", "-o", "wide")
			t.Logf("%s at the end:\n%s", p.ns, out)
		}
		p.MustKubectl("", "delete", "namespace", p.ns, "--wait=false")
	})
	return p
}

// kubectl runs in the place's namespace and fails the test on an error.
func (p *place) kubectl(args ...string) string {
	p.t.Helper()
	out, err := p.Kubectl("", append([]string{"-n", p.ns}, args...)...)
	if err != nil {
		p.t.Fatalf("%v\n%s", err, p.LogTail())
	}
	return out
}

func (p *place) apply(manifest string) {
	p.t.Helper()
	if out, err := p.Kubectl(manifest, "-n", p.ns, "apply", "-f", "-"); err != nil {
		p.t.Fatalf("%v\n%s", err, out)
	}
}

// pod reads one Pod.
func (p *place) pod(name string) *corev1.Pod {
	p.t.Helper()
	pod, err := p.Client().CoreV1().Pods(p.ns).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return pod
}

// waitPod waits until ok holds for the Pod, and returns it.
func (p *place) waitPod(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	p.t.Helper()
	var pod *corev1.Pod
	c := p.Client()
	p.eventually(60*time.Second, "pod "+name+" "+what, func() (err error) {
		pod, err = c.CoreV1().Pods(p.ns).Get(context.Background(), name, metav1.GetOptions{})
		if err == nil && !ok(pod) {
			err = fmt.Errorf("phase %s, conditions %v, containers %v", pod.Status.Phase, pod.Status.Conditions, pod.Status.ContainerStatuses)
		}
		return err
	})
	return pod
}

func (p *place) waitReady(name string) *corev1.Pod {
	p.t.Helper()
	return p.waitPod(name, "ready", isReady)
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// eventually calls f until it returns nil; it fails this test, where the
// device's own Eventually would fail all that share it.
func (p *place) eventually(within time.Duration, what string, f func() error) {
	p.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not %s within %v: %v\n%s", what, within, err, p.LogTail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// MustKubectl is kubectl without the place's namespace.
func (p *place) MustKubectl(stdin string, args ...string) string {
	p.t.Helper()
	out, err := p.Kubectl(stdin, args...)
	if err != nil {
		p.t.Fatalf("%v\n%s", err, p.LogTail())
	}
	return out
}
