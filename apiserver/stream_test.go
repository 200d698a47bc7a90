package apiserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	crstreaming "k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"edged/apiserver"
	"edged/apiserver/registry"
)

// kubelet is a device's handler: it echoes, over the library that real ones
// use, and records what it was asked for.
type kubelet struct{ asked chan string }

func (k *kubelet) Handler(node string) (http.Handler, error) {
	if node != "n1" {
		return nil, errors.New("no route to " + node)
	}
	return k, nil
}

func (k *kubelet) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case k.asked <- req.URL.String():
	default:
	}
	switch {
	case strings.HasPrefix(req.URL.Path, "/containerLogs/ns/p/gone"), strings.HasPrefix(req.URL.Path, "/containerLogs/default/p/c") && req.URL.Query().Get("previous") == "true":
		http.Error(w, `previous terminated container "c" in pod "p" not found`, http.StatusBadRequest)
	case strings.HasPrefix(req.URL.Path, "/containerLogs/"):
		fmt.Fprintln(w, "line 1")
		http.NewResponseController(w).Flush()
		fmt.Fprintln(w, "line 2")
	case strings.HasPrefix(req.URL.Path, "/exec/"):
		opts, err := crstreaming.NewOptions(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		crstreaming.ServeExec(w, req, k, "p", "", "c", req.URL.Query()["command"], opts, time.Minute, time.Minute, crstreaming.SupportedStreamingProtocols)
	default:
		fmt.Fprint(w, "node ", req.Method, " ", req.URL.Path)
	}
}

// ExecInContainer copies stdin to stdout.
func (k *kubelet) ExecInContainer(ctx context.Context, name, uid, container string, cmd []string, in io.Reader, out, _ io.WriteCloser, tty bool, _ <-chan crstreaming.TerminalSize, _ time.Duration) error {
	fmt.Fprintf(out, "%v:", cmd)
	_, err := io.Copy(out, in)
	return err
}

func streamEnv(t *testing.T) (*env, *kubelet) {
	k := &kubelet{asked: make(chan string, 10)}
	e := newEnv(t, func(c *apiserver.Config) { c.Nodes = k })
	return e, k
}

func (e *env) makePod(name string, change func(*corev1.Pod)) *corev1.Pod {
	e.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if change != nil {
		change(pod)
	}
	out, err := registry.For[*corev1.Pod](e.reg).Create(context.Background(), pod)
	must(e.t, err)
	return out
}

func TestLogs(t *testing.T) {
	e, k := streamEnv(t)
	e.makePod("p", nil)
	c := e.clientset(e.admin()).CoreV1().Pods("default")
	lines, since := int64(3), metav1.NewTime(time.Unix(1000, 0).UTC())
	got, err := c.GetLogs("p", &corev1.PodLogOptions{TailLines: &lines, SinceTime: &since, Follow: true}).DoRaw(context.Background())
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if string(got) != "line 1\nline 2\n" {
		t.Errorf("log %q", got)
	}
	if asked := <-k.asked; asked != "/containerLogs/default/p/c?follow=true&sinceTime=1970-01-01T00%3A16%3A40Z&tailLines=3" {
		t.Errorf("the device was asked for %s", asked)
	}
	_, err = c.GetLogs("p", &corev1.PodLogOptions{Previous: true}).Stream(context.Background())
	if !apierrors.IsBadRequest(err) || err.Error() != `previous terminated container "c" in pod "p" not found` {
		t.Errorf("refused log: %v", err)
	}
	_, err = c.GetLogs("p", &corev1.PodLogOptions{Container: "other"}).Stream(context.Background())
	if err == nil || err.Error() != "container other is not valid for pod p" {
		t.Errorf("unknown container: %v", err)
	}
	negative := int64(-1)
	if _, err = c.GetLogs("p", &corev1.PodLogOptions{TailLines: &negative}).DoRaw(context.Background()); !apierrors.IsInvalid(err) {
		t.Errorf("tailLines -1: %v", err)
	}
	e.makePod("two", func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "d", Image: "i"})
	})
	_, err = c.GetLogs("two", &corev1.PodLogOptions{}).Stream(context.Background())
	if err == nil || err.Error() != "a container name must be specified for pod two, choose one of: [c d]" {
		t.Errorf("no container named: %v", err)
	}
}

// TestExec goes the whole way over SPDY, as kubectl's fallback does.
func TestExec(t *testing.T) {
	e, k := streamEnv(t)
	e.makePod("p", nil)
	admin := e.admin()
	req := e.clientset(admin).CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("p").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"cat", "-"}, Stdin: true, Stdout: true}, scheme.ParameterCodec)
	exec, err := remotecommand.NewSPDYExecutor(admin, "POST", req.URL())
	must(t, err)
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must(t, exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out}))
	if out.String() != "[cat -]:hello" {
		t.Errorf("got %q", out.String())
	}
	if asked := <-k.asked; asked != "/exec/default/p/c?command=cat&command=-&input=1&output=1" {
		t.Errorf("the device was asked for %s", asked)
	}
}

