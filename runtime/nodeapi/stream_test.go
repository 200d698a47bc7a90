package nodeapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"edged/runtime/engine"
	"edged/runtime/nodeapi"
	"edged/runtime/pod"
)

// device has one Pod with one running container, whose commands are Go code.
type device struct{}

func (d *device) Find(ns, name string) (*corev1.Pod, *pod.Worker, bool) {
	if ns != "ns" || name != "p" {
		return nil, nil, false
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "uid"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}},
	}, nil, true
}

func (d *device) Report() []*corev1.Pod {
	p, _, _ := d.Find("ns", "p")
	p.Status.Phase = corev1.PodRunning
	return []*corev1.Pod{p}
}

func (d *device) List() []engine.Container {
	return []engine.Container{{ID: "1", State: engine.Running, Labels: map[string]string{
		"io.kubernetes.pod.uid": "uid", "io.kubernetes.container.name": "c", "io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.name": "p",
		"io.edged.attempt": "0",
	}}}
}

// Exec runs one of four commands: cat, fail, none and size.
func (d *device) Exec(ctx context.Context, _ string, spec engine.ExecSpec, s engine.Streams) (int, error) {
	switch spec.Args[0] {
	case "cat":
		_, err := io.Copy(s.Stdout, s.Stdin)
		fmt.Fprint(s.Stderr, "done")
		return 0, err
	case "fail":
		return 7, nil
	case "none":
		return 0, errors.New("not found")
	case "size":
		select {
		case size := <-s.Resize:
			fmt.Fprintf(s.Stdout, "%dx%d", size.Width, size.Height)
		case <-ctx.Done():
		}
	}
	return 0, nil
}

func (d *device) Stdin(context.Context, string) (io.WriteCloser, error) {
	return nil, engine.ErrNotRunning
}
func (d *device) CloseStdin(context.Context, string) error             { return nil }
func (d *device) ResizeTTY(context.Context, string, engine.Size) error { return nil }

func serve(t *testing.T, dial func(context.Context, *corev1.Pod, int32) (net.Conn, error)) *rest.Config {
	t.Helper()
	d := &device{}
	ts := httptest.NewServer(nodeapi.New(nodeapi.Config{
		Pods: d, Engine: d, Dial: dial, Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1") }),
		Logger: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(func() {
		ts.CloseClientConnections()
		ts.Close()
	})
	return &rest.Config{Host: ts.URL}
}

type executorFunc func(cfg *rest.Config, u string) (remotecommand.Executor, error)

// executors are kubectl's first choice and its fallback.
var executors = map[string]executorFunc{
	"v5": func(cfg *rest.Config, u string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(cfg, "GET", u)
	},
	"spdy": func(cfg *rest.Config, u string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(u)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(cfg, "POST", parsed)
	},
}

// TestPods: the list is what a client decodes as Pods.
func TestPods(t *testing.T) {
	resp, err := http.Get(serve(t, nil).Host + "/pods")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list corev1.PodList
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	if list.Kind != "PodList" || list.APIVersion != "v1" || len(list.Items) != 1 || list.Items[0].Name != "p" || list.Items[0].Status.Phase != corev1.PodRunning {
		t.Errorf("%+v", list)
	}
}

// TestMetrics: what the daemon counts is passed on.
func TestMetrics(t *testing.T) {
	resp, err := http.Get(serve(t, nil).Host + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "up 1" {
		t.Errorf("%d %q %v", resp.StatusCode, body, err)
	}
}

// TestExec: output, the end of stdin, exit codes and window sizes arrive by
// either protocol.
func TestExec(t *testing.T) {
	for name, newExecutor := range executors {
		t.Run(name, func(t *testing.T) {
			cfg := serve(t, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			run := func(query string, opts remotecommand.StreamOptions) error {
				e, err := newExecutor(cfg, cfg.Host+"/exec/ns/p/c?"+query)
				if err != nil {
					t.Fatal(err)
				}
				return e.StreamWithContext(ctx, opts)
			}
			var out, errOut bytes.Buffer
			text := strings.Repeat("0123456789", 10_000)
			err := run("command=cat&input=1&output=1&error=1", remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errOut})
			if err != nil || out.String() != text || errOut.String() != "done" {
				t.Errorf("cat: %v, %d bytes, stderr %q", err, out.Len(), errOut.String())
			}
			err = run("command=fail&output=1", remotecommand.StreamOptions{Stdout: &out})
			if code, ok := err.(exec.CodeExitError); !ok || code.Code != 7 {
				t.Errorf("fail: %v, want exit code 7", err)
			}
			err = run("command=none&output=1", remotecommand.StreamOptions{Stdout: &out})
			if err == nil || !strings.Contains(err.Error(), "error executing command in container: not found") {
				t.Errorf("a command that is not there: %v", err)
			}
			out.Reset()
			err = run("command=size&output=1&tty=1", remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}})
			if err != nil || out.String() != "80x24" {
				t.Errorf("size: %v %q", err, out.String())
			}
		})
	}
}

type oneSize struct{ sent bool }

func (q *oneSize) Next() *remotecommand.TerminalSize {
	if q.sent {
		return nil
	}
	q.sent = true
	return &remotecommand.TerminalSize{Width: 80, Height: 24}
}

func TestRefused(t *testing.T) {
	cfg := serve(t, nil)
	e, err := executors["v5"](cfg, cfg.Host+"/exec/ns/none/c?command=cat&output=1")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil || !strings.Contains(err.Error(), `pod "none" not found`) {
		t.Errorf("a Pod that is not here: %v", err)
	}
}

// TestPortForward sends bytes through a tunnel, kubectl's first choice.
func TestPortForward(t *testing.T) {
	dial := func(_ context.Context, p *corev1.Pod, port int32) (net.Conn, error) {
		if port != 80 {
			return nil, fmt.Errorf("connection refused")
		}
		here, there := net.Pipe()
		go func() {
			io.Copy(there, there) // an echo
			there.Close()
		}()
		return here, nil
	}
	cfg := serve(t, dial)
	u, err := url.Parse(cfg.Host + "/portForward/ns/p")
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(tunnel, []string{":80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 100_000)
	go io.WriteString(conn, text)
	got := make([]byte, len(text))
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Errorf("%v", err)
	}
	conn.Close()
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
