package openapi

import (
	"compress/gzip"
	"crypto/sha512"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/munnerz/goautoneg"
)

//go:embed spec
var specs embed.FS

// Media types of the documents. The dotted form is what clients before
// Kubernetes 1.30 ask for; the answer names the other.
const (
	typeJSON         = "application/json"
	typeV2Proto      = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	typeV2ProtoOlder = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
)

// Handler serves the documents.
type Handler struct {
	index     []byte
	indexHash string
	hashes    map[string]string // by group version path, e.g. apis/apps/v1
}

// New returns a handler for the group versions for which served returns true;
// their form is "api/v1" and "apis/apps/v1".
func New(served func(groupVersion string) bool) (*Handler, error) {
	data, err := specs.ReadFile("spec/hashes.json")
	if err != nil {
		return nil, fmt.Errorf("reading the embedded OpenAPI index: %w", err)
	}
	h := &Handler{}
	if err := json.Unmarshal(data, &h.hashes); err != nil {
		return nil, fmt.Errorf("reading the embedded OpenAPI index: %w", err)
	}
	type relative struct {
		URL string `json:"serverRelativeURL"`
	}
	index := struct {
		Paths map[string]relative `json:"paths"`
	}{map[string]relative{}}
	for path, hash := range h.hashes {
		if path == v2Name {
			continue
		}
		if isGroupVersion(path) && !served(path) {
			delete(h.hashes, path)
			continue
		}
		u := url.URL{Path: "/openapi/v3/" + path, RawQuery: url.Values{"hash": {hash}}.Encode()}
		index.Paths[path] = relative{u.String()}
	}
	if h.index, err = json.Marshal(index); err != nil {
		return nil, err
	}
	h.indexHash = fmt.Sprintf("%X", sha512.Sum512(h.index))
	return h, nil
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
	switch {
	case path == "/openapi/v3":
		w.Header().Set("Content-Type", typeJSON)
		if notModified(w, req, h.indexHash) {
			return
		}
		w.Write(h.index)
	case strings.HasPrefix(path, "/openapi/v3/"):
		h.serveGroup(w, req, strings.TrimPrefix(path, "/openapi/v3/"))
	case path == "/openapi/v2":
		h.serveV2(w, req)
	default:
		http.NotFound(w, req)
	}
}

func (h *Handler) serveGroup(w http.ResponseWriter, req *http.Request, group string) {
	hash, ok := h.hashes[group]
	if !ok || group == v2Name {
		http.NotFound(w, req)
		return
	}
	if negotiate(w, req, typeJSON) == "" {
		return
	}
	// A client that names the right hash may keep the document for ever.
	if want := req.URL.Query().Get("hash"); want != "" {
		if want != hash {
			u := url.URL{Path: req.URL.Path, RawQuery: url.Values{"hash": {hash}}.Encode()}
			http.Redirect(w, req, u.String(), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
	}
	w.Header().Set("Content-Type", typeJSON)
	serveFile(w, req, fileName(group)+".json.gz", hash)
}

func (h *Handler) serveV2(w http.ResponseWriter, req *http.Request) {
	name := "v2.json.gz"
	t := negotiate(w, req, typeJSON, typeV2Proto, typeV2ProtoOlder)
	switch t {
	case "":
		return
	case typeV2Proto, typeV2ProtoOlder:
		name, t = "v2.pb.gz", typeV2Proto
	}
	w.Header().Set("Content-Type", t)
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
