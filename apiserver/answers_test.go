package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	mergePatch = "application/merge-patch+json"
	jsonBody   = "application/json"
)

// exchange is one request, made by an administrator, and what kube-apiserver 1.37
// says to it: a code, a part of the answer's body, and one of its Warning headers.
// What begins with "!" must not be there.
type exchange struct {
	method, path, contentType, body string
	code                            int
	said, warned                    string
}

// converse has the exchanges one after the other.
func (e *env) converse(exchanges []exchange) {
	e.t.Helper()
	admin := e.admin()
	for _, x := range exchanges {
		code, warnings, text := e.send(admin, x.method, x.path, x.contentType, x.body)
		all := strings.Join(warnings, "\n")
		if code != x.code || !says(text, x.said) || !says(strings.ReplaceAll(all, `\"`, `"`), x.warned) {
			e.t.Errorf("%s %s %s:\n%d %s\nwarnings: %s\nwant %d %s %s", x.method, x.path, x.body, code, text, all, x.code, x.said, x.warned)
		}
	}
}

func says(text, part string) bool {
	if absent, ok := strings.CutPrefix(part, "!"); ok {
		return absent == "" && text == "" || absent != "" && !strings.Contains(text, absent)
	}
	return strings.Contains(text, part)
}

// TestServiceAnswers: addresses and ports are refused in upstream's words.
func TestServiceAnswers(t *testing.T) {
	const services = "/api/v1/namespaces/default/services"
	create := func(name, spec string) (string, string, string, string) {
		return "POST", services, jsonBody, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"` + name + `"},"spec":{` + spec + `,"ports":[{"port":80,"nodePort":0}]}}`
	}
	port := func(name, number string) (string, string, string, string) {
		m, p, c, b := create(name, `"type":"NodePort"`)
		return m, p, c, strings.Replace(b, `"nodePort":0`, `"nodePort":`+number, 1)
	}
	of := func(code int, said string) func(m, p, c, b string) exchange {
		return func(m, p, c, b string) exchange { return exchange{m, p, c, b, code, said, ""} }
	}
	const foreign = "the provided network does not match the current range"
	e := newEnv(t, nil)
	e.converse([]exchange{
		of(201, `"clusterIP":"10.43.44.44"`)(create("a", `"clusterIP":"10.43.44.44"`)),
		of(422, `failed to allocate IP 10.43.44.44: provided IP is already allocated`)(create("b", `"clusterIP":"10.43.44.44"`)),
		of(422, `failed to allocate IP 10.43.0.0: `+foreign)(create("b", `"clusterIP":"10.43.0.0"`)),
		of(422, `failed to allocate IP 10.43.255.255: `+foreign)(create("b", `"clusterIP":"10.43.255.255"`)),
		of(422, `failed to allocate IP 11.43.0.1: `+foreign)(create("b", `"clusterIP":"11.43.0.1"`)),
		of(201, `"nodePort":31999`)(port("c", "31999")),
		of(422, `spec.ports[0].nodePort: Invalid value: 31999: provided port is already allocated`)(port("d", "31999")),
		of(422, `Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767`)(port("d", "80")),
		of(201, `!internalTrafficPolicy`)(create("e", `"type":"ExternalName","externalName":"a.b","internalTrafficPolicy":"Cluster"`)),
		of(200, `!internalTrafficPolicy`)("PATCH", services+"/a", mergePatch, `{"spec":{"type":"ExternalName","externalName":"a.b"}}`),
	})
}

// TestDeletionOfJobs: who leaves their Pods behind without having said so is told.
func TestDeletionOfJobs(t *testing.T) {
	const jobs = "/apis/batch/v1/namespaces/default/jobs"
	const kept = "child pods are preserved by default when jobs are deleted"
	job := func(name string) exchange {
		return exchange{"POST", jobs, jsonBody, `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"` + name + `"},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`, 201, `"labels":{"batch.kubernetes.io/controller-uid":`, "!"}
	}
	e := newEnv(t, nil)
	e.converse([]exchange{
		job("a"), job("b"), job("c"),
		{"DELETE", jobs + "/a", "", "", 200, "", kept},
		{"DELETE", jobs + "/b?propagationPolicy=Background", "", "", 200, "", "!"},
		{"DELETE", jobs + "?labelSelector=none", "", "", 200, "", "!"},
		{"DELETE", jobs, "", "", 200, "", kept},
	})
}

// TestWarningsAreWhole: a long text is cut only where all of them would be too much.
func TestWarningsAreWhole(t *testing.T) {
	const namespace = "/api/v1/namespaces/default"
	pod := func(containers ...string) string {
		for i, c := range containers {
			containers[i] = `{"name":"` + c + `","image":"i"}`
		}
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[` + strings.Join(containers, ",") + `]}}`
	}
	e := newEnv(t, nil)
	e.converse([]exchange{
		{"PATCH", namespace, mergePatch, `{"metadata":{"labels":{"pod-security.kubernetes.io/warn":"restricted"}}}`, 200, "", ""},
		{"POST", namespace + "/pods?dryRun=All", jsonBody, pod("c"), 201, "", `must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`},
	})
}

// TestSystemPriorityClasses stay.
func TestSystemPriorityClasses(t *testing.T) {
	const classes = "/apis/scheduling.k8s.io/v1/priorityclasses"
	e := newEnv(t, nil)
	e.converse([]exchange{
		{"DELETE", classes + "/system-node-critical", "", "", 403, "this is a system priority class and cannot be deleted", ""},
		{"POST", classes, jsonBody, `{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"own"},"value":1}`, 201, "", ""},
		{"DELETE", classes + "/own", "", "", 200, "", ""},
	})
}

// TestDefinitionColumns are those that kubectl get crd shows.
func TestDefinitionColumns(t *testing.T) {
	e := newEnv(t, nil)
	resp := e.do(e.admin(), "GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}})
	defer resp.Body.Close()
	var table metav1.Table
	must(t, json.NewDecoder(resp.Body).Decode(&table))
	var names []string
	for _, c := range table.ColumnDefinitions {
		names = append(names, c.Name)
	}
	if got, want := strings.Join(names, " "), "Name Scope Versions Created At Group Kind ShortNames Established"; got != want {
		t.Errorf("columns %s, want %s", got, want)
	}
}

// TestRulesOfAdministrators are those of everybody, too.
func TestRulesOfAdministrators(t *testing.T) {
	const reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
	e := newEnv(t, nil)
	ask := `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectRulesReview","spec":{"namespace":"default"}}`
	e.converse([]exchange{
		{"POST", reviews, jsonBody, ask, 201, `"nonResourceURLs":["*"]`, ""},
		{"POST", reviews, jsonBody, ask, 201, `"selfsubjectaccessreviews"`, ""},
		{"POST", reviews, jsonBody, ask, 201, `"/healthz"`, ""},
	})
}
