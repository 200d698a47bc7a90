// Command kubeapiserver puts Kubernetes' own kube-apiserver on our store: on
// `edged store`, in etcd's place, and on the etcd API of a device that runs.
//
//	go run ./test/kubeapiserver -bin <kube-apiserver>
//
// On the first it makes, reads and deletes objects with kubectl. On the second it
// also has to list every object that edged itself stored, the same ones with the
// same identity and revision, and edged what the kube-apiserver stores: keys,
// encoding and the sealing of Secrets are the same, or one of them sees nothing. At the end etcdctl and etcdutl,
// beside the kube-apiserver, have to agree with edged on snapshots of the device.
// `make test-kube-apiserver` builds what it needs.
package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"edged/test/harness"
)

// tb is the harness' TB of a program.
type tb struct {
	cleanups []func()
	failed   bool
}

func (t *tb) Helper()                           {}
func (t *tb) Logf(format string, args ...any)   { log.Printf(format, args...) }
func (t *tb) Errorf(format string, args ...any) { t.failed = true; log.Printf(format, args...) }
func (t *tb) Fatalf(format string, args ...any) { panic(fmt.Errorf(format, args...)) }
func (t *tb) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *tb) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
	t.cleanups = nil
}

func main() {
	log.SetFlags(log.Ltime)
	bin := flag.String("bin", "test/conformance/work/bin/kube-apiserver", "kube-apiserver of the release that edged serves")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "test/kubeapiserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string) (err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("-bin: %w", err)
	}
	t := &tb{}
	defer func() {
		if p := recover(); p != nil {
			err = errors.Join(err, fmt.Errorf("%v", p))
		}
		if t.end(); t.failed {
			err = errors.Join(err, errors.New("the device left something behind"))
		}
	}()
	d := harness.Lone(t)
	p := &place{ctx: ctx, d: d, bin: bin, dir: filepath.Join(d.Dir, "kube-apiserver")}
	if err := p.keys(); err != nil {
		return err
	}
	if err := p.onStore(); err != nil {
		return fmt.Errorf("on edged store: %w", err)
	}
	fmt.Println("ok: kube-apiserver on edged store")
	if err := p.onDevice(); err != nil {
		return fmt.Errorf("on a device's etcd API: %w", err)
	}
	fmt.Println("ok: kube-apiserver on a device's etcd API")
	if err := p.snapshots(); err != nil {
		return fmt.Errorf("snapshots of a device: %w", err)
	}
	fmt.Println("ok: snapshots of etcdctl and edged")
	return nil
}

// place is the device and what a kube-apiserver on it needs.
type place struct {
	ctx      context.Context // ends when the run is to
	d        *harness.Device
	bin, dir string
}

const patience = 120 * time.Second

