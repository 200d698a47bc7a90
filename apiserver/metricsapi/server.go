package metricsapi

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/apiserver/registry"
	"edged/internal/usage"
)

// GroupVersion is what is served.
var GroupVersion = metricsv1beta1.SchemeGroupVersion

// Config is what New needs.
type Config struct {
	Nodes   func() []*corev1.Node
	Pods    func(ns string) []*corev1.Pod
	Node    func(name string) (*corev1.Node, bool)
	Pod     func(ns, name string) (*corev1.Pod, bool)
	Devices Devices
	Now     func() time.Time
	Logger  *slog.Logger
}

// FromRegistry is a Config of a registry's objects.
func FromRegistry(r *registry.Registry, devices Devices, logger *slog.Logger) Config {
	nodes, pods := registry.For[*corev1.Node](r), registry.For[*corev1.Pod](r)
	return Config{
		Nodes: func() []*corev1.Node { return nodes.List("") }, Pods: pods.List,
		Node: func(name string) (*corev1.Node, bool) { return nodes.Get("", name) }, Pod: pods.Get,
		Devices: devices, Now: r.Now, Logger: logger,
	}
}

type server struct{ Config }

// New returns the handler of /apis/metrics.k8s.io/v1beta1 and what is below it. Who may
// ask is decided before.
func New(cfg Config) http.Handler {
	return &server{cfg}
}

// ServeHTTP goes by the path's parts and not by a ServeMux, which redirects
// namespaces//pods, all namespaces, to the namespace "pods".
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.Trim(strings.TrimPrefix(req.URL.Path, "/apis/"+GroupVersion.String()), "/"), "/")
	var answer http.HandlerFunc
	switch n := len(parts); {
	case req.Method != http.MethodGet:
		respondError(w, req, apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, strings.ToLower(req.Method), schema.GroupResource{}, "", "", 0, false))
		return
	case n == 1 && parts[0] == "":
		answer = func(w http.ResponseWriter, req *http.Request) { respond(w, req, http.StatusOK, resources()) }
	case n == 1 && parts[0] == "nodes":
		answer = s.handle("nodes", s.listNodes)
	case n == 2 && parts[0] == "nodes":
		req.SetPathValue("name", parts[1])
		answer = s.handle("nodes", s.getNode)
	case n == 1 && parts[0] == "pods":
		answer = s.handle("pods", s.listPods)
	case (n == 3 || n == 4) && parts[0] == "namespaces" && parts[2] == "pods":
		req.SetPathValue("namespace", parts[1])
		answer = s.handle("pods", s.listPods)
		if n == 4 {
			req.SetPathValue("name", parts[3])
			answer = s.handle("pods", s.getPod)
		}
	default:
		respondError(w, req, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{}, "", "", 0, false))
		return
	}
	answer(w, req)
}

func resources() *metav1.APIResourceList {
	read := metav1.Verbs{"get", "list"}
	return &metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: GroupVersion.String(),
		APIResources: []metav1.APIResource{
			{Name: "nodes", Kind: "NodeMetrics", Verbs: read},
			{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: read},
		},
	}
}

// handle answers with what f finds.
func (s *server) handle(resource string, f func(*http.Request, chosen) (runtime.Object, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		by, err := choose(req)
		if err == nil && by.watch {
			err = apierrors.NewMethodNotSupported(GroupVersion.WithResource(resource).GroupResource(), "watch")
		}
		var obj runtime.Object
		if err == nil {
			obj, err = f(req, by)
		}
		if err != nil {
			respondError(w, req, err)
			return
		}
		respond(w, req, http.StatusOK, obj)
	}
}

// chosen is which objects a list is of.
type chosen struct {
	labels labels.Selector
	fields fields.Selector
	watch  bool
}

func choose(req *http.Request) (c chosen, err error) {
	q := req.URL.Query()
	if c.labels, err = labels.Parse(q.Get("labelSelector")); err != nil {
		return c, apierrors.NewBadRequest(err.Error())
	}
	if c.fields, err = fields.ParseSelector(q.Get("fieldSelector")); err != nil {
		return c, apierrors.NewBadRequest(err.Error())
	}
	c.watch = q.Get("watch") == "1" || q.Get("watch") == "true"
	return c, nil
}

func (c chosen) has(o metav1.Object) bool {
	return c.labels.Matches(labels.Set(o.GetLabels())) && c.fields.Matches(fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()})
}

func (s *server) listNodes(req *http.Request, by chosen) (runtime.Object, error) {
	list := &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{}}
	nodes := slices.DeleteFunc(slices.Clone(s.Nodes()), func(n *corev1.Node) bool { return !by.has(n) || !isReady(n) })
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	// No Pod is in a namespace of this name: only the device itself is asked about.
	told := s.ask(req.Context(), names, "-")
	for _, n := range nodes {
		if r := told[n.Name]; r != nil {
			list.Items = append(list.Items, s.nodeMetrics(n, r))
		}
	}
	return list, nil
}

func (s *server) getNode(req *http.Request, _ chosen) (runtime.Object, error) {
	name := req.PathValue("name")
	n, ok := s.Node(name)
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
	}
	r := s.ask(req.Context(), []string{name}, "-")[name]
	if r == nil {
		return nil, apierrors.NewNotFound(GroupVersion.WithResource("nodemetrics").GroupResource(), name)
	}
	m := s.nodeMetrics(n, r)
	return &m, nil
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (s *server) listPods(req *http.Request, by chosen) (runtime.Object, error) {
	ns := req.PathValue("namespace")
	pods := slices.DeleteFunc(slices.Clone(s.Pods(ns)), func(p *corev1.Pod) bool { return !by.has(p) })
	return &metricsv1beta1.PodMetricsList{Items: s.podMetrics(req, ns, pods)}, nil
}

func (s *server) getPod(req *http.Request, _ chosen) (runtime.Object, error) {
	ns, name := req.PathValue("namespace"), req.PathValue("name")
	p, ok := s.Pod(ns, name)
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), ns+"/"+name)
	}
	found := s.podMetrics(req, ns, []*corev1.Pod{p})
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(GroupVersion.WithResource("podmetrics").GroupResource(), ns+"/"+name)
	}
	return &found[0], nil
}

// podMetrics asks the devices that the Pods run on.
func (s *server) podMetrics(req *http.Request, ns string, pods []*corev1.Pod) []metricsv1beta1.PodMetrics {
	var nodes []string
	ready := map[string]bool{}
	for _, p := range pods {
		name := p.Spec.NodeName
		if _, seen := ready[name]; seen || name == "" || p.Status.Phase != corev1.PodRunning {
			continue
		}
		n, ok := s.Node(name)
		if ready[name] = ok && isReady(n); ready[name] {
			nodes = append(nodes, name)
		}
	}
	uses := map[string]*usage.Pod{}
	for _, r := range s.ask(req.Context(), nodes, ns) {
		for i := range r.Pods {
			uses[r.Pods[i].UID] = &r.Pods[i]
		}
	}
	out := []metricsv1beta1.PodMetrics{}
	for _, p := range pods {
		if u := uses[string(p.UID)]; u != nil && p.Status.Phase == corev1.PodRunning && len(u.Containers) > 0 {
			out = append(out, s.podMetricsOf(p, u))
		}
	}
	return out
}
