package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "rewrite spec/ from the pinned k8s.io/kubernetes")

var unstable = regexp.MustCompile(`v[0-9]+(alpha|beta)[0-9]+`)

// upstreamSpecs are the documents that spec/ must hold, by file name, not yet
// compressed: every stable group version, and the v2 document of those.
func upstreamSpecs(t *testing.T) map[string][]byte {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	defs := definitions(t, filepath.Join(dir, "pkg/generated/openapi/zz_generated.openapi.go"))
	dir = filepath.Join(dir, "api/openapi-spec")
	specs := map[string][]byte{}
	hashes := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "v3/*_openapi.json")) // those that begin with a dot as well
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents in %s: %v", dir, err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), "_openapi.json")
		if unstable.MatchString(name) || unserved(name) {
			continue
		}
		specs[name+".json"] = asServed(t, read(t, f), defs, version)
		hashes[strings.ReplaceAll(name, "__", "/")] = hash(specs[name+".json"])
	}
	v2 := asServed(t, stableV2(t, read(t, filepath.Join(dir, "swagger.json"))), defs, version)
	doc, err := openapi_v2.ParseDocument(v2)
	if err != nil {
		t.Fatal(err)
	}
	specs["v2.json"] = v2
	if specs["v2.pb"], err = (proto.MarshalOptions{Deterministic: true}).Marshal(doc); err != nil {
		t.Fatal(err)
	}
	hashes[v2Name] = hash(v2)
	if specs["hashes.json"], err = json.MarshalIndent(hashes, "", " "); err != nil {
		t.Fatal(err)
	}
	return specs
}

// stableV2 leaves out the paths and definitions of alpha and beta versions,
// but for definitions that stable ones refer to.
func stableV2(t *testing.T, data []byte) []byte {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	paths := doc["paths"].(map[string]any)
	for k := range paths {
		if unstable.MatchString(k) || unserved(k) {
			delete(paths, k)
		}
	}
	if parameters, ok := doc["parameters"].(map[string]any); ok { // those of the paths that are left
		used := string(mustMarshal(t, paths))
		maps.DeleteFunc(parameters, func(name string, _ any) bool {
			return !strings.Contains(used, `"#/parameters/`+name+`"`)
		})
	}
	all, kept := doc["definitions"].(map[string]any), map[string]any{}
	doc["definitions"] = kept
	todo := references(t, paths)
	for name := range all {
		if !unstable.MatchString(name) {
			todo = append(todo, name)
		}
	}
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if kept[name] != nil {
			continue
		}
		if kept[name] = all[name]; all[name] == nil {
			t.Fatalf("no definition of %s", name)
		}
		todo = append(todo, references(t, all[name])...)
	}
	return mustMarshal(t, doc)
}

// unserved tells the paths and documents of groups that have no stable version,
// and of kube-apiserver's own log files.
func unserved(name string) bool {
	return strings.Contains(name, "internal.apiserver.k8s.io") || strings.Contains(name, "lifecycle.k8s.io") || strings.Trim(name, "/") == "logs" || strings.HasPrefix(name, "/logs/")
}

// asServed makes of a document of upstream's repository what its kube-apiserver
// serves: that one is written with every alpha feature on, CBOR among them, without
// the values that a field may have (hack/update-openapi-spec.sh), and as version
// "unversioned".
func asServed(t *testing.T, data []byte, defs map[string]*described, version string) []byte {
	t.Helper()
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	doc["info"].(map[string]any)["version"] = version
	withoutCBOR(doc["paths"])
	schemas, _ := doc["definitions"].(map[string]any)
	if components, ok := doc["components"].(map[string]any); ok {
		schemas, _ = components["schemas"].(map[string]any)
	}
	for name, s := range schemas {
		if def, ok := defs[name]; ok {
			def.describe(s.(map[string]any))
		}
	}
	return mustMarshal(t, doc)
}

