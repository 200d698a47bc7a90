package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// lonePlace starts a device of its own for a test that breaks it.
func lonePlace(t *testing.T, flags ...string) *place {
	t.Helper()
	d := harness.Lone(t, flags...)
	d.ImportBusybox()
	return placeOn(t, d)
}

// containers maps each running container's id to its Pod's address and its
// restart count.
func (p *place) containers() map[string]string {
	p.t.Helper()
	pods, err := p.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]string{}
	for _, pod := range pods.Items {
		for _, s := range pod.Status.ContainerStatuses {
			if s.State.Running != nil {
				out[s.ContainerID] = fmt.Sprintf("%s %s restarts=%d", pod.Name, pod.Status.PodIP, s.RestartCount)
			}
		}
	}
	return out
}

// TestKillWhileWriting: SIGKILL of the daemon at any moment loses no
// acknowledged write and restarts no container.
func TestKillWhileWriting(t *testing.T) {
	p := lonePlace(t)
	p.apply(webDeployment)
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	before := p.containers()
	if len(before) != 2 {
		t.Fatalf("containers %v, want two", before)
	}
	acknowledged := map[string]bool{}
	for round := range 3 {
		c := p.Client()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("write-%d-%d", round, i)
				_, err := c.CoreV1().ConfigMaps(p.ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				if err != nil {
					return // the daemon is gone: whether this one is there is open
				}
				acknowledged[name] = true
			}
		}()
		time.Sleep(time.Duration(300+170*round) * time.Millisecond) // the moment of the kill, not a wait for a state
		p.Kill()
		cancel()
		<-done
		p.Start()
		p.WaitReady()
		list, err := p.Client().CoreV1().ConfigMaps(p.ns).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		missing := maps.Clone(acknowledged)
		for _, cm := range list.Items {
			delete(missing, cm.Name)
		}
		if len(missing) > 0 {
			t.Fatalf("round %d: %d of %d acknowledged writes are lost: %v", round, len(missing), len(acknowledged), missing)
		}
	}
	if len(acknowledged) == 0 {
		t.Fatal("nothing was written: the test proves nothing")
	}
	t.Logf("%d writes acknowledged over 3 kills, none lost", len(acknowledged))
	p.eventually(30*time.Second, "the same containers", func() error {
		if after := p.containers(); !maps.Equal(before, after) {
			return fmt.Errorf("before %v, after %v", before, after)
		}
		return nil
	})
	// Attached again means: commands, logs and the Pod's end still work.
	for id, line := range before {
		pod := strings.Fields(line)[0]
		if out := p.kubectl("exec", pod, "--", "cat", "/tmp/www/index.html"); !strings.HasPrefix(out, pod) {
			t.Errorf("exec in %s (%s): %q", pod, id, out)
		}
	}
	p.kubectl("delete", "deployment", "web", "--cascade=foreground", "--timeout=60s")
}

// TestContainerEndsWhileDaemonIsDown: its exit code is known afterwards.
func TestContainerEndsWhileDaemonIsDown(t *testing.T) {
	p := lonePlace(t)
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  restartPolicy: Never
  containers: [{name: c, image: edged.example/busybox:1, command: [sh, -c, 'while [ ! -e /tmp/go ]; do sleep 0.1; done; sleep 1; echo last words; exit 42']}]
`)
	p.waitReady("brief")
	p.kubectl("exec", "brief", "--", "touch", "/tmp/go")
	p.Kill()
	time.Sleep(2 * time.Second) // the container ends meanwhile; nobody is there to see it
	p.Start()
	p.WaitReady()
	pod := p.waitPod("brief", "failed", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 42 {
		t.Errorf("state %+v, want exit code 42", pod.Status.ContainerStatuses[0].State)
	}
	if out := p.kubectl("logs", "brief"); out != "last words\n" {
		t.Errorf("logs: %q", out)
	}
}

// TestReboot: everything killed, run-dir gone; every Pod comes back by itself.
func TestReboot(t *testing.T) {
	p := lonePlace(t)
	p.apply(webDeployment)
	p.clientPod("client")
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	uid := p.pod("client").UID
	p.Reboot()
	p.WaitReady()
	pod := p.waitPod("client", "running again", func(pod *corev1.Pod) bool {
		return isReady(pod) && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount == 1
	})
	if pod.UID != uid {
		t.Errorf("the Pod was replaced: UID %s, was %s", pod.UID, uid)
	}
	p.eventually(60*time.Second, "answering after the reboot", func() error {
		out, err := p.Kubectl("", "-n", p.ns, "exec", "client", "--", "fetch", "http://web/")
		if err != nil || !strings.HasSuffix(out, "v1\n") {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
}
