package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// usersProgram is a program of test/users, which takes long to build.
func usersProgram(t *testing.T, name string) string {
	t.Helper()
	if os.Getenv("EDGED_USERS") == "" {
		t.Skip("make test-helm runs it")
	}
	return filepath.Join(filepath.Dir(harness.Edged()), name)
}

// TestHelm takes a release through its life: a chart with a definition and an
// object of it, hooks, tests; a failed upgrade that rolls itself back.
func TestHelm(t *testing.T) {
	helm := usersProgram(t, "helm")
	chart, err := filepath.Abs("../users/chart")
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	home := t.TempDir()
	run := func(args ...string) (string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := p.Command(ctx, append([]string{helm, "-n", p.ns}, args...)...)
		cmd.Env = append(cmd.Env, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	expect := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("helm %s: %v\n%s\nwant %q in it\n%s", strings.Join(args, " "), err, out, want, p.LogTail())
		}
	}
	refuse := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err == nil || !strings.Contains(out, want) {
			t.Fatalf("helm %s: %v\n%s\nwant a failure with %q in it", strings.Join(args, " "), err, out, want)
		}
	}
	color := func(want string) {
		t.Helper()
		for _, args := range [][]string{
			{"configmap", "shop", "-o", "jsonpath={.data.color}"}, {"widget", "shop", "-o", "jsonpath={.spec.color}"},
			{"deployment", "shop", "-o", "jsonpath={.status.readyReplicas}"},
		} {
			w := want
			if args[0] == "deployment" {
				w = "2"
			}
			if out := p.kubectl(append([]string{"get"}, args...)...); out != w {
				t.Errorf("%s: %q, want %q", args[0], out, w)
			}
		}
	}
	wait := []string{"--wait", "--timeout", "120s"}
	with := func(args ...string) []string { return append(args, wait...) }

	expect("STATUS: deployed", with("install", "shop", chart)...)
	color("red")
	expect("Phase:          Succeeded", "test", "shop", "--timeout", "120s")
	expect("shop is blue", with("upgrade", "shop", chart, "--set", "color=blue")...)
	color("blue")
	expect("color: blue", "get", "values", "shop")
	expect("kind: Widget", "get", "manifest", "shop")
	expect("helm.sh/hook: post-upgrade", "get", "hooks", "shop")
	expect("Dry run complete", "upgrade", "shop", chart, "--dry-run=server", "--set", "color=green")
	refuse("has been rolled back", "upgrade", "shop", chart, "--set", "color=green,waitsFor=/nowhere", "--rollback-on-failure", "--wait", "--timeout", "15s")
	color("blue")
	refuse("post-upgrade hooks failed", with("upgrade", "shop", chart, "--set", "hook=false")...)
	expect("Rollback was a success", with("rollback", "shop", "1")...)
	color("red")
	refuse(`Unsupported value: "purple"`, "upgrade", "shop", chart, "--set", "color=purple")
	expect("STATUS: deployed", with("upgrade", "shop", chart, "--server-side=false", "--set", "color=green")...)
	expect("superseded", "history", "shop")
	expect("STATUS: deployed", "status", "shop")
	refuse("has been uninstalled", "install", "other", chart, "--set", "hook=false", "--rollback-on-failure", "--wait", "--timeout", "60s")
	if out, err := run("list", "-q"); err != nil || strings.TrimSpace(out) != "shop" {
		t.Errorf("releases: %q, %v", out, err)
	}
	// What releases hold is sealed like any other Secret.
	stored, err := p.Edged("snapshot", "save", "--run-dir", p.RunDir(), filepath.Join(p.Dir, "helm.db"))
	if err != nil {
		t.Fatal(stored, err)
	}
	data, err := os.ReadFile(filepath.Join(p.Dir, "helm.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte("sh.helm.release.v1.shop.v1")) || bytes.Contains(data, []byte("helm.sh/release.v1")) {
		t.Error("the snapshot has no release, or one that is not sealed")
	}
	expect("uninstalled", with("uninstall", "shop")...)
	if out := p.kubectl("get", "deployments,services,secrets,widgets,roles", "-o", "name"); out != "" {
		t.Errorf("left of the release: %s", out)
	}
	manifest, err := run("template", "shop", chart, "--no-hooks", "--set", "color=green")
	if err != nil {
		t.Fatal(manifest, err)
	}
	p.apply(manifest)
	p.kubectl("rollout", "status", "deployment/shop", "--timeout=120s")
	color("green")
	if out, err := p.Kubectl(manifest, "-n", p.ns, "diff", "-f", "-"); err != nil {
		t.Errorf("what was applied differs from what is there: %v %s", err, out)
	}
	p.MustKubectl("", "delete", "crd", "widgets.shop.example")
}