// TestExecNeedsCreate: rights to read Pods do not run commands in them, though
// a WebSocket handshake is a GET.
func TestExecNeedsCreate(t *testing.T) {
	e, _ := streamEnv(t)
	e.makePod("p", nil)
	e.allow("eve", "get", "pods/exec")
	resp := e.do(e.config("eve"), "GET", "/api/v1/namespaces/default/pods/p/exec?command=ls&stdout=1", http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}})
	if body := text(t, resp); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "cannot create resource") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestExecWithoutNode(t *testing.T) {
	e, _ := streamEnv(t)
	e.makePod("unbound", func(p *corev1.Pod) { p.Spec.NodeName = "" })
	e.makePod("far", func(p *corev1.Pod) { p.Spec.NodeName = "n2" })
	for name, want := range map[string]int{"unbound": 400, "far": 500, "none": 404} {
		resp := e.do(e.admin(), "POST", "/api/v1/namespaces/default/pods/"+name+"/exec?command=ls&stdout=1", nil)
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text(t, resp))
		}
	}
}

// TestProxy reaches a server at a Pod's address, with every verb, and the
// device's own API.
func TestProxy(t *testing.T) {
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/redirect" {
			http.Redirect(w, req, "/there", http.StatusFound)
			return
		}
		if req.URL.Path == "/page" {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, `<a href="/x">1</a> <a href="y">2</a> <img src="http://%s/z"> <a href="http://other/x">4</a>`, req.Host)
			return
		}
		body, _ := io.ReadAll(req.Body)
		fmt.Fprintf(w, "%s %s?%s %s auth=%q", req.Method, req.URL.Path, req.URL.RawQuery, body, req.Header.Get("Authorization"))
	}))
	backend.StartTLS()
	defer backend.Close()
	address := backend.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	k := &kubelet{asked: make(chan string, 1)}
	e := newEnv(t, func(c *apiserver.Config) {
		c.Nodes = k
		c.ProxyDial = func(ctx context.Context, network, _ string) (net.Conn, error) { // the Pod's network
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	n, _ := strconv.Atoi(port)
	e.makePod("p", func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: int32(n)}}
	})
	_, err := registry.For[*corev1.Pod](e.reg).UpdateStatus(context.Background(), "default", "p", func(p *corev1.Pod) error {
		p.Status.PodIP, p.Status.PodIPs = "10.42.0.7", []corev1.PodIP{{IP: "10.42.0.7"}}
		return nil
	})
	must(t, err)
	_, err = registry.For[*corev1.Node](e.reg).Create(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	must(t, err)
	admin := noRedirects(t, e, e.admin())
	base := e.url + "/api/v1/namespaces/default/pods/https:p:" + port + "/proxy"
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		req, err := http.NewRequest(method, base+"/a/b?x=1", strings.NewReader("body"))
		must(t, err)
		resp, err := admin.Do(req)
		must(t, err)
		if got, want := text(t, resp), method+` /a/b?x=1 body auth=""`; got != want {
			t.Errorf("%s: %d %q, want %q", method, resp.StatusCode, got, want)
		}
		resp.Body.Close()
	}
	for path, want := range map[string]string{
		"":          "/api/v1/namespaces/default/pods/https:p:" + port + "/proxy/",
		"/redirect": "/api/v1/namespaces/default/pods/https:p:" + port + "/proxy/there",
	} {
		resp, err := admin.Get(base + path)
		must(t, err)
		resp.Body.Close()
		if got := resp.Header.Get("Location"); got != want {
			t.Errorf("%q: %d to %q, want %q", path, resp.StatusCode, got, want)
		}
	}
	prefix := "/api/v1/namespaces/default/pods/https:p:" + port + "/proxy"
	want := fmt.Sprintf(`<a href="%[1]s/x">1</a> <a href="y">2</a> <img src="%[2]s%[1]s/z"> <a href="http://other/x">4</a>`,
		prefix, strings.Replace(e.url, "https:", "http:", 1))
	if got := text(t, e.do(e.admin(), "GET", prefix+"/page", nil)); got != want {
		t.Errorf("links of a page: %s, want %s", got, want)
	}
	resp := e.do(e.admin(), "GET", "/api/v1/nodes/n1/proxy/stats/summary", nil)
	if got := text(t, resp); got != "node GET /stats/summary" {
		t.Errorf("node proxy: %q", got)
	}
	resp = e.do(e.admin(), "GET", "/api/v1/namespaces/default/pods/none/proxy/", nil)
	if resp.StatusCode != 404 {
		t.Errorf("no such pod: %d", resp.StatusCode)
	}
}

func noRedirects(t *testing.T, e *env, cfg *rest.Config) *http.Client {
	t.Helper()
	c, err := rest.HTTPClientFor(cfg)
	must(t, err)
	copied := *c
	copied.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &copied
}
