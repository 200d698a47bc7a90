package apiserver

import (
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// methodNotAllowed and noSuchPath are what upstream's router says, before anything
// knows which resource it is about. Custom resources do not pass it: of them the verb
// is refused by name.
func methodNotAllowed() error {
	return apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", schema.GroupResource{}, "", "405: Method Not Allowed", 0, false)
}

func noSuchPath() error {
	return apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "404: Page Not Found", 0, false)
}

// verbsOf are the verbs of a method at the path of one object, or of many; upstream
// has no routes for HEAD.
func verbsOf(method string, one bool) []string {
	switch {
	case method == http.MethodGet && one:
		return []string{"get"}
	case method == http.MethodGet:
		return []string{"list", "watch"}
	case method == http.MethodPost && !one:
		return []string{"create"}
	case method == http.MethodPut && one:
		return []string{"update"}
	case method == http.MethodPatch && one:
		return []string{"patch"}
	case method == http.MethodDelete && one:
		return []string{"delete"}
	case method == http.MethodDelete:
		return []string{"deletecollection"}
	}
	return nil
}

// named says whether the path is of one object. A Name alone does not: lists that
// select metadata.name have one too.
func named(info *request.RequestInfo) bool { return len(info.Parts) > 1 }

// routed reports whether upstream has a route for the path: objects of namespaces are
// below one, others are not, and only proxies have something below a subresource.
func (r *resource) routed(info *request.RequestInfo) bool {
	switch {
	case len(info.Parts) > 3 && !r.subs[info.Subresource].isProxy():
		return false
	case r.namespaced:
		return info.Namespace != "" || !named(info)
	}
	return info.Namespace == "" || info.Resource == "namespaces" && named(info) && info.Name == info.Namespace
}

// allows is an error unless upstream has a route for the method at the path.
func (r *resource) allows(method string, info *request.RequestInfo) error {
	if r.kind != nil && r.kind.Custom != nil {
		return nil
	}
	if info.Subresource != "" {
		sub, ok := r.subs[info.Subresource]
		if !ok || info.Name == "" {
			return noSuchPath()
		}
		verbs := map[string]string{
			http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
		}
		if sub.isProxy() || slices.Contains(sub.verbs, verbs[method]) {
			return nil
		}
		return methodNotAllowed()
	}
	if r.review != nil && named(info) {
		return noSuchPath()
	}
	verbs := verbsOf(method, named(info))
	if r.namespaced && info.Namespace == "" {
		verbs = slices.DeleteFunc(verbs, func(v string) bool { return v != "list" && v != "watch" })
	}
	if !slices.ContainsFunc(verbs, r.serves) {
		return methodNotAllowed()
	}
	return nil
}

func (r *resource) serves(verb string) bool {
	if r.review != nil {
		return verb == "create"
	}
	return r.kind.Serves(verb)
}

// isProxy: what is behind a proxy knows its methods.
func (s subresource) isProxy() bool { return strings.HasSuffix(s.gvk.Kind, "ProxyOptions") }

// isBuiltIn says whether a group has resources that no definition brought.
func (c *catalog) isBuiltIn(group string) bool {
	for gvr, r := range c.resources {
		if gvr.Group == group && (r.kind == nil || r.kind.Custom == nil) {
			return true
		}
	}
	return false
}

// notFound answers for a path that leads nowhere: below a group of its own upstream's
// router does, with a Status.
func (s *Server) notFound(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	if parts[0] == "api" || parts[0] == "apis" && len(parts) > 1 && s.api().isBuiltIn(parts[1]) {
		s.respondError(w, req, noSuchPath())
		return
	}
	notFoundPath(w)
}

// getOnly refuses other methods of a document as upstream's router does.
func (s *Server) getOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet {
			s.respondError(w, req, methodNotAllowed())
			return
		}
		h(w, req)
	}
}
