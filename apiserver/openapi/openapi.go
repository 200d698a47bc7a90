package openapi

import (
	"compress/gzip"
	"crypto/sha512"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/munnerz/goautoneg"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// all: one document's name begins with a dot.
//
//go:embed all:spec
var specs embed.FS

// Media types of the documents. The dotted form is what clients before
// Kubernetes 1.30 ask for; the answer names the other.
const (
	typeJSON         = "application/json"
	typeV2Proto      = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	typeV2ProtoOlder = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
)

// Schemas are the schemas of a group version's document ("apis/apps/v1") by
// their names, read anew each time.
func Schemas(groupVersion string) (map[string]*spec.Schema, error) {
	f, err := specs.Open("spec/" + fileName(groupVersion) + ".json.gz")
	if err != nil {
		return nil, fmt.Errorf("reading the schemas of %s: %w", groupVersion, err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("reading the schemas of %s: %w", groupVersion, err)
	}
	var doc struct {
		Components struct {
			Schemas map[string]*spec.Schema `json:"schemas"`
		} `json:"components"`
	}
	if err := json.NewDecoder(z).Decode(&doc); err != nil {
		return nil, fmt.Errorf("reading the schemas of %s: %w", groupVersion, err)
	}
	return doc.Components.Schemas, nil
}

// Handler serves the documents.
type Handler struct {
	index     []byte
	indexHash string
	hashes    map[string]string // by group version path, e.g. apis/apps/v1
	extras    []Extra
}

// New returns a handler for the group versions for which served returns true;
// their form is "api/v1" and "apis/apps/v1". extras add to them.
func New(served func(groupVersion string) bool, extras ...Extra) (*Handler, error) {
	data, err := specs.ReadFile("spec/hashes.json")
	if err != nil {
		return nil, fmt.Errorf("reading the embedded OpenAPI index: %w", err)
	}
	h := &Handler{extras: extras}
	if err := json.Unmarshal(data, &h.hashes); err != nil {
		return nil, fmt.Errorf("reading the embedded OpenAPI index: %w", err)
	}
	maps.DeleteFunc(h.hashes, func(path, _ string) bool { return isGroupVersion(path) && !served(path) })
	groups := map[string]bool{}
	for path := range h.hashes {
		if group, _, ok := strings.Cut(strings.TrimPrefix(path, "apis/"), "/"); ok {
			groups[group] = true
		}
	}
	maps.DeleteFunc(h.hashes, func(path, _ string) bool { // a group without versions
		group, ok := strings.CutPrefix(path, "apis/")
		return ok && !strings.Contains(group, "/") && !groups[group]
	})
	if h.index, err = h.newIndex(nil); err != nil {
		return nil, err
	}
	h.indexHash = fmt.Sprintf("%X", sha512.Sum512(h.index))
	return h, nil
}

// newIndex lists the documents of version 3.
func (h *Handler) newIndex(more map[string]string) ([]byte, error) {
	type relative struct {
		URL string `json:"serverRelativeURL"`
	}
	index := struct {
		Paths map[string]relative `json:"paths"`
	}{map[string]relative{}}
	for _, hashes := range []map[string]string{more, h.hashes} {
		for path, hash := range hashes {
			if path == v2Name {
				continue
			}
			u := url.URL{Path: "/openapi/v3/" + path, RawQuery: url.Values{"hash": {hash}}.Encode()}
			index.Paths[path] = relative{u.String()}
		}
	}
	return json.Marshal(index)
}

const v2Name = "v2"

func isGroupVersion(path string) bool {
	switch strings.Count(path, "/") {
	case 1:
		return path == "api/v1"
	case 2:
		return strings.HasPrefix(path, "apis/")
	}
	return false
}

// ServeHTTP answers a GET of /openapi/...
func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimSuffix(req.URL.Path, "/")
	var more map[string]string
	for _, e := range h.extras {
		if of := e.GroupVersions(req.Context()); more == nil {
			more = of
		} else {
			maps.Copy(more, of)
		}
	}
	switch {
	case path == "/openapi/v3":
		h.serveIndex(w, req, more)
	case strings.HasPrefix(path, "/openapi/v3/"):
		h.serveGroup(w, req, strings.TrimPrefix(path, "/openapi/v3/"), more)
	case path == "/openapi/v2":
		h.serveV2(w, req, extraHash(more))
	default:
		http.NotFound(w, req)
	}
}

func (h *Handler) serveIndex(w http.ResponseWriter, req *http.Request, more map[string]string) {
	index, hash := h.index, h.indexHash
	if len(more) > 0 {
		var err error
		if index, err = h.newIndex(more); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		hash = fmt.Sprintf("%X", sha512.Sum512(index))
	}
	w.Header().Set("Content-Type", typeJSON)
	if !notModified(w, req, hash) {
		w.Write(index)
	}
}

func (h *Handler) serveGroup(w http.ResponseWriter, req *http.Request, group string, more map[string]string) {
	hash, ok := h.hashes[group]
	if extra, isExtra := more[group]; isExtra && !ok {
		h.serveExtra(w, req, group, extra)
		return
	}
	if !ok || group == v2Name {
		http.NotFound(w, req)
		return
	}
	if negotiate(w, req, typeJSON) == "" {
		return
	}
	if redirected(w, req, hash) {
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	serveFile(w, req, fileName(group)+".json.gz", hash)
}

// redirected: a client that names the right hash may keep the document for
// ever, one that names another is sent to the right one.
func redirected(w http.ResponseWriter, req *http.Request, hash string) bool {
	want := req.URL.Query().Get("hash")
	if want == "" {
		return false
	}
	if want != hash {
		u := url.URL{Path: req.URL.Path, RawQuery: url.Values{"hash": {hash}}.Encode()}
		http.Redirect(w, req, u.String(), http.StatusMovedPermanently)
		return true
	}
	w.Header().Set("Cache-Control", "public, immutable")
	return false
}

func (h *Handler) serveV2(w http.ResponseWriter, req *http.Request, more string) {
	name := "v2.json.gz"
	t := negotiate(w, req, typeJSON, typeV2Proto, typeV2ProtoOlder)
	switch t {
	case "":
		return
	case typeV2Proto, typeV2ProtoOlder:
		name, t = "v2.pb.gz", typeV2Proto
	}
	w.Header().Set("Content-Type", t)
	if more != "" {
		h.serveV2With(w, req, t, name, h.hashes[v2Name][:16]+more[:32])
		return
	}
	serveFile(w, req, name, h.hashes[v2Name])
}

// negotiate returns the first of the offered media types that the client
// accepts, or answers 406.
func negotiate(w http.ResponseWriter, req *http.Request, offers ...string) string {
	w.Header().Add("Vary", "Accept")
	accept := req.Header.Get("Accept")
	if accept == "" {
		accept = "*/*"
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		for _, offer := range offers {
			typ, sub, _ := strings.Cut(offer, "/")
			if (clause.Type == "*" || clause.Type == typ) && (clause.SubType == "*" || clause.SubType == sub) {
				return offer
			}
		}
	}
	w.WriteHeader(http.StatusNotAcceptable)
	return ""
}

func notModified(w http.ResponseWriter, req *http.Request, hash string) bool {
	etag := `"` + hash + `"`
	w.Header().Set("Etag", etag)
	if req.Header.Get("If-None-Match") != etag {
		return false
	}
	w.WriteHeader(http.StatusNotModified)
	return true
}

func serveFile(w http.ResponseWriter, req *http.Request, name, hash string) {
	if notModified(w, req, hash) {
		return
	}
	f, err := specs.Open("spec/" + name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	w.Header().Add("Vary", "Accept-Encoding")
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		if info, err := f.Stat(); err == nil {
			w.Header().Set("Content-Length", fmt.Sprint(info.Size()))
		}
		io.Copy(w, f) // an error is the client's going away
		return
	}
	inflate(w, f)
}

func inflate(w http.ResponseWriter, f fs.File) {
	z, err := gzip.NewReader(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	io.Copy(w, z) // an error is the client's going away
}

// fileName is the name of a group version's document, as upstream names it.
func fileName(group string) string { return strings.ReplaceAll(group, "/", "__") }
