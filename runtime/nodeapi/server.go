package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"edged/internal/usage"
	"edged/runtime/engine"
	"edged/runtime/pod"
	"edged/runtime/podlog"
)

const (
	// IdleTimeout ends a stream on which nothing is said, the kubelet's default.
	IdleTimeout   = 4 * time.Hour
	streamTimeout = 30 * time.Second
)

// Pods finds the device's Pods.
type Pods interface {
	Find(namespace, name string) (*corev1.Pod, *pod.Worker, bool)
	// Report lists them with their statuses as the device knows them.
	Report() []*corev1.Pod
}

// Engine is what the API needs of runtime/engine.
type Engine interface {
	List() []engine.Container
	Exec(ctx context.Context, id string, spec engine.ExecSpec, streams engine.Streams) (int, error)
	Stdin(ctx context.Context, id string) (io.WriteCloser, error)
	CloseStdin(ctx context.Context, id string) error
	ResizeTTY(ctx context.Context, id string, size engine.Size) error
}

// Config is what New needs.
type Config struct {
	Pods    Pods
	Engine  Engine
	LogRoot string
	// NodeLogs is the folder of the device's own logs, /var/log.
	NodeLogs string
	// Dial connects to an address as the network namespace of the Pod uid sees it.
	Dial func(ctx context.Context, p *corev1.Pod, port int32) (net.Conn, error)
	// Metrics are the node agent's, in Prometheus' format; nil for none.
	Metrics http.Handler
	// Resources tells what the device and its Pods use, as metrics-server reads it; nil
	// for none.
	Resources http.Handler
	// Stats tells more of it; nil for none.
	Stats Stats
	// Configuration is what the node agent runs by, a KubeletConfiguration's JSON; nil for
	// none.
	Configuration json.RawMessage
	Logger        *slog.Logger
}

type server struct{ Config }

// New returns the API.
func New(cfg Config) http.Handler {
	s := &server{cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("GET /pods", s.list)
	for _, path := range []string{"GET /runningpods", "GET /runningpods/{$}"} { // the kubelet answers both
		mux.HandleFunc(path, s.running)
	}
	if cfg.Metrics != nil {
		mux.Handle("GET /metrics", cfg.Metrics)
	}
	if cfg.Resources != nil {
		mux.Handle("GET /metrics/resource", cfg.Resources)
	}
	if cfg.Stats != nil {
		for _, method := range []string{"GET ", "POST "} {
			mux.HandleFunc(method+"/stats/summary", s.summary)
		}
		mux.HandleFunc("GET "+usage.Path, s.usage)
	}
	if cfg.Configuration != nil {
		mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
			s.write(w, map[string]json.RawMessage{"kubeletconfig": s.Configuration})
		})
	}
	mux.Handle("GET /logs/", nodeLogs(cfg.NodeLogs))
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, method := range []string{"GET ", "POST "} {
		mux.HandleFunc(method+"/exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+"/attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+"/portForward/{namespace}/{pod}", s.portForward)
	}
	return mux
}

// list answers with a PodList, as the kubelet does in JSON only.
func (s *server) list(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.Pods.Report() {
		list.Items = append(list.Items, *p)
	}
	s.write(w, &list)
}

// httpError is an answer before a stream begins.
type httpError struct {
	code int
	error
}

func (s *server) refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var h httpError
	if errors.As(err, &h) {
		code = h.code
	}
	http.Error(w, err.Error(), code)
}

// target is the container that a request is about.
type target struct {
	pod       *corev1.Pod
	worker    *pod.Worker
	container string
}

func (s *server) target(r *http.Request) (target, error) {
	ns, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	p, w, ok := s.Pods.Find(ns, name)
	if !ok {
		return target{}, httpError{http.StatusNotFound, fmt.Errorf("pod %q not found in namespace %q", name, ns)}
	}
	t := target{p, w, container}
	if container != "" && !slices.Contains(pod.Containers(p), container) {
		return t, httpError{http.StatusNotFound, fmt.Errorf("container %q not found in pod %q", container, name)}
	}
	return t, nil
}

// attempts are the container's records in the engine, newest last.
func (s *server) attempts(t target) []engine.Container {
	return pod.Attempts(string(t.pod.UID), t.container, s.Engine.List())
}

