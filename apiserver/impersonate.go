package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// impersonate returns the user that the Impersonate-* headers ask to act as,
// if the caller may, and removes the headers.
//
// There are several rights by which one may (KEP-5284): impersonate allows all that
// the other user may do; the constrained ones, such as impersonate:user-info, allow
// it only together with impersonate-on:user-info:VERB for the request itself. They
// are tried in upstream's order, and it is the first one's refusal that is told.
func (s *Server) impersonate(req *http.Request, info *request.RequestInfo, caller user.Info) (user.Info, error) {
	wanted, err := parseImpersonation(req.Header)
	if err != nil {
		return nil, err
	}
	if wanted == nil {
		return caller, nil
	}
	attrs := requestAttributes(caller, info)
	var refused error
	for _, m := range impersonationModes {
		if m.applies != nil && !m.applies(wanted, caller) {
			continue
		}
		as, err := s.impersonateBy(req.Context(), m, wanted, attrs)
		if err == nil {
			return as, nil
		}
		if refused == nil {
			refused = err
		}
	}
	return nil, refused
}

// parseImpersonation takes who is asked for out of the headers; nil if nobody is.
func parseImpersonation(h http.Header) (*user.DefaultInfo, error) {
	wanted := &user.DefaultInfo{
		Name: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: slices.Clone(h[authenticationv1.ImpersonateGroupHeader]),
	}
	for name, values := range h {
		key, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		key = strings.ToLower(key)
		if unescaped, err := url.PathUnescape(key); err == nil {
			key = unescaped
		}
		if wanted.Extra == nil {
			wanted.Extra = map[string][]string{}
		}
		wanted.Extra[key] = append(wanted.Extra[key], values...)
	}
	if wanted.Name == "" {
		if !onlyNamed(wanted) {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("requested %#v without impersonating a user name", wanted))
		}
		return nil, nil
	}
	for name := range h {
		if strings.HasPrefix(name, "Impersonate-") {
			h.Del(name)
		}
	}
	return wanted, nil
}

// impersonationMode is one right to act as another.
type impersonationMode struct {
	name    string // "" is the one that allows everything
	applies func(wanted *user.DefaultInfo, caller user.Info) bool
}

func (m impersonationMode) verb() string {
	if m.name == "" {
		return "impersonate"
	}
	return "impersonate:" + m.name
}

var impersonationModes = []impersonationMode{
	{associatedNode, func(wanted *user.DefaultInfo, caller user.Info) bool {
		node, ok := nodeOf(wanted.Name)
		_, _, err := serviceaccount.SplitUsername(caller.GetName())
		on := caller.GetExtra()[serviceaccount.NodeNameKey]
		return ok && err == nil && onlyNamed(wanted) && len(on) == 1 && on[0] == node
	}},
	{"arbitrary-node", func(wanted *user.DefaultInfo, _ user.Info) bool {
		_, ok := nodeOf(wanted.Name)
		return ok && onlyNamed(wanted)
	}},
	{"serviceaccount", func(wanted *user.DefaultInfo, _ user.Info) bool {
		_, _, err := serviceaccount.SplitUsername(wanted.Name)
		return err == nil && onlyNamed(wanted)
	}},
	{"user-info", func(wanted *user.DefaultInfo, _ user.Info) bool {
		_, isNode := nodeOf(wanted.Name)
		_, _, err := serviceaccount.SplitUsername(wanted.Name)
		return !isNode && err != nil
	}},
	{},
}

// associatedNode is the right of an account to act as the Node that its Pod runs on.
const associatedNode = "associated-node"

func onlyNamed(u *user.DefaultInfo) bool {
	return u.UID == "" && len(u.Groups) == 0 && len(u.Extra) == 0
}

func nodeOf(username string) (string, bool) {
	name, ok := strings.CutPrefix(username, "system:node:")
	return name, ok && len(validation.NameIsDNSSubdomain(name, false)) == 0
}

// impersonateBy checks one right for the request that attrs are of.
func (s *Server) impersonateBy(ctx context.Context, m impersonationMode, wanted *user.DefaultInfo, attrs authorizer.AttributesRecord) (user.Info, error) {
	if m.name == associatedNode {
		attrs.User = withoutExtra(attrs.User)
	}
	caller := attrs.User
	if m.name != "" {
		attrs.Verb = "impersonate-on:" + m.name + ":" + attrs.Verb
		if err := s.mayImpersonate(ctx, attrs); err != nil {
			return nil, err
		}
		if err := impersonable(caller, m, wanted); err != nil {
			return nil, err
		}
	}
	for _, a := range impersonationChecks(m, wanted) {
		a.User, a.Verb, a.ResourceRequest = caller, m.verb(), true
		if err := s.mayImpersonate(ctx, a); err != nil {
			return nil, err
		}
	}
	return impersonated(m, wanted), nil
}

