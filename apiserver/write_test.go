package apiserver_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"edged/apiserver"
	"edged/apiserver/registry"
)

// allow grants a user a verb on a core resource everywhere.
func (e *env) allow(user, verb, resource string) {
	e.t.Helper()
	name := strings.ReplaceAll(user+"-"+verb+"-"+resource, "/", "-")
	_, err := registry.For[*rbacv1.ClusterRole](e.reg).Create(context.Background(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{Verbs: []string{verb}, APIGroups: []string{"", "authentication.k8s.io"}, Resources: []string{resource}}},
	})
	must(e.t, err)
	_, err = registry.For[*rbacv1.ClusterRoleBinding](e.reg).Create(context.Background(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
	})
	must(e.t, err)
}

// send posts a raw body and returns status, Warning headers and body.
func (e *env) send(cfg *rest.Config, method, path, contentType, body string) (int, []string, string) {
	e.t.Helper()
	c, err := rest.HTTPClientFor(cfg)
	must(e.t, err)
	req, err := http.NewRequest(method, e.url+path, strings.NewReader(body))
	must(e.t, err)
	req.Header.Set("Content-Type", contentType)
	resp, err := c.Do(req)
	must(e.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(e.t, err)
	return resp.StatusCode, resp.Header["Warning"], string(b)
}

const podsPath = "/api/v1/namespaces/default/pods"

// TestFieldValidation sends a Pod with an unknown and a duplicate field.
func TestFieldValidation(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	body := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p%d"},"spec":{"containers":[{"name":"c","image":"i","image":"j","foo":1}]}}`
	const unknown, duplicate = `unknown field \"spec.containers[0].foo\"`, `duplicate field \"spec.containers[0].image\"`

	code, warnings, text := e.send(admin, "POST", podsPath+"?fieldValidation=Strict", "application/json", fmt.Sprintf(body, 1))
	if code != 400 || len(warnings) != 0 || !strings.Contains(text, unknown) || !strings.Contains(text, duplicate) ||
		!strings.Contains(text, `Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: `) {
		t.Errorf("Strict: %d %v %s", code, warnings, text)
	}
	code, warnings, _ = e.send(admin, "POST", podsPath, "application/json", fmt.Sprintf(body, 2)) // Warn is the default
	if code != 201 || len(warnings) != 2 || !strings.Contains(strings.Join(warnings, "\n"), unknown) {
		t.Errorf("Warn: %d %v", code, warnings)
	}
	code, warnings, _ = e.send(admin, "POST", podsPath+"?fieldValidation=Ignore", "application/json", fmt.Sprintf(body, 3))
	if code != 201 || len(warnings) != 0 {
		t.Errorf("Ignore: %d %v", code, warnings)
	}
	code, _, text = e.send(admin, "POST", podsPath+"?fieldValidation=No", "application/json", fmt.Sprintf(body, 4))
	if code != 422 {
		t.Errorf("unknown directive: %d %s", code, text)
	}
}

// TestBadBodies are refused in upstream's words.
func TestBadBodies(t *testing.T) {
	e := newEnv(t, func(c *apiserver.Config) { c.Limits.BodyBytes = 4096 })
	admin := e.admin()
	for name, tt := range map[string]struct {
		method, path, contentType, body string
		code                            int
		want                            string
	}{
		"not json":      {"POST", podsPath, "application/json", "hello", 400, "the object provided is unrecognized (must be of type Pod): "},
		"other kind":    {"POST", podsPath, "application/json", `{"apiVersion":"v1","kind":"Secret"}`, 400, `Secret in version \"v1\" cannot be handled as a Pod`},
		"other version": {"POST", podsPath, "application/json", `{"apiVersion":"apps/v1","kind":"Deployment"}`, 400, `Deployment in version \"v1\" cannot be handled as a Pod`},
		"media type":    {"POST", podsPath, "text/plain", "x", 415, "the body of the request was in an unknown format - accepted media types include: application/json"},
		"too large":     {"POST", podsPath, "application/json", strings.Repeat(" ", 5000), 413, "Request entity too large: limit is 4096"},
		"namespace":     {"POST", podsPath, "application/json", `{"metadata":{"namespace":"kube-system","name":"p"}}`, 400, "the namespace of the provided object does not match the namespace sent on the request"},
		"name":          {"PUT", "/api/v1/namespaces/default", "application/json", `{"metadata":{"name":"other"}}`, 400, "the name of the object (other) does not match the name on the URL (default)"},
		"invalid":       {"POST", podsPath, "application/json", `{"metadata":{"name":"p"},"spec":{"containers":[]}}`, 422, `Pod \"p\" is invalid: spec.containers: Required value`},
		"yaml":          {"POST", "/api/v1/namespaces", "application/yaml", "metadata: {name: from-yaml}", 201, `"name":"from-yaml"`},
		"cut short":     {"POST", podsPath, "application/json", `{"a":`, 400, `unexpected end of JSON input ({\"a\":)`},
		"empty":         {"POST", podsPath, "application/json", "", 400, `unexpected end of JSON input (\u003cempty\u003e)`},
		"no such verb":  {"POST", podsPath + "/p/log", "application/json", "{}", 405, "the server does not allow this method on the requested resource"},
		"token's home":  {"POST", "/api/v1/namespaces/default/serviceaccounts/default/token", "application/json", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","metadata":{"namespace":"other"}}`, 400, "the namespace of the provided object does not match the namespace sent on the request"},
		"no such sub":   {"GET", podsPath + "/p/none", "application/json", "", 404, "the server could not find the requested resource"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, text := e.send(admin, tt.method, tt.path, tt.contentType, tt.body)
			if code != tt.code || !strings.Contains(text, tt.want) {
				t.Errorf("got  %d %s\nwant %d %s", code, text, tt.code, tt.want)
			}
		})
	}
}

func TestDryRun(t *testing.T) {
	e := newEnv(t, nil)
	c := e.clientset(e.admin()).CoreV1().ConfigMaps("default")
	ctx := context.Background()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	_, err := c.Create(ctx, cm, metav1.CreateOptions{DryRun: []string{"All"}})
	must(t, err)
	if _, err := c.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run wrote: %v", err)
	}
	_, err = c.Create(ctx, cm, metav1.CreateOptions{})
	must(t, err)
	must(t, c.Delete(ctx, "a", metav1.DeleteOptions{DryRun: []string{"All"}}))
	_, err = c.Get(ctx, "a", metav1.GetOptions{})
	must(t, err)
}

