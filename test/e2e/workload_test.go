package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const webDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: edged.example/busybox:1
        env: [{name: VERSION, value: "1"}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        command: [sh, -c, 'mkdir -p /tmp/www; echo "$POD v$VERSION" > /tmp/www/index.html; echo serving v$VERSION; exec httpd -f -p 8080 -h /tmp/www']
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

func (p *place) clientPod(name string) {
	p.t.Helper()
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: sh, image: edged.example/busybox:1, command: [sleep, "100000"]}]
`)
	p.waitReady(name)
}

// TestDeploymentBehindService is the product's first promise: a Deployment and
// a Service applied with kubectl answer, by address and by name, from the
// device and from a Pod, through an update, a rollback and a change of scale.
func TestDeploymentBehindService(t *testing.T) {
	p := newPlace(t)
	p.apply(webDeployment)
	if out := p.kubectl("rollout", "status", "deployment/web", "--timeout=60s"); !strings.Contains(out, `deployment "web" successfully rolled out`) {
		t.Fatalf("rollout status: %s", out)
	}
	p.clientPod("client")
	ip := strings.TrimSpace(p.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	ask := func(argv ...string) string {
		t.Helper()
		var out string
		p.eventually(20*time.Second, "answered", func() (err error) {
			out, err = p.Run(argv...)
			return err
		})
		return strings.TrimSpace(out)
	}
	fromPod := func(url string) string {
		t.Helper()
		var out string
		p.eventually(20*time.Second, "answered to a Pod", func() (err error) {
			out, err = p.Kubectl("", "-n", p.ns, "exec", "client", "--", "fetch", url)
			return err
		})
		return strings.TrimSpace(out)
	}
	answer := regexp.MustCompile(`^web-[a-z0-9]+-[a-z0-9]{5} v1$`)
	if got := ask("curl", "-fsS", "--max-time", "2", "http://"+ip+"/"); !answer.MatchString(got) {
		t.Errorf("from the device: %q", got)
	}
	if got := fromPod("http://web/"); !answer.MatchString(got) {
		t.Errorf("by short name from a Pod: %q", got)
	}
	if got := fromPod("http://web." + p.ns + ".svc.cluster.local/"); !answer.MatchString(got) {
		t.Errorf("by full name from a Pod: %q", got)
	}
	seen := map[string]bool{}
	p.eventually(20*time.Second, "answered by both Pods", func() error {
		out, err := p.Run("curl", "-fsS", "--max-time", "2", "http://"+ip+"/")
		if seen[out] = err == nil; len(seen) < 2 {
			return fmt.Errorf("so far by %v, %v", seen, err)
		}
		return nil
	})

	p.kubectl("set", "env", "deployment/web", "VERSION=2")
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	if got := fromPod("http://web/"); !strings.HasSuffix(got, " v2") {
		t.Errorf("after the update: %q", got)
	}
	if out := p.kubectl("rollout", "undo", "deployment/web"); !strings.Contains(out, "deployment.apps/web rolled back") {
		t.Errorf("rollout undo: %s", out)
	}
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	if got := fromPod("http://web/"); !strings.HasSuffix(got, " v1") {
		t.Errorf("after the rollback: %q", got)
	}

	if out := p.kubectl("scale", "deployment/web", "--replicas=4"); out != "deployment.apps/web scaled\n" {
		t.Errorf("scale: %q", out)
	}
	p.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=4", "deployment/web", "--timeout=60s")
	p.kubectl("scale", "deployment/web", "--replicas=1")
	p.eventually(30*time.Second, "scaled down", func() error {
		out := p.kubectl("get", "pods", "-l", "app=web", "-o", "name")
		if n := strings.Count(out, "\n"); n != 1 {
			return fmt.Errorf("%d Pods", n)
		}
		return nil
	})

	victim := strings.TrimSpace(p.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"))
	p.kubectl("delete", "pod", victim)
	p.eventually(30*time.Second, "replaced", func() error {
		pods, err := p.Client().CoreV1().Pods(p.ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 || pods.Items[0].Name == victim || !isReady(&pods.Items[0]) {
			return fmt.Errorf("Pods %d", len(pods.Items))
		}
		return nil
	})

	p.kubectl("delete", "deployment", "web")
	p.eventually(30*time.Second, "collected", func() error {
		if out := p.kubectl("get", "pods,replicasets", "-l", "app=web", "-o", "name"); out != "" {
			return fmt.Errorf("left: %s", out)
		}
		return nil
	})
}

// TestRestartsAndExitCodes: what a container's end looks like from outside.
func TestRestartsAndExitCodes(t *testing.T) {
	p := newPlace(t)
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - {name: good, image: edged.example/busybox:1, command: [sh, -c, 'echo fine']}
  - {name: bad, image: edged.example/busybox:1, command: [sh, -c, 'echo why > /dev/termination-log; exit 7']}
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: OnFailure
  containers: [{name: c, image: edged.example/busybox:1, command: [sh, -c, 'exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, 'x=$(head -c 100000000 /dev/zero | tr "\0" x); echo survived']
    resources: {limits: {memory: 16Mi}}
`)
	pod := p.waitPod("once", "failed", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodFailed })
	for _, s := range pod.Status.ContainerStatuses {
		end := s.State.Terminated
		switch {
		case end == nil:
			t.Errorf("%s: %+v", s.Name, s.State)
		case s.Name == "good" && (end.ExitCode != 0 || end.Reason != "Completed"):
			t.Errorf("good: %+v", end)
		case s.Name == "bad" && (end.ExitCode != 7 || end.Reason != "Error" || strings.TrimSpace(end.Message) != "why"):
			t.Errorf("bad: %+v", end)
		}
	}
	p.waitPod("again", "restarted and backing off", func(pod *corev1.Pod) bool {
		if len(pod.Status.ContainerStatuses) == 0 {
			return false
		}
		s := pod.Status.ContainerStatuses[0]
		return s.RestartCount >= 1 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" &&
			s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.ExitCode == 3
	})
	p.waitPod("greedy", "killed for its memory", func(pod *corev1.Pod) bool {
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].State.Terminated == nil {
			return false
		}
		return pod.Status.ContainerStatuses[0].State.Terminated.Reason == "OOMKilled"
	})
}