func (s *Server) mayImpersonate(ctx context.Context, attrs authorizer.AttributesRecord) error {
	decision, reason, err := s.authz.Authorize(ctx, attrs)
	switch {
	case decision == authorizer.DecisionAllow:
		return nil
	case err != nil && reason != "":
		reason = fmt.Sprintf("%v: %s", err, reason)
	case err != nil:
		reason = err.Error()
	}
	return forbidden(attrs, reason)
}

// withoutExtra is the caller as rules about its own Node see it: with the names of
// what else is known of it.
func withoutExtra(u user.Info) user.Info {
	keys := make([]string, 0, len(u.GetExtra()))
	for key := range u.GetExtra() {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return &user.DefaultInfo{
		Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(),
		Extra: map[string][]string{"authentication.kubernetes.io/associated-node-keys": keys},
	}
}

// impersonationChecks are what has to be allowed with the mode's verb.
func impersonationChecks(m impersonationMode, wanted *user.DefaultInfo) (checks []authorizer.AttributesRecord) {
	gv := authenticationv1.SchemeGroupVersion
	users := gv
	if m.name == "" {
		users = schema.GroupVersion{Version: "v1"}
	}
	add := func(gv schema.GroupVersion, a authorizer.AttributesRecord) {
		a.APIGroup, a.APIVersion = gv.Group, gv.Version
		checks = append(checks, a)
	}
	node, isNode := nodeOf(wanted.Name)
	switch ns, name, err := serviceaccount.SplitUsername(wanted.Name); {
	case err == nil:
		add(users, authorizer.AttributesRecord{Resource: "serviceaccounts", Namespace: ns, Name: name})
	case m.name == associatedNode:
		add(users, authorizer.AttributesRecord{Resource: "nodes", Name: "*"})
	case isNode && m.name != "":
		add(users, authorizer.AttributesRecord{Resource: "nodes", Name: node})
	default:
		add(users, authorizer.AttributesRecord{Resource: "users", Name: wanted.Name})
	}
	if wanted.UID != "" {
		add(gv, authorizer.AttributesRecord{Resource: "uids", Name: wanted.UID})
	}
	for _, g := range wanted.Groups {
		add(users, authorizer.AttributesRecord{Resource: "groups", Name: g})
	}
	for key, values := range wanted.Extra {
		for _, v := range values {
			add(gv, authorizer.AttributesRecord{Resource: "userextras", Subresource: key, Name: v})
		}
	}
	return checks
}

// impersonable refuses what no constrained right gives.
func impersonable(caller user.Info, m impersonationMode, wanted *user.DefaultInfo) error {
	refuse := func(resource, name, why string) error {
		gv := authenticationv1.SchemeGroupVersion
		return forbidden(authorizer.AttributesRecord{
			User: caller, Verb: m.verb(), ResourceRequest: true, APIGroup: gv.Group, APIVersion: gv.Version, Resource: resource, Name: name,
		}, why)
	}
	switch {
	case slices.Contains(wanted.Groups, ""):
		return refuse("groups", "", "impersonating the empty string group is not allowed")
	case slices.Contains(wanted.Groups, user.SystemPrivilegedGroup):
		return refuse("groups", user.SystemPrivilegedGroup, "impersonating the system:masters group is not allowed")
	}
	for key, values := range wanted.Extra {
		if err := validExtra(key, values); err != nil {
			return refuse("userextras", "", err.Error())
		}
	}
	return nil
}

func validExtra(key string, values []string) error {
	if key == "" {
		return errors.New("impersonating the empty string key in extra is not allowed")
	}
	if err := utilvalidation.IsDomainPrefixedPath(field.NewPath("extra", "key"), key).ToAggregate(); err != nil {
		return fmt.Errorf("impersonating an invalid key in extra is not allowed: %w", err)
	}
	switch {
	case key != strings.ToLower(key):
		return fmt.Errorf("impersonating a non-lowercase key in extra is not allowed: %q", key)
	case len(values) == 0:
		return errors.New("impersonating empty values in extra is not allowed")
	case slices.Contains(values, ""):
		return errors.New("impersonating the empty string value in extra is not allowed")
	}
	return nil
}

// impersonated completes the groups: everybody is either authenticated or not.
func impersonated(m impersonationMode, wanted *user.DefaultInfo) user.Info {
	as := *wanted
	if ns, _, err := serviceaccount.SplitUsername(wanted.Name); err == nil && len(as.Groups) == 0 {
		as.Groups = serviceaccount.MakeGroupNames(ns)
	}
	if _, isNode := nodeOf(wanted.Name); isNode && m.name != "" {
		as.Groups = []string{user.NodesGroup}
	}
	group := user.AllAuthenticated
	switch {
	case as.Name == user.Anonymous:
		group = user.AllUnauthenticated
	case slices.Contains(as.Groups, user.AllUnauthenticated):
		return &as
	}
	if !slices.Contains(as.Groups, group) {
		as.Groups = append(slices.Clip(as.Groups), group)
	}
	return &as
}