// TestDeleteOptions may come in the query or in the body; uid preconditions
// hold.
func TestDeleteOptions(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.admin()
	c := e.clientset(admin).CoreV1().ConfigMaps("default")
	ctx := context.Background()
	for _, name := range []string{"a", "b", "c"} {
		_, err := c.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"l": name}}}, metav1.CreateOptions{})
		must(t, err)
	}
	code, _, text := e.send(admin, "DELETE", "/api/v1/namespaces/default/configmaps/a?propagationPolicy=Foreground", "", "")
	if code != 200 || !strings.Contains(text, `"foregroundDeletion"`) {
		t.Errorf("foreground: %d %s", code, text)
	}
	code, _, text = e.send(admin, "DELETE", "/api/v1/namespaces/default/configmaps/b", "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"x"}}`)
	if code != 409 {
		t.Errorf("precondition: %d %s", code, text)
	}
	code, _, text = e.send(admin, "DELETE", "/api/v1/namespaces/default/configmaps/b", "application/json", `{"propagationPolicy":"Background"}`)
	if code != 200 || !strings.Contains(text, `"status":"Success"`) {
		t.Errorf("background: %d %s", code, text)
	}
	must(t, c.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "l=c"}))
	if list, err := c.List(ctx, metav1.ListOptions{LabelSelector: "l in (b,c)"}); err != nil || len(list.Items) != 0 {
		t.Errorf("left: %v %v", list.Items, err)
	}
}

