package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"edged/apiserver"
)

const protobufType = "application/vnd.kubernetes.protobuf"

func protobufConfig(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType, cfg.AcceptContentTypes = protobufType, protobufType
	return cfg
}

func makeConfigMaps(t *testing.T, c kubernetes.Interface, n, size int) {
	t.Helper()
	for i := range n {
		_, err := c.CoreV1().ConfigMaps("default").Create(context.Background(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cm-%02d", i), Labels: map[string]string{"n": fmt.Sprint(i % 2)}},
			Data:       map[string]string{"k": strings.Repeat("x", size)},
		}, metav1.CreateOptions{})
		must(t, err)
	}
}

// TestListForms reads the same list as JSON and as protobuf, small and large
// enough to be compressed, whole and in pages.
func TestListForms(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	makeConfigMaps(t, e.clientset(admin), 20, 10<<10) // 200 KB: above the gzip threshold
	for name, cfg := range map[string]*rest.Config{"json": admin, "protobuf": protobufConfig(admin)} {
		c := e.clientset(cfg)
		list, err := c.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{})
		must(t, err)
		if len(list.Items) != 20 || list.ResourceVersion == "" || list.Items[3].Name != "cm-03" || len(list.Items[3].Data["k"]) != 10<<10 {
			t.Errorf("%s: unexpected list of %d", name, len(list.Items))
		}
		one, err := c.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{LabelSelector: "n=1", FieldSelector: "metadata.name=cm-05"})
		must(t, err)
		if len(one.Items) != 1 {
			t.Errorf("%s: selected %d", name, len(one.Items))
		}
		page, err := c.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{Limit: 15})
		must(t, err)
		rest, err := c.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{Limit: 15, Continue: page.Continue})
		must(t, err)
		if *page.RemainingItemCount != 5 || len(page.Items) != 15 || len(rest.Items) != 5 || rest.Continue != "" {
			t.Errorf("%s: pages of %d and %d", name, len(page.Items), len(rest.Items))
		}
	}
}

// TestInformer is how client-go 0.37 waits: WatchList first, with bookmarks.
func TestInformer(t *testing.T) {
	e := newEnv(t, nil)
	for name, cfg := range map[string]*rest.Config{"json": e.admin(), "protobuf": protobufConfig(e.admin())} {
		t.Run(name, func(t *testing.T) {
			c := e.clientset(cfg)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			f := informers.NewSharedInformerFactory(c, 0)
			lister := f.Core().V1().Namespaces().Lister()
			f.Start(ctx.Done())
			start := time.Now()
			for typ, ok := range f.WaitForCacheSync(ctx.Done()) {
				if !ok {
					t.Fatalf("%v never synced", typ)
				}
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("synced after %v: the initial events' bookmark is missing", d)
			}
			_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "seen-" + name}}, metav1.CreateOptions{})
			must(t, err)
			for {
				if _, err := lister.Get("seen-" + name); err == nil {
					break
				}
				select {
				case <-ctx.Done():
					t.Fatal("the informer never saw the new namespace")
				case <-time.After(5 * time.Millisecond):
				}
			}
			cancel()
			f.Shutdown()
		})
	}
}

func TestWatchFromVersion(t *testing.T) {
	e := newEnv(t, nil)
	c := e.clientset(e.admin())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	list, err := c.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	must(t, err)
	makeConfigMaps(t, c, 2, 1)
	must(t, c.CoreV1().ConfigMaps("default").Delete(ctx, "cm-00", metav1.DeleteOptions{}))
	w, err := c.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	must(t, err)
	defer w.Stop()
	for _, want := range []string{"ADDED cm-00", "ADDED cm-01", "DELETED cm-00"} {
		ev := <-w.ResultChan()
		if got := string(ev.Type) + " " + ev.Object.(*corev1.ConfigMap).Name; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// A watch ends by itself when its time is over.
	seconds := int64(1)
	short, err := c.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{TimeoutSeconds: &seconds, ResourceVersion: list.ResourceVersion})
	must(t, err)
	for range short.ResultChan() {
	}
	if ctx.Err() != nil {
		t.Error("timeoutSeconds was not minded")
	}
}

