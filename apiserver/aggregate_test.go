package apiserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"

	"edged/apiserver"
	"edged/apiserver/registry"
)

// TestLocalAPIServices: what this server serves itself shows as on any cluster.
func TestLocalAPIServices(t *testing.T) {
	e := newEnv(t, nil)
	if _, err := registry.For[*corev1.Namespace](e.reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	list, err := e.reg.List(t.Context(), apiregistrationv1.Resource("apiservices"), "", registry.ListOptions{})
	must(t, err)
	found := map[string]string{}
	for _, o := range list.Items {
		s := o.(*apiregistrationv1.APIService)
		found[s.Name] = fmt.Sprintf("%d %d %s", s.Spec.GroupPriorityMinimum, s.Spec.VersionPriority, s.Status.Conditions[0].Reason)
	}
	for name, want := range map[string]string{"v1.apps": "17800 15 Local", "v2.autoscaling": "17500 30 Local", "v1.autoscaling": "17500 15 Local", "v1.apiregistration.k8s.io": ""} {
		if found[name] != want {
			t.Errorf("%s: %q, want %q; of %v", name, found[name], want, found)
		}
	}
	table := text(t, e.do(e.admin(), "GET", "/apis/apiregistration.k8s.io/v1/apiservices/v1.", http.Header{"Accept": {"application/json;as=Table;g=meta.k8s.io;v=v1"}}))
	if !strings.Contains(table, `"Local"`) || !strings.Contains(table, `"True"`) {
		t.Errorf("as kubectl shows it: %s", table)
	}
}

// TestAggregation: another server's group version is found and reached through
// this one, which tells it who asks.
func TestAggregation(t *testing.T) {
	var headers http.Header
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/apis/metrics.example.com/v1":
			json.NewEncoder(w).Encode(metav1.APIResourceList{GroupVersion: "metrics.example.com/v1", APIResources: []metav1.APIResource{
				{Name: "samples", SingularName: "sample", Namespaced: true, Kind: "Sample", Verbs: metav1.Verbs{"get", "list"}}, {Name: "samples/status", Kind: "Sample", Verbs: metav1.Verbs{"get"}}}})
		case strings.HasPrefix(req.URL.Path, "/apis/metrics.example.com/v1/namespaces/ns/samples/"):
			headers = req.Header
			w.Write([]byte(`{"kind":"Sample","apiVersion":"metrics.example.com/v1","metadata":{"name":"s"}}`))
		case req.URL.Path == "/openapi/v3":
			w.Write([]byte(`{"paths":{"apis/metrics.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/metrics.example.com/v1?hash=AB12"}}}`))
		case req.URL.Path == "/openapi/v3/apis/metrics.example.com/v1":
			w.Write([]byte(`{"openapi":"3.0.0","info":{"title":"theirs"}}`))
		case req.URL.Path == "/openapi/v2":
			w.Write([]byte(`{"swagger":"2.0","paths":{"/apis/":{},"/apis/metrics.example.com/v1/samples":{"get":{"operationId":"x","responses":{"200":{"description":"OK"}}}}},
				"definitions":{"com.example.v1.Sample":{"type":"object"},"io.k8s.api.core.v1.Pod":{"type":"object","description":"theirs"}}}`))
		default:
			http.NotFound(w, req)
		}
	}))
	backend.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	backend.StartTLS()
	defer backend.Close()
	var dialed atomic.Pointer[string]
	var shown atomic.Int32
	e := newEnv(t, func(c *apiserver.Config) {
		c.ProxyDial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialed.Store(&address)
			return new(net.Dialer).DialContext(ctx, network, backend.Listener.Addr().String())
		}
		c.FrontProxy = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			shown.Add(1)
			return &tls.Certificate{}, nil
		}
	})
	_, err := registry.For[*corev1.Service](e.reg).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "metrics"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}})
	must(t, err)
	services := registry.For[*apiregistrationv1.APIService](e.reg)
	_, err = services.Create(t.Context(), &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1.metrics.example.com"},
		Spec: apiregistrationv1.APIServiceSpec{Group: "metrics.example.com", Version: "v1", GroupPriorityMinimum: 100, VersionPriority: 10,
			Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "metrics"}, InsecureSkipTLSVerify: true},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.server.CheckServices(ctx) }()
	defer func() { cancel(); <-done }()
	reasons := make(chan string, 100)
	defer services.Subscribe(func(ev registry.Event[*apiregistrationv1.APIService]) {
		for _, c := range ev.Object.Status.Conditions {
			reasons <- c.Reason
		}
	})()
	state := func(want string) {
		t.Helper()
		last := ""
		for timeout := time.After(30 * time.Second); last != want; {
			select {
			case last = <-reasons:
			case <-timeout:
				t.Fatalf("its condition is %q, want %s", last, want)
			}
		}
	}
	state("MissingEndpoints")
	client := e.clientset(e.config("jane", "system:masters"))
	get := func() ([]byte, error) {
		return client.CoreV1().RESTClient().Get().AbsPath("/apis/metrics.example.com/v1/namespaces/ns/samples/s").SetHeader("X-Remote-User", "root").DoRaw(t.Context())
	}
	if _, err := get(); err == nil || !strings.Contains(err.Error(), "unable to handle the request") {
		t.Errorf("before it is available: %v", err)
	}
	endpoints := registry.For[*discoveryv1.EndpointSlice](e.reg)
	up := func() {
		t.Helper()
		_, err = endpoints.Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m", Labels: map[string]string{discoveryv1.LabelServiceName: "metrics"}}, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](8443)}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.3.4"}}}})
		must(t, err)
		state("Passed")
	}
	up()
	begun := time.Now()
	for range 4 {
		must(t, endpoints.Delete(t.Context(), "default", "m", metav1.DeleteOptions{}))
		state("MissingEndpoints")
		up()
	}
	if took := time.Since(begun); took > 60*time.Second { // a look every 20 s takes four times that
		t.Errorf("four times its endpoints went and came: that took %v to be seen", took)
	}
	body, err := get()
	must(t, err)
	if !strings.Contains(string(body), `"Sample"`) || *dialed.Load() != "10.42.3.4:8443" || shown.Load() == 0 {
		t.Errorf("%s from %s, a certificate shown %d times", body, *dialed.Load(), shown.Load())
	}
	if headers.Get("X-Remote-User") != "jane" || headers.Get("Authorization") != "" || !strings.Contains(strings.Join(headers["X-Remote-Group"], " "), "system:masters") {
		t.Errorf("it is told %v", headers)
	}
	discovers(t, client)
	describes(t, client)
	served, failed := e.server.Foreign(t.Context())
	if len(served) != 1 || served[0].GroupVersion != "metrics.example.com/v1" || len(served[0].APIResources) != 2 || len(failed) != 0 {
		t.Errorf("controllers find %v, not %v", served, failed)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "/apis/metrics.example.com/v1/namespaces/ns/samples/s", nil)
	must(t, err)
	resp, err := e.server.Forward(req, &user.DefaultInfo{Name: "a-controller"})
	must(t, err)
	resp.Body.Close()
	if headers.Get("X-Remote-User") != "a-controller" {
		t.Errorf("a controller asks as %v", headers)
	}
}

