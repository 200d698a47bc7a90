package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Foreign lists what the servers of aggregated APIs serve, a group's preferred
// version first, and the group versions whose server does not answer. Who has no
// such servers is asked nothing: what this process serves itself, which has nothing to
// collect, is not among them.
func (s *Server) Foreign(ctx context.Context) (served []*metav1.APIResourceList, failed []schema.GroupVersion) {
	groups := s.others.groups()
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		for _, svc := range groups[name] {
			if s.others.isOwn(svc) {
				continue
			}
			var found *metav1.APIResourceList
			current := false
			if isAvailable(svc) {
				found, current = s.others.resources(ctx, svc)
			}
			gv := schema.GroupVersion{Group: name, Version: svc.Spec.Version}
			if !current {
				failed = append(failed, gv)
				continue
			}
			list := *found
			list.GroupVersion = gv.String()
			served = append(served, &list)
		}
	}
	return served, failed
}

// Forward sends a request to the server of its path's group version, in the name
// of a user that this server vouches for.
func (s *Server) Forward(req *http.Request, as user.Info) (*http.Response, error) {
	parts := strings.SplitN(strings.Trim(req.URL.Path, "/"), "/", 4)
	if len(parts) < 3 {
		return nil, fmt.Errorf("%s names no group version", req.URL.Path)
	}
	svc, ok := s.others.find(parts[2] + "." + parts[1])
	if !ok {
		return nil, fmt.Errorf("nobody serves %s/%s", parts[1], parts[2])
	}
	b, err := s.others.backend(svc)
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.URL.Scheme, req.URL.Host = "https", svcHost(&b.spec)
	req.Host = req.URL.Host
	setUser(req, as)
	return b.transport.RoundTrip(req)
}