// withoutCBOR removes the media types of CBOR, which are keys and members of lists.
func withoutCBOR(part any) {
	isCBOR := func(v any) bool { s, ok := v.(string); return ok && strings.Contains(s, "cbor") }
	switch part := part.(type) {
	case map[string]any:
		for k, v := range part {
			if list, ok := v.([]any); ok {
				part[k] = slices.DeleteFunc(list, isCBOR)
			}
			if isCBOR(k) {
				delete(part, k)
			} else {
				withoutCBOR(v)
			}
		}
	case []any:
		for _, v := range part {
			withoutCBOR(v)
		}
	}
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var reference = regexp.MustCompile(`"#/definitions/([^"]+)"`)

func references(t *testing.T, part any) []string {
	t.Helper()
	data, err := json.Marshal(part)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range reference.FindAllSubmatch(data, -1) {
		names = append(names, string(m[1]))
	}
	return names
}

func TestSpecsAreUpstreams(t *testing.T) {
	want := upstreamSpecs(t)
	if *update {
		rewrite(t, want)
	}
	entries, err := os.ReadDir("spec")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".gz")
		data := read(t, filepath.Join("spec", e.Name()))
		if name != e.Name() {
			data = gunzip(t, data)
		}
		if !bytes.Equal(data, want[name]) {
			t.Errorf("spec/%s is not upstream's: run go test ./apiserver/openapi -update", e.Name())
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("spec/%s is missing: run go test ./apiserver/openapi -update", name)
	}
}

func rewrite(t *testing.T, want map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll("spec"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("spec", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if name != "hashes.json" {
			var b bytes.Buffer
			z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
			z.Write(data)
			z.Close()
			name, data = name+".gz", b.Bytes()
		}
		if err := os.WriteFile(filepath.Join("spec", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestServe(t *testing.T) {
	h, err := New(func(gv string) bool { return gv == "api/v1" || gv == "apis/apps/v1" })
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	get(t, h, "/openapi/v3", nil, &index)
	if _, ok := index.Paths["apis/batch/v1"]; ok {
		t.Error("a group that is not served is in the index")
	}
	var doc struct {
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	get(t, h, index.Paths["apis/apps/v1"].ServerRelativeURL, nil, &doc)
	if doc.Components.Schemas["io.k8s.api.apps.v1.Deployment"] == nil {
		t.Error("apps/v1 has no Deployment")
	}
	var v2JSON struct {
		Info        struct{ Version string }
		Definitions map[string]struct {
			Properties map[string]struct {
				Enum        []string
				Description string
			}
		}
	}
	get(t, h, "/openapi/v2", nil, &v2JSON)
	policy := v2JSON.Definitions["io.k8s.api.core.v1.PodSpec"].Properties["restartPolicy"]
	if !slices.Equal(policy.Enum, []string{"Always", "Never", "OnFailure"}) || !strings.Contains(policy.Description, "Possible enum values") {
		t.Errorf("restartPolicy is described by %+v", policy)
	}
	if !strings.HasPrefix(v2JSON.Info.Version, "v1.") {
		t.Errorf("the document is of version %q", v2JSON.Info.Version)
	}
	for path := range index.Paths {
		if rec := get(t, h, "/openapi/v3/"+path, nil, &map[string]any{}); strings.Contains(rec.Body.String(), "cbor") {
			t.Errorf("%s says that CBOR is taken", path)
		}
	}

	rec := get(t, h, "/openapi/v2", http.Header{"Accept": {typeV2ProtoOlder}, "Accept-Encoding": {"gzip"}}, nil)
	if got := rec.Header().Get("Content-Type"); got != typeV2Proto {
		t.Errorf("Content-Type %q", got)
	}
	v2 := &openapi_v2.Document{}
	if err := proto.Unmarshal(gunzip(t, rec.Body.Bytes()), v2); err != nil {
		t.Error(err)
	}
	rec = get(t, h, "/openapi/v2", http.Header{"If-None-Match": rec.Header()["Etag"]}, nil)
	if rec.Code != http.StatusNotModified {
		t.Errorf("same Etag: %d, want 304", rec.Code)
	}
	for path, want := range map[string]int{"/openapi/v3/apis/batch/v1": 404, "/openapi/v3/v2": 404, "/openapi/v3/apis/apps/v1?hash=old": 301} {
		if rec := get(t, h, path, nil, nil); rec.Code != want {
			t.Errorf("%s: %d, want %d", path, rec.Code, want)
		}
	}
	if rec := get(t, h, "/openapi/v2", http.Header{"Accept": {"text/html"}}, nil); rec.Code != 406 {
		t.Errorf("Accept text/html: %d, want 406", rec.Code)
	}
}

func get(t *testing.T, h http.Handler, path string, header http.Header, into any) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest("GET", path, nil)
	for k, v := range header {
		req.Header[k] = v
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if into != nil {
		if rec.Code != 200 {
			t.Fatalf("%s: %d", path, rec.Code)
		}
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return rec
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hash(data []byte) string { return fmt.Sprintf("%X", sha512.Sum512(data)) }
