package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// connector returns the handler of a subresource that this package answers
// itself; nil if the registry does.
func (c *call) connector() func() error {
	switch c.gr.String() + "/" + c.info.Subresource {
	case "pods/log":
		return c.podLog
	case "pods/exec":
		return c.podExec
	case "pods/attach":
		return c.podAttach
	case "pods/portforward":
		return c.podPortForward
	case "pods/proxy":
		return c.proxyPod
	case "services/proxy":
		return c.proxyService
	case "nodes/proxy":
		return c.proxyNode
	case "serviceaccounts/token":
		if c.tokens != nil {
			return c.createToken
		}
	}
	return nil
}

// admitConnect asks the admission chain whether a connection may be made.
func (c *call) admitConnect() error {
	sub, ok := httpSubs[c.res.gvr][c.info.Subresource]
	if c.cfg.Admission == nil || !ok || c.info.Subresource == "log" {
		return nil
	}
	opts, err := codec.Scheme().New(sub.gvk)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if err := c.parameters(opts); err != nil {
		return err
	}
	u, _ := registry.UserFrom(c.req.Context())
	return c.cfg.Admission.Validate(c.req.Context(), &registry.Attributes{
		Operation: admission.Connect, Kind: c.res.kind, Resource: c.res.gvr, Subresource: c.info.Subresource,
		Namespace: c.info.Namespace, Name: c.info.Name, Object: opts, User: u,
	})
}

func (c *call) createToken() error {
	if c.info.Verb != "create" {
		return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
	}
	out, err := negotiate(c.req, plainEndpoint)
	if err != nil {
		return err
	}
	opts, err := createOptions(c.req)
	if err != nil {
		return err
	}
	obj, err := c.decodeBody(c.req, tokenRequest, opts.FieldValidation)
	if err != nil {
		return err
	}
	if ns := obj.(*authenticationv1.TokenRequest).Namespace; ns != "" && ns != c.info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if err := c.admitToken(obj, &opts); err != nil {
		return err
	}
	answer, err := c.Server.tokens.TokenRequest(c.req.Context(), c.info.Namespace, c.info.Name, obj.(*authenticationv1.TokenRequest))
	if err != nil {
		return err
	}
	answer.SetGroupVersionKind(tokenRequest)
	return c.respondPlain(out, http.StatusCreated, answer)
}

// admitToken asks the admission chain, above all whether a device may have a
// token for this Pod.
func (c *call) admitToken(obj runtime.Object, opts *metav1.CreateOptions) error {
	if c.cfg.Admission == nil {
		return nil
	}
	u, _ := registry.UserFrom(c.req.Context())
	return c.cfg.Admission.Validate(c.req.Context(), &registry.Attributes{
		Operation: admission.Create, Kind: c.res.kind, Resource: c.res.gvr, Subresource: c.info.Subresource,
		Namespace: c.info.Namespace, Name: c.info.Name, Object: obj, Options: opts,
		DryRun: len(opts.DryRun) > 0, User: u,
	})
}

func (c *call) pod() (*corev1.Pod, error) {
	obj, err := c.reg.Get(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Pod), nil
}

