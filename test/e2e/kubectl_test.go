package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	kubeletconfigv1beta1 "k8s.io/kubelet/config/v1beta1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/test/harness"
)

// TestKubectlTour uses kubectl as people do and holds edged to the wording that
// they know.
func TestKubectlTour(t *testing.T) {
	p := newPlace(t)
	expect := func(want string, args ...string) {
		t.Helper()
		if out := p.kubectl(args...); !strings.Contains(out, want) {
			t.Errorf("kubectl %s: %q does not contain %q", strings.Join(args, " "), out, want)
		}
	}
	refuse := func(want string, args ...string) {
		t.Helper()
		out, err := p.Kubectl("", append([]string{"-n", p.ns}, args...)...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("kubectl %s: %v, %q; want a refusal with %q", strings.Join(args, " "), err, out, want)
		}
	}
	expect("configmap/conf created", "create", "configmap", "conf", "--from-literal=color=red")
	refuse(`configmaps "conf" already exists`, "create", "configmap", "conf")
	expect("NAME   DATA   AGE", "get", "configmap", "conf")
	expect("secret/pass created", "create", "secret", "generic", "pass", "--from-literal=word=sesame")
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: edged.example/busybox:1
    command: [sh, -c, 'echo started; i=0; while sleep 0.2; do i=$((i+1)); echo tick $i; done']
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: conf, key: color}}}]
    volumeMounts: [{name: pass, mountPath: /pass}, {name: work, mountPath: /work}]
    ports: [{containerPort: 8080}]
  - {name: web, image: edged.example/busybox:1, command: [sh, -c, 'echo port > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']}
  - {name: six, image: edged.example/busybox:1, command: [sh, -c, 'echo port > /tmp/index.html; exec httpd -f -p [::1]:8086 -h /tmp']}
  volumes: [{name: pass, secret: {secretName: pass}}, {name: work, emptyDir: {}}]
`)
	p.waitReady("shell")
	expect("3/3", "get", "pod", "shell")
	expect("Running", "get", "pods", "-o", "wide")
	expect("red", "exec", "shell", "-c", "main", "--", "sh", "-c", "echo $COLOR")
	expect("sesame", "exec", "shell", "-c", "main", "--", "cat", "/pass/word")
	refuse("exit code 9", "exec", "shell", "-c", "main", "--", "sh", "-c", "exit 9")
	expect("started", "logs", "shell", "-c", "main", "--limit-bytes=100")
	if out := p.kubectl("logs", "shell", "-c", "main", "--tail=1"); strings.Count(out, "\n") != 1 {
		t.Errorf("logs --tail=1: %q", out)
	}
	if out := p.kubectl("logs", "shell", "-c", "main", "--since=1s"); strings.Contains(out, "started") && strings.Contains(out, "tick 20") {
		t.Errorf("logs --since=1s goes back to the start: %q", out)
	}
	refuse(`container nope is not valid for pod shell`, "logs", "shell", "-c", "nope")
	if out, err := p.Kubectl("typed\n", "-n", p.ns, "exec", "-i", "shell", "-c", "main", "--", "cat"); err != nil || out != "typed\n" {
		t.Errorf("exec -i: %q, %v", out, err)
	}
	expect("pod/shell labeled", "label", "pod", "shell", "tier=front")
	expect("shell", "get", "pods", "-l", "tier in (front)")
	expect("pod/shell annotated", "annotate", "pod", "shell", "note=hi")
	expect("configmap/conf patched", "patch", "configmap", "conf", "-p", `{"data":{"size":"big"}}`)
	expect("(no change)", "patch", "configmap", "conf", "--type=merge", "-p", `{"data":{"size":"big"}}`)
	expect("configmap/conf patched", "patch", "configmap", "conf", "--type=json", "-p", `[{"op":"remove","path":"/data/size"}]`)
	expect("Name:             shell", "describe", "pod", "shell")
	expect("Container started", "describe", "pod", "shell")
	expect("deployments", "api-resources")
	expect("FIELD: containers <[]Container>", "explain", "pod.spec.containers")
	expect("yes", "auth", "can-i", "create", "pods")
	refuse("no", "auth", "can-i", "create", "pods", "--as=nobody")
	if out := p.kubectl("create", "token", "default"); strings.Count(out, ".") != 2 {
		t.Errorf("create token: %q", out)
	}
	expect("Server Version: v1.37", "version")
	expect("condition met", "wait", "--for=condition=Ready", "pod/shell", "--timeout=10s")
	expect("Kubernetes control plane", "cluster-info")
	expect("v1.apps   Local     True", "get", "apiservice", "v1.apps")
	expect("apiservice.apiregistration.k8s.io/v1.batch condition met", "wait", "--for=condition=Available", "apiservice/v1.batch", "--timeout=10s")
	expect("[+]etcd ok", "get", "--raw", "/readyz?verbose")
	testNoNamespace(t, p)
	refuse(`pods "nope" not found`, "get", "pod", "nope")
	refuse(`the server doesn't have a resource type "nopes"`, "get", "nopes")

	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	hasTar := p.kubectl("exec", "shell", "-c", "main", "--", "which", "tar")
	if strings.Contains(hasTar, "tar") {
		p.kubectl("cp", "-c", "main", local, "shell:/work/file")
		expect("copied", "exec", "shell", "-c", "main", "--", "cat", "/work/file")
	}
	testPortForward(t, p)
	testEdit(t, p)
	expect(`pod "shell" deleted`, "delete", "pod", "shell")
}

