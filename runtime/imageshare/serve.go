package imageshare

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"edged/runtime/engine"
)

const (
	// Prefix and ClaimPrefix are the paths that Handler serves.
	Prefix      = "/v2/"
	ClaimPrefix = "/edged/v1/claims/"

	digestHeader = "Docker-Content-Digest"
	// importedHeader says of a manifest that no registry gave the image.
	importedHeader = "Edged-Imported"
	// maxManifestBytes is what the distribution specification lets a client expect.
	maxManifestBytes = 4 << 20
	// maxServed requests at a time: each has a connection and a buffer.
	maxServed = 64
)

// Handler serves other devices, and nobody else.
func (s *Share) Handler() http.Handler {
	room := make(chan struct{}, maxServed)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Prefix+"{path...}", s.distribution)
	mux.HandleFunc("GET "+ClaimPrefix+"{digest}", s.serveClaim)
	mux.HandleFunc("DELETE "+ClaimPrefix+"{digest}", s.serveSettle)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.Device(r) == "" {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "only devices of the cluster are served")
			return
		}
		if strings.HasPrefix(r.URL.Path, Prefix) { // claims wait, and are bounded on their own
			select {
			case room <- struct{}{}:
				defer func() { <-room }()
			default:
				w.Header().Set("Retry-After", "1")
				refuse(w, http.StatusServiceUnavailable, "TOOMANYREQUESTS", "the device serves too many already")
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// refuse answers in the distribution specification's form.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Nobody is left to tell when this fails.
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

// manifestPath and blobPath are requests for parts of the image with a full name.
// The registry goes along as containerd sends it to a mirror.
func manifestPath(name, ref string) string { return objectPath(name, "manifests", ref) }
func blobPath(name, digest string) string  { return objectPath(name, "blobs", digest) }

func objectPath(name, kind, ref string) string {
	host, repo, _ := strings.Cut(repository(name), "/")
	return Prefix + repo + "/" + kind + "/" + ref + "?ns=" + url.QueryEscape(host)
}

// repository cuts tag and digest off a full name.
func repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

func (s *Share) distribution(w http.ResponseWriter, r *http.Request) {
	path := r.PathValue("path")
	if path == "" {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		i := strings.LastIndex(path, kind)
		if i <= 0 {
			continue
		}
		repo, ref := path[:i], path[i+len(kind):]
		host := r.URL.Query().Get("ns")
		if host == "" {
			host = "docker.io"
		}
		if kind == "/blobs/" {
			s.content(w, r, "application/octet-stream", ref)
		} else {
			s.manifest(w, r, host+"/"+repo, ref)
		}
		return
	}
	refuse(w, http.StatusNotFound, "UNSUPPORTED", "there are manifests and blobs")
}

// manifest serves that of an image that is complete here, or, by its digest,
// whatever is in the content store: another device may be a blob behind.
func (s *Share) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	isDigest := strings.Contains(ref, ":")
	full := repo + ":" + ref
	if isDigest {
		full = ref
	}
	b, imported, ok, err := s.cfg.Store.Target(r.Context(), full)
	switch {
	case err != nil:
		s.fail(w, full, err)
	case ok:
		if imported {
			w.Header().Set(importedHeader, "true")
		}
		s.content(w, r, b.MediaType, b.Digest)
	case !isDigest || r.Method == http.MethodHead:
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "this device does not have "+full)
	default:
		s.content(w, r, "", ref)
	}
}

// content serves a blob. Without a media type it is a manifest's, which says
// itself what it is.
func (s *Share) content(w http.ResponseWriter, r *http.Request, mediaType, digest string) {
	c, err := s.cfg.Store.OpenContent(r.Context(), digest)
	if errors.Is(err, engine.ErrNotFound) {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "this device does not have "+digest)
		return
	}
	if err != nil {
		s.fail(w, digest, err)
		return
	}
	defer c.Close()
	content := io.NewSectionReader(c, 0, c.Size)
	if mediaType == "" {
		if mediaType, err = manifestType(content); err != nil {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error())
			return
		}
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set(digestHeader, digest)
	w.Header().Set("ETag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, content)
}

func (s *Share) fail(w http.ResponseWriter, what string, err error) {
	s.cfg.Logger.Warn("content was not served to another device", "content", what, "err", err)
	refuse(w, http.StatusInternalServerError, "UNKNOWN", "the content cannot be read")
}

// manifestType reads what a manifest says of itself.
func manifestType(r *io.SectionReader) (string, error) {
	if r.Size() > maxManifestBytes {
		return "", errors.New("not a manifest")
	}
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return "", fmt.Errorf("not a manifest: %w", err)
	}
	switch {
	case m.MediaType != "":
		return m.MediaType, nil
	case m.Manifests != nil:
		return "application/vnd.oci.image.index.v1+json", nil
	case m.Config != nil:
		return "application/vnd.oci.image.manifest.v1+json", nil
	}
	return "", errors.New("not a manifest")
}