const shelves = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: shelves.operator.example}
spec:
  group: operator.example
  scope: Namespaced
  names: {plural: shelves, singular: shelf, kind: Shelf}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [text], properties: {text: {type: string}, copies: {type: integer}}}
          status:
            type: object
            properties:
              observedGeneration: {type: integer}
              conditions: {type: array, items: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// TestOperator runs two replicas of a program on controller-runtime, and kills the
// daemon under them: what they watch goes on where it was, and nothing is read anew.
func TestOperator(t *testing.T) {
	operator := usersProgram(t, "operator")
	d := harness.Lone(t)
	p := placeOn(t, d)
	d.MustKubectl(shelves, "apply", "-f", "-")
	d.MustKubectl("", "wait", "--for=condition=Established", "crd/shelves.operator.example", "--timeout=60s")
	certs := t.TempDir()
	ca := selfSigned(t, certs)
	d.MustKubectl(webhooks(ca), "apply", "-f", "-")

	first := startOperator(t, d, operator, "--metrics=127.0.0.1:9440", "--webhook-port=9443", "--certs="+certs)
	holder := func() string {
		out, _ := d.Kubectl("", "-n", "default", "get", "lease", "shelf-operator", "-o", "jsonpath={.spec.holderIdentity}")
		return out
	}
	p.eventually(60*time.Second, "the operator leads", func() error {
		if holder() == "" {
			return fmt.Errorf("nobody holds the lease: %s", first.tail())
		}
		return nil
	})
	leader := holder()
	second := startOperator(t, d, operator, "--metrics=127.0.0.1:9441")

	shelf := func(name, text, more string) string {
		return "{apiVersion: operator.example/v1, kind: Shelf, metadata: {name: " + name + "}, spec: {text: " + text + more + "}}"
	}
	filled := func(name, text string) {
		t.Helper()
		p.eventually(60*time.Second, name+" is filled", func() error {
			out, err := p.Kubectl("", "-n", p.ns, "get", "configmap", name, "-o", "jsonpath={.data.text}")
			if err != nil || out != text {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		})
		p.kubectl("wait", "--for=condition=Ready", "shelf/"+name, "--timeout=60s")
	}
	p.eventually(60*time.Second, "the webhook answers", func() error {
		_, err := p.Kubectl("---\n"+shelf("one", "ab", ""), "-n", p.ns, "apply", "-f", "-")
		return err
	})
	filled("one", "ab")
	if out := p.kubectl("get", "shelf", "one", "-o", "jsonpath={.spec.copies}"); out != "1" {
		t.Errorf("the webhook's default: %q", out)
	}
	if out, err := p.Kubectl("---\n"+shelf("many", "ab", ", copies: 11"), "-n", p.ns, "apply", "-f", "-"); err == nil || !strings.Contains(out, "a shelf holds at most 10 copies") {
		t.Errorf("too many copies: %v %s", err, out)
	}
	bent := p.Command(context.Background(), kubectlArgs(p, "apply", "-f", "-")...)
	bent.Stdin = strings.NewReader("---\n" + shelf("bent", "x", ", copies: 6"))
	if out, err := bent.CombinedOutput(); err != nil || !strings.Contains(string(out), "Warning: this shelf bends") {
		t.Errorf("a warning: %v %s", err, out)
	}
	filled("bent", "xxxxxx")

	before := first.requests()
	if before["WATCHLIST /apis/operator.example/v1/shelves"] != 1 || before["GET /apis/operator.example/v1/shelves"] != 0 {
		t.Errorf("the cache was not filled by a streamed list: %v", before)
	}
	uid := p.kubectl("get", "shelf", "one", "-o", "jsonpath={.metadata.uid}")
	d.Kill()
	d.Start()
	d.WaitReady()
	p.apply("---\n" + shelf("one", "cd", ", copies: 2"))
	filled("one", "cdcd")
	if got := p.kubectl("get", "shelf", "one", "-o", "jsonpath={.metadata.uid}"); got != uid || holder() != leader {
		t.Errorf("after the restart: uid %s was %s, leader %s was %s", got, uid, holder(), leader)
	}
	after := first.requests()
	for _, path := range []string{"/apis/operator.example/v1/shelves", "/api/v1/configmaps"} {
		if after["WATCHLIST "+path] != 1 || after["GET "+path] != 0 {
			t.Errorf("%s was listed again: %v", path, after)
		}
		if n := after["WATCH "+path] - before["WATCH "+path]; n < 1 {
			t.Errorf("%s is watched %d times more", path, n)
		}
	}

	first.terminate()
	d.MustKubectl("", "delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "shelves") // the first served them
	p.eventually(60*time.Second, "the other leads", func() error {
		if h := holder(); h == "" || h == leader {
			return fmt.Errorf("%q holds the lease: %s", h, second.tail())
		}
		return nil
	})
	p.kubectl("delete", "shelf", "one", "--timeout=60s")
	if out := p.kubectl("get", "configmap", "one-gone", "-o", "jsonpath={.data.text}"); out != "cd" {
		t.Errorf("what the finalizer left: %q", out)
	}
	p.kubectl("wait", "--for=delete", "configmap/one", "--timeout=60s") // the garbage collector's
	p.kubectl("delete", "shelves", "--all", "--timeout=60s")
}

type operatorProcess struct {
	t    *testing.T
	d    *harness.Device
	cmd  *exec.Cmd
	log  string // file of its output
	pid  string // file of its process' id on the device
	addr string
}

// tail is the end of its output.
func (o *operatorProcess) tail() string {
	data, err := os.ReadFile(o.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8192):])
}

func startOperator(t *testing.T, d *harness.Device, argv ...string) *operatorProcess {
	t.Helper()
	o := &operatorProcess{t: t, d: d, log: filepath.Join(t.TempDir(), "log"), pid: filepath.Join(t.TempDir(), "pid")}
	o.cmd = d.Command(context.Background(), append([]string{"sh", "-c", `echo $$ >"$0"; exec "$@"`, o.pid}, argv...)...)
	o.addr = strings.TrimPrefix(argv[1], "--metrics=")
	out, err := os.Create(o.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	o.cmd.Stdout, o.cmd.Stderr = out, out
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		o.cmd.Process.Kill()
		o.cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", argv[1], o.tail())
		}
	})
	return o
}

