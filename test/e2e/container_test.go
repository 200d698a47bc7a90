package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const sleeper = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: edged.example/busybox:1, command: [sleep, "%[2]d"]}]
`

// killProcess kills the one process of a device that sleeps for so long.
func (p *place) killProcess(seconds int) {
	p.t.Helper()
	if out, err := p.Run("sh", "-c", fmt.Sprintf(`for d in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' < $d/cmdline 2>/dev/null)" = "sleep %d " ] && kill -9 ${d#/proc/} && echo killed
done; true`, seconds)); err != nil || out != "killed\n" {
		p.t.Fatalf("kill the process: %q %v", out, err)
	}
}

// TestProcessKilledFromOutside: the first end is mended at once, the next after
// a back-off, with the kubelet's words for it.
func TestProcessKilledFromOutside(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.apply(fmt.Sprintf(sleeper, "victim", 7654321))
	p.waitReady("victim")
	p.killProcess(7654321)
	pod := p.waitPod("victim", "started again", func(pod *corev1.Pod) bool {
		return isReady(pod) && pod.Status.ContainerStatuses[0].RestartCount == 1
	})
	if end := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; end == nil || end.ExitCode != 137 || end.Reason != "Error" {
		t.Errorf("the last state is %+v", pod.Status.ContainerStatuses[0].LastTerminationState)
	}
	p.killProcess(7654321)
	pod = p.waitPod("victim", "backing off", func(pod *corev1.Pod) bool {
		w := pod.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	want := fmt.Sprintf("back-off 10s restarting failed container=c pod=victim_%s(%s)", p.ns, pod.UID)
	if got := pod.Status.ContainerStatuses[0].State.Waiting.Message; got != want {
		t.Errorf("message %q, not %q", got, want)
	}
	p.eventually(10*time.Second, "told by an event", func() error {
		if out := p.kubectl("get", "events", "--field-selector=reason=BackOff"); !strings.Contains(out, "Back-off restarting failed container c in pod victim_") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// TestDamagedRecords: what the daemon keeps of its containers in the run-dir is
// destroyed while it is down. Each container is replaced, once, and nothing that
// nobody wants runs on.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	p := lonePlace(t)
	for i, name := range []string{"cut", "garbage", "whole"} {
		p.apply(fmt.Sprintf(sleeper, name, 8765430+i))
	}
	record := map[string]string{}
	for _, name := range []string{"cut", "garbage", "whole"} {
		pod := p.waitReady(name)
		id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
		out, err := p.Run("find", p.RunDir(), "-path", "*"+id+"*", "-name", "record.json")
		if record[name] = strings.TrimSpace(out); err != nil || record[name] == "" {
			t.Fatalf("the record of %s: %q %v", name, out, err)
		}
	}
	p.Kill()
	if out, err := p.Run("sh", "-c", ": > "+record["cut"]+"; head -c 400 /dev/urandom > "+record["garbage"]); err != nil {
		t.Fatal(out, err)
	}
	p.Start()
	p.WaitReady()
	for name, restarts := range map[string]int32{"cut": 1, "garbage": 1, "whole": 0} {
		p.waitPod(name, "ready again", func(pod *corev1.Pod) bool {
			return isReady(pod) && pod.Status.ContainerStatuses[0].RestartCount == restarts && pod.Status.ContainerStatuses[0].State.Running != nil
		})
	}
	p.eventually(20*time.Second, "one process for each", func() error {
		out, err := p.Run("sh", "-c", `for d in /proc/[0-9]*; do tr '\0' ' ' < $d/cmdline 2>/dev/null | grep -o "^sleep 876543[0-2] "; done | sort; true`)
		if err == nil && out != "sleep 8765430 \nsleep 8765431 \nsleep 8765432 \n" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
}

// TestPullMessages: what a person reads of an image that does not come.
func TestPullMessages(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.kubectl("run", "never", "--image=edged.example/nothing:1", "--image-pull-policy=Never")
	p.apply(strings.Replace(fmt.Sprintf(sleeper, "odd", 1), "edged.example/busybox:1", "Edged.Example/UPPER::1", 1))
	p.apply(strings.Replace(fmt.Sprintf(sleeper, "config", 7654322), "command:", "envFrom: [{configMapRef: {name: later}}], command:", 1))
	p.kubectl("run", "lost", "--image=registry.invalid/no/such:1")
	waits := func(name, reason, message string) {
		t.Helper()
		p.waitPod(name, "waiting with "+reason, func(pod *corev1.Pod) bool {
			if len(pod.Status.ContainerStatuses) == 0 || pod.Status.Phase != corev1.PodPending {
				return false
			}
			w := pod.Status.ContainerStatuses[0].State.Waiting
			return w != nil && w.Reason == reason && strings.Contains(w.Message, message)
		})
	}
	waits("never", "ErrImageNeverPull", `Container image "edged.example/nothing:1" is not present with pull policy of Never`)
	waits("odd", "InvalidImageName", `Failed to apply default image tag "Edged.Example/UPPER::1"`)
	waits("lost", "ImagePullBackOff", `Back-off pulling image "registry.invalid/no/such:1": ErrImagePull: `)
	// What it refers to mends a Pod as soon as it is there.
	waits("config", "CreateContainerConfigError", `configmap "later" not found`)
	p.kubectl("create", "configmap", "later")
	begin := time.Now()
	p.waitReady("config")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("ready %v after its ConfigMap was made", took)
	}
	// A better image mends the Pod, without waiting for the back-off to end.
	p.kubectl("set", "image", "pod/lost", "lost="+"edged.example/busybox:1")
	p.waitPod("lost", "on its new image", func(pod *corev1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].ImageID != ""
	})
}

// TestAttachInput: what kubectl reads reaches the container, and when that ends the
// container reads the end, unless its input stays open: then kubectl leaves.
func TestAttachInput(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if out, err := p.Kubectl("first\nlast", "-n", p.ns, "run", "reader", "--image=edged.example/busybox:1", "--restart=Never", "--attach", "--stdin",
		"--", "sh", "-c", "cat && echo ' end'"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.waitPod("reader", "ended", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodSucceeded })
	if out := p.kubectl("logs", "reader"); out != "first\nlast end\n" {
		t.Errorf("it read %q", out)
	}
	if out, err := p.Kubectl("first\n", "-n", p.ns, "run", "open", "--image=edged.example/busybox:1", "--restart=Never", "--attach", "--stdin", "--leave-stdin-open",
		"--", "sh", "-c", "cat && echo ' end'"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.eventually(10*time.Second, "logging what it read", func() error {
		if out := p.kubectl("logs", "open"); out != "first\n" {
			return fmt.Errorf("it logged %q", out)
		}
		return nil
	})
	if out, err := p.Kubectl("second\n", "-n", p.ns, "attach", "open", "--stdin"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.eventually(10*time.Second, "logging what it read then", func() error {
		if out := p.kubectl("logs", "open"); out != "first\nsecond\n" {
			return fmt.Errorf("it logged %q", out)
		}
		return nil
	})
	if pod := p.pod("open"); pod.Status.Phase != corev1.PodRunning {
		t.Errorf("with its input open it is %s", pod.Status.Phase)
	}
}

// TestFilledVolumesAreRead: a container, root as it is, changes nothing in its
// configMap and secret volumes, what is mounted inside of those is there and stays
// when they change, and so does their content get there.
func TestFilledVolumesAreRead(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.kubectl("create", "configmap", "conf", "--from-literal=a=1")
	p.kubectl("create", "secret", "generic", "keys", "--from-literal=tls=private")
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sleep, "3600"]
    volumeMounts:
    - {name: keys, mountPath: /conf/keys}
    - {name: keys, mountPath: /conf/one, subPath: tls}
    - {name: conf, mountPath: /conf, readOnly: true}
    - {name: conf, mountPath: /again}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: keys, secret: {secretName: keys}}
`)
	p.waitReady("reader")
	in := func(script string) string {
		return p.kubectl("exec", "reader", "--", "sh", "-c", script)
	}
	if out := in("cat /conf/a /conf/keys/tls /conf/one /again/a"); out != "1privateprivate1" {
		t.Errorf("volumes hold %q", out)
	}
	for _, script := range []string{
		"rm /again/..data", "echo x > /again/a", "rm -rf /conf/keys/..data", "touch /conf/new",
	} {
		if out := in("(" + script + ") 2>&1; true"); !strings.Contains(out, "Read-only file system") {
			t.Errorf("%s: %s", script, out)
		}
	}
	p.kubectl("patch", "configmap", "conf", "-p", `{"data":{"a":"2"}}`)
	p.eventually(30*time.Second, "changed", func() error {
		if out := in("cat /conf/a /conf/keys/tls /conf/one /again/a"); out != "2privateprivate2" {
			return fmt.Errorf("volumes hold %q", out)
		}
		return nil
	})
}