// TestMissingImage: never a hang, and the reason where kubectl shows it.
func TestMissingImage(t *testing.T) {
	p := newPlace(t)
	p.kubectl("run", "lost", "--image=registry.invalid/no/such:1")
	p.kubectl("run", "never", "--image=edged.example/nothing:1", "--image-pull-policy=Never")
	p.eventually(60*time.Second, "reported", func() error {
		out := p.kubectl("get", "pod", "lost")
		if !strings.Contains(out, "ErrImagePull") && !strings.Contains(out, "ImagePullBackOff") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	p.eventually(20*time.Second, "reported", func() error {
		if out := p.kubectl("get", "pod", "never"); !strings.Contains(out, "ErrImageNeverPull") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	p.eventually(20*time.Second, "an event", func() error {
		if out := p.kubectl("describe", "pod", "lost"); !strings.Contains(out, "Failed to pull image") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	// A Pod beside them is not held up.
	p.clientPod("beside")
}

// TestNamespaceDeletionEmptiesIt, with Pods that have to be stopped first.
func TestNamespaceDeletionEmptiesIt(t *testing.T) {
	p := newPlace(t)
	p.MustKubectl("", "create", "namespace", p.ns+"-2")
	if _, err := p.Kubectl(webDeployment, "-n", p.ns+"-2", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	p.MustKubectl("", "-n", p.ns+"-2", "rollout", "status", "deployment/web", "--timeout=60s")
	p.MustKubectl("", "-n", p.ns+"-2", "create", "configmap", "c", "--from-literal=a=b")
	p.MustKubectl("", "delete", "namespace", p.ns+"-2", "--timeout=60s")
	if out, err := p.Kubectl("", "get", "namespace", p.ns+"-2"); err == nil || !strings.Contains(out, `namespaces "`+p.ns+`-2" not found`) {
		t.Errorf("after deletion: %s %v", out, err)
	}
	if out := p.MustKubectl("", "get", "pods,configmaps,services,endpointslices", "-A", "-o", "name"); strings.Contains(out, "/web") {
		t.Errorf("left: %s", out)
	}
}
