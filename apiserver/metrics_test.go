package apiserver_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/apiserver"
	"edged/apiserver/registry"
	"edged/internal/usage"
)

// fleet are devices that tell what they use; silent ones do not.
type fleet struct {
	mu    sync.Mutex
	asked []string
	pods  map[string][]usage.Pod // by device
}

func (f *fleet) Handler(node string) (http.Handler, error) {
	if node == "lost" {
		return nil, errors.New("no route")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ns := req.URL.Query().Get(usage.Namespace)
		f.mu.Lock()
		f.asked = append(f.asked, node+" "+req.URL.Path+" "+ns)
		f.mu.Unlock()
		if node == "silent" {
			http.Error(w, "what?", http.StatusNotFound)
			return
		}
		pods := slices.DeleteFunc(slices.Clone(f.pods[node]), func(p usage.Pod) bool { return ns != "" && p.Namespace != ns })
		json.NewEncoder(w).Encode(usage.Report{Node: usage.Use{CPUNanoCores: 250e6, MemoryBytes: 300 << 20, Window: 20 * time.Second}, Pods: pods})
	}), nil
}

func (f *fleet) wasAsked() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.asked)
	out := strings.Join(f.asked, ", ")
	f.asked = nil
	return out
}

// TestResourceMetrics: metrics.k8s.io tells what devices use, asking no more of them than
// a question is about; a server that is installed for it takes the place.
func TestResourceMetrics(t *testing.T) {
	f := &fleet{pods: map[string][]usage.Pod{}}
	e := newEnv(t, func(c *apiserver.Config) { c.Nodes = f })
	for name, ready := range map[string]corev1.ConditionStatus{"n1": "True", "n2": "True", "silent": "True", "lost": "True", "off": "Unknown"} {
		nodes := registry.For[*corev1.Node](e.reg)
		_, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
		must(t, err)
		_, err = nodes.UpdateStatus(t.Context(), "", name, func(n *corev1.Node) error {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
			return nil
		})
		must(t, err)
	}
	run := func(name, node, app string, phase corev1.PodPhase, containers ...usage.Container) {
		p := e.makePod(name, func(p *corev1.Pod) {
			p.Labels = map[string]string{"app": app}
			p.Spec.NodeName = node
		})
		_, err := registry.For[*corev1.Pod](e.reg).UpdateStatus(t.Context(), p.Namespace, p.Name, func(p *corev1.Pod) error { p.Status.Phase = phase; return nil })
		must(t, err)
		if len(containers) > 0 {
			f.pods[node] = append(f.pods[node], usage.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Containers: containers})
		}
	}
	container := func(name string, cpu, memory uint64, age time.Duration) usage.Container {
		return usage.Container{Name: name, Use: usage.Use{CPUNanoCores: cpu, MemoryBytes: memory, Age: age, Window: 15 * time.Second}}
	}
	run("a", "n1", "web", corev1.PodRunning, container("c", 1500, 2<<20+5, time.Second), container("side", 1e9, 1<<30, 3*time.Second))
	run("b", "n2", "web", corev1.PodRunning, container("c", 7, 4096, 0))
	run("done", "n2", "web", corev1.PodSucceeded, container("c", 7, 4096, 0))
	run("other", "n2", "job", corev1.PodRunning, container("c", 7, 4096, 0))
	run("young", "n2", "job", corev1.PodRunning)
	f.pods["n1"] = append(f.pods["n1"], usage.Pod{Namespace: "default", Name: "b", UID: string(types.UID("of an earlier b")), Containers: []usage.Container{container("c", 9e9, 9, 0)}})

	const root = "/apis/metrics.k8s.io/v1beta1"
	read := func(path string, into any) {
		t.Helper()
		body := text(t, e.do(e.admin(), "GET", root+path, nil))
		if err := json.Unmarshal([]byte(body), into); err != nil {
			t.Fatalf("%s: %v in %s", path, err, body)
		}
	}
	var groups metav1.APIGroup
	must(t, json.Unmarshal([]byte(text(t, e.do(e.admin(), "GET", "/apis/metrics.k8s.io", nil))), &groups))
	if groups.PreferredVersion.GroupVersion != "metrics.k8s.io/v1beta1" {
		t.Errorf("its group: %+v", groups)
	}
	if list, err := e.clientset(e.admin()).Discovery().ServerResourcesForGroupVersion("metrics.k8s.io/v1beta1"); err != nil || len(list.APIResources) != 2 || list.APIResources[0].Kind != "NodeMetrics" {
		t.Errorf("its resources: %+v %v", list, err)
	}
	if list := text(t, e.do(e.admin(), "GET", "/apis", http.Header{"Accept": {"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}})); !strings.Contains(list, `"PodMetrics"`) {
		t.Error("it is not in the aggregated document")
	}
	f.wasAsked()

	var nodes metricsv1beta1.NodeMetricsList
	read("/nodes", &nodes)
	if len(nodes.Items) != 2 || nodes.Items[0].Name != "n1" || nodes.Items[0].Labels["name"] != "n1" || nodes.Items[0].Usage.Cpu().String() != "250m" || nodes.Items[0].Usage.Memory().String() != "300Mi" || nodes.Items[0].Window.Duration != 20*time.Second || time.Since(nodes.Items[0].Timestamp.Time) > time.Minute {
		t.Errorf("nodes: %+v", nodes)
	}
	if got := f.wasAsked(); got != "n1 /stats/usage -, n2 /stats/usage -, silent /stats/usage -" {
		t.Errorf("asked %s", got)
	}
	var node metricsv1beta1.NodeMetrics
	if read("/nodes/n2", &node); node.Kind != "NodeMetrics" || node.Name != "n2" {
		t.Errorf("one: %+v", node)
	}
	var pods metricsv1beta1.PodMetricsList
	names := func() (out string) {
		for _, p := range pods.Items {
			out += p.Name + " "
		}
		return out
	}
	f.wasAsked()
	if read("/namespaces/default/pods?labelSelector=app%3Dweb", &pods); names() != "a b " || pods.Kind != "PodMetricsList" {
		t.Fatalf("pods: %+v", pods)
	}
	if got := f.wasAsked(); got != "n1 /stats/usage default, n2 /stats/usage default" {
		t.Errorf("asked %s", got)
	}
	a := pods.Items[0]
	if c := a.Containers; len(c) != 2 || c[0].Usage.Cpu().String() != "1500n" || c[0].Usage.Memory().String() != "2Mi" || c[1].Usage.Cpu().String() != "1" ||
		a.Labels["app"] != "web" || a.Window.Duration != 15*time.Second || time.Since(a.Timestamp.Time) < 3*time.Second-time.Second {
		t.Errorf("%+v", a)
	}
	if q := pods.Items[1].Containers[0].Usage.Cpu().String(); q != "7n" {
		t.Errorf("a Pod has another's use: %s", q)
	}
	pods = metricsv1beta1.PodMetricsList{}
	if read("/namespaces//pods", &pods); names() != "a b other " {
		t.Errorf("of no namespace: %+v", pods)
	}
	f.wasAsked()
	pods = metricsv1beta1.PodMetricsList{}
	if read("/pods?fieldSelector=metadata.name%3Da", &pods); names() != "a " {
		t.Errorf("by name: %+v", pods)
	}
	if got := f.wasAsked(); got != "n1 /stats/usage " {
		t.Errorf("asked %s", got)
	}
	table := text(t, e.do(e.admin(), "GET", root+"/namespaces/default/pods/a", http.Header{"Accept": {"application/json;as=Table;g=meta.k8s.io;v=v1"}}))
	if !strings.Contains(table, `"cells":["a","1000001500n","1026Mi","15s"]`) || !strings.Contains(table, `"namespace":"default"`) {
		t.Errorf("as kubectl shows it: %s", table)
	}
	var status metav1.Status
	for path, want := range map[string]string{
		"/namespaces/default/pods/nope":  `pods "default/nope" not found`,
		"/namespaces/default/pods/young": `podmetrics.metrics.k8s.io "default/young" not found`,
		"/nodes/silent":                  `nodemetrics.metrics.k8s.io "silent" not found`,
		"/nodes/nope":                    `nodes "nope" not found`,
		"/nodes?watch=1":                 `watch is not supported on resources of kind "nodes.metrics.k8s.io"`,
		"/foos":                          "the server could not find the requested resource",
		"/pods?labelSelector=a%20b":      "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
	} {
		if read(path, &status); status.Message != want {
			t.Errorf("%s: %q, want %q", path, status.Message, want)
		}
	}
	if resp := e.do(e.admin(), "DELETE", root+"/nodes", nil); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a deletion: %d", resp.StatusCode)
	}
	if resp := e.do(e.config("eve"), "GET", root+"/nodes", nil); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a stranger: %d", resp.StatusCode)
	}

	services := registry.For[*apiregistrationv1.APIService](e.reg)
	if _, ok := services.Get("", "v1beta1.metrics.k8s.io"); ok {
		t.Error("an APIService is in the way of metrics-server's")
	}
	_, err := services.Create(t.Context(), &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1beta1.metrics.k8s.io"},
		Spec: apiregistrationv1.APIServiceSpec{Group: "metrics.k8s.io", Version: "v1beta1", GroupPriorityMinimum: 100, VersionPriority: 100,
			Service: &apiregistrationv1.ServiceReference{Namespace: "kube-system", Name: "metrics-server"}, InsecureSkipTLSVerify: true},
	})
	must(t, err)
	f.wasAsked()
	if resp := e.do(e.admin(), "GET", root+"/nodes", nil); resp.StatusCode != http.StatusServiceUnavailable || f.wasAsked() != "" {
		t.Errorf("with a metrics-server that does not answer: %d", resp.StatusCode)
	}
	must(t, services.Delete(t.Context(), "", "v1beta1.metrics.k8s.io", metav1.DeleteOptions{}))
	if read("/nodes", &nodes); len(nodes.Items) != 2 {
		t.Errorf("after it was removed: %+v", nodes)
	}
	if served, failed := e.server.Foreign(t.Context()); len(served) != 0 || len(failed) != 0 {
		t.Errorf("controllers look for objects of it: %v %v", served, failed)
	}
}
