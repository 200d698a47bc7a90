package openapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// extra adds the kind Thing of example.com/v1.
type extra struct{}

func (extra) GroupVersions(context.Context) map[string]string {
	return map[string]string{"apis/example.com/v1": strings.Repeat("A", 128)}
}

func (extra) Document(context.Context, string) ([]byte, error) {
	return []byte(`{"openapi":"3.0.0"}`), nil
}

func (extra) Legacy(context.Context) (map[string]*spec.Schema, map[string]any, error) {
	return map[string]*spec.Schema{"com.example.v1.Thing": new(spec.Schema).Typed("object", "")},
		map[string]any{"/apis/example.com/v1/things": map[string]any{"get": map[string]any{"operationId": "list", "responses": map[string]any{"200": map[string]any{"description": "OK"}}}}}, nil
}

// TestServeExtra: what is beyond the embedded documents is in both forms of
// version 2, with all that was there.
func TestServeExtra(t *testing.T) {
	h, err := New(func(string) bool { return true }, extra{})
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	get(t, h, "/openapi/v3", nil, &index)
	var doc map[string]any
	get(t, h, index.Paths["apis/example.com/v1"].ServerRelativeURL, nil, &doc)
	if doc["openapi"] != "3.0.0" || index.Paths["apis/apps/v1"].ServerRelativeURL == "" {
		t.Errorf("document %v of %v", doc, index)
	}
	var legacy struct {
		Definitions, Paths map[string]json.RawMessage
	}
	get(t, h, "/openapi/v2", nil, &legacy)
	for _, name := range []string{"com.example.v1.Thing", "io.k8s.api.apps.v1.Deployment"} {
		if legacy.Definitions[name] == nil {
			t.Errorf("no definition of %s", name)
		}
	}
	for _, path := range []string{"/apis/example.com/v1/things", "/api/v1/pods"} {
		if legacy.Paths[path] == nil {
			t.Errorf("no path %s", path)
		}
	}
	rec := get(t, h, "/openapi/v2", http.Header{"Accept": {typeV2Proto}, "Accept-Encoding": {"gzip"}}, nil)
	message := &openapi_v2.Document{}
	if err := proto.Unmarshal(gunzip(t, rec.Body.Bytes()), message); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, d := range message.Definitions.AdditionalProperties {
		found[d.Name] = true
	}
	for _, p := range message.Paths.Path {
		found[p.Name] = true
	}
	for _, name := range []string{"com.example.v1.Thing", "io.k8s.api.apps.v1.Deployment", "/apis/example.com/v1/things", "/api/v1/pods"} {
		if !found[name] {
			t.Errorf("the message has no %s", name)
		}
	}
}
