package apiserver

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// identify finds out who sends the request and whom they act for, and puts
// that user into its context.
func (s *Server) identify(req *http.Request) (*http.Request, error) {
	resp, ok, err := s.authn.AuthenticateRequest(req)
	if err != nil || !ok {
		if err != nil {
			s.logger.Debug("unable to authenticate the request", "path", req.URL.Path, "err", err)
		}
		return req, apierrors.NewUnauthorized("Unauthorized")
	}
	u, err := s.impersonate(req, resp.User)
	if err != nil {
		return req, err
	}
	return req.WithContext(registry.WithUser(req.Context(), u)), nil
}

// impersonate returns the user that the Impersonate-* headers ask to act as,
// if the caller may, and removes the headers.
func (s *Server) impersonate(req *http.Request, caller user.Info) (user.Info, error) {
	who, err := parseImpersonation(req.Header)
	if err != nil {
		return nil, err
	}
	if who == nil {
		return caller, nil
	}
	for _, attrs := range who.checks {
		attrs.User, attrs.Verb, attrs.ResourceRequest = caller, "impersonate", true
		decision, reason, err := s.authz.Authorize(req.Context(), attrs)
		if err != nil || decision != authorizer.DecisionAllow {
			return nil, forbidden(attrs, reason)
		}
	}
	for name := range req.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			req.Header.Del(name)
		}
	}
	return who.user(), nil
}

// impersonation is a parsed set of Impersonate-* headers.
type impersonation struct {
	name, uid       string
	groups          []string
	groupsSpecified bool
	extra           map[string][]string
	checks          []authorizer.AttributesRecord // each must be allowed
}

func parseImpersonation(h http.Header) (*impersonation, error) {
	who := &impersonation{extra: map[string][]string{}}
	who.name, who.uid = h.Get(authenticationv1.ImpersonateUserHeader), h.Get(authenticationv1.ImpersonateUIDHeader)
	who.groups = append(who.groups, h[authenticationv1.ImpersonateGroupHeader]...)
	who.groupsSpecified = len(who.groups) > 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		key = strings.ToLower(key)
		if unescaped, err := url.PathUnescape(key); err == nil {
			key = unescaped
		}
		who.extra[key] = append(who.extra[key], values...)
	}
	if who.name == "" {
		if who.groupsSpecified || who.uid != "" || len(who.extra) > 0 {
			asked := &user.DefaultInfo{UID: who.uid, Groups: h[authenticationv1.ImpersonateGroupHeader], Extra: who.extra}
			return nil, apierrors.NewBadRequest(fmt.Sprintf("requested %#v without impersonating a user name", asked))
		}
		return nil, nil
	}
	who.collectChecks()
	return who, nil
}

func (who *impersonation) collectChecks() {
	add := func(a authorizer.AttributesRecord) { who.checks = append(who.checks, a) }
	if ns, name, err := serviceaccount.SplitUsername(who.name); err == nil {
		add(authorizer.AttributesRecord{Resource: "serviceaccounts", Namespace: ns, Name: name})
		if !who.groupsSpecified {
			who.groups = serviceaccount.MakeGroupNames(ns)
		}
	} else {
		add(authorizer.AttributesRecord{Resource: "users", Name: who.name})
	}
	if who.groupsSpecified {
		for _, g := range who.groups {
			add(authorizer.AttributesRecord{Resource: "groups", Name: g})
		}
	}
	gv := authenticationv1.SchemeGroupVersion
	for key, values := range who.extra {
		for _, v := range values {
			add(authorizer.AttributesRecord{APIGroup: gv.Group, APIVersion: gv.Version, Resource: "userextras", Subresource: key, Name: v})
		}
	}
	if who.uid != "" {
		add(authorizer.AttributesRecord{APIGroup: gv.Group, APIVersion: gv.Version, Resource: "uids", Name: who.uid})
	}
}

// user completes the groups: everybody is either authenticated or not.
func (who *impersonation) user() user.Info {
	group := user.AllAuthenticated
	if who.name == user.Anonymous {
		group = user.AllUnauthenticated
	}
	groups := who.groups
	has := false
	for _, g := range groups {
		has = has || g == user.AllUnauthenticated || (g == user.AllAuthenticated && group == user.AllAuthenticated)
	}
	if !has {
		groups = append(groups, group)
	}
	return &user.DefaultInfo{Name: who.name, UID: who.uid, Groups: groups, Extra: who.extra}
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
