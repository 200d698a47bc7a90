package apiserver_test

import (
	"strings"
	"testing"
)

// TestMethods: what upstream's router refuses is refused in its words, which clients
// tell from a resource that is not there.
func TestMethods(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	const refused, gone = "the server does not allow this method on the requested resource", "the server could not find the requested resource"
	const reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
	for path, methods := range map[string]map[string]int{
		"/version":               {"GET": 200, "OPTIONS": 405, "PUT": 405},
		"/api":                   {"GET": 200, "POST": 405},
		"/apis":                  {"GET": 200, "DELETE": 200, "HEAD": 200},
		"/apis/apps":             {"GET": 200, "OPTIONS": 200, "PUT": 200},
		"/apis/apps/v1":          {"GET": 200, "PATCH": 405},
		"/api/v1/pods":           {"GET": 200, "OPTIONS": 405, "POST": 405, "DELETE": 405},
		podsPath:                 {"GET": 200, "OPTIONS": 405, "PUT": 405, "PATCH": 405},
		podsPath + "/p":          {"GET": 404, "OPTIONS": 405, "POST": 405},
		podsPath + "/p/status":   {"GET": 404, "DELETE": 405},
		podsPath + "/p/binding":  {"GET": 405},
		podsPath + "/p/none":     {"GET": 404, "OPTIONS": 404},
		podsPath + "/p/status/y": {"GET": 404, "PUT": 404},
		"/api/v1/pods/p":         {"GET": 404},
		"/api/v1/watch/pods/p":   {"GET": 404},
		"/api/v1/pods?fieldSelector=metadata.name%3Dp":                                       {"GET": 200, "DELETE": 405},
		"/apis/rbac.authorization.k8s.io/v1/roles?fieldSelector=metadata.name%3Dp":           {"GET": 200},
		"/apis/apps/v1/deployments?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dp": {"GET": 200},
		"/api/v1/namespaces/default/nodes":                                                   {"GET": 404},
		"/api/v1/namespaces/default/namespaces":                                              {"GET": 404},
		"/api/v1/namespaces/default/status":                                                  {"GET": 200},
		"/api/v1/namespaces//pods":                                                           {"GET": 200, "DELETE": 405},
		"/api//v1/pods":                                                                      {"GET": 404},
		"/api/v1/namespaces/default/services/none/proxy/":                                    {"GET": 503},
		"/apis/storage.k8s.io/v1/csinodes/none/status":                                       {"GET": 404, "DELETE": 405},
		reviews:         {"GET": 405, "OPTIONS": 405},
		reviews + "/x":  {"GET": 404, "POST": 404},
		"/apis/apps/v9": {"GET": 404},
		"/apis/apps/v1/namespaces/default/nothing": {"GET": 404, "OPTIONS": 404},
		"/apis/none.example/v1/things":             {"GET": 404, "OPTIONS": 404},
	} {
		for method, want := range methods {
			code, _, text := e.send(admin, method, path, "", "")
			said := ""
			switch {
			case strings.Contains(path, "none.example"):
				said = "404 page not found"
			case want == 405:
				said = refused
			case want == 404 && path != podsPath+"/p" && !strings.HasSuffix(path, "/status"):
				said = gone
			}
			if code != want || !strings.Contains(text, said) {
				t.Errorf("%s %s: %d %.200s, want %d %s", method, path, code, text, want, said)
			}
		}
	}
}

// TestPatchIdentity: a patch cannot make another kind, version or object of what it
// changes, and the apply of a Scale owns the replicas of the object itself.
func TestPatchIdentity(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	send := func(want int, said, method, path, contentType, body string) {
		t.Helper()
		if code, _, text := e.send(admin, method, path, contentType, body); code != want || !strings.Contains(text, said) {
			t.Errorf("%s %s %s: %d %.600s, want %d %s", method, path, body, code, text, want, said)
		}
	}
	const maps, merge, apply = "/api/v1/namespaces/default/configmaps", "application/merge-patch+json", "application/apply-patch+yaml"
	send(201, "", "POST", maps, "application/json", `{"metadata":{"name":"c"}}`)
	send(422, "unknown conversion", "PATCH", maps+"/c", merge, `{"kind":"Secret"}`)
	send(422, `no kind \"ConfigMap\" is registered for version \"v2\"`, "PATCH", maps+"/c", merge, `{"apiVersion":"v2"}`)
	send(422, "metadata.uid: Invalid value: \\\"x\\\": field is immutable", "PATCH", maps+"/c", merge, `{"metadata":{"uid":"x"}}`)
	send(200, "", "PATCH", maps+"/c", merge, `{"kind":"ConfigMap","apiVersion":"v1"}`)
	send(500, `"message":"failed to create typed patch object (/c; /v1, Kind=ConfigMap): .foo: field not declared in schema"`, "PATCH", maps+"/c?fieldManager=m", apply, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"foo":1}`)
	send(409, "unsafe deletion is not allowed because the object is decodable from storage", "DELETE", maps+"/c?ignoreStoreReadErrorWithClusterBreakingPotential=true", "", "")

	const deployment = "/apis/apps/v1/namespaces/default/deployments/d"
	send(201, "", "PATCH", deployment+"?fieldManager=one", apply, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`)
	const scale = `{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"d"},"spec":{"replicas":2}}`
	send(409, `Apply failed with 1 conflict: conflict with \"one\"`, "PATCH", deployment+"/scale?fieldManager=two", apply, scale)
	send(200, `"spec":{"replicas":2}`, "PATCH", deployment+"/scale?fieldManager=two&force=true", apply, scale)
	send(200, `"subresource":"scale"`, "GET", deployment, "", "")
	send(409, `conflict with \"two\" with subresource \"scale\"`, "PATCH", deployment+"?fieldManager=three", apply, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":5}}`)
	send(500, ".spec.foo: field not declared in schema", "PATCH", deployment+"/scale?fieldManager=two", apply, strings.Replace(scale, `"replicas":2`, `"foo":2`, 1))
	send(422, "must be greater than or equal to 0", "PATCH", deployment+"/scale?fieldManager=two", apply, strings.Replace(scale, ":2", ":-2", 1))
	send(400, "invalid object type: /v1, Kind=Pod", "PATCH", deployment+"/scale?fieldManager=two", apply, `{"apiVersion":"v1","kind":"Pod"}`)
	send(404, "not found", "PATCH", "/apis/apps/v1/namespaces/default/deployments/none/scale?fieldManager=two", apply, strings.Replace(scale, `"name":"d"`, `"name":"none"`, 1))
}