// describes: the documents of OpenAPI have what others serve, and of theirs nothing
// that is Kubernetes' own.
func describes(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	get := func(path string, into any) {
		t.Helper()
		data, err := client.Discovery().RESTClient().Get().RequestURI(path).SetHeader("Accept", "application/json").DoRaw(t.Context())
		must(t, err)
		must(t, json.Unmarshal(data, into))
	}
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	get("/openapi/v3", &index)
	var doc struct{ Info struct{ Title string } }
	get(index.Paths["apis/metrics.example.com/v1"].ServerRelativeURL, &doc)
	if doc.Info.Title != "theirs" || index.Paths["apis/apps/v1"].ServerRelativeURL == "" {
		t.Errorf("the document is %v of %v", doc, index)
	}
	var root metav1.RootPaths
	get("/", &root)
	if !slices.Contains(root.Paths, "/apis/metrics.example.com/v1") || !slices.Contains(root.Paths, "/apis/metrics.example.com") {
		t.Errorf("the paths are %v", root.Paths)
	}
	var legacy struct {
		Definitions map[string]struct{ Description string }
		Paths       map[string]json.RawMessage
	}
	get("/openapi/v2", &legacy)
	if _, ok := legacy.Definitions["com.example.v1.Sample"]; !ok || legacy.Definitions["io.k8s.api.core.v1.Pod"].Description == "theirs" {
		t.Errorf("its definitions: a Sample %v, and of a Pod %q", ok, legacy.Definitions["io.k8s.api.core.v1.Pod"].Description)
	}
	if legacy.Paths["/apis/metrics.example.com/v1/samples"] == nil || legacy.Paths["/api/v1/pods"] == nil {
		t.Error("a path is missing")
	}
}

func discovers(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	must(t, err)
	for _, l := range lists {
		if l.GroupVersion == "metrics.example.com/v1" {
			if len(l.APIResources) != 2 {
				t.Errorf("it has %v", l.APIResources)
			}
			return
		}
	}
	t.Error("its group version is not discovered")
}
