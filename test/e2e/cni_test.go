package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

// cniPlugins builds Kubernetes' reference plugins into dir, and links edged's own.
func cniPlugins(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"main/ptp", "ipam/host-local"} {
		build := exec.Command("go", "build", "-o", dir+"/", "github.com/containernetworking/plugins/plugins/"+name)
		build.Dir, build.Env = "../cnitool", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	if err := os.Symlink(harness.Edged(), filepath.Join(dir, "edged-bridge")); err != nil {
		t.Fatal(err)
	}
}

// TestOtherCNIPlugins: with --cni-conf-dir the plugins that it names connect Pods.
// The Node waits for a configuration; Services, DNS, host ports and policies are
// what they are with the bridge; a daemon that starts again adds nobody twice;
// what Pods held is given back, also what they held in a power cut.
func TestOtherCNIPlugins(t *testing.T) {
	bin := t.TempDir()
	cniPlugins(t, bin)
	for _, c := range []struct {
		name, config string
		held         string // folder of a file for each address, if there is one
	}{
		{name: "ptp", held: "addresses/pods", config: `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"ptp","ipam":{"type":"host-local",
			"dataDir":%q,"subnet":"10.42.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]}`},
		{name: "edged-bridge", config: `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"edged-bridge","podCIDRs":["10.42.0.0/24"],"stateDir":%q}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := t.TempDir()
			d := harness.New(t, harness.NewSwitch(t), 1, "--cni-conf-dir", conf, "--cni-bin-dir", bin)
			d.Start()
			d.WaitReady()
			d.ImportBusybox()
			d.Eventually(30*time.Second, "waiting for a configuration", func() error {
				n, err := d.Client().CoreV1().Nodes().Get(t.Context(), d.Name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				for _, is := range n.Status.Conditions {
					if is.Type == corev1.NodeReady && is.Status == corev1.ConditionFalse && strings.Contains(is.Message, "NetworkPluginNotReady") && strings.Contains(is.Message, "there is no CNI configuration in "+conf) {
						return nil
					}
				}
				return fmt.Errorf("%+v", n.Status.Conditions)
			})
			// What a reboot empties for the bridge, and does not for host-local.
			state := filepath.Join(d.RunDir(), "plugin")
			if c.held != "" {
				state = filepath.Join(d.Dir, "addresses")
			}
			if err := os.WriteFile(filepath.Join(conf, "10-pods.conflist"), fmt.Appendf(nil, c.config, state), 0o644); err != nil {
				t.Fatal(err)
			}
			allReady(t, d, 1)
			p := placeOn(t, d)
			p.apply(webDeployment)
			p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
			p.clientPod("client")
			p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: port}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: edged.example/busybox:1, command: [sh, -c, 'echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp'], ports: [{containerPort: 8080, hostPort: 18080}]}]
`)
			p.waitReady("port")
			works := func() {
				t.Helper()
				p.eventually(20*time.Second, "reaching the Service by its name", func() error {
					out, err := d.Kubectl("", "-n", p.ns, "exec", "client", "--", "fetch", "http://web/")
					if err == nil && !strings.Contains(out, " v1") {
						err = errors.New(out)
					}
					return err
				})
				p.eventually(20*time.Second, "reaching the host port", func() error {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					defer cancel()
					conn, err := d.Dial(ctx, "tcp", d.Addr.String()+":18080")
					if err != nil {
						return err
					}
					return conn.Close()
				})
			}
			works()
			addresses := func() string {
				return p.kubectl("get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
			}
			was := addresses()
			d.Kill()
			d.Start()
			d.WaitReady()
			p.waitReady("client")
			works()
			if now := addresses(); now != was {
				t.Errorf("Pods were\n%sand are, with a daemon that has started again,\n%s", was, now)
			}
			p.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
`)
			p.eventually(20*time.Second, "shut out by a policy", func() error {
				out, err := d.Kubectl("", "-n", p.ns, "exec", "client", "--", "timeout", "2", "fetch", "http://web/")
				if err == nil {
					return fmt.Errorf("it is answered: %s", out)
				}
				return nil
			})
			p.kubectl("delete", "networkpolicy", "none")
			d.Reboot()
			d.WaitReady()
			p.waitReady("client")
			p.waitReady("port")
			p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
			works()
			p.kubectl("delete", "deployment/web", "pod/port", "pod/client", "--timeout=30s")
			if c.held == "" {
				return
			}
			p.eventually(30*time.Second, "given back", func() error {
				entries, err := os.ReadDir(filepath.Join(d.Dir, c.held))
				if err != nil {
					return err
				}
				for _, e := range entries {
					if strings.HasPrefix(e.Name(), "10.42.") {
						return fmt.Errorf("%s is held", e.Name())
					}
				}
				return nil
			})
		})
	}
}

// TestCNIPluginNotAvailable: while a plugin says in its STATUS that it is not
// available, the Node is not ready, in kubelet's words.
func TestCNIPluginNotAvailable(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	closed := filepath.Join(bin, "closed")
	for path, text := range map[string]string{
		filepath.Join(conf, "10-gate.conflist"): `{"cniVersion":"1.1.0","name":"gate","plugins":[{"type":"gate"}]}`,
		filepath.Join(bin, "gate"): "#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND != STATUS ] || [ ! -e " + closed + ` ] || {
	echo '{"cniVersion":"1.1.0","code":50,"msg":"its controller does not answer"}'; exit 1; }
`,
		closed: "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := harness.Lone(t, "--cni-conf-dir", conf, "--cni-bin-dir", bin)
	d.Eventually(60*time.Second, "not ready for its plugin", func() error {
		n, err := d.Client().CoreV1().Nodes().Get(t.Context(), d.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, is := range n.Status.Conditions {
			if is.Type == corev1.NodeReady && is.Status == corev1.ConditionFalse && is.Reason == "KubeletNotReady" &&
				strings.HasPrefix(is.Message, "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:") &&
				strings.Contains(is.Message, "its controller does not answer") {
				return nil
			}
		}
		return fmt.Errorf("%+v", n.Status.Conditions)
	})
	if err := os.Remove(closed); err != nil {
		t.Fatal(err)
	}
	allReady(t, d, 1)
}