func TestTable(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	makeConfigMaps(t, e.clientset(admin), 2, 1)
	accept := http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}}
	for path, want := range map[string]int{
		"/api/v1/namespaces/default/configmaps":                 2,
		"/api/v1/namespaces/default/configmaps/cm-00":           1,
		"/api/v1/namespaces/default/pods":                       0,
		"/apis/apps/v1/deployments":                             0,
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/admin": 1,
	} {
		var table metav1.Table
		decode(t, e.do(admin, "GET", path, accept), &table)
		if table.Kind != "Table" || table.APIVersion != "meta.k8s.io/v1" || len(table.ColumnDefinitions) == 0 || len(table.Rows) != want {
			t.Errorf("%s: %s %s with %d columns and %d rows, want %d rows", path, table.APIVersion, table.Kind, len(table.ColumnDefinitions), len(table.Rows), want)
			continue
		}
		if want == 0 {
			continue
		}
		var partial metav1.PartialObjectMetadata
		must(t, json.Unmarshal(table.Rows[0].Object.Raw, &partial))
		if partial.Kind != "PartialObjectMetadata" || partial.Name == "" || table.Rows[0].Cells[0] != partial.Name {
			t.Errorf("%s: row %v has object %s", path, table.Rows[0].Cells, table.Rows[0].Object.Raw)
		}
	}
	accept = http.Header{"Accept": {"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}}
	var partials metav1.PartialObjectMetadataList
	decode(t, e.do(admin, "GET", "/api/v1/namespaces/default/configmaps", accept), &partials)
	if len(partials.Items) != 2 || partials.Items[0].Labels["n"] != "0" {
		t.Errorf("metadata: %+v", partials)
	}
	for _, accept := range []string{"application/json;as=Table;v=v1;g=other", "text/html"} {
		resp := e.do(admin, "GET", "/api/v1/pods", http.Header{"Accept": {accept}})
		if resp.StatusCode != http.StatusNotAcceptable {
			t.Errorf("Accept %s: %d, want 406", accept, resp.StatusCode)
		}
	}
}

func TestDiscovery(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	d, err := discovery.NewDiscoveryClientForConfig(admin)
	must(t, err)
	_, lists, err := d.ServerGroupsAndResources() // aggregated
	must(t, err)
	d.UseLegacyDiscovery = true
	_, legacy, err := d.ServerGroupsAndResources()
	must(t, err)
	if len(lists) != len(legacy) {
		t.Errorf("%d aggregated group versions, %d legacy ones", len(lists), len(legacy))
	}
	found := map[string]bool{}
	for _, l := range lists {
		for _, r := range l.APIResources {
			found[l.GroupVersion+" "+r.Name] = true
		}
	}
	for _, want := range []string{
		"v1 bindings", "v1 componentstatuses", "v1 pods", "v1 pods/exec", "v1 serviceaccounts/token", "v1 nodes/proxy", "apps/v1 deployments/scale", "v1 services/proxy",
		"authorization.k8s.io/v1 selfsubjectaccessreviews", "events.k8s.io/v1 events",
	} {
		if !found[want] {
			t.Errorf("%s is not discovered", want)
		}
	}
	for _, l := range lists {
		for _, r := range l.APIResources {
			if l.GroupVersion == "admissionregistration.k8s.io/v1" && !strings.Contains(r.Name, "/") && fmt.Sprint(r.Categories) != "[api-extensions]" {
				t.Errorf("%s is in the categories %v", r.Name, r.Categories)
			}
		}
	}
	v, err := d.ServerVersion()
	must(t, err)
	if v.GitVersion != "v1.37.2+edged" {
		t.Errorf("version %s", v.GitVersion)
	}
	resp := e.do(admin, "GET", "/api/v1/endpoints", nil)
	if w := resp.Header.Get("Warning"); w != `299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"` {
		t.Errorf("deprecation: %q", w)
	}
	resp = e.do(admin, "GET", "/apis/apps/v2", nil)
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("/apis/apps/v2: %d", resp.StatusCode)
	}
}

func TestHealth(t *testing.T) {
	var ready error
	e := newEnv(t, func(c *apiserver.Config) {
		c.Checks = []apiserver.HealthCheck{{Name: "part/a", Live: true, Check: func() error { return nil }}, {Name: "device", Check: func() error { return ready }}}
	})
	anonymous := rest.AnonymousClientConfig(e.admin())
	for path, want := range map[string]string{"/healthz": "ok", "/livez": "ok", "/readyz": "ok"} {
		if got := text(t, e.do(anonymous, "GET", path, nil)); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := text(t, e.do(anonymous, "GET", "/readyz?verbose", nil)); got != "[+]ping ok\n[+]part/a ok\n[+]device ok\nreadyz check passed\n" {
		t.Errorf("verbose: %q", got)
	}
	for path, want := range map[string]int{"/livez/part/a": 200, "/livez/device": 404, "/readyz/device": 200, "/readyz/nope": 404} {
		if resp := e.do(e.admin(), "GET", path, nil); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	ready = fmt.Errorf("replaying")
	resp := e.do(anonymous, "GET", "/readyz", nil)
	if got := text(t, resp); resp.StatusCode != 500 || strings.Contains(got, "replaying") || !strings.Contains(got, "[-]device failed") {
		t.Errorf("not ready: %d %q", resp.StatusCode, got)
	}
	if resp := e.do(anonymous, "GET", "/livez", nil); resp.StatusCode != 200 {
		t.Errorf("livez while not ready: %d", resp.StatusCode)
	}
}

// TestTimeout: a client's own bound is read, and one that is none is refused.
func TestTimeout(t *testing.T) {
	e := newEnv(t, nil)
	for query, want := range map[string]int{"": 200, "?timeout=3m": 200, "?timeout=0s": 200, "?timeout=5s": 200, "?timeout=soon": 400} {
		resp := e.do(e.admin(), "GET", "/api/v1/namespaces"+query, nil)
		got := text(t, resp)
		if resp.StatusCode != want || want == 400 && !strings.Contains(got, "invalid timeout specified in the request URL") {
			t.Errorf("%q: %d %s", query, resp.StatusCode, got)
		}
	}
}

// TestAnonymous sees what upstream's system:public-info-viewer sees, and
// nothing else.
func TestAnonymous(t *testing.T) {
	e := newEnv(t, nil)
	anonymous := rest.AnonymousClientConfig(e.admin())
	_, err := e.clientset(anonymous).CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	const want = `pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default"`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if resp := e.do(anonymous, "GET", "/version", nil); resp.StatusCode != 200 {
		t.Errorf("/version: %d", resp.StatusCode)
	}
	if resp := e.do(anonymous, "GET", "/apis", nil); resp.StatusCode != 403 {
		t.Errorf("/apis: %d", resp.StatusCode)
	}
	bad := rest.AnonymousClientConfig(e.admin())
	bad.BearerToken = "nonsense"
	if resp := e.do(bad, "GET", "/version", nil); resp.StatusCode != 401 {
		t.Errorf("bad token: %d, want 401", resp.StatusCode)
	}
}

func decode(t *testing.T, resp *http.Response, into any) {
	t.Helper()
	body := text(t, resp)
	if resp.StatusCode >= 300 {
		t.Fatalf("%s: %d %s", resp.Request.URL, resp.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("%s: %v in %s", resp.Request.URL, err, body)
	}
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(b)
}
