package apiserver

import (
	"context"
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	authorizationapi "k8s.io/kubernetes/pkg/apis/authorization"
	"k8s.io/kubernetes/pkg/apis/authorization/validation"
	authorizationutil "k8s.io/kubernetes/pkg/registry/authorization/util"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// reviewFunc answers a question that is posted as an object and stored
// nowhere. It gets the object, decoded and its own, and returns the answer.
type reviewFunc func(s *Server, ctx context.Context, namespace string, obj runtime.Object, opts metav1.CreateOptions) (runtime.Object, error)

type review struct {
	resource   string
	namespaced bool
	answer     reviewFunc
}

// reviews are the resources that are asked, not stored.
var reviews = map[schema.GroupVersionKind]review{
	authenticationv1.SchemeGroupVersion.WithKind("TokenReview"):             {"tokenreviews", false, (*Server).reviewToken},
	authenticationv1.SchemeGroupVersion.WithKind("SelfSubjectReview"):       {"selfsubjectreviews", false, (*Server).reviewSelf},
	authorizationv1.SchemeGroupVersion.WithKind("SubjectAccessReview"):      {"subjectaccessreviews", false, (*Server).reviewAccess},
	authorizationv1.SchemeGroupVersion.WithKind("LocalSubjectAccessReview"): {"localsubjectaccessreviews", true, (*Server).reviewLocalAccess},
	authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"):  {"selfsubjectaccessreviews", false, (*Server).reviewSelfAccess},
	authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectRulesReview"):   {"selfsubjectrulesreviews", false, (*Server).reviewSelfRules},
	coreV1.WithKind("Binding"): {"bindings", true, (*Server).bind},
}

func (s *Server) serveReview(w http.ResponseWriter, req *http.Request, info *request.RequestInfo, res *resource) error {
	if info.Verb != "create" || info.Name != "" {
		return apierrors.NewMethodNotSupported(res.gvr.GroupResource(), info.Verb)
	}
	out, err := negotiate(req, plainEndpoint)
	if err != nil {
		return err
	}
	opts, err := createOptions(req)
	if err != nil {
		return err
	}
	obj, err := s.decodeBody(req, res.gvk, opts.FieldValidation)
	if err != nil {
		return err
	}
	answer, err := res.review(s, req.Context(), info.Namespace, obj, opts)
	if err != nil {
		return err
	}
	if _, ok := answer.(*metav1.Status); !ok {
		answer.GetObjectKind().SetGroupVersionKind(res.gvk)
	}
	body, err := encodeObject(out, answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", out.mediaType)
	s.write(w, req, http.StatusCreated, body)
	return nil
}

// bind is POST bindings, an older form of pods/binding: the object names the Pod.
func (s *Server) bind(ctx context.Context, namespace string, obj runtime.Object, opts metav1.CreateOptions) (runtime.Object, error) {
	b := obj.(*corev1.Binding)
	if namespace == "" || b.Namespace != "" && b.Namespace != namespace {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	b.Namespace = namespace
	return s.reg.CreateSubresource(ctx, coreV1.WithResource("pods").GroupResource(), namespace, b.Name, "binding", b, opts)
}

func (s *Server) reviewToken(ctx context.Context, _ string, obj runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	r := obj.(*authenticationv1.TokenReview)
	if r.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	auds := authenticator.Audiences(r.Spec.Audiences)
	if len(auds) == 0 && s.tokens != nil {
		auds = s.tokens.Audiences()
	}
	if len(auds) > 0 {
		ctx = authenticator.WithAudiences(ctx, auds)
	}
	resp, ok, err := s.authn.AuthenticateToken(ctx, r.Spec.Token)
	r.Status = authenticationv1.TokenReviewStatus{Authenticated: ok}
	if err != nil {
		r.Status.Error = err.Error()
	}
	if ok {
		r.Status.User = userInfo(resp.User)
		r.Status.Audiences = resp.Audiences
	}
	return r, nil
}

func (s *Server) reviewSelf(ctx context.Context, _ string, _ runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	u, _ := registry.UserFrom(ctx)
	return &authenticationv1.SelfSubjectReview{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(time.Now())},
		Status:     authenticationv1.SelfSubjectReviewStatus{UserInfo: userInfo(u)},
	}, nil
}

func userInfo(u user.Info) authenticationv1.UserInfo {
	out := authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	for k, v := range u.GetExtra() {
		if out.Extra == nil {
			out.Extra = map[string]authenticationv1.ExtraValue{}
		}
		out.Extra[k] = v
	}
	return out
}

func (s *Server) reviewAccess(ctx context.Context, _ string, obj runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	r := obj.(*authorizationv1.SubjectAccessReview)
	internal := &authorizationapi.SubjectAccessReview{}
	if err := codec.Scheme().Convert(r, internal, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidateSubjectAccessReview(internal); len(errs) > 0 {
		return nil, invalidReview("SubjectAccessReview", errs)
	}
	r.Status = s.decide(ctx, authorizationutil.AuthorizationAttributesFrom(internal.Spec))
	return r, nil
}

func (s *Server) reviewLocalAccess(ctx context.Context, namespace string, obj runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	r := obj.(*authorizationv1.LocalSubjectAccessReview)
	if r.Namespace == "" {
		r.Namespace = namespace
	}
	internal := &authorizationapi.LocalSubjectAccessReview{}
	if err := codec.Scheme().Convert(r, internal, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidateLocalSubjectAccessReview(internal); len(errs) > 0 {
		return nil, invalidReview("LocalSubjectAccessReview", errs)
	}
	if namespace != r.Namespace {
		return nil, apierrors.NewBadRequest("spec.resourceAttributes.namespace must match namespace: " + namespace)
	}
	r.Status = s.decide(ctx, authorizationutil.AuthorizationAttributesFrom(internal.Spec))
	return r, nil
}

func (s *Server) reviewSelfAccess(ctx context.Context, _ string, obj runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	r := obj.(*authorizationv1.SelfSubjectAccessReview)
	internal := &authorizationapi.SelfSubjectAccessReview{}
	if err := codec.Scheme().Convert(r, internal, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if errs := validation.ValidateSelfSubjectAccessReview(internal); len(errs) > 0 {
		return nil, invalidReview("SelfSubjectAccessReview", errs)
	}
	u, _ := registry.UserFrom(ctx)
	attrs := authorizer.AttributesRecord{}
	if internal.Spec.ResourceAttributes != nil {
		attrs = authorizationutil.ResourceAttributesFrom(u, *internal.Spec.ResourceAttributes)
	} else {
		attrs = authorizationutil.NonResourceAttributesFrom(u, *internal.Spec.NonResourceAttributes)
	}
	r.Status = s.decide(ctx, attrs)
	return r, nil
}

func invalidReview(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: authorizationv1.GroupName, Kind: kind}, "", errs)
}

func (s *Server) decide(ctx context.Context, attrs authorizer.AttributesRecord) authorizationv1.SubjectAccessReviewStatus {
	decision, reason, err := s.authz.Authorize(ctx, attrs)
	return authorizationv1.SubjectAccessReviewStatus{
		Allowed:         decision == authorizer.DecisionAllow,
		Denied:          decision == authorizer.DecisionDeny,
		Reason:          reason,
		EvaluationError: authorizationutil.BuildEvaluationError(err, attrs),
	}
}

func (s *Server) reviewSelfRules(ctx context.Context, _ string, obj runtime.Object, _ metav1.CreateOptions) (runtime.Object, error) {
	r := obj.(*authorizationv1.SelfSubjectRulesReview)
	if r.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	u, _ := registry.UserFrom(ctx)
	resources, nonResources, incomplete, err := s.authz.RulesFor(ctx, u, r.Spec.Namespace)
	out := &authorizationv1.SelfSubjectRulesReview{Status: authorizationv1.SubjectRulesReviewStatus{
		ResourceRules:    make([]authorizationv1.ResourceRule, 0, len(resources)),
		NonResourceRules: make([]authorizationv1.NonResourceRule, 0, len(nonResources)),
		Incomplete:       incomplete,
	}}
	for _, i := range resources {
		out.Status.ResourceRules = append(out.Status.ResourceRules, authorizationv1.ResourceRule{
			Verbs: i.GetVerbs(), APIGroups: i.GetAPIGroups(), Resources: i.GetResources(), ResourceNames: i.GetResourceNames()})
	}
	for _, i := range nonResources {
		out.Status.NonResourceRules = append(out.Status.NonResourceRules, authorizationv1.NonResourceRule{
			Verbs: i.GetVerbs(), NonResourceURLs: i.GetNonResourceURLs()})
	}
	if err != nil {
		out.Status.EvaluationError = err.Error()
	}
	return out, nil
}