// TestImpersonation acts as others only with the right to.
func TestImpersonation(t *testing.T) {
	e := newEnv(t, nil)
	whoami := func(cfg *rest.Config) (authenticationv1.UserInfo, error) {
		r, err := e.clientset(cfg).AuthenticationV1().SelfSubjectReviews().Create(context.Background(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return authenticationv1.UserInfo{}, err
		}
		return r.Status.UserInfo, nil
	}
	admin := e.admin()
	admin.Impersonate = rest.ImpersonationConfig{UserName: "bob", UID: "7", Groups: []string{"devs"}, Extra: map[string][]string{"scope": {"a", "b"}}}
	u, err := whoami(admin)
	must(t, err)
	if u.Username != "bob" || u.UID != "7" || fmt.Sprint(u.Groups) != "[devs system:authenticated]" || fmt.Sprint(u.Extra["scope"]) != "[a b]" {
		t.Errorf("acting as %+v", u)
	}
	admin.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:default:robot"}
	u, err = whoami(admin)
	must(t, err)
	if fmt.Sprint(u.Groups) != "[system:serviceaccounts system:serviceaccounts:default system:authenticated]" {
		t.Errorf("groups of an account: %v", u.Groups)
	}
	admin.Impersonate = rest.ImpersonationConfig{Groups: []string{"devs"}}
	if code, _, text := e.send(admin, "GET", "/version", "", ""); code != 400 || !strings.Contains(text, "without impersonating a user name") {
		t.Errorf("a group without a user: %d %s", code, text)
	}
	eve := e.config("eve")
	eve.Impersonate = rest.ImpersonationConfig{UserName: "bob"}
	const want = `selfsubjectreviews.authentication.k8s.io is forbidden: User "eve" cannot impersonate-on:user-info:create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the cluster scope`
	if _, err := whoami(eve); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	e.allow("eve", "impersonate", "users")
	u, err = whoami(eve)
	must(t, err)
	if u.Username != "bob" {
		t.Errorf("acting as %+v", u)
	}
}

// TestConstrainedImpersonation: who may act as another in one respect may in no other.
func TestConstrainedImpersonation(t *testing.T) {
	e := newEnv(t, nil)
	ctx := context.Background()
	e.allow("eve", "impersonate:user-info", "users")
	e.allow("eve", "impersonate:arbitrary-node", "nodes")
	e.allow("eve", "impersonate-on:user-info:list", "pods")
	e.allow("eve", "impersonate-on:arbitrary-node:create", "selfsubjectreviews")
	e.allow("bob", "list", "pods")
	e.allow("bob", "list", "secrets")
	eve := e.config("eve")
	eve.Impersonate = rest.ImpersonationConfig{UserName: "bob"}
	_, err := e.clientset(eve).CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	must(t, err)
	if _, err := e.clientset(eve).CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "cannot impersonate-on:user-info:list") {
		t.Errorf("secrets as bob: %v", err)
	}
	eve.Impersonate = rest.ImpersonationConfig{UserName: "bob", Groups: []string{"system:masters"}}
	if _, err := e.clientset(eve).CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "impersonating the system:masters group is not allowed") {
		t.Errorf("as system:masters: %v", err)
	}
	eve.Impersonate = rest.ImpersonationConfig{UserName: "system:node:n"}
	r, err := e.clientset(eve).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	must(t, err)
	if got := fmt.Sprint(r.Status.UserInfo.Groups); got != "[system:nodes system:authenticated]" {
		t.Errorf("groups of a node: %s", got)
	}
	if _, err := e.clientset(eve).CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("pods as a node: %v", err)
	}
}

