package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// commands are kubectl commands whose output is known.
type commands struct{ *place }

func (c commands) expect(want string, args ...string) {
	c.t.Helper()
	if out := c.kubectl(args...); !strings.Contains(out, want) {
		c.t.Errorf("kubectl %s: %q does not contain %q", strings.Join(args, " "), out, want)
	}
}

// says is expect of what is said beside the output, too.
func (c commands) says(want string, args ...string) {
	c.t.Helper()
	out, err := c.Command(context.Background(), kubectlArgs(c.place, args...)...).CombinedOutput()
	if !strings.Contains(string(out), want) {
		c.t.Errorf("kubectl %s: %q, %v; want %q", strings.Join(args, " "), out, err, want)
	}
}

const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: a, image: edged.example/busybox:1, command: [sh, -c, 'echo %s; exec sleep 7654400'], ports: [{containerPort: 8080}]}
      - {name: b, image: edged.example/busybox:1, command: [sleep, "7654401"]}
`

// TestKubectlRollouts changes a Deployment in the ways that people do.
func TestKubectlRollouts(t *testing.T) {
	p := commands{newPlace(t)}
	done := func() { p.expect("successfully rolled out", "rollout", "status", "deploy/web", "--timeout=120s") }
	p.apply(fmt.Sprintf(shop, "one"))
	done()
	second := fmt.Sprintf(shop, "two")
	if out, err := p.Kubectl(second, "-n", p.ns, "diff", "-f", "-"); err == nil || !strings.Contains(out, "+        - echo two; exec sleep 7654400") {
		t.Errorf("diff: %v %s", err, out)
	}
	p.apply(second)
	done()
	p.expect("deployment.apps/web annotated", "annotate", "deploy/web", "kubernetes.io/change-cause=the second")
	p.expect("2         the second", "rollout", "history", "deploy/web")
	p.expect("echo one; exec sleep", "rollout", "history", "deploy/web", "--revision=1")
	p.expect("deployment.apps/web rolled back", "rollout", "undo", "deploy/web")
	p.expect("deployment.apps/web paused", "rollout", "pause", "deploy/web")
	p.expect("deployment.apps/web env updated", "set", "env", "deploy/web", "X=y")
	p.expect("deployment.apps/web resource requirements updated", "set", "resources", "deploy/web", "-c=a", "--requests=memory=8Mi")
	p.expect("deployment.apps/web resumed", "rollout", "resume", "deploy/web")
	p.expect("deployment.apps/web restarted", "rollout", "restart", "deploy/web")
	done()
	p.expect("echo one", "get", "deploy/web", "-o", "jsonpath={.spec.template.spec.containers[0].command}")
	p.expect("deployment.apps/web scaled", "scale", "deploy/web", "--replicas=3")
	p.says("Expected replicas to be 7, was 3", "scale", "deploy/web", "--replicas=1", "--current-replicas=7")
	p.expect("web    3 ", "get", "deploy/web", "--subresource=scale")
	p.expect("horizontalpodautoscaler.autoscaling/web autoscaled", "autoscale", "deploy/web", "--min=1", "--max=3", "--cpu=50%")
	p.expect("cpu: <unknown>/50%", "get", "hpa", "web")
	p.expect("service/web exposed", "expose", "deploy/web", "--port=80", "--target-port=8080")
	p.expect("NAME  ", "top", "pod")
	p.expect(`"web" deleted`, "delete", "deploy", "web", "--cascade=orphan")
	p.expect("web-", "get", "rs", "-l", "app=web", "-o", "name")
	p.apply(fmt.Sprintf(shop, "one")) // takes them up again
	done()
	p.expect(`"web" deleted`, "delete", "deploy", "web", "--cascade=foreground", "--timeout=60s")
	if out := p.kubectl("get", "rs,pods", "-l", "app=web", "-o", "name"); out != "" {
		t.Errorf("after a foreground deletion: %s", out)
	}
}

// TestKubectlPods debugs, drains and runs things once.
func TestKubectlPods(t *testing.T) {
	p := commands{newPlace(t)}
	p.apply(fmt.Sprintf(sleeper, "one", 7654402))
	p.apply(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: one}
spec: {minAvailable: 1, selector: {matchLabels: {drained: "yes"}}}
`)
	p.waitReady("one")
	p.kubectl("label", "pod", "one", "drained=yes")
	p.kubectl("wait", "--for=jsonpath={.status.currentHealthy}=1", "pdb/one", "--timeout=60s")
	p.says("Cannot evict pod as it would violate the pod's disruption budget.", "drain", p.Name, "--force", "--pod-selector=drained=yes", "--timeout=3s")
	p.expect("SchedulingDisabled", "get", "node", p.Name)
	p.kubectl("delete", "pdb", "one")
	p.expect("node/"+p.Name+" drained", "drain", p.Name, "--force", "--pod-selector=drained=yes", "--timeout=60s")
	p.expect("node/"+p.Name+" uncordoned", "uncordon", p.Name)
	p.expect("node/"+p.Name+" tainted", "taint", "node", p.Name, "e2e=yes:PreferNoSchedule")
	p.expect("node/"+p.Name+" untainted", "taint", "node", p.Name, "e2e-")

	p.apply(fmt.Sprintf(sleeper, "two", 7654403))
	p.waitReady("two")
	p.says("Targeting container", "debug", "two", "--image=edged.example/busybox:1", "--target=c", "-c", "dbg", "--", "sh", "-c", "ps; echo debugged")
	p.waitPod("two", "was debugged", func(pod *corev1.Pod) bool {
		s := pod.Status.EphemeralContainerStatuses
		return len(s) == 1 && s[0].State.Terminated != nil
	})
	p.expect("sleep 7654403", "logs", "two", "-c", "dbg")
	p.says("Creating debugging pod", "debug", "node/"+p.Name, "--image=edged.example/busybox:1", "--", "sh", "-c", "test -d /host/proc && echo on-the-node")
	p.eventually(60*time.Second, "the node's debugger spoke", func() error {
		pods, err := p.Kubectl("", "-n", p.ns, "get", "pods", "-o", "name")
		for _, name := range strings.Fields(pods) {
			if strings.Contains(name, "node-debugger") {
				var out string
				if out, err = p.Kubectl("", "-n", p.ns, "logs", name); strings.Contains(out, "on-the-node") {
					return nil
				}
			}
		}
		return fmt.Errorf("%s: %v", pods, err)
	})
	if out, err := p.Kubectl("typed\n", "-n", p.ns, "run", "-i", "--rm", "once", "--image=edged.example/busybox:1", "--restart=Never", "--", "cat"); err != nil || !strings.Contains(out, "typed\n") {
		t.Errorf("run -i --rm: %q, %v", out, err)
	}
	p.kubectl("create", "cronjob", "yearly", "--image=edged.example/busybox:1", "--schedule=0 0 1 1 *", "--", "echo", "from the cronjob")
	p.kubectl("create", "job", "now", "--from=cronjob/yearly")
	p.expect("condition met", "wait", "--for=condition=complete", "job/now", "--timeout=60s")
	p.expect("from the cronjob", "logs", "job/now")
	p.kubectl("delete", "pod", "two", "--grace-period=0", "--force")
}