// parameters reads the query into one of core's option types, with defaults.
func (c *call) parameters(into runtime.Object) error {
	if err := codec.ParameterCodec().DecodeParameters(c.req.URL.Query(), corev1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	codec.Default(into)
	return nil
}

func (c *call) podLog() error {
	if c.info.Verb != "get" {
		return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
	}
	opts := &corev1.PodLogOptions{}
	if err := c.parameters(opts); err != nil {
		return err
	}
	if all := corev1.LogStreamAll; opts.Stream == nil {
		opts.Stream = &all
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	internal := &api.PodLogOptions{}
	if err := codec.Scheme().Convert(opts, internal, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidatePodLogOptions(internal, true); len(errs) > 0 {
		return apierrors.NewInvalid(api.Kind("PodLogOptions"), pod.Name, errs)
	}
	container, err := containerOf(pod, opts.Container)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/plain")
	if pod.Spec.NodeName == "" { // nothing ran yet, so nothing was said
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	path := fmt.Sprintf("/containerLogs/%s/%s/%s", pod.Namespace, pod.Name, container)
	if wsstream.IsWebSocketRequest(c.req) {
		return c.logOverWebSocket(pod.Spec.NodeName, path, logParameters(opts))
	}
	checked := &checkedWriter{ResponseWriter: c.w}
	if err := c.toNode(checked, pod.Spec.NodeName, path, logParameters(opts)); err != nil {
		return err
	}
	return checked.err(c.gr, pod.Name)
}

// logParameters are the kubelet's, of the same names.
func logParameters(o *corev1.PodLogOptions) url.Values {
	q := url.Values{}
	for name, on := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if on {
			q.Set(name, "true")
		}
	}
	for name, n := range map[string]*int64{"sinceSeconds": o.SinceSeconds, "tailLines": o.TailLines, "limitBytes": o.LimitBytes} {
		if n != nil {
			q.Set(name, strconv.FormatInt(*n, 10))
		}
	}
	if o.SinceTime != nil {
		q.Set("sinceTime", o.SinceTime.Format(time.RFC3339))
	}
	if o.Stream != nil && *o.Stream != corev1.LogStreamAll {
		q.Set("stream", *o.Stream)
	}
	return q
}

// containerOf is the named container, or the only one, as upstream's
// validateContainer.
func containerOf(pod *corev1.Pod, name string) (string, error) {
	if name == "" {
		switch len(pod.Spec.Containers) {
		case 1:
			return pod.Spec.Containers[0].Name, nil
		case 0:
			return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
		}
		msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, names(pod.Spec.Containers))
		if len(pod.Spec.InitContainers) > 0 {
			msg += fmt.Sprintf(" or one of the init containers: %v", names(pod.Spec.InitContainers))
		}
		return "", apierrors.NewBadRequest(msg)
	}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return name, nil
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return name, nil
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

func names(containers []corev1.Container) []string {
	var out []string
	for i := range containers {
		out = append(out, containers[i].Name)
	}
	return out
}

func (c *call) podExec() error {
	opts := &corev1.PodExecOptions{}
	if err := c.parameters(opts); err != nil {
		return err
	}
	q := streamParameters(opts.Stdin, opts.Stdout, opts.Stderr, opts.TTY)
	q["command"] = opts.Command
	return c.podStream("exec", opts.Container, q)
}

func (c *call) podAttach() error {
	opts := &corev1.PodAttachOptions{}
	if err := c.parameters(opts); err != nil {
		return err
	}
	return c.podStream("attach", opts.Container, streamParameters(opts.Stdin, opts.Stdout, opts.Stderr, opts.TTY))
}

// streamParameters have other names for the kubelet than for the API.
func streamParameters(stdin, stdout, stderr, tty bool) url.Values {
	q := url.Values{}
	for name, on := range map[string]bool{"input": stdin, "output": stdout, "error": stderr, "tty": tty} {
		if on {
			q.Set(name, "1")
		}
	}
	return q
}

func (c *call) podPortForward() error {
	opts := &corev1.PodPortForwardOptions{}
	if err := c.parameters(opts); err != nil {
		return err
	}
	q := url.Values{}
	for _, p := range opts.Ports {
		q.Add("port", strconv.Itoa(int(p)))
	}
	return c.podStream("portForward", "", q)
}

// podStream hands the connection over to the device that runs the Pod.
func (c *call) podStream(verb, container string, q url.Values) error {
	switch c.info.Verb {
	case "create":
	case "get": // a WebSocket handshake is a GET whatever it starts
		if err := c.mayCreate(); err != nil {
			return err
		}
	default:
		return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/%s/%s/%s", verb, pod.Namespace, pod.Name)
	if verb != "portForward" {
		if container, err = containerOf(pod, container); err != nil {
			return err
		}
		path += "/" + container
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	return c.toNode(c.w, pod.Spec.NodeName, path, q)
}

// mayCreate requires the verb create in addition to get, as upstream does
// since 1.35: reading rights must not run commands.
func (c *call) mayCreate() error {
	u, _ := registry.UserFrom(c.req.Context())
	attrs := requestAttributes(u, c.info)
	attrs.Verb = "create"
	decision, reason, err := c.authz.Authorize(c.req.Context(), attrs)
	switch {
	case decision == authorizer.DecisionAllow:
		return nil
	case err != nil:
		return apierrors.NewInternalError(err)
	}
	return forbidden(attrs, reason)
}

// toNode serves the request by a device's kubelet handler.
func (c *call) toNode(w http.ResponseWriter, node, path string, q url.Values) error {
	if c.nodes == nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s cannot be reached from this API server", node))
	}
	handler, err := c.nodes.Handler(node)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("reaching node %s: %w", node, err))
	}
	req := c.req.Clone(c.req.Context())
	req.URL = &url.URL{Path: path, RawQuery: q.Encode()}
	req.RequestURI = req.URL.RequestURI()
	handler.ServeHTTP(w, req)
	return nil
}

// maxErrorBytes bounds what is read of a device's refusal.
const maxErrorBytes = 10 << 10

// checkedWriter passes a good answer on and keeps a refusal, to be turned into
// a Status. It passes Flush and Hijack on (http.ResponseController).
type checkedWriter struct {
	http.ResponseWriter
	code int
	text bytes.Buffer
}

func (w *checkedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *checkedWriter) refused() bool { return w.code >= http.StatusMultipleChoices }

func (w *checkedWriter) WriteHeader(code int) {
	if w.code != 0 {
		return
	}
	w.code = code
	if !w.refused() {
		w.ResponseWriter.WriteHeader(code)
	}
}

func (w *checkedWriter) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	if !w.refused() {
		return w.ResponseWriter.Write(p)
	}
	if room := maxErrorBytes - w.text.Len(); room > 0 {
		w.text.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Flush must not commit a refused answer.
func (w *checkedWriter) Flush() {
	if !w.refused() {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // who cannot flush cannot
	}
}

// err is upstream's GenericHttpResponseChecker.
func (w *checkedWriter) err(gr schema.GroupResource, name string) error {
	if !w.refused() {
		return nil
	}
	text := strings.TrimSpace(w.text.String())
	switch w.code {
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(text))
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(text)
	}
	return apierrors.NewGenericServerResponse(w.code, "", gr, name, text, 0, false)
}
