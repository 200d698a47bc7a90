package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTopAndAutoscale: kubectl top tells what Pods use, without a metrics-server, and a
// HorizontalPodAutoscaler acts on it.
func TestTopAndAutoscale(t *testing.T) {
	p := newPlace(t)
	p.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: load}
spec:
  selector: {matchLabels: {app: load}}
  template:
    metadata: {labels: {app: load}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: edged.example/busybox:1
        command: [sh, -c, 'head -c 40000000 /dev/zero > /mem/load; touch /tmp/done; exec sleep 7654399']
        volumeMounts: [{name: mem, mountPath: /mem}]
      volumes: [{name: mem, emptyDir: {medium: Memory}}]
`)
	p.kubectl("rollout", "status", "deployment/load", "--timeout=60s")
	shows := func(want string, args ...string) {
		t.Helper()
		p.eventually(20*time.Second, "kubectl "+strings.Join(args, " ")+" shows it", func() error {
			out, err := p.Kubectl("", append([]string{"-n", p.ns}, args...)...)
			if err != nil || !regexp.MustCompile(want).MatchString(out) {
				return fmt.Errorf("%q %v, want %s", out, err, want)
			}
			return nil
		})
	}
	shows(p.Name+` +[1-9][0-9]*m +[0-9]+% +[1-9][0-9]*Mi +[0-9]+%`, "top", "node")
	shows(`load-\S+ +[0-9]+m +(3[89]|4[0-9])Mi`, "top", "pod")
	shows(`load-\S+ +main +[0-9]+m +(3[89]|4[0-9])Mi`, "top", "pod", "--containers", "-l", "app=load")
	p.kubectl("create", "rolebinding", "eve", "--clusterrole=view", "--user=eve-of-"+p.ns)
	shows(`load-`, "top", "pod", "--as=eve-of-"+p.ns)
	if out, err := p.Kubectl("", "-n", p.ns, "top", "pod", "--as=nobody"); err == nil || !strings.Contains(out, `pods.metrics.k8s.io is forbidden: User "nobody" cannot list resource "pods" in API group "metrics.k8s.io"`) {
		t.Errorf("a stranger: %q %v", out, err)
	}

	p.apply(`
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: load}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: load}
  minReplicas: 1
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 10Mi}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
`)
	p.kubectl("wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/load", "--timeout=60s")
	p.kubectl("wait", "--for=condition=ScalingActive", "hpa/load", "--timeout=30s")
	shows(`memory: [0-9]+(Mi|Ki|k)?/10Mi`, "get", "hpa", "load")
	shows(`New size: 3; reason: memory resource above target`, "describe", "hpa", "load")
	for _, pod := range strings.Fields(p.kubectl("get", "pods", "-l", "app=load", "-o", "jsonpath={.items[*].metadata.name}")) {
		p.kubectl("exec", pod, "--", "sh", "-c", "until [ -e /tmp/done ]; do sleep 0.1; done; > /mem/load")
	}
	p.kubectl("wait", "--for=jsonpath={.spec.replicas}=1", "deployment/load", "--timeout=60s")
	shows(`All metrics below target`, "describe", "hpa", "load")
}
