package metricsapi

import (
	"bytes"
	"errors"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/internal/usage"
)

func (s *server) nodeMetrics(n *corev1.Node, r *usage.Report) metricsv1beta1.NodeMetrics {
	m := metricsv1beta1.NodeMetrics{ObjectMeta: s.meta(n), Usage: amount(r.Node)}
	m.Timestamp, m.Window = s.when(r.Node)
	return m
}

// podMetricsOf tells of the container that was measured first.
func (s *server) podMetricsOf(p *corev1.Pod, u *usage.Pod) metricsv1beta1.PodMetrics {
	m := metricsv1beta1.PodMetrics{ObjectMeta: s.meta(p)}
	first := u.Containers[0].Use
	for _, c := range u.Containers {
		m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: c.Name, Usage: amount(c.Use)})
		if c.Age > first.Age {
			first = c.Use
		}
	}
	m.Timestamp, m.Window = s.when(first)
	return m
}

func (s *server) meta(o metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: o.GetName(), Namespace: o.GetNamespace(), Labels: o.GetLabels(), CreationTimestamp: metav1.NewTime(s.Now())}
}

func (s *server) when(u usage.Use) (metav1.Time, metav1.Duration) {
	return metav1.NewTime(s.Now().Add(-u.Age)), metav1.Duration{Duration: u.Window}
}

// amount is in metrics-server's units.
func amount(u usage.Use) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(u.CPUNanoCores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(u.MemoryBytes)/1024*1024, resource.BinarySI),
	}
}

var (
	scheme = newScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func newScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	_ = metricsv1beta1.AddToScheme(scheme) // adds types; cannot fail
	_ = metav1.AddMetaToScheme(scheme)
	v1 := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, v1)
	scheme.AddUnversionedTypes(v1, &metav1.APIResourceList{}, &metav1.Status{})
	return scheme
}

// endpoint takes, beside plain media types, tables.
type endpoint struct{}

func (endpoint) AllowsMediaTypeTransform(mimeType, mimeSubType string, target *schema.GroupVersionKind) bool {
	return target == nil || *target == metav1.SchemeGroupVersion.WithKind("Table") && mimeType == "application" && mimeSubType == "json"
}
func (endpoint) AllowsServerVersion(string) bool { return false }
func (endpoint) AllowsStreamSchema(string) bool  { return false }

func respond(w http.ResponseWriter, req *http.Request, code int, obj runtime.Object) {
	opts, info, err := negotiation.NegotiateOutputMediaType(req, codecs, endpoint{})
	if err != nil {
		respondError(w, req, err)
		return
	}
	if opts.Convert != nil {
		obj = table(obj, metav1.IncludeObjectPolicy(req.URL.Query().Get("includeObject")))
	} else if kinds, _, err := scheme.ObjectKinds(obj); err == nil {
		obj.GetObjectKind().SetGroupVersionKind(kinds[0])
	}
	write(w, code, info, obj)
}

func respondError(w http.ResponseWriter, req *http.Request, err error) {
	var known apierrors.APIStatus
	if !errors.As(err, &known) {
		known = apierrors.NewInternalError(err)
	}
	status := known.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	_, info, err := negotiation.NegotiateOutputMediaType(req, codecs, negotiation.DefaultEndpointRestrictions)
	if err != nil {
		info, _ = runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	}
	write(w, int(status.Code), info, &status)
}

func write(w http.ResponseWriter, code int, info runtime.SerializerInfo, obj runtime.Object) {
	var body bytes.Buffer
	if err := info.Serializer.Encode(obj, &body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", info.MediaType)
	w.WriteHeader(code)
	w.Write(body.Bytes()) // an error is the client's going away
}

// table is what kubectl get shows, in metrics-server's columns.
func table(obj runtime.Object, include metav1.IncludeObjectPolicy) *metav1.Table {
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: metav1.SchemeGroupVersion.String()}, Rows: []metav1.TableRow{}, ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity"}, {Name: "memory", Type: "string", Format: "quantity"}, {Name: "Window", Type: "string", Format: "duration"},
	}}
	add := func(o runtime.Object, meta *metav1.ObjectMeta, window metav1.Duration, uses ...corev1.ResourceList) {
		var cpu, memory resource.Quantity
		for _, u := range uses {
			cpu.Add(*u.Cpu())
			memory.Add(*u.Memory())
		}
		row := metav1.TableRow{Cells: []any{meta.Name, cpu.String(), memory.String(), window.Duration.String()}}
		switch include {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			row.Object.Object = o
		default:
			row.Object.Object = &metav1.PartialObjectMetadata{
				TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metav1.SchemeGroupVersion.String()}, ObjectMeta: *meta,
			}
		}
		t.Rows = append(t.Rows, row)
	}
	node := func(m *metricsv1beta1.NodeMetrics) { add(m, &m.ObjectMeta, m.Window, m.Usage) }
	pod := func(m *metricsv1beta1.PodMetrics) {
		var uses []corev1.ResourceList
		for _, c := range m.Containers {
			uses = append(uses, c.Usage)
		}
		add(m, &m.ObjectMeta, m.Window, uses...)
	}
	switch o := obj.(type) {
	case *metricsv1beta1.NodeMetrics:
		node(o)
	case *metricsv1beta1.NodeMetricsList:
		for i := range o.Items {
			node(&o.Items[i])
		}
	case *metricsv1beta1.PodMetrics:
		pod(o)
	case *metricsv1beta1.PodMetricsList:
		for i := range o.Items {
			pod(&o.Items[i])
		}
	}
	return t
}