// TestTokens makes a token for an account, uses it, and loses it with the
// account.
func TestTokens(t *testing.T) {
	e := newEnv(t, nil)
	ctx := context.Background()
	admin := e.clientset(e.admin())
	accounts := admin.CoreV1().ServiceAccounts("default")
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{})
	must(t, err)
	tr, err := accounts.CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(t, err)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(tr.Status.Token, ".")[1])
	must(t, err)
	if !strings.Contains(string(payload), `"aud":["`+issuer+`"]`) {
		t.Errorf("the audience is no list: %s", payload)
	}
	cfg := rest.AnonymousClientConfig(e.admin())
	cfg.BearerToken = tr.Status.Token
	robot := e.clientset(cfg)
	_, err = robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "system:serviceaccount:default:robot" cannot list`) {
		t.Errorf("before the role: %v", err)
	}
	e.allow("system:serviceaccount:default:robot", "list", "pods")
	_, err = robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	must(t, err)

	review, err := admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tr.Status.Token}}, metav1.CreateOptions{})
	must(t, err)
	if s := review.Status; !s.Authenticated || s.User.Username != "system:serviceaccount:default:robot" || fmt.Sprint(s.Audiences) != "["+issuer+"]" {
		t.Errorf("review: %+v", s)
	}
	review, err = admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "no token"}}, metav1.CreateOptions{})
	must(t, err)
	if s := review.Status; s.Authenticated || s.Error != "invalid bearer token" {
		t.Errorf("review of no token: %+v", s)
	}
	_, err = accounts.CreateToken(ctx, "robot", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64)}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not specify a duration less than 10 minutes") {
		t.Errorf("short token: %v", err)
	}
	must(t, accounts.Delete(ctx, "robot", metav1.DeleteOptions{}))
	if _, err = robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("after the account: %v", err)
	}
	for _, path := range []string{"/.well-known/openid-configuration", "/openid/v1/jwks"} {
		if resp := e.do(e.admin(), "GET", path, nil); resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestAccessReviews(t *testing.T) {
	e := newEnv(t, nil)
	ctx := context.Background()
	e.allow("eve", "list", "pods")
	eve, admin := e.clientset(e.config("eve")).AuthorizationV1(), e.clientset(e.admin()).AuthorizationV1()
	attrs := func(verb string) *authorizationv1.ResourceAttributes {
		return &authorizationv1.ResourceAttributes{Verb: verb, Resource: "pods", Namespace: "default"}
	}
	for verb, want := range map[string]bool{"list": true, "delete": false} {
		self, err := eve.SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attrs(verb)}}, metav1.CreateOptions{})
		must(t, err)
		other, err := admin.SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: "eve", ResourceAttributes: attrs(verb)}}, metav1.CreateOptions{})
		must(t, err)
		local, err := admin.LocalSubjectAccessReviews("default").Create(ctx, &authorizationv1.LocalSubjectAccessReview{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default"},
			Spec:       authorizationv1.SubjectAccessReviewSpec{User: "eve", ResourceAttributes: attrs(verb)}}, metav1.CreateOptions{})
		must(t, err)
		if self.Status.Allowed != want || other.Status.Allowed != want || local.Status.Allowed != want {
			t.Errorf("%s: %+v %+v %+v", verb, self.Status, other.Status, local.Status)
		}
	}
	rules, err := eve.SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	must(t, err)
	if !strings.Contains(fmt.Sprint(rules.Status.ResourceRules), "pods") {
		t.Errorf("rules %v", rules.Status)
	}
	_, err = admin.SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("empty review: %v", err)
	}
	// A review has no metadata that a Table could show: conformance asks for 406.
	c, err := rest.HTTPClientFor(e.admin())
	must(t, err)
	req, err := http.NewRequest("POST", e.url+"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", strings.NewReader("{}"))
	must(t, err)
	req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("a review as Table: %d", resp.StatusCode)
	}
}

// TestInFlight: a full server answers 429 with Retry-After, health always
// answers.
func TestInFlight(t *testing.T) {
	block, entered := make(chan struct{}), make(chan struct{})
	e := newEnv(t, func(c *apiserver.Config) {
		c.Limits.WritesInFlight, c.Limits.QueueTimeout = 1, 1
		c.Handlers = map[string]http.Handler{"/slow": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(entered)
			<-block
		})}
	})
	admin := e.admin()
	c, err := rest.HTTPClientFor(admin)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := c.Post(e.url+"/slow", "", nil); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	code, _, text := e.send(admin, "POST", podsPath, "application/json", "{}")
	if code != http.StatusTooManyRequests || !strings.Contains(text, "Too many requests, please try again later.") {
		t.Errorf("full: %d %s", code, text)
	}
	if resp := e.do(admin, "GET", "/livez", nil); resp.StatusCode != 200 {
		t.Errorf("livez: %d", resp.StatusCode)
	}
	close(block)
	<-done
}

// TestLegacyResources: what upstream still serves and few ask for.
func TestLegacyResources(t *testing.T) {
	e := newEnv(t, nil)
	admin := e.clientset(e.config("admin", "system:masters"))
	ctx := t.Context()
	_, err := admin.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	must(t, err)
	bind := func(dryRun ...string) string {
		t.Helper()
		status := &metav1.Status{}
		err := admin.CoreV1().RESTClient().Post().Resource("bindings").Namespace("default").VersionedParams(&metav1.CreateOptions{DryRun: dryRun}, scheme.ParameterCodec).
			Body(&corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}).Do(ctx).Into(status)
		must(t, err)
		if status.Status != metav1.StatusSuccess {
			t.Errorf("the answer is %v", status)
		}
		p, err := admin.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
		must(t, err)
		return p.Spec.NodeName
	}
	if node := bind("All"); node != "" {
		t.Errorf("a dry run gave it node %q", node)
	}
	if node := bind(); node != "n" {
		t.Errorf("it is bound to %q", node)
	}
	components, err := admin.CoreV1().ComponentStatuses().List(ctx, metav1.ListOptions{})
	must(t, err)
	var found []string
	for _, c := range components.Items {
		found = append(found, fmt.Sprintf("%s %s %s", c.Name, c.Conditions[0].Status, c.Conditions[0].Message))
	}
	if got := strings.Join(found, ", "); got != "controller-manager True ok, etcd-0 True ok, scheduler True ok" {
		t.Errorf("components: %s", got)
	}
	if err := admin.CoreV1().ComponentStatuses().Delete(ctx, "scheduler", metav1.DeleteOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("deleting one: %v", err)
	}
}