// TestCertificateApprove makes a user, who may do what RBAC says.
func TestCertificateApprove(t *testing.T) {
	p := commands{newPlace(t)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request := func(name, organization string) {
		t.Helper()
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: []string{organization}}}, key)
		if err != nil {
			t.Fatal(err)
		}
		p.MustKubectl(fmt.Sprintf(`
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: %s}
spec: {request: %s, signerName: kubernetes.io/kube-apiserver-client, expirationSeconds: 3600, usages: [client auth]}
`, name, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))), "create", "-f", "-")
		t.Cleanup(func() { p.MustKubectl("", "delete", "csr", name) })
		p.expect("Pending", "get", "csr", name)
		p.expect("certificatesigningrequest.certificates.k8s.io/"+name+" approved", "certificate", "approve", name)
	}
	request("jane", "devs")
	p.kubectl("wait", "--for=jsonpath={.status.certificate}", "csr/jane", "--timeout=60s")
	p.expect("Approved,Issued", "get", "csr", "jane")
	cert, err := base64.StdEncoding.DecodeString(p.kubectl("get", "csr", "jane", "-o", "jsonpath={.status.certificate}"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := p.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	jane := rest.AnonymousClientConfig(cfg)
	jane.Dial, jane.CertData, jane.KeyData = cfg.Dial, cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	c, err := kubernetes.NewForConfig(jane)
	if err != nil {
		t.Fatal(err)
	}
	list := func() error {
		_, err := c.CoreV1().Pods(p.ns).List(t.Context(), metav1.ListOptions{})
		return err
	}
	if err := list(); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "jane"`) {
		t.Errorf("without rights: %v", err)
	}
	p.kubectl("create", "rolebinding", "devs", "--clusterrole=view", "--group=devs")
	if err := list(); err != nil {
		t.Errorf("with rights: %v", err)
	}

	request("system:node:nobody", "system:nodes")
	p.kubectl("wait", "--for=condition=Failed", "csr/system:node:nobody", "--timeout=60s")
	p.expect("Approved,Failed", "get", "csr", "system:node:nobody")
}