func kubectlArgs(p *place, args ...string) []string {
	return append([]string{harness.Kubectl(), "-n", p.ns}, args...)
}

func testPortForward(t *testing.T, p *place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := p.Command(ctx, kubectlArgs(p, "port-forward", "pod/shell", "18080:8080", "18086:8086")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "Forwarding from 127.0.0.1:18080") {
		t.Errorf("port-forward: %q, %v", line, err)
		return
	}
	for _, port := range []string{"18080", "18080", "18086"} { // the last is of a server on ::1 alone
		conn, err := p.Dial(ctx, "tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := io.WriteString(conn, "GET /index.html HTTP/1.0\r\n\r\n"); err != nil {
			t.Error(err)
		}
		data, err := io.ReadAll(conn)
		if conn.Close(); err != nil || !strings.HasSuffix(string(data), "port\n") {
			t.Errorf("through the forwarded port: %q, %v", data, err)
		}
	}
}

// testNoNamespace asks for the Pods of no namespace, which is all, as clients of other
// languages do; kubectl would clean the path.
func testNoNamespace(t *testing.T, p *place) {
	t.Helper()
	cfg, err := p.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	resp, err := client.Get(cfg.Host + "/api/v1/namespaces//pods")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !strings.Contains(string(data), `"kind":"PodList"`) {
		t.Errorf("of no namespace: %d %.200s %v", resp.StatusCode, data, err)
	}
}

func testEdit(t *testing.T, p *place) {
	t.Helper()
	cmd := p.Command(context.Background(), kubectlArgs(p, "edit", "configmap", "conf")...)
	cmd.Env = append(cmd.Env, "KUBE_EDITOR=sed -i s/red/blue/")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "configmap/conf edited") {
		t.Errorf("edit: %s %v", out, err)
	}
	if out := p.kubectl("get", "configmap", "conf", "-o", "jsonpath={.data.color}"); out != "blue" {
		t.Errorf("after edit: %q", out)
	}
}