// terminate is SIGTERM to the operator, not to what entered the device with it.
func (o *operatorProcess) terminate() {
	o.t.Helper()
	pid, err := os.ReadFile(o.pid)
	if err == nil {
		_, err = o.d.Run("kill", strings.TrimSpace(string(pid)))
	}
	if err == nil {
		err = o.cmd.Wait()
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// requests are what the operator has asked of the API.
func (o *operatorProcess) requests() map[string]int {
	o.t.Helper()
	conn, err := o.d.Dial(context.Background(), "tcp", o.addr)
	if err != nil {
		o.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /requests HTTP/1.0\r\n\r\n"); err != nil {
		o.t.Fatal(err)
	}
	data, err := io.ReadAll(conn)
	if err != nil {
		o.t.Fatal(err)
	}
	counts := map[string]int{}
	_, body, _ := strings.Cut(string(data), "\r\n\r\n")
	for line := range strings.Lines(body) {
		var method, path string
		var n int
		if _, err := fmt.Sscan(line, &method, &path, &n); err != nil {
			o.t.Fatalf("%q: %v", line, err)
		}
		counts[method+" "+path] = n
	}
	return counts
}

// selfSigned makes a serving certificate for 127.0.0.1 in dir, and returns it.
func selfSigned(t *testing.T, dir string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shelves"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert
}

func webhooks(ca []byte) string {
	var out strings.Builder
	for kind, path := range map[string]string{"MutatingWebhookConfiguration": "mutate", "ValidatingWebhookConfiguration": "validate"} {
		fmt.Fprintf(&out, `
---
apiVersion: admissionregistration.k8s.io/v1
kind: %s
metadata: {name: shelves}
webhooks:
- name: %s.operator.example
  admissionReviewVersions: [v1]
  sideEffects: None
  clientConfig: {url: "https://127.0.0.1:9443/%s-operator-example-v1-shelf", caBundle: %s}
  rules: [{apiGroups: [operator.example], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [shelves]}]
`, kind, path, path, base64.StdEncoding.EncodeToString(ca))
	}
	return out.String()
}