// keys writes the administrator's certificate, with which kube-apiserver comes to
// the etcd API and kubectl to it, to files.
func (p *place) keys() error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	data, err := os.ReadFile(p.d.Kubeconfig())
	if err != nil {
		return err
	}
	var c struct {
		Users []struct {
			User struct {
				Cert string `json:"client-certificate-data"`
				Key  string `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(data, &c); err != nil {
		return err
	}
	for name, text := range map[string]string{"admin.crt": c.Users[0].User.Cert, "admin.key": c.Users[0].User.Key} {
		block, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		if err := os.WriteFile(p.file(name), block, 0o600); err != nil {
			return err
		}
	}
	return p.public()
}

// public writes the public half of the key that signs ServiceAccounts' tokens:
// kube-apiserver reads it out of a private key in PKCS #8 only when that is RSA's.
func (p *place) public() error {
	text, err := os.ReadFile(p.pki("sa.key"))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("%s: no PEM", p.pki("sa.key"))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s: a %T does not sign", p.pki("sa.key"), key)
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return err
	}
	return os.WriteFile(p.file("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}

func (p *place) file(name string) string { return filepath.Join(p.dir, name) }
func (p *place) pki(name string) string  { return filepath.Join(p.d.DataDir(), "pki", name) }

// process is a program that runs on the device.
type process struct {
	name  string
	cmd   *exec.Cmd
	out   *os.File
	ended chan struct{}
}

// start runs a program on the device until its end or stop.
func (p *place) start(name string, argv ...string) (*process, error) {
	out, err := os.Create(p.file(name + ".log"))
	if err != nil {
		return nil, err
	}
	r := &process{name: name, cmd: p.d.Command(context.Background(), argv...), out: out, ended: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() { defer close(r.ended); _ = r.cmd.Wait() }() // r.exit says how
	return r, nil
}

// stop asks the program to end and waits until it has. What does not hear ends
// with the device.
func (r *process) stop() {
	if r.exit() != nil {
		return
	}
	// nsenter, which is the process that was started, waits for the program.
	pid := r.cmd.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if child, err := strconv.Atoi(strings.TrimSpace(string(children))); err == nil {
		_ = syscall.Kill(child, syscall.SIGTERM)
	}
	select {
	case <-r.ended:
	case <-time.After(20 * time.Second):
		log.Printf("%s did not end when it was asked to", r.name)
	}
	_ = r.out.Close()
}

// exit is an error if the program has ended by itself.
func (r *process) exit() error {
	select {
	case <-r.ended:
		return fmt.Errorf("%s ended: %s", r.name, r.cmd.ProcessState)
	default:
		return nil
	}
}

// tail is the end of what the program said.
func (r *process) tail() string {
	text, err := os.ReadFile(r.out.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// serve starts a kube-apiserver at port.
func (p *place) serve(name string, port int, flags ...string) (*process, error) {
	began := time.Now()
	r, err := p.start(name, append([]string{p.bin, fmt.Sprintf("--secure-port=%d", port), "--bind-address=127.0.0.1", "--cert-dir=" + p.file(name),
		"--client-ca-file=" + p.pki("ca.crt"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + p.file("sa.pub"),
		"--service-account-signing-key-file=" + p.pki("sa.key"), "--endpoint-reconciler-type=none"}, flags...)...)
	if err != nil {
		return nil, err
	}
	err = until("its readiness", func() error {
		if err := r.exit(); err != nil {
			return errFinal{err}
		}
		out, err := p.kubectl(port, "get", "--raw", "/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("%w\n%s", err, r.tail())
	}
	log.Printf("kube-apiserver %s was ready after %.1f s", name, time.Since(began).Seconds())
	return r, nil
}

// kubectl asks the kube-apiserver at port, or edged for 0.
func (p *place) kubectl(port int, args ...string) (string, error) {
	if err := p.ctx.Err(); err != nil {
		return "", errFinal{err}
	}
	if port != 0 {
		args = append([]string{"--kubeconfig=/dev/null", fmt.Sprintf("--server=https://127.0.0.1:%d", port), "--insecure-skip-tls-verify",
			"--client-certificate=" + p.file("admin.crt"), "--client-key=" + p.file("admin.key")}, args...)
	}
	return p.d.Kubectl("", args...)
}

// errFinal is one that no patience mends.
type errFinal struct{ error }

func until(what string, f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.As(err, new(errFinal)) || time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// tour makes, changes, reads and deletes objects at port.
func (p *place) tour(port int, name string) error {
	ns := []string{"-n", "default"}
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"create", "configmap", name, "--from-literal=a=b"}, "created"},
		{[]string{"create", "secret", "generic", name, "--from-literal=a=b"}, "created"},
		{[]string{"create", "deployment", name, "--image=example.org/none:1"}, "created"},
		{[]string{"create", "service", "clusterip", name, "--tcp=80"}, "created"},
		{[]string{"label", "configmap", name, "l=1"}, "labeled"},
		{[]string{"get", "configmap", name, "-o", "jsonpath={.data.a}{.metadata.labels.l}"}, "b1"},
		{[]string{"get", "deployment", name, "-o", "name"}, "deployment.apps/" + name},
		{[]string{"delete", "service/" + name, "deployment/" + name, "secret/" + name, "configmap/" + name}, "deleted"},
	} {
		out, err := p.kubectl(port, append(ns, step.args...)...)
		if err != nil || !strings.Contains(out, step.want) {
			return fmt.Errorf("kubectl %s: %w: %q, want %q", strings.Join(step.args, " "), err, out, step.want)
		}
	}
	if out, err := p.kubectl(port, "-n", "default", "get", "configmap", name); err == nil {
		return fmt.Errorf("what was deleted is there: %s", out)
	}
	return nil
}

// onStore has a kube-apiserver begin with three empty members of edged store, and
// go on with two.
func (p *place) onStore() error {
	const members, port = 3, 7443
	var cluster, clients []string
	for i := range members {
		cluster = append(cluster, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, 12380+10*i))
		clients = append(clients, fmt.Sprintf("http://127.0.0.1:%d", 12379+10*i))
	}
	var first *process
	for i := range members {
		name := fmt.Sprintf("m%d", i)
		_, peer, _ := strings.Cut(cluster[i], "=")
		m, err := p.start(name, harness.Edged(), "store", "--name="+name, "--data-dir="+p.file(name), "--listen-client-urls="+clients[i],
			"--advertise-client-urls="+clients[i], "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
			"--initial-cluster="+strings.Join(cluster, ","))
		if err != nil {
			return err
		}
		defer m.stop()
		if first == nil {
			first = m
		}
	}
	api, err := p.serve("alone", port, "--etcd-servers="+strings.Join(clients, ","))
	if err != nil {
		return err
	}
	defer api.stop()
	if err := p.tour(port, "alone"); err != nil {
		return fmt.Errorf("%w\n%s", err, api.tail())
	}
	first.stop()
	if err := p.tour(port, "bereft"); err != nil {
		return fmt.Errorf("without one member of three: %w\n%s", err, api.tail())
	}
	return nil
}

// onDevice has a kube-apiserver and edged serve the same store.
func (p *place) onDevice() error {
	for _, args := range [][]string{
		{"create", "namespace", "made-by-edged"},
		{"-n", "made-by-edged", "create", "configmap", "c", "--from-literal=a=b"},
		{"-n", "made-by-edged", "create", "secret", "generic", "s", "--from-literal=a=b"},
		{"-n", "made-by-edged", "create", "deployment", "d", "--image=example.org/none:1", "--replicas=0"},
		{"-n", "made-by-edged", "create", "service", "clusterip", "s", "--tcp=80"},
		{"-n", "made-by-edged", "create", "role", "r", "--verb=get", "--resource=pods"},
	} {
		if out, err := p.kubectl(0, args...); err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	keys, err := p.d.Edged("secrets", "export", "--run-dir", p.d.RunDir())
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.file("keys.yaml"), []byte(keys), 0o600); err != nil {
		return err
	}
	const port = 8443
	api, err := p.serve("beside", port, "--encryption-provider-config="+p.file("keys.yaml"), "--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile="+p.pki("ca.crt"),
		"--etcd-certfile="+p.file("admin.crt"), "--etcd-keyfile="+p.file("admin.key"))
	if err != nil {
		return err
	}
	defer api.stop()
	if err := p.sameObjects(port); err != nil {
		return err
	}
	if err := p.tour(port, "beside"); err != nil {
		return err
	}
	for _, kind := range []string{"configmap", "secret generic"} {
		args := append(append([]string{"-n", "default", "create"}, strings.Fields(kind)...), "theirs", "--from-literal=a=b")
		if out, err := p.kubectl(port, args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		err := until("edged to see what the kube-apiserver stored", func() error {
			out, err := p.kubectl(0, "-n", "default", "get", strings.Fields(kind)[0], "theirs", "-o", "jsonpath={.data.a}")
			if err == nil && out != "b" && out != "Yg==" {
				err = fmt.Errorf("it holds %q", out)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// changing are kinds whose objects move while two lists are compared.
var changing = []string{"events", "events.events.k8s.io", "leases.coordination.k8s.io", "nodes", "apiservices.apiregistration.k8s.io"}

// sameObjects lists every kind that edged stores at both.
func (p *place) sameObjects(port int) error {
	out, err := p.kubectl(0, "api-resources", "--verbs=list,create", "-o", "name")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	kinds, objects := 0, 0
	for _, kind := range strings.Fields(out) {
		if slices.Contains(changing, kind) {
			continue
		}
		list := func(port int) ([]string, error) {
			out, err := p.kubectl(port, "get", kind, "-A", "-o", `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}`)
			if err != nil {
				return nil, fmt.Errorf("list %s at %d: %w: %s", kind, port, err, out)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			slices.Sort(lines)
			return lines, nil
		}
		var ours, theirs []string
		err := until("the same "+kind, func() error {
			var err error
			if ours, err = list(0); err != nil {
				return err
			}
			if theirs, err = list(port); err != nil {
				return err
			}
			if !slices.Equal(ours, theirs) {
				return fmt.Errorf("edged lists\n%s\nthe kube-apiserver\n%s", strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
			}
			return nil
		})
		if err != nil {
			return err
		}
		kinds++
		if ours[0] != "" {
			objects += len(ours)
		}
	}
	if objects < 50 {
		return fmt.Errorf("only %d objects were compared", objects)
	}
	fmt.Printf("the same %d objects of %d kinds\n", objects, kinds)
	return nil
}