// TestServerSideChecks: bad manifests get upstream's message and status.
func TestServerSideChecks(t *testing.T) {
	p := newPlace(t)
	for manifest, want := range map[string]string{
		`{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}`:                                                                                                                 `spec.containers: Required value`,
		`{apiVersion: v1, kind: Pod, metadata: {name: X_y}, spec: {containers: [{name: a, image: b}]}}`:                                                                                            `a lowercase RFC 1123 subdomain must consist of`,
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dta: {a: b}}`:                                                                                                                      `unknown field "dta"`,
		`{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: b}]}}}}`: "`selector` does not match template `labels`",
		`{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: [{port: 70000}]}}`:                                                                                                     `must be between 1 and 65535, inclusive`,
		`{apiVersion: example.org/v1, kind: Thing, metadata: {name: x}}`:                                                                                                                           `no matches for kind "Thing" in version "example.org/v1"`,
	} {
		// kubectl takes what begins with a brace for JSON.
		if out, err := p.Kubectl("---\n"+manifest, "-n", p.ns, "create", "-f", "-"); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v %q, want %q", manifest, err, out, want)
		}
	}
}

// TestMetrics: what an operator's Prometheus reads is there under the names that
// dashboards know, for those who may see it.
func TestMetrics(t *testing.T) {
	p := newPlace(t)
	count := func(line string) (n float64) {
		t.Helper()
		out := p.MustKubectl("", "get", "--raw", "/metrics")
		_, rest, ok := strings.Cut(out, "\n"+line+" ")
		if !ok {
			return 0
		}
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const creates = `apiserver_request_total{code="201",group="",resource="configmaps",subresource="",verb="create",version="v1"}`
	const writes = `edged_store_writes_total{resource="configmaps"}`
	p.eventually(10*time.Second, "its root CA is there", func() error {
		_, err := p.Kubectl("", "-n", p.ns, "get", "configmap", "kube-root-ca.crt")
		return err
	})
	requests, written := count(creates), count(writes)
	for i := range 3 {
		p.kubectl("create", "configmap", fmt.Sprintf("m%d", i))
	}
	if got := count(creates) - requests; got != 3 {
		t.Errorf("3 creates were counted as %v", got)
	}
	if got := count(writes) - written; got != 3 {
		t.Errorf("3 writes were counted as %v", got)
	}
	for _, name := range []string{"etcd_server_has_leader", "etcd_server_is_leader", "etcd_debugging_mvcc_current_revision", "process_resident_memory_bytes"} {
		if count(name) < 1 {
			t.Errorf("%s is %v", name, count(name))
		}
	}
	p.apply(fmt.Sprintf(sleeper, "counted", 7654322))
	p.waitReady("counted")
	node := p.MustKubectl("", "get", "--raw", "/api/v1/nodes/"+p.Name+"/proxy/metrics")
	if !strings.Contains(node, `kubelet_node_name{node="`+p.Name+`"} 1`) || strings.Contains(node, "kubelet_running_pods 0\n") || !strings.Contains(node, "kubelet_running_pods ") {
		t.Errorf("the node agent's metrics: %.2000s", node)
	}
	used := p.MustKubectl("", "get", "--raw", "/api/v1/nodes/"+p.Name+"/proxy/metrics/resource")
	for _, want := range []string{
		`node_cpu_usage_seconds_total [1-9]`, `node_memory_working_set_bytes [1-9]`, `container_memory_working_set_bytes\{[^}]*pod="counted"\} [1-9]`,
		`pod_memory_working_set_bytes\{[^}]*pod="counted"\} [1-9]`, `pod_cpu_usage_seconds_total\{[^}]*pod="counted"\} [0-9]`,
		`container_cpu_usage_seconds_total\{[^}]*pod="counted"\} [0-9]`, `container_start_time_seconds\{[^}]*pod="counted"\} [1-9]`, `resource_scrape_error 0`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(used) {
			t.Errorf("no %s in %.3000s", want, used)
		}
	}
	p.nodeProxy()
	p.kubectl("create", "serviceaccount", "stranger")
	if out, err := p.Kubectl("", "get", "--raw", "/metrics", "--as=system:serviceaccount:"+p.ns+":stranger"); err == nil {
		t.Errorf("a stranger reads the metrics: %.80s", out)
	}
}

// nodeProxy looks at what the kubelet tells besides metrics, of the Pod counted.
func (p *place) nodeProxy() {
	p.t.Helper()
	read := func(path string, into any) {
		p.t.Helper()
		d := json.NewDecoder(strings.NewReader(p.MustKubectl("", "get", "--raw", "/api/v1/nodes/"+p.Name+"/proxy"+path)))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			p.t.Errorf("%s: %v", path, err)
		}
	}
	var sum statsapi.Summary
	read("/stats/summary", &sum)
	above := func(what string, got *uint64, least uint64) {
		p.t.Helper()
		if got == nil || *got < least {
			p.t.Errorf("%s is below %d in %+v", what, least, sum)
		}
	}
	p.eventually(20*time.Second, "the node's CPU is in use", func() error {
		// The kernel counts ticks of 10 ms: a device may use none while it measures.
		for began := time.Now(); time.Since(began) < 100*time.Millisecond; {
		}
		read("/stats/summary?only_cpu_and_memory=true", &sum)
		if used := sum.Node.CPU.UsageNanoCores; used == nil || *used == 0 {
			return fmt.Errorf("usageNanoCores: %v", used)
		}
		return nil
	})
	read("/stats/summary", &sum)
	above("the node's memory", sum.Node.Memory.WorkingSetBytes, 1<<20)
	above("the node's disk", sum.Node.Fs.CapacityBytes, 1<<20)
	at := slices.IndexFunc(sum.Pods, func(s statsapi.PodStats) bool { return s.PodRef.Namespace == p.ns && s.PodRef.Name == "counted" })
	if at < 0 || len(sum.Pods[at].Containers) != 1 {
		p.t.Fatalf("the Pod is not in %+v", sum.Pods)
	}
	c := sum.Pods[at].Containers[0]
	above("the container's CPU", c.CPU.UsageCoreNanoSeconds, 1)
	above("the container's memory", c.Memory.WorkingSetBytes, 1)
	above("the Pod's memory", sum.Pods[at].Memory.WorkingSetBytes, *c.Memory.WorkingSetBytes/2)
	above("the container's layer", c.Rootfs.UsedBytes, 0)
	if sum.Pods[at].Network == nil || sum.Pods[at].Network.Name != "eth0" {
		p.t.Errorf("the Pod's network is %+v", sum.Pods[at].Network)
	}
	if len(sum.Pods[at].VolumeStats) != 1 || !strings.HasPrefix(sum.Pods[at].VolumeStats[0].Name, "kube-api-access-") {
		p.t.Errorf("the Pod's volumes are %+v", sum.Pods[at].VolumeStats)
	}
	var configz struct {
		KubeletConfig kubeletconfigv1beta1.KubeletConfiguration `json:"kubeletconfig"`
	}
	read("/configz", &configz)
	if k := configz.KubeletConfig; k.Kind != "KubeletConfiguration" || k.MaxPods != 110 || k.Port != 10250 || len(k.ClusterDNS) == 0 || k.EvictionHard["nodefs.available"] != "10%" || k.ImageMinimumGCAge.Minutes() != 2 {
		p.t.Errorf("the configuration is %+v", k)
	}
	var running corev1.PodList
	read("/runningpods/", &running)
	if !slices.ContainsFunc(running.Items, func(r corev1.Pod) bool {
		return r.Namespace == p.ns && r.Name == "counted" && r.UID != "" && len(r.Spec.Containers) == 1 && r.Spec.Containers[0].Image != ""
	}) {
		p.t.Errorf("the Pod does not run: %+v", running.Items)
	}
}
