package apiserver

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
)

// route hands an authorized request to its handler.
func (s *Server) route(w http.ResponseWriter, req *http.Request, info *request.RequestInfo) {
	if !info.IsResourceRequest {
		s.routePath(w, req)
		return
	}
	if s.cfg.Custom != nil {
		s.cfg.Custom.Settled(req.Context())
	}
	gvr := schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}
	res, ok := s.api().resources[gvr]
	if !ok && s.others.serve(w, req) {
		return
	}
	if !ok || !res.routed(info) {
		s.notFound(w, req)
		return
	}
	if err := res.allows(req.Method, info); err != nil {
		s.respondError(w, req, err)
		return
	}
	if res.namespaced && info.Namespace == "" && needsNamespace(info) {
		s.notFound(w, req)
		return
	}
	if res.deprecated != "" {
		warning.AddWarning(req.Context(), "", res.deprecated)
	}
	var err error
	switch {
	case res.review != nil:
		err = s.serveReview(w, req, info, res)
	default:
		c := &call{Server: s, w: w, req: req, info: info, res: res, gr: gvr.GroupResource()}
		if connect := c.connector(); connect != nil {
			if err = c.admitConnect(); err == nil {
				err = connect()
			}
		} else {
			err = c.serve()
		}
	}
	if err != nil {
		s.respondError(w, req, err)
	}
}

// needsNamespace: only list, watch and nothing else of a namespaced resource
// spans namespaces.
func needsNamespace(info *request.RequestInfo) bool {
	return info.Verb != "list" && info.Verb != "watch" && info.Verb != "deletecollection" && info.Verb != "create"
}

// routePaths lists the paths that are not resources.
func (s *Server) routePaths() {
	s.paths = map[string]http.HandlerFunc{
		"/version": s.getOnly(s.serveVersion),
		"/":        s.serveIndex,
	}
	if s.tokens != nil {
		s.paths["/.well-known/openid-configuration"] = s.getOnly(serveDocument("application/json", s.tokens.OpenIDConfig))
		s.paths["/openid/v1/jwks"] = s.getOnly(serveDocument("application/jwk-set+json", s.tokens.Keyset))
	}
	if s.cfg.Metrics != nil {
		s.paths["/metrics"] = s.cfg.Metrics.ServeHTTP
	}
}

func (s *Server) routePath(w http.ResponseWriter, req *http.Request) {
	path := req.URL.Path
	if s.cfg.Custom != nil && (strings.HasPrefix(path, "/apis") || strings.HasPrefix(path, "/openapi/")) {
		s.cfg.Custom.Settled(req.Context())
	}
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	if isHealthPath(path) {
		s.serveHealth(w, req)
		return
	}
	if h, ok := s.paths[path]; ok {
		h(w, req)
		return
	}
	if strings.HasPrefix(path, "/openapi/") {
		s.openapi.ServeHTTP(w, req)
		return
	}
	for prefix, h := range s.cfg.Handlers {
		if path == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/") {
			h.ServeHTTP(w, req)
			return
		}
	}
	if !s.serveDiscovery(w, req) && !s.others.serve(w, req) {
		s.notFound(w, req)
	}
}

// serveDocument serves what is rendered anew each time, for an hour's caching.
func serveDocument(mediaType string, render func() ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		body, err := render()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		w.Write(body) // an error is the client's going away
	}
}

func (s *Server) serveVersion(w http.ResponseWriter, req *http.Request) {
	body, err := json.MarshalIndent(s.cfg.Version, "", "  ")
	if err != nil {
		s.respondError(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	s.write(w, req, http.StatusOK, body)
}

// serveIndex lists the paths.
func (s *Server) serveIndex(w http.ResponseWriter, req *http.Request) {
	paths := append([]string{"/api", "/api/v1", "/apis", "/openapi/v2", "/openapi/v3"}, healthPaths...)
	for p := range s.paths {
		if p != "/" {
			paths = append(paths, p)
		}
	}
	for _, g := range s.api().groups {
		if g.name == "" {
			continue
		}
		paths = append(paths, "/apis/"+g.name)
		for _, v := range g.versions {
			paths = append(paths, "/apis/"+g.name+"/"+v)
		}
	}
	for name, services := range s.others.groups() {
		paths = append(paths, "/apis/"+name)
		for _, svc := range services {
			paths = append(paths, "/apis/"+name+"/"+svc.Spec.Version)
		}
	}
	slices.Sort(paths)
	body, err := json.MarshalIndent(metav1.RootPaths{Paths: slices.Compact(paths)}, "", "  ")
	if err != nil {
		s.respondError(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	s.write(w, req, http.StatusOK, body)
}