func (s *server) runningAttempt(t target) (engine.Container, error) {
	if list := s.attempts(t); len(list) > 0 && list[len(list)-1].State == engine.Running {
		return list[len(list)-1], nil
	}
	return engine.Container{}, httpError{http.StatusBadRequest, fmt.Errorf("container %q in pod %q is not running", t.container, t.pod.Name)}
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	t, err := s.target(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	o, previous, err := logOptions(r)
	if err != nil {
		s.refuse(w, httpError{http.StatusBadRequest, err})
		return
	}
	attempt, err := s.attempt(t, previous)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if !previous {
		o.Running = func() bool {
			list := s.attempts(t)
			return len(list) > 0 && list[len(list)-1].State == engine.Running && pod.Attempt(list[len(list)-1]) == attempt
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Transfer-Encoding", "chunked")
	dir := podlog.Dir(s.LogRoot, t.pod.Namespace, t.pod.Name, string(t.pod.UID))
	out := flusher{w, http.NewResponseController(w)}
	if err := podlog.Read(r.Context(), podlog.Path(dir, t.container, attempt), o, out); err != nil && r.Context().Err() == nil {
		s.Logger.Debug("a log was not sent", "pod", t.pod.Namespace+"/"+t.pod.Name, "err", err)
	}
}

// attempt is the one whose log is asked for.
func (s *server) attempt(t target, previous bool) (int, error) {
	list := s.attempts(t)
	cur := -1
	if n := len(list); n > 0 {
		cur = pod.Attempt(list[n-1])
	} else if cs := pod.KnownStatus(t.pod, t.container); cs != nil && (cs.ContainerID != "" || cs.LastTerminationState.Terminated != nil) {
		cur = int(cs.RestartCount)
	}
	switch {
	case previous && cur > 0:
		return cur - 1, nil
	case previous:
		return 0, httpError{http.StatusBadRequest, fmt.Errorf("previous terminated container %q in pod %q not found", t.container, t.pod.Name)}
	case cur < 0:
		reason := "ContainerCreating"
		if cs := pod.KnownStatus(t.pod, t.container); cs != nil && cs.State.Waiting != nil {
			reason = cs.State.Waiting.Reason
		}
		text := "is waiting to start: " + reason
		if reason == "ErrImagePull" || reason == "ImagePullBackOff" {
			text = "is waiting to start: trying and failing to pull image"
		}
		return 0, httpError{http.StatusBadRequest, fmt.Errorf("container %q in pod %q %s", t.container, t.pod.Name, text)}
	}
	return cur, nil
}

func logOptions(r *http.Request) (o podlog.Options, previous bool, err error) {
	q := r.URL.Query()
	flag := func(name string) bool { b, e := strconv.ParseBool(q.Get(name)); return e == nil && b }
	o = podlog.Options{Follow: flag("follow"), Timestamps: flag("timestamps"), Tail: -1}
	if s := q.Get("tailLines"); s != "" {
		if o.Tail, err = strconv.ParseInt(s, 10, 64); err != nil || o.Tail < 0 {
			return o, false, fmt.Errorf("tailLines: %q is not a number of lines", s)
		}
	}
	if s := q.Get("limitBytes"); s != "" {
		if o.LimitBytes, err = strconv.ParseInt(s, 10, 64); err != nil || o.LimitBytes < 1 {
			return o, false, fmt.Errorf("limitBytes: %q is not a number of bytes", s)
		}
	}
	if s := q.Get("sinceSeconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 1 {
			return o, false, fmt.Errorf("sinceSeconds: %q is not a number of seconds", s)
		}
		o.Since = time.Now().Add(-time.Duration(n) * time.Second)
	}
	if s := q.Get("sinceTime"); s != "" {
		if o.Since, err = time.Parse(time.RFC3339, s); err != nil {
			return o, false, fmt.Errorf("sinceTime: %w", err)
		}
	}
	switch q.Get("stream") {
	case "Stdout":
		o.Stream = "stdout"
	case "Stderr":
		o.Stream = "stderr"
	}
	return o, flag("previous"), nil
}

// flusher sends each line as it is written.
type flusher struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

var protocols = []string{
	remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV1Name,
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	t, err := s.target(r)
	if err == nil {
		_, err = s.runningAttempt(t)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		s.refuse(w, httpError{http.StatusBadRequest, err})
		return
	}
	if wantsV5(r) {
		s.serveV5(w, r, opts, "executing command in", func(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return streams{s, t}.ExecInContainer(ctx, "", "", "", r.URL.Query()["command"], in, out, errOut, opts.TTY, resize, 0)
		})
		return
	}
	remotecommand.ServeExec(w, r, streams{s, t}, t.pod.Name, string(t.pod.UID), t.container, r.URL.Query()["command"], opts, IdleTimeout, streamTimeout, protocols)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	t, err := s.target(r)
	if err == nil {
		_, err = s.runningAttempt(t)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		s.refuse(w, httpError{http.StatusBadRequest, err})
		return
	}
	if wantsV5(r) {
		s.serveV5(w, r, opts, "attaching to", func(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
			return streams{s, t}.AttachContainer(ctx, "", "", "", in, out, errOut, opts.TTY, resize)
		})
		return
	}
	remotecommand.ServeAttach(w, r, streams{s, t}, t.pod.Name, string(t.pod.UID), t.container, opts, IdleTimeout, streamTimeout, protocols)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	t, err := s.target(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if wantsTunnel(r) {
		tw, tr, closer, err := openTunnel(w, r)
		if err != nil {
			s.Logger.Debug("a tunnel was not opened", "path", r.URL.Path, "err", err)
			return
		}
		defer closer.Close()
		w, r = tw, tr
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		s.refuse(w, httpError{http.StatusBadRequest, err})
		return
	}
	portforward.ServePortForward(w, r, streams{s, t}, t.pod.Name, string(t.pod.UID), opts, IdleTimeout, streamTimeout, portforward.SupportedProtocols)
}

// streams carries out one request once its streams are open. It is
// cri-streaming's Executor, Attacher and PortForwarder.
type streams struct {
	*server
	t target
}

// ExecInContainer runs a command.
func (s streams) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	c, err := s.runningAttempt(s.t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	es := engine.Streams{Stdin: in, Resize: sizes(ctx, resize)}
	if out != nil {
		es.Stdout = out
	}
	if errOut != nil {
		es.Stderr = errOut
	}
	code, err := s.Engine.Exec(ctx, c.ID, engine.ExecSpec{Args: cmd, TTY: tty}, es)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// sizes converts a stream of terminal sizes.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan engine.Size {
	if in == nil {
		return nil
	}
	out := make(chan engine.Size)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- engine.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// AttachContainer joins a container's own streams.
func (s streams) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.runningAttempt(s.t)
	if err != nil {
		return err
	}
	log, err := s.t.worker.Log(ctx, s.t.container)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if in != nil && c.Stdin {
		stdin, err := s.Engine.Stdin(ctx, c.ID)
		if err != nil {
			return err
		}
		defer stdin.Close()
		go func() {
			// Ends with the client's stream, or with the container's fifo.
			_, _ = io.Copy(stdin, in)
			if !c.StdinOnce || c.TTY {
				cancel() // the client has said all: it leaves, and the container runs on
				return
			}
			// What the container reads ends only when nobody could write any more.
			_ = stdin.Close()
			closing, stop := context.WithTimeout(context.WithoutCancel(ctx), streamTimeout)
			defer stop()
			if err := s.Engine.CloseStdin(closing, c.ID); err != nil {
				s.Logger.Debug("a container's input was not closed", "container", c.ID, "err", err)
			}
		}()
	}
	if r := sizes(ctx, resize); r != nil {
		go func() {
			for size := range r {
				if err := s.Engine.ResizeTTY(ctx, c.ID, size); err != nil {
					s.Logger.Debug("a terminal was not resized", "container", c.ID, "err", err)
				}
			}
		}()
	}
	var o, e io.Writer
	if out != nil {
		o = out
	}
	if errOut != nil {
		e = errOut
	}
	done, detach := log.Attach(o, e)
	defer detach()
	select {
	case <-ctx.Done():
		return nil
	case err := <-done:
		return err
	}
}

// PortForward copies one connection.
func (s streams) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := s.Dial(ctx, s.t.pod, port)
	if err != nil {
		return fmt.Errorf("failed to connect to port %d inside pod %s/%s: %w", port, s.t.pod.Namespace, s.t.pod.Name, err)
	}
	defer conn.Close()
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream)
		if tcp, ok := conn.(*net.TCPConn); ok {
			err = errors.Join(err, tcp.CloseWrite())
		}
		up <- err
	}()
	_, err = io.Copy(stream, conn)
	if err != nil {
		return err
	}
	return nil
}
