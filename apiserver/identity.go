package apiserver

import (
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// identify finds out who sends the request and whom they act for, and puts
// that user into its context.
func (s *Server) identify(req *http.Request, info *request.RequestInfo) (*http.Request, error) {
	resp, ok, err := s.authn.AuthenticateRequest(req)
	if err != nil || !ok {
		if err != nil {
			s.logger.Debug("unable to authenticate the request", "path", req.URL.Path, "err", err)
		}
		return req, apierrors.NewUnauthorized("Unauthorized")
	}
	u, err := s.impersonate(req, info, resp.User)
	if err != nil {
		return req, err
	}
	return req.WithContext(registry.WithUser(req.Context(), u)), nil
}

// authorize refuses what the user may not do.
func (s *Server) authorize(req *http.Request, info *request.RequestInfo) error {
	u, _ := registry.UserFrom(req.Context())
	attrs := requestAttributes(u, info)
	decision, reason, err := s.authz.Authorize(req.Context(), attrs)
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return forbidden(attrs, reason)
}

func requestAttributes(u user.Info, info *request.RequestInfo) authorizer.AttributesRecord {
	attrs := authorizer.AttributesRecord{
		User: u, Verb: info.Verb, Namespace: info.Namespace,
		APIGroup: info.APIGroup, APIVersion: info.APIVersion,
		Resource: info.Resource, Subresource: info.Subresource, Name: info.Name,
		ResourceRequest: info.IsResourceRequest, Path: info.Path,
	}
	if info.IsResourceRequest {
		setSelectors(&attrs, info.FieldSelector, info.LabelSelector)
	}
	return attrs
}

var sanitizer = strings.NewReplacer(`&`, "&amp;", `<`, "&lt;", `>`, "&gt;")

// forbidden is upstream's 403, word for word.
func forbidden(a authorizer.Attributes, reason string) error {
	msg := sanitizer.Replace(forbiddenMessage(a))
	if reason != "" {
		msg += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.GetAPIGroup(), Resource: a.GetResource()}, a.GetName(), fmt.Errorf("%s", msg))
}

func forbiddenMessage(a authorizer.Attributes) string {
	name := a.GetUser().GetName()
	if !a.IsResourceRequest() {
		return fmt.Sprintf("User %q cannot %s path %q", name, a.GetVerb(), a.GetPath())
	}
	resource := a.GetResource()
	if sub := a.GetSubresource(); sub != "" {
		resource += "/" + sub
	}
	scope := "at the cluster scope"
	if ns := a.GetNamespace(); ns != "" {
		scope = fmt.Sprintf("in the namespace %q", ns)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", name, a.GetVerb(), resource, a.GetAPIGroup(), scope)
}
